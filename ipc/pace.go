// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import "time"

const (
	// restShare is how much longer than telling all others takes a watch rests after it was told,
	// and maxRest how long at the most.
	restShare = 4
	maxRest   = 100 * time.Millisecond

	// maxHeld is how many bytes of records, as they are in a client's buffer, wait for the end of
	// a rest. Nobody is charged for them.
	maxHeld = 4096
)

// pace has a watch rest after it was told when many are told of the same changes: what happens
// meanwhile it is told in one response. To tell each of 100 watches of each change by itself would
// take what the server has, from whoever makes the changes too. A first change is told at once,
// and where few watch nobody rests longer than the queue does, see gap.
type pace struct {
	each    time.Duration // what telling a watch takes, of late
	held    []*watch      // that have something to be told when they have rested
	resumes time.Time     // when the first of them has; zero if there are none
	over    bool          // nobody rests any more
}

// took takes in how long it took to tell so many watches.
func (p *pace) took(d time.Duration, watches int) {
	const of = 16 // each time has so small a part in what is known
	if d /= time.Duration(watches); p.each == 0 {
		p.each = d
	}
	p.each += (d - p.each) / of
}

// gives says that w is given an event. One whose client does not ask costs nothing.
func (w *watch) gives(e event, now time.Time) {
	if w.given != e.reach && (len(w.pending) > 0 || now.Sub(w.told) < maxRest) {
		*e.reach++
	}
	w.given = e.reach
}

// newReach is called before each Drain. The last event may come again then, as when a file is written on and
// on, and is shared with those that were given it before: the watches that are given it are counted anew.
func (l *worker) newReach() {
	if last := &l.last.event; last.reach != nil && *last.reach > 0 {
		last.reach = new(int)
	}
}

// restsUntil returns until when a watch is told nothing.
func (p *pace) restsUntil(w *watch) time.Time {
	if p.over || w.rested || w.reach == nil {
		return time.Time{}
	}
	if rest := restShare * time.Duration(*w.reach-1) * p.each; rest > gap {
		return w.told.Add(min(rest, maxRest))
	}
	return time.Time{}
}

// holds says whether what w is to be told waits until w has rested.
func (l *worker) holds(w *watch) bool {
	rests := l.restsUntil(w)
	if !rests.After(l.read) || w.gone || w.pending[0].again {
		return false
	}
	if !w.held {
		w.held = true
		l.held = append(l.held, w)
		l.resumes = sooner(l.resumes, rests)
	}
	return true
}

// rouse ends the rest of w.
func (l *worker) rouse(w *watch) {
	w.rested = true
	l.deliver(w)
}

// rouseAll ends all rests, for good.
func (l *worker) rouseAll() {
	l.over = true
	for _, w := range l.held {
		if l.watches[w.id] == w {
			l.deliver(w)
		}
	}
	l.flush()
}

// resume tells those that have rested what was held for them.
func (l *worker) resume(now time.Time) {
	if !due(l.resumes, now) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held
	l.held, l.resumes, l.eager = nil, time.Time{}, true
	for _, w := range held {
		if w.held = false; l.watches[w.id] != w {
			continue
		}
		w.rested = !l.restsUntil(w).After(now)
		l.deliver(w)
	}
	l.flush()
}
