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
// do not notice: a fanotify queue, which goes on being filled, and what had been
// told of the watches in it. ksmbd offers its watches to each daemon, with rescan;
// it need not be done for those of which nothing is lost.
type Handover struct {
	Queue         *os.File        // to be closed by whoever got it
	Family        uint16          // of the ksmbd that the watches are of
	Registrations uint32          // with it, the one of the daemon that leaves this being the last
	Watches       map[uint64]Left // all there were, by id
}

// Left is a watch in a Handover.
type Left struct {
	// Whole: whatever the client was not told is in Records or in the Queue.
	Whole   bool
	Records []genl.Record
	Mounts  []string // see fanotify.Watch
}

// leave makes the handover to the next daemon. Of the watches it had, ksmbd has
// none in doubt when it has nothing queued: each is armed, and no rescan of it
// is wanted.
func (l *loop) leave() {
	if !l.leaves || l.inheriting {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	err := cmp.Or(l.serve(ctx), ctx.Err())
	for err == nil {
		if err = l.drain(); err != nil || l.group.Settled() {
			break
		}
		time.Sleep(gap)
		err = ctx.Err()
	}
	if err != nil || l.retry != nil || len(l.watches) == 0 {
		l.log.Debug("nothing is left to the next daemon", "err", err)
		return
	}
	h := &Handover{Watches: make(map[uint64]Left)}
	for id, w := range l.watches {
		mounts, ok := w.mark.Handover()
		h.Watches[id] = Left{ok && !w.gone && !w.queue.lost, w.queue.records, mounts}
	}
	if h.Queue, err = l.group.Detach(); err != nil {
		l.log.Error("the next daemon will have to start over", "err", err)
		return
	}
	l.left = h
}

// heritage is what a loop has of the last daemon's.
type heritage struct {
	inheriting bool            // and nothing is drained until all is watched again
	heirs      map[uint64]Left // the watches that ksmbd has yet to offer
}

// inherit has the loop go on where the last daemon ended, if that was with the
// same ksmbd. What another one has told meanwhile would be told twice, and of
// directories that were renamed that is wrong.
func (l *loop) inherit(h *Handover, family uint16, registrations uint32) {
	defer h.Queue.Close() // the group has its own
	err := fmt.Errorf("%w: ksmbd was loaded anew, or has had another daemon", errHeritage)
	if h.Family == family && h.Registrations+1 == registrations {
		err = l.group.Inherit(h.Queue)
	}
	if err != nil {
		l.log.Info("starting over, clients will list their directories anew", "reason", err)
		return
	}
	l.inheriting, l.heirs = true, h.Watches
	// The causes of what waits in the queue may have been fetched already.
	l.causes.lost = 1 // its Since is not known, and so is 0
}

// inherits says whether an item is about the watches that the last daemon had.
// What waits in the queue is told when all of them are there.
func (l *loop) inherits(item genl.Item) bool {
	if !l.inheriting {
		return false
	}
	_, heir := l.heirs[item.WatchID]
	return heir && item.Type == genl.ItemTypeWatch ||
		l.watches[item.WatchID] != nil && item.Type == genl.ItemTypeRequest
}

// takeOver says whether w, armed just now, is one that goes on without a gap.
func (l *loop) takeOver(w *watch) bool {
	left, heir := l.heirs[w.id]
	if !heir {
		return false
	}
	delete(l.heirs, w.id)
	mounts, ok := w.mark.Handover()
	return ok && left.Whole && slices.Equal(mounts, left.Mounts) && w.queue.push(left.Records) == ""
}

// settle ends the inheriting: ksmbd has no more watches that the last daemon
// had. Marks of one that has ended nobody would ever take away.
func (l *loop) settle() error {
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
	l.log.Info("going on where the last daemon ended", "watches", len(l.watches))
	return l.drain()
}

// disinherit gives up an inherited queue that was not settled, after the watches
// have gone.
func (l *loop) disinherit() {
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
