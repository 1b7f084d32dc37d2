// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"ksmbd-notifyd/genl"
)

// leaveWithin bounds the time in which a daemon that ends serves what ksmbd has
// queued, and tells what has happened. Under a load that leaves no gap there is no
// handover.
const leaveWithin = time.Second

// errHeritage: what the last daemon left does not do. All is to be watched anew.
var errHeritage = errors.New("cannot go on where the last daemon ended")

// A Handover is what a daemon that ends leaves to the next one, so that clients
// do not notice: a fanotify queue for each filesystem, which goes on being filled,
// and what had been told of the watches in it. ksmbd offers its watches to each
// daemon, with rescan; it need not be done for those of which nothing is lost.
type Handover struct {
	Family        uint16 // of the ksmbd that the watches are of
	Registrations uint32 // with it, the one of the daemon that leaves this being the last
	Parts         []Part
}

// Part is what is left of one filesystem.
type Part struct {
	Superblock
	Queue   *os.File        // to be closed by whoever got it
	Watches map[uint64]Left // all there were, by id
}

// Left is a watch in a Handover.
type Left struct {
	// Whole: whatever the client was not told is in Records or in the Queue.
	Whole   bool
	Records []genl.Record
	Mounts  []string // see fanotify.Watch
}

// Close closes what nobody has taken.
func (h *Handover) Close() {
	for _, part := range h.Parts {
		part.Queue.Close()
	}
}

// leave makes the handover to the next daemon. Of the watches it had, ksmbd has
// none in doubt when it has nothing queued: each is armed, and no rescan of it
// is wanted. A filesystem that does not answer in time is not in it.
func (l *loop) leave(working context.Context) {
	if !l.leaves || !l.settled {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	if err := cmp.Or(l.serve(ctx, working), ctx.Err()); err != nil || l.retry != nil {
		l.log.Debug("nothing is left to the next daemon", "err", err)
		return
	}
	var workers []*worker
	l.each(func(w *worker) { workers = append(workers, w) })
	parts := make(chan *Part, len(workers))
	for _, w := range workers {
		w.inbox.postLast(func() error { // watches that have ended are not left
			part := w.leave(ctx)
			if part != nil && ctx.Err() != nil {
				part.Queue.Close() // nobody waits for it any more
				part = nil
			}
			parts <- part
			return nil
		})
		w.poke()
	}
	left := new(Handover)
collect:
	for range workers {
		select {
		case part := <-parts:
			if part != nil {
				left.Parts = append(left.Parts, *part)
			}
		case <-ctx.Done():
			break collect
		}
	}
	if err := l.revise(left); err != nil {
		l.log.Debug("nothing is left to the next daemon", "err", err)
		left.Close()
	} else if len(left.Parts) > 0 {
		l.left = left
	}
}

// revise asks ksmbd what it has queued meanwhile. A watch that came again has lost what happened before
// it was acknowledged, and is not whole. Of a filesystem on which a watch has ended nothing is left, since its
// marks are in the queue. Clients that never stop asking do not keep the daemon from its end.
func (l *loop) revise(h *Handover) error {
	end := time.Now().Add(leaveWithin)
	for more := len(h.Parts) > 0; more; {
		if time.Now().After(end) {
			return context.DeadlineExceeded
		}
		items, again, err := l.kernel.Next()
		for _, item := range items {
			release([]any{item})
		}
		if err != nil {
			return err
		}
		for _, item := range items {
			h.Parts = slices.DeleteFunc(h.Parts, func(part Part) bool {
				w, ok := part.Watches[item.WatchID]
				if ok && item.Type == genl.ItemTypeWatch {
					w.Whole = false
					part.Watches[item.WatchID] = w
				}
				ended := ok && item.Type == genl.ItemTypeUnwatch
				if ended {
					part.Queue.Close()
				}
				return ended
			})
		}
		more = again
	}
	return nil
}

// leave is what of a worker's is left to the next daemon, if anything.
func (l *worker) leave(ctx context.Context) *Part {
	if l.inheriting || !l.started.Load() { // it has no queue, or is to be merged with another
		return nil
	}
	err := ctx.Err()
	for err == nil {
		if err = l.drain(); err != nil || l.group.Settled() {
			break
		}
		time.Sleep(gap)
		err = ctx.Err()
	}
	l.kernel.Flush() // whom that is too late for, ksmbd says then, see revise
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rouseAll() // or they would be told what is left
	if err != nil || !l.retry.IsZero() {
		l.log.Debug("nothing is left to the next daemon", "filesystem", l.filesystem.Type, "device", l.filesystem.Device, "err", err)
		return nil
	}
	part := &Part{Superblock: l.filesystem, Watches: make(map[uint64]Left)}
	whole := 0
	for id, w := range l.watches {
		mounts, ok := w.mark.Handover()
		left := Left{ok && !w.gone && !w.queue.lost, w.queue.records, mounts}
		if part.Watches[id] = left; left.Whole {
			whole++
		}
	}
	if whole == 0 { // all have to start over
		return nil
	}
	if part.Queue, err = l.group.Detach(); err != nil {
		l.log.Error("the next daemon will have to start over", "err", err)
		return nil
	}
	return part
}

// heritage is what a worker has of the last daemon's.
type heritage struct {
	inheriting bool            // and nothing is drained until all is watched again
	heirs      map[uint64]Left // the watches that ksmbd has yet to offer
}

// inherit has the workers go on where the last daemon ended, if that was with the
// same ksmbd. What another one has told meanwhile would be told twice, and of
// directories that were renamed that is wrong.
func (l *loop) inherit(h *Handover, family uint16, registrations uint32) {
	if h.Family != family || h.Registrations+1 != registrations {
		h.Close()
		l.log.Info("starting over, clients will list their directories anew", "reason",
			fmt.Errorf("%w: ksmbd was loaded anew, or has had another daemon", errHeritage))
		return
	}
	l.heirs = make(map[Superblock]*Part)
	for i := range h.Parts {
		l.heirs[h.Parts[i].Superblock] = &h.Parts[i]
	}
}

// inherit has the worker go on with what the last daemon had of its filesystem.
func (l *worker) inherit(part *Part) {
	defer part.Queue.Close() // the group has its own
	if err := l.group.Inherit(part.Queue); err != nil {
		l.log.Info("starting over, clients will list their directories anew", "reason", err)
		return
	}
	l.inheriting, l.heirs = true, part.Watches
}

// inherits says whether an item is about the watches that the last daemon had.
// What waits in the queue is told when all of them are there.
func (l *worker) inherits(what any) bool {
	item, ok := what.(genl.Item)
	if !l.inheriting || !ok {
		return l.inheriting
	}
	_, heir := l.heirs[item.WatchID]
	return heir && item.Type == genl.ItemTypeWatch ||
		l.watches[item.WatchID] != nil && item.Type == genl.ItemTypeRequest
}

// takeOver says whether w, armed just now, is one that goes on without a gap.
func (l *worker) takeOver(w *watch) bool {
	left := l.heirs[w.id]
	delete(l.heirs, w.id)
	if !left.Whole {
		return false
	}
	mounts, ok := w.mark.Handover()
	w.queue.since = time.Now() // or later: that is not left
	return ok && slices.Equal(mounts, left.Mounts) && w.queue.push(newEvent(left.Records), true) == ""
}

// settle ends the inheriting: ksmbd has no more watches that the last daemon
// had. Marks of one that has ended nobody would ever take away.
func (l *worker) settle() error {
	if !l.inheriting {
		return nil
	}
	if n := len(l.heirs); n > 0 {
		return fmt.Errorf("%w: %d of its watches have ended", errHeritage, n)
	}
	if err := l.group.Confirm(); err != nil {
		return fmt.Errorf("%w: %w", errHeritage, err)
	}
	l.inheriting = false
	l.poke() // ends have waited
	l.log.Info("going on where the last daemon ended", "watches", len(l.watches))
	return l.drain()
}

// disinherit gives up an inherited queue that was not settled, after the watches
// have gone.
func (l *worker) disinherit() {
	if !l.inheriting {
		return
	}
	queue, err := l.group.Detach()
	if err != nil { // its marks and what is in it are too much, and no harm
		l.log.Error("giving up the last daemon's queue failed", "err", err)
		return
	}
	queue.Close()
}
