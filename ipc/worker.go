// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

const (
	// gap is the time after clients were told until the fanotify queue is read
	// again, unless ksmbd asks: what happens meanwhile they are told together.
	gap = 2 * time.Millisecond

	// What concerns nobody is read as it comes, so that what does is told at once.
	// Reading each event by itself costs six times as much, and so may take no more
	// than an eighth of the time, but for maxCredit at once.
	readShare = 8
	maxCredit = time.Millisecond

	// batch is how many completions go to ksmbd together. More of them delay
	// the first clients that are told, fewer all others.
	batch = 24

	// retireAfter is how long a worker without watches waits for others.
	retireAfter = 30 * time.Second
)

// A worker has the watches of one filesystem, and a fanotify group of its own.
// Whatever may block on the filesystem blocks the worker's goroutine and no other:
// nobody waits for it but with a bound.
type worker struct {
	*shared
	filesystem Superblock
	group      Group
	conversation
	before *worker       // had the filesystem earlier, and may be stuck in it
	ended  chan struct{} // closed in the end

	inbox inbox
	wake  chan struct{} // has a value when there is something to do
	busy

	guests  atomic.Int32 // mounts that are watched for other workers
	started atomic.Bool  // there is a group

	mu          sync.Mutex // of what follows and of the watches; never held while the filesystem is asked
	watches     map[uint64]*watch
	trees       int               // of the watches
	waiting     map[uint64]*watch // by id of a pending request
	outbox      []outgoing
	emptied     []outgoing    // an empty outbox, kept for its memory
	completions []Completion  // empty, kept for its memory too
	eager       bool          // the next completion is the first
	credit      time.Duration // for how long the queue may be read
	counted     time.Time     // until when that is right
	causes      causes
	read        time.Time // when what is told now was there to be read
	last        lastChange
	pace
	heritage
	retry time.Time // when to try again, after an error; else zero
	ready bool      // the queue was found to hold something, and was not read since
	found time.Time // when that was
	rests time.Time // until when it is left alone
}

// conversation is what a worker asks of who has it.
type conversation interface {
	forget(watch uint64)          // which is not armed
	retire(*worker) bool          // which has nothing to do
	merge(*worker) bool           // with another, as it can have no fanotify group of its own
	neighbour(Superblock) *worker // that of another filesystem, which stays for a guest; nil in the end
}

func newWorker(s *shared, fs Superblock, before *worker, c conversation) *worker {
	w := &worker{
		shared: s, filesystem: fs, conversation: c, before: before, ended: make(chan struct{}),
		wake: make(chan struct{}, 1), watches: make(map[uint64]*watch), waiting: make(map[uint64]*watch),
	}
	w.causes = causes{hub: &s.causes, wake: w.poke}
	w.alarm = time.AfterFunc(math.MaxInt64, w.speak)
	return w
}

// post has the worker do something. It never waits.
func (l *worker) post(what ...any) {
	l.inbox.post(what...)
	l.poke()
}

// poke has the worker look what there is to do.
func (l *worker) poke() {
	select {
	case l.wake <- struct{}{}:
		if l.started.Load() { // else it hears of that
			l.group.Wake()
		}
	default: // it is about to
	}
}

// run does what there is to do until ctx is done, or the worker is retired.
func (l *worker) run(ctx context.Context, open Opener, part *Part) error {
	defer close(l.ended)
	defer l.inbox.abandon()
	if part != nil {
		defer part.Queue.Close() // also if nobody takes it
	}
	if l.before != nil {
		l.begin(&waitingBefore)
		select {
		case <-l.before.ended:
			l.before = nil
		case <-ctx.Done():
			l.since.Store(0) // who comes next speaks of it
			return nil
		}
		l.end()
	}
	if !l.start(ctx, open) {
		return nil
	}
	defer l.group.Close()
	defer l.close()
	l.causes.join()
	defer l.causes.leave()
	if part != nil {
		l.inherit(part)
	}

	// Not by poke: if l.wake holds an earlier poke, that would wake nobody.
	defer context.AfterFunc(ctx, l.group.Wake)()
	var idle time.Time // when to retire; else zero
	for ctx.Err() == nil {
		var err error
		select {
		case <-l.wake:
			err = l.serve()
		default:
		}
		now := time.Now()
		switch {
		case err != nil:
		case l.ready:
			if err = l.drain(); err == nil {
				l.rests = l.rest(now)
			}
		case due(l.retry, now):
			l.again()
		case due(idle, now):
			if l.retire(l) {
				return nil
			}
			idle = time.Time{}
		}
		if err != nil {
			return err
		}
		l.resume(now)
		if len(l.watches) > 0 {
			idle = time.Time{}
		} else if idle.IsZero() {
			idle = time.Now().Add(retireAfter)
		}
		if err := l.sleep(sooner(l.resumes, sooner(l.retry, idle))); err != nil {
			return err
		}
	}
	return nil
}

// sleep waits until there is something to do, or until a time that is not zero. As long as
// the queue is to be left alone it is not listened to: who fills it would wake the worker.
func (l *worker) sleep(until time.Time) (err error) {
	switch {
	case l.inheriting:
		return l.group.SleepUntil(until)
	case time.Now().Before(l.rests):
		return l.group.SleepUntil(sooner(l.rests, until))
	}
	if l.ready, err = l.group.WaitUntil(until); l.ready {
		l.found = time.Now()
	}
	return err
}

// due says whether a time that is not zero has come.
func due(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// sooner returns the first of two times, zero being never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// start opens the worker's group. As long as there is none, all watches are
// refused, unless another worker takes them. It returns false if the worker is not
// needed any more.
func (l *worker) start(ctx context.Context, open Opener) bool {
	for {
		l.begin(&openingGroup)
		err := l.openGroup(open)
		l.end()
		if err == nil {
			l.poke() // what ended the wait below is yet to be done
			return true
		}
		if errors.Is(err, unix.EMFILE) && l.merge(l) {
			return false
		}
		taken, _ := l.inbox.take(true)
		for _, what := range taken {
			switch what := what.(type) {
			case func() error:
				what()
			case *apart:
				what.arm()
			case genl.Item:
				l.act(unwanted{what, err})
			case unwanted:
				l.act(what)
			}
		}
		l.kernel.Flush()
		select {
		case <-ctx.Done():
			return false
		case <-l.wake:
		}
	}
}

// openGroup opens the worker's group. Of those that may share one, one opens it after
// the other: who can have none finds the one that has it.
func (l *worker) openGroup(open Opener) error {
	if !MayHang(l.filesystem.Type) {
		l.opening <- struct{}{}
		defer func() { <-l.opening }()
	}
	group, err := open(l.filesystem)
	if err != nil {
		return err
	}
	if l.group = group; !MayHang(l.filesystem.Type) {
		group.Leave(MayHang, l.watchApart)
	}
	l.started.Store(true)
	return nil
}

// rest returns until when the queue is to be left alone after it was drained.
func (l *worker) rest(began time.Time) time.Time {
	now := time.Now()
	l.credit = min(l.credit+now.Sub(l.counted)/readShare, maxCredit) - now.Sub(began)
	l.counted = now
	switch {
	case !l.eager || !l.resumes.IsZero(): // somebody was told, or is about to be
		return now.Add(gap)
	case l.credit < 0:
		return now.Add(min(-l.credit*readShare, gap))
	}
	return now
}

// close drops all watches.
func (l *worker) close() {
	l.mu.Lock()
	watches := make([]*watch, 0, len(l.watches))
	for _, w := range l.watches {
		watches = append(watches, w)
	}
	l.mu.Unlock()
	for _, w := range watches {
		l.drop(w)
	}
	l.disinherit()
}

// drain has the watches told of what happened until now. What waits in an inherited
// queue is for all that are watched again: it waits for the last of them.
func (l *worker) drain() error {
	if l.inheriting {
		return nil
	}
	if l.ready {
		l.read, l.ready = l.found, false
	} else {
		l.read = time.Now()
	}
	l.causes.next()
	l.newReach()
	l.eager = true
	before := l.group.Overflows()
	l.begin(&readingChanges)
	err := l.group.Drain()
	l.end()
	l.mu.Lock()
	l.flush()
	l.mu.Unlock()
	if n := l.group.Overflows() - before; n > 0 {
		l.stats.overflowed(n, l.filesystem)
		l.log.Warn("the fanotify queue overflowed, clients will list their directories anew: "+
			"if that is often, raise fs.fanotify.max_queued_events", "filesystem", l.filesystem.Type, "device", l.filesystem.Device)
	}
	return err
}

// serve does what is in the inbox: fetch, drain, act. What happened before ksmbd
// queued an item is in the watches' queues before the item is acted upon, and a new
// watch sees nothing of it.
func (l *worker) serve() error {
	l.eager = true
	drained, told := false, 0
	inbox, more := l.inbox.take(!l.inheriting)
	if more && !l.inheriting {
		l.poke()
	}
	for i, what := range inbox {
		switch what := what.(type) {
		case func() error:
			if err := what(); err != nil {
				release(inbox[i+1:])
				return err
			}
			continue
		case *apart:
			what.arm()
			continue
		}
		if !drained && !l.inherits(what) {
			err := l.settle()
			if err == nil {
				err = l.drain()
			}
			if err != nil {
				release(inbox[i:])
				return err
			}
			drained, l.eager = true, true
		}
		l.act(what)
		if told++; told%batch == 0 {
			l.mu.Lock()
			l.flush() // what they are told goes before
			l.mu.Unlock()
			l.kernel.Flush()
		}
	}
	l.mu.Lock()
	l.flush()
	l.mu.Unlock()
	if l.causes.full() {
		if err := l.drain(); err != nil {
			return err
		}
	}
	l.kernel.Flush()
	return nil
}

func (l *worker) act(what any) {
	item, ok := what.(genl.Item)
	if !ok {
		l.refuse(what.(unwanted))
		return
	}
	switch item.Type {
	case genl.ItemTypeWatch:
		l.watch(item)
	case genl.ItemTypeRequest:
		l.request(item)
	case genl.ItemTypeCancel:
		l.log.Debug("cancel", "request", item.RequestID)
		l.mu.Lock()
		l.flush() // it may be on its way
		l.forgetRequest(item.RequestID)
		l.mu.Unlock()
	case genl.ItemTypeUnwatch:
		l.log.Debug("unwatch", "watch", item.WatchID)
		if w := l.watches[item.WatchID]; w != nil {
			l.drop(w)
		}
	}
}
