// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// outgoing is a completion in the outbox.
type outgoing struct {
	Completion
	watch *watch
	since time.Time // when the first of the records was there to be read
}

// lastChange is the change of which records were made last: many watches may have them.
type lastChange struct {
	name, old []byte
	change    fanotify.Change
	filter    Filter
	cause     Filter
	event     event
}

// changed takes in what fanotify tells of a watch. It runs within Drain.
func (l *worker) changed(w *watch, c fanotify.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c.Op {
	case fanotify.Overflow:
		l.lose(w, lostAbove)
		return
	case fanotify.Gone:
		w.log.Debug("directory was removed", "watch", w.id)
		w.queue.clear()
		w.gone = true
		l.deliver(w)
		return
	}
	e := l.event(w.filter, c)
	if w.log.Enabled(context.Background(), LevelTrace) {
		w.trace(c, e.records)
	}
	if len(e.records) == 0 {
		return
	}
	w.gives(e, l.read)
	// A request that waits for its turn is served now, rather than that its client lists anew.
	if len(w.pending) == 0 && !w.queue.room(e, w.queue.limit) {
		l.hurry(w)
		l.rouse(w)
	}
	// A watch that rests is told before what it is to be told becomes too long.
	resting := w.held && len(w.pending) > 0 && !w.telling
	if resting && !w.queue.room(e, min(w.pending[0].length, maxHeld)) {
		l.rouse(w)
		resting = false
	}
	if len(w.queue.records) == 0 {
		w.queue.since = l.read
	}
	// What a request takes at once, or is about to, nobody has to keep.
	direct := resting || len(w.pending) > 0 && !w.telling && !w.queue.waiting()
	if why := w.queue.push(e, !direct); why != "" {
		l.overflowed(w, why)
	}
	l.deliver(w)
}

// event returns what a change is told as. Many watches may have the same.
func (l *worker) event(f Filter, c fanotify.Change) event {
	cause, last := l.causes.of(c), &l.last
	k := c
	k.Name, k.OldName, k.File = nil, nil, nil
	if last.filter == f && last.cause == cause && equal(last.change, k) && same(last.name, c.Name) && same(last.old, c.OldName) {
		return last.event
	}
	*last = lastChange{append(last.name[:0], c.Name...), append(last.old[:0], c.OldName...), k, f, cause, newEvent(f.records(c, cause))}
	if c.Name == nil {
		last.name = nil
	}
	if c.OldName == nil {
		last.old = nil
	}
	return last.event
}

func equal(a, b fanotify.Change) bool {
	return a.Op == b.Op && a.Dir == b.Dir && a.Parent == b.Parent && a.OldParent == b.OldParent
}

func same(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// hurry has a request of w served before its turn, which is after all that had
// happened when it came: w's queue is full. What it is not told comes after what it is.
func (l *worker) hurry(w *watch) {
	posted := l.inbox.posted.Load()
	if w.looked == posted {
		return
	}
	item, ok := l.inbox.request(w.id)
	if !ok {
		w.looked = posted
		return
	}
	l.accept(w, item)
	l.kernel.Ack(item.RequestID, 0)
}

// trace logs what has changed and what of it the client will be told.
func (w *watch) trace(c fanotify.Change, records []genl.Record) {
	line := []any{"watch", w.id, "op", opString(c.Op)}
	for _, name := range []struct {
		key  string
		name []byte
	}{{"from", c.OldName}, {"path", c.Name}} {
		if name.name != nil {
			line = append(line, name.key, w.about.Directory+"/"+string(name.name))
		}
	}
	w.log.Log(context.Background(), LevelTrace, "change", append(line, "thread", c.Thread)...)
	for _, r := range records {
		w.log.Log(context.Background(), LevelTrace, "record", "watch", w.id, "action", r.Action, "name", r.Name,
			"path", w.about.Directory+"/"+r.Name)
	}
}

// opString returns the names of what is in op, parted by commas.
func opString(op fanotify.Op) string {
	var names []string
	for i, name := range []string{"create", "delete", "rename", "modify", "attrib", "access"} {
		if op&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// lose gives up what is queued for a watch; its client will list anew.
func (l *worker) lose(w *watch, why string) {
	if !w.queue.lost {
		w.queue.overflow()
		l.overflowed(w, why)
	}
	l.deliver(w)
}

// overflowed takes down that w has lost records. That one client was slow is no
// concern of others.
func (l *worker) overflowed(w *watch, why string) {
	level := slog.LevelDebug
	if why == tooMany {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "overflow", "watch", w.id, "path", w.about.Directory, "reason", why)
	w.about.Overflows++
	l.stats.lost(w.about, why)
}

// deliver puts completions of w's requests in the outbox, oldest first, as long as
// there is something to tell and w does not rest. Where one is on its way already it is waited for:
// should that fail, what it has goes to the next.
func (l *worker) deliver(w *watch) {
	for len(w.pending) > 0 && (w.gone || w.queue.waiting()) && l.retry.IsZero() {
		if w.telling {
			l.flush()
			continue
		}
		if l.holds(w) {
			return
		}
		out := outgoing{watch: w, Completion: Completion{Request: w.pending[0].id}}
		switch {
		case w.gone:
			out.Status = genl.StatusDeletePending
		case w.pending[0].again && !w.queue.lost:
			out.Records = w.queue.shift()
		case !w.queue.fits(w.pending[0].length):
			out.Status = genl.StatusEnumDir
			w.queue.clear()
		default:
			out.Records = w.queue.records
			w.queue.clear()
		}
		if out.Status != 0 {
			w.log.Debug("complete", "request", out.Request, "watch", w.id, "status", out.Status)
		} else {
			w.log.Debug("complete", "request", out.Request, "watch", w.id, "records", len(out.Records))
		}
		out.since = w.queue.since
		w.telling = true
		l.outbox = append(l.outbox, out)
		if l.eager || len(l.outbox) >= batch {
			l.eager = false
			l.flush()
		}
	}
}

// flush sends what is in the outbox, until nothing is.
func (l *worker) flush() {
	if len(l.outbox) == 0 {
		return
	}
	now := l.send()
	for len(l.outbox) > 0 {
		now = l.send()
	}
	l.completed(now)
}

// send sends what is in the outbox. What ksmbd did not take goes back to the
// queues, where it is before what has come since. It returns when that was.
func (l *worker) send() time.Time {
	out := l.outbox
	l.outbox, l.emptied = l.emptied, nil
	completions := l.completions[:0]
	for i := range out {
		completions = append(completions, out[i].Completion)
	}
	began := time.Now()
	l.kernel.Complete(completions)
	now := time.Now()
	l.took(now.Sub(began), len(completions))
	for i := range out {
		w, c := out[i].watch, &completions[i]
		w.telling = false
		switch {
		case c.Err == nil:
			l.stats.told(w.about.Share, c, now.Sub(out[i].since))
			l.forgetRequest(c.Request)
			w.told, w.reach, w.rested = now, w.given, false
			continue
		case errors.Is(c.Err, ErrNoRequest):
			w.log.Debug("request has ended already", "request", c.Request)
			l.forgetRequest(c.Request)
			if why := w.queue.unpush(c.Records, out[i].since); why != "" {
				l.overflowed(w, why)
			}
		case c.Status == 0:
			// ksmbd can take a status if anything. Should it have taken the
			// records, it has no such request any more.
			l.log.Error("completing a request with records failed", "request", c.Request, "err", c.Err)
			w.queue.overflow()
			l.overflowed(w, notTaken)
		default:
			l.log.Error("completing a request failed, will try again", "request", c.Request, "err", c.Err)
			l.retry = time.Now().Add(retryAfter)
		}
		if c.Status == genl.StatusEnumDir {
			w.queue.overflow()
		}
	}
	clear(completions)
	l.completions = completions
	for i := range out {
		l.deliver(out[i].watch)
	}
	clear(out)
	l.emptied = out[:0]
	return now
}

// again tries again what has failed.
func (l *worker) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retry = time.Time{}
	for _, w := range l.watches {
		l.deliver(w)
	}
	l.flush()
}
