// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

const family = 30

func (w *world) rescanItem(id uint64) genl.Item {
	item := w.watchItem(id)
	item.Rescan = true
	return item
}

// heir returns a loop that has inherited the watches.
func heir(t *testing.T, watches map[uint64]Left) *world {
	t.Helper()
	w := newWorld(t)
	queue, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { queue.Close() })
	w.loop.inherit(&Handover{Family: family, Registrations: 3, Parts: []Part{{w.filesystem, queue, watches}}}, family, 4)
	w.worker.inherit(w.loop.heirs[w.filesystem])
	delete(w.loop.heirs, w.filesystem)
	w.told("inherit")
	return w
}

// What a daemon says it has told, no client misses.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	w.mounts = []string{"m"}
	w.served(w.watchItem(1), requestItem(11, 1), w.watchItem(2), w.watchItem(3), w.watchItem(4), requestItem(44, 4))
	w.happens(0, fanotify.Create, "told")
	w.happens(1, fanotify.Create, "waits")
	w.happens(2, fanotify.Gone)
	w.happens(3, fanotify.Overflow)
	w.drained()
	w.told("11: +told", "44: ENUM_DIR")
	// ksmbd doubts that the first was in time.
	w.served(w.rescanItem(1), w.watchItem(5))
	w.unsettled = 2
	left := w.worker.leave(t.Context())
	w.told("detach")
	want := map[uint64]bool{1: false, 2: true, 3: false, 4: true, 5: true}
	got := make(map[uint64]bool)
	for id, l := range left.Watches {
		got[id] = l.Whole
		if len(l.Mounts) != 1 {
			t.Errorf("mounts of %d: %q", id, l.Mounts)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	if records := recordString(left.Watches[2].Records); records != "+waits" {
		t.Errorf("left records %q", records)
	}
}

// A daemon that cannot be sure leaves nothing.
func TestLeaveNothing(t *testing.T) {
	for name, doubt := range map[string]func(w *world){
		"nobody to leave it to": func(w *world) { w.loop.leaves = false },
		"no watches":            func(w *world) { w.served(unwatchItem(1)) },
		"ksmbd cannot be asked": func(w *world) { w.items = []any{ErrRetry} },
		"ksmbd has gone":        func(w *world) { w.items = []any{errOther} },
		"not settled itself":    func(w *world) { w.loop.settled = false },
		"nor a filesystem":      func(w *world) { w.inheriting, w.heirs = true, map[uint64]Left{1: {}} },
		"requests without end": func(w *world) {
			w.slow = leaveWithin / 2
			w.items = []any{cancelItem(1), cancelItem(2), cancelItem(3)}
		},
		"changes without end": func(w *world) { w.unsettled = 1e6 },
		"a failed completion": func(w *world) {
			w.answers = []error{errOther, errOther}
			w.happens(0, fanotify.Create, "a")
			w.served(requestItem(11, 1))
			w.told("11: +a", "11: ENUM_DIR")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.loop.leaves = true
				w.served(w.watchItem(1))
				doubt(w)
				done := make(chan struct{})
				go func() {
					defer close(done)
					for range w.worker.wake {
						w.worker.serve()
					}
				}()
				w.loop.leave(t.Context())
				w.told()
				if w.loop.left != nil {
					t.Errorf("left %v", w.loop.left)
				}
				close(w.worker.wake)
				<-done
			})
		})
	}
}

// What happened while no daemon was there is told once all watches are there
// again, to those that had been told all else; the others list anew.
func TestInherit(t *testing.T) {
	waits := []genl.Record{{Action: genl.ActionRemoved, Name: "waits"}}
	w := heir(t, map[uint64]Left{1: {Whole: true, Records: waits}, 2: {Records: waits}, 3: {Whole: true, Mounts: []string{"m"}}, 4: {Whole: true, Records: waits}})
	w.happens(0, fanotify.Create, "meanwhile")
	w.happens(3, fanotify.Create, "meanwhile")
	w.items = []any{w.rescanItem(1), requestItem(11, 1), w.rescanItem(2), requestItem(22, 2), w.rescanItem(3), requestItem(33, 3), w.rescanItem(4)}
	for len(w.items) > 1 {
		next := w.items[0].(genl.Item)
		w.items = w.items[1:]
		w.loop.dispatch(t.Context(), []genl.Item{next})
		if err := w.worker.serve(); err != nil {
			t.Fatal(err)
		}
		w.drained() // what happened meanwhile is there to be read
	}
	w.told("11: -waits", "22: ENUM_DIR", "33: ENUM_DIR")
	w.items = append(w.items, requestItem(12, 1))
	w.served(w.rescanItem(5), requestItem(55, 5), requestItem(44, 4))
	w.told("confirm", "12: +meanwhile", "55: ENUM_DIR", "44: -waits +meanwhile")
	w.worker.close()
	w.told()
}

// Only a daemon that has all marks of the last one, and no more, goes on.
func TestInheritNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		items  func(w *world) []any
		told   []string
	}{
		"a watch ended": {
			items: func(w *world) []any { return []any{w.rescanItem(1)} },
		},
		"a watch ended and another began": {
			items: func(w *world) []any { return []any{w.rescanItem(1), w.rescanItem(3)} },
		},
		"directories were removed": {
			change: func(w *world) { w.refuse = unix.ENOENT },
			items:  func(w *world) []any { return []any{w.rescanItem(1), w.rescanItem(2)} },
			told:   []string{"ack 1: ENOENT", "ack 2: ENOENT"},
		},
		"a mark is missing": {
			change: func(w *world) { w.lacking = errOther },
			items:  func(w *world) []any { return []any{w.rescanItem(1), w.rescanItem(2)} },
			told:   []string{"confirm"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := heir(t, map[uint64]Left{1: {Whole: true}, 2: {Whole: true}})
			if c.change != nil {
				c.change(w)
			}
			w.happens(0, fanotify.Create, "meanwhile")
			w.items = c.items(w)
			if err := w.serveAll(); !errors.Is(err, errHeritage) {
				t.Errorf("serve: %v", err)
			}
			w.worker.close()
			w.told(append(c.told, "detach")...)
			for _, f := range w.watch {
				if !f.closed {
					t.Error("a watch is left open")
				}
			}
		})
	}
}

// A queue of another ksmbd's watches is left alone, and one that another daemon came
// after, or that is none.
func TestInheritOther(t *testing.T) {
	w := newWorld(t)
	left := func() *Handover {
		queue, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return &Handover{Family: family, Registrations: 3, Parts: []Part{{w.filesystem, queue, map[uint64]Left{1: {Whole: true}}}}}
	}
	before := countFDs(t)
	w.loop.inherit(left(), family+1, 4)
	w.loop.inherit(left(), family, 5)
	w.loop.inherit(left(), family, 0) // a module that does not say
	if len(w.loop.heirs) > 0 {
		t.Errorf("heirs %v", w.loop.heirs)
	}
	// All watches of the filesystem have ended.
	w.loop.inherit(left(), family, 4)
	w.loop.settle()
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
	w.refuse = errOther
	w.loop.inherit(left(), family, 4)
	w.worker.inherit(w.loop.heirs[w.filesystem])
	w.told("inherit")
	w.refuse = nil
	w.served(w.rescanItem(1), requestItem(11, 1))
	w.told("11: ENUM_DIR")
}

// Until the causes of what waits in the queue are out of reach, a change may be
// of anything.
func TestInheritCauses(t *testing.T) {
	w := heir(t, map[uint64]Left{1: {Whole: true}})
	w.caused = genl.Causes{Causes: []genl.Cause{{Thread: 7, Filter: uint32(Size), File: "f"}}}
	item := w.rescanItem(1)
	item.Filter = uint32(Security)
	w.change(0, fanotify.Change{Op: fanotify.Attrib, Thread: 7, File: []byte("f"), Until: 1}, "a")
	w.served(item, requestItem(11, 1), cancelItem(0))
	w.told("confirm", "11: *a")
}

// late is a ksmbd that queues something for the daemon when that has acknowledged 1.
type late struct {
	*world
	item genl.Item
}

func (k late) Ack(id uint64, errno unix.Errno) {
	k.world.Ack(id, errno)
	if id == 1 {
		k.mu.Lock()
		k.items = append(k.items, k.item)
		k.mu.Unlock()
	}
}

// A filesystem that is slow has a watch armed when the daemon ends: too late for its client, which has PENDING
// already, or for a watch that has ended.
func TestLeaveLate(t *testing.T) {
	for name, c := range map[string]struct {
		item func(w *world) genl.Item
		want map[uint64]bool
	}{
		"rescan": {func(w *world) genl.Item { return w.rescanItem(1) }, map[uint64]bool{1: false, 9: true}},
		"ended":  {func(*world) genl.Item { return unwatchItem(1) }, nil},
		"other":  {func(*world) genl.Item { return requestItem(99, 9) }, map[uint64]bool{1: true, 9: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before := countFDs(t)
				w := newWorld(t)
				w.items = []any{w.watchItem(9)}
				w.loop = newLoop(slog.New(slog.DiscardHandler), late{w, c.item(w)}, w.opens)
				w.loop.leaves = true
				ctx, end := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- w.loop.run(ctx, w.bell) }()
				synctest.Wait()
				w.meanwhile = func(func(fanotify.Change)) { time.Sleep(leaveWithin) }
				w.items = []any{w.watchItem(1), requestItem(11, 1)}
				w.bell <- struct{}{}
				time.Sleep(leaveWithin / 2)
				end()
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
				var got map[uint64]bool
				if w.loop.left != nil {
					got = make(map[uint64]bool)
					for id, l := range w.loop.left.Parts[0].Watches {
						got[id] = l.Whole
					}
					w.loop.left.Close()
				}
				if !maps.Equal(got, c.want) {
					t.Errorf("left %v, want %v", got, c.want)
				}
				if after := countFDs(t); after > before {
					t.Errorf("%d file descriptors before, %d after", before, after)
				}
			})
		})
	}
}

// Clients that never stop asking keep no daemon from its end.
func TestLeaveAmidRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = leaveWithin / 4
		for i := range uint64(100) {
			w.items = append(w.items, requestItem(10+i, 1))
		}
		err := w.loop.revise(&Handover{Parts: []Part{{Superblock: w.filesystem}}})
		if err == nil || len(w.items) < 90 {
			t.Errorf("%v, %d requests are left", err, len(w.items))
		}
	})
}

// Watches that have ended are not left, however many there are.
func TestLeaveEnds(t *testing.T) {
	w := newWorld(t)
	const n = 3 * maxEnds
	for i := range uint64(n + 1) {
		w.served(w.watchItem(1 + i))
	}
	var ends []genl.Item
	for i := range uint64(n) {
		ends = append(ends, unwatchItem(1+i))
	}
	w.loop.dispatch(t.Context(), ends)
	var part *Part
	w.inbox.postLast(func() error { part = w.worker.leave(t.Context()); return nil })
	for part == nil {
		if err := w.worker.serve(); err != nil {
			t.Fatal(err)
		}
	}
	w.told("detach")
	if len(part.Watches) != 1 {
		t.Errorf("left %v", part.Watches)
	}
}

// What ends while the watches of the last daemon come does not keep the others from going on.
func TestInheritEnds(t *testing.T) {
	for name, ends := range map[string]genl.Item{"request": cancelItem(11), "watch": unwatchItem(1)} {
		t.Run(name, func(t *testing.T) {
			w := heir(t, map[uint64]Left{1: {Whole: true}, 2: {Whole: true}})
			w.served(w.rescanItem(1), requestItem(11, 1), ends, w.rescanItem(2), requestItem(22, 2))
			w.happens(1, fanotify.Create, "a")
			w.served()
			w.told("confirm", "22: +a")
			if w.waiting[11] != nil || (w.watches[1] == nil) != (name == "watch") {
				t.Error("the end is not done")
			}
		})
	}
}

// That ksmbd cannot be asked for a moment costs nothing of what was left, but for no longer.
func TestInheritRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		watches := map[uint64]Left{1: {Whole: true}, 2: {Whole: true}}
		w.items = []any{w.rescanItem(1), ErrRetry, ErrRetry, w.rescanItem(2)}
		if err := w.heirLoop(maps.Clone(watches)).run(t.Context(), nil); !errors.Is(err, errHeritage) {
			t.Errorf("error %v", err)
		}
		w.told("inherit", "detach")
		release(w.items)
		w.watch = nil

		l := w.heirLoop(watches)
		w.items = []any{ErrRetry, w.rescanItem(1), requestItem(11, 1), ErrRetry, w.rescanItem(2)}
		w.happens(0, create, "a")
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.run(ctx, nil) }()
		sleepRetry()
		sleepRetry()
		w.told("inherit", "confirm", "11: +a")
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// heirLoop is a conversation that goes on with watches of w's filesystem that the last daemon left.
func (w *world) heirLoop(watches map[uint64]Left) *loop {
	w.t.Helper()
	queue, err := os.Open(os.DevNull)
	if err != nil {
		w.t.Fatal(err)
	}
	l := newLoop(slog.New(slog.DiscardHandler), w, w.opens)
	l.inherit(&Handover{Family: family, Registrations: 3, Parts: []Part{{w.filesystem, queue, watches}}}, family, 4)
	return l
}

// leaves has a conversation with a watch leave that, and then something happen before it is detached.
func (w *world) leaves(then func()) {
	w.t.Helper()
	w.loop.leaves = true
	w.served(w.watchItem(1))
	select {
	case <-w.worker.wake: // for what was served
	default:
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-w.worker.wake
		then()
		w.worker.serve()
	}()
	w.loop.leave(w.t.Context())
	<-done
	w.told("detach")
}

// What was inherited once is settled once, and ends that have waited for that are done then.
func TestSettle(t *testing.T) {
	w := heir(t, map[uint64]Left{1: {Whole: true}})
	w.loop.dispatch(t.Context(), []genl.Item{w.rescanItem(1)})
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	<-w.worker.wake // for what was served
	if err := w.worker.settle(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.worker.wake:
	default:
		t.Error("nobody looks for ends")
	}
	w.loop.settled = true
	w.loop.settle()
	if !w.inbox.empty() {
		t.Error("it is settled again")
	}
	w.told("confirm")
}

// A handover of which ksmbd cannot be asked is closed.
func TestReviseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := countFDs(t)
		w.leaves(func() { w.items = []any{errOther} })
		if w.loop.left != nil {
			t.Errorf("left %v", w.loop.left)
		}
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// How long what was left has waited, nobody knows.
func TestInheritLatency(t *testing.T) {
	w := heir(t, map[uint64]Left{1: {Whole: true, Records: []genl.Record{{Action: genl.ActionAdded, Name: "a"}}}})
	w.served(w.rescanItem(1), requestItem(11, 1))
	w.told("11: +a", "confirm")
	for _, s := range w.stats.list() {
		if s.Latency.Seconds > 60 {
			t.Errorf("latency %v s", s.Latency.Seconds)
		}
	}
}

// Workers come and go while the conversation ends, and while they inherit others fetch causes.
func TestHandoverRaces(t *testing.T) {
	w := newWorld(t)
	close(w.worker.ended)
	var wg sync.WaitGroup
	wg.Go(func() { w.loop.retire(w.worker) })
	w.loop.end(func() {})
	queue, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		w.causes.hub.mu.Lock()
		defer w.causes.hub.mu.Unlock()
		w.causes.hub.more(5)
	})
	w.worker.inherit(&Part{Superblock: w.filesystem, Queue: queue})
	wg.Wait()
}
