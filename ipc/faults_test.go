// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// logLines has what is logged, by whoever.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// logged has what is logged in w's conversation.
func (w *world) logged() *logLines {
	lines := new(logLines)
	w.loop.log = slog.New(slog.NewTextHandler(lines, nil))
	return lines
}

// An error that does not pass ends the conversation also if it is met when there are items already: what
// ksmbd has said may be lost, and only another conversation has it say that again.
func TestServeEndsWithErrorsForMore(t *testing.T) {
	w := newWorld(t)
	before := countFDs(t)
	w.items = []any{w.itemOf(1, "anne", "docs"), w.itemOf(2, "anne", "docs"), errOther, requestItem(3, 1)}
	l := newLoop(slog.New(slog.DiscardHandler), w, w.opens)
	l.control.policy = Policy{UserWatches: 1}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.run(ctx, nil); !errors.Is(err, errOther) {
		t.Errorf("error %v", err)
	}
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

// Clients that never stop asking, so that ksmbd always has more items, keep nobody from being answered, nor a
// worker that has failed from ending the conversation.
func TestServeWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l := newLoop(slog.New(slog.DiscardHandler), restless{w}, w.opens)
		asks := make(chan func())
		l.asks = asks
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- l.run(ctx, nil) }()
		answered := make(chan struct{})
		select {
		case asks <- func() { close(answered) }:
			<-answered
		case <-ctx.Done():
			t.Error("nobody answers")
		}
		l.failed <- errOther
		if err := <-ended; !errors.Is(err, errOther) {
			t.Errorf("error %v", err)
		}
	})
}

// restless is a Kernel that always has more items.
type restless struct{ *world }

func (restless) Next() ([]genl.Item, bool, error) {
	time.Sleep(time.Millisecond)
	return []genl.Item{cancelItem(1)}, true, nil
}

// A watch may be told of something before it is there, as when all marks of its filesystem are made anew.
func TestToldWhileWatched(t *testing.T) {
	w := newWorld(t)
	w.meanwhile = func(fn func(fanotify.Change)) { fn(fanotify.Change{Op: overflow}) }
	w.served(w.watchItem(1), requestItem(11, 1))
	w.told("11: ENUM_DIR")
}

// A watch that is refused after it was told of something keeps nothing of that.
func TestToldAndRefused(t *testing.T) {
	w := newWorld(t)
	w.meanwhile = func(fn func(fanotify.Change)) { fn(fanotify.Change{Op: create, Name: []byte("a")}) }
	w.refuse = unix.ENOSPC
	w.served(w.watchItem(1))
	w.told("ack 1: ENOSPC")
	if n := w.budget.total(); n != 0 || len(w.budget.clients) > 0 {
		t.Errorf("%d bytes are charged, %d clients", n, len(w.budget.clients))
	}
}

// Records that ksmbd did not take, and that no longer fit, are lost as any others are: that is counted.
func TestUnpushTooMany(t *testing.T) {
	w := newWorld(t)
	small := w.watchItem(2)
	small.BufferLength = 20
	w.served(w.watchItem(1), small, requestItem(11, 1), requestItem(22, 2))
	w.happens(0, create, "first") // those that follow go together
	w.happens(1, create, "a")
	w.happens(1, create, "b")
	w.answers = []error{nil, ErrNoRequest}
	w.drained()
	w.told("11: +first", "22: +a")
	if n, of := w.stats.total.Overflows, w.watches[2].about.Overflows; n != 1 || of != 1 {
		t.Errorf("%d overflows, %d of the watch", n, of)
	}
	w.served(requestItem(23, 2))
	w.told("23: ENUM_DIR")
}

// What a watch that ends was about to be told, and was not, is kept for nobody.
func TestEndedWhileTold(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), w.watchItem(2))
	w.happens(0, create, "a")
	w.happens(1, create, "b")
	w.loop.dispatch(t.Context(), []genl.Item{requestItem(11, 1), requestItem(22, 2), unwatchItem(2)})
	w.answers = []error{nil, ErrNoRequest}
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	w.told("11: +a", "22: +b")
	if n := w.budget.total(); n != 0 {
		t.Errorf("%d bytes are charged", n)
	}
}

// Where there can be no group, and none to share, clients are refused, and a later one finds one.
func TestNoGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := countFDs(t)
		lines := w.logged()
		delete(w.loop.workers, w.filesystem)
		var failed error = fmt.Errorf("too many: %w", unix.EMFILE)
		w.loop.open = func(Superblock) (Group, error) {
			if failed != nil {
				return nil, failed
			}
			return w.fake(), nil
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		w.control.policy = Policy{Shares: map[string]bool{"quiet": false}}
		w.loop.dispatch(ctx, []genl.Item{w.itemOf(1, "anne", "docs"), requestItem(11, 1), w.itemOf(2, "anne", "quiet")})
		synctest.Wait()
		w.told("ack 1: EMFILE", "ack 11: EPROTO", "ack 2: ECANCELED")
		if said := lines.String(); !strings.Contains(said, "raise fs.fanotify.max_user_groups") || !strings.Contains(said, "its client is refused") {
			t.Errorf("it says %s", said)
		}
		failed = nil
		w.loop.dispatch(ctx, []genl.Item{w.itemOf(3, "anne", "docs"), requestItem(33, 3)})
		synctest.Wait()
		w.happens(0, create, "a")
		w.wake <- struct{}{}
		synctest.Wait()
		w.told("33: +a")
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// Who has something to do, or watches that are yet to come, does not retire.
func TestNotRetired(t *testing.T) {
	w := newWorld(t)
	w.worker.post(w.watchItem(1))
	if w.loop.retire(w.worker) {
		t.Error("with something to do")
	}
	taken, _ := w.inbox.take(true)
	release(append(taken, unwanted{w.watchItem(2), errOther}))
	w.loop.routes[1] = &route{worker: w.worker}
	if w.loop.retire(w.worker) {
		t.Error("with a watch")
	}
	delete(w.loop.routes, 1)
	if !w.loop.retire(w.worker) || len(w.loop.workers) > 0 {
		t.Error("with nothing")
	}
}

// A filesystem that hung in one conversation is waited for in all that come after, until it answers.
func TestStuckBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, lines, end := w.running(false)
		w.queue(encoded(t, g.watchItem(1)))
		synctest.Wait()
		stuck := make(chan struct{})
		g.queue = append(g.queue, func() { <-stuck })
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("register 30", "serving true")
		for id := range 3 {
			w.load(uint16(31 + id))
			time.Sleep(endWithin)
			sleepRetry()
			w.said("serving false", fmt.Sprint("register ", 31+id), "serving true")
			w.queue(encoded(t, g.rescanItem(uint64(10+id))))
			w.queue(encoded(t, requestItem(uint64(20+id), uint64(10+id))))
			synctest.Wait()
			if n := len(g.watch); n != 1 {
				t.Fatalf("%d watches, while the first hangs", n)
			}
			time.Sleep(2 * stuckAfter)
			s := w.status()
			if len(s.Filesystems) != 1 || s.Filesystems[0].Stuck == nil || s.Filesystems[0].Stuck.What != waitingBefore {
				t.Errorf("filesystems %+v", s.Filesystems)
			}
		}
		close(stuck)
		synctest.Wait()
		w.said("22: ENUM_DIR")
		if !g.watch[0].closed || len(g.watch) != 2 {
			t.Errorf("%d watches", len(g.watch))
		}
		w.end(end)
		time.Sleep(time.Hour) // nobody speaks of what has ended
		if n := strings.Count(lines.String(), "a filesystem does not answer"); n != 4 {
			t.Errorf("%d lines say that it hangs: %s", n, lines)
		}
	})
}

// A conversation that ends while a filesystem hangs leaves nothing open when that answers, and who
// waited for the filesystem speaks of it no more.
func TestEndWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lines := w.logged()
		delete(w.loop.workers, w.filesystem)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		before := countFDs(t)
		w.items = []any{w.watchItem(1)}
		go func() { ended <- w.loop.run(ctx, w.bell) }()
		synctest.Wait()
		stuck := make(chan struct{})
		w.queue = append(w.queue, func() { <-stuck })
		w.wake <- struct{}{}
		synctest.Wait()
		w.items = append(w.items, w.watchItem(2))
		w.bell <- struct{}{}
		synctest.Wait()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		waiting := newWorker(w.shared, w.filesystem, w.loop.past[w.filesystem], w.loop)
		waits, end := context.WithCancel(t.Context())
		go func() { ended <- waiting.run(waits, w.opens, nil) }()
		synctest.Wait()
		said := lines.String()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if lines.String() != said {
			t.Errorf("afterwards it says %s", lines)
		}
		close(stuck)
		synctest.Wait()
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// What has begun after the alarm was set is spoken of when it has taken as long.
func TestSpeaksInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lines := w.logged()
		w.begin(&readingChanges)
		w.end()
		time.Sleep(stuckAfter - time.Millisecond)
		w.begin(&readingChanges)
		time.Sleep(stuckAfter - time.Millisecond)
		synctest.Wait()
		if lines.String() != "" {
			t.Errorf("too early: %s", lines)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !strings.Contains(lines.String(), "does not answer") {
			t.Error("it is not spoken of")
		}
		w.end()
	})
}

// A watch that cannot be ended well is spoken of, but not each of those of a process that has died.
func TestWatchEndsBadly(t *testing.T) {
	for err, spoken := range map[error]bool{errOther: true, fmt.Errorf("%w: died", errLost): false} {
		w := newWorld(t)
		lines := w.logged()
		w.failing = map[string]error{"close": err}
		w.served(w.watchItem(1), unwatchItem(1))
		if said := strings.Contains(lines.String(), "ending a watch failed"); said != spoken || len(w.watches) > 0 {
			t.Errorf("%v: it says %q", err, lines)
		}
	}
}

// What the last daemon left is closed also if the next one ends before it could take it.
func TestHeirEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := countFDs(t)
		l := w.heirLoop(nil)
		w.items = []any{errOther}
		if err := l.run(t.Context(), nil); !errors.Is(err, errOther) {
			t.Errorf("error %v", err)
		}
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// As long as ksmbd has not offered all watches that the last daemon had, nothing is drained, whatever
// happens meanwhile.
func TestHeirWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l := w.heirLoop(map[uint64]Left{1: {Whole: true}, 2: {Whole: true}})
		w.batch = 2
		w.slow = time.Second // that the rest is yet to be fetched
		w.items = []any{w.rescanItem(1), requestItem(11, 1), w.rescanItem(2), requestItem(22, 2)}
		w.happens(0, create, "a")
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.run(ctx, nil) }()
		time.Sleep(1500 * time.Millisecond)
		w.wake <- struct{}{}
		synctest.Wait()
		w.told("inherit")
		time.Sleep(time.Second)
		synctest.Wait()
		w.told("confirm", "11: +a")
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// What cannot be handed over, or too late, is not.
func TestLeaveFails(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		told   []string
	}{
		"no file":          {func(w *world) { w.failing = map[string]error{"detach": unix.EMFILE} }, []string{"detach"}},
		"nothing is whole": {func(w *world) { w.elsewhere = true }, nil},
	} {
		w := newWorld(t)
		w.served(w.watchItem(1))
		c.change(w)
		if part := w.worker.leave(t.Context()); part != nil {
			t.Errorf("%s: left %v", name, part)
		}
		w.told(c.told...)
	}
	w := newWorld(t)
	w.served(w.watchItem(1))
	w.unsettled = 1e6
	late, cancel := context.WithTimeout(t.Context(), 3*gap)
	defer cancel()
	if part := w.worker.leave(late); part != nil {
		t.Errorf("too late: left %v", part)
	}
	w.told()
	w = heir(t, map[uint64]Left{1: {Whole: true}})
	lines := w.logged()
	w.failing = map[string]error{"detach": unix.EMFILE}
	w.worker.close()
	w.told("detach")
	if !strings.Contains(lines.String(), "giving up the last daemon's queue failed") {
		t.Errorf("it says %s", lines)
	}
}

// A request that waits behind something else of its watch is not served before that, and it is not looked
// for again as long as nothing comes.
func TestHurryInTurn(t *testing.T) {
	w := newWorld(t)
	small := w.watchItem(1)
	small.BufferLength = 20
	w.served(small)
	w.worker.post(w.rescanItem(1), requestItem(11, 1))
	for _, name := range []string{"a", "b", "c"} {
		w.happens(0, create, name)
	}
	w.drained()
	w.told()
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	w.told("11: ENUM_DIR")
}

// A request is served before its turn only if there is no room for what it need not be told yet. It is acknowledged
// then, and not served again.
func TestHurryWithoutNeed(t *testing.T) {
	w := newWorld(t)
	small := w.watchItem(1)
	small.BufferLength = 32
	w.served(small)
	w.worker.post(requestItem(11, 1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.drained()
	w.told()
	w.acked = nil
	w.happens(0, create, "c")
	w.drained()
	w.told("11: +a +b")
	if !slices.Equal(w.acked, []uint64{11}) {
		t.Errorf("acknowledged %v", w.acked)
	}
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	if len(w.waiting) > 0 {
		t.Error("it waits again")
	}
	w.told()
}

// What ksmbd asks to be looked at anew is acknowledged, as its clients wait for that.
func TestRescanIsAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), w.rescanItem(1))
	if !slices.Equal(w.acked, []uint64{1, 1}) {
		t.Errorf("acknowledged %v", w.acked)
	}
}

// What is queued for a directory that was removed is kept for nobody.
func TestGoneKeepsNothing(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	w.happens(0, create, "a")
	w.happens(0, gone)
	w.drained()
	if n := w.budget.total(); n != 0 {
		t.Errorf("%d bytes are charged", n)
	}
}

// However many filesystems hang, the end waits for all of them together, and not for each.
func TestEndOfManyStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stuck := make(chan struct{})
		stop := w.serving()
		synctest.Wait()
		w.loop.open = func(Superblock) (Group, error) { <-stuck; return nil, errOther }
		for i := range uint64(3) {
			item := w.watchItem(1 + i)
			item.Filesystem, item.Device = "fuse", item.Device+uint32(i)
			w.items = append(w.items, item)
		}
		w.bell <- struct{}{}
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != endWithin || len(w.loop.past) != 3 {
			t.Errorf("after %v, %d hang", took, len(w.loop.past))
		}
		close(stuck)
		synctest.Wait()
	})
}

// Causes that nobody takes have the queue read, so that they can be forgotten.
func TestManyCauses(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	for i := range manyCauses {
		w.caused.Causes = append(w.caused.Causes, genl.Cause{Thread: int32(i + 1), File: "f", Filter: uint32(EA), Begun: 1, Ended: 2})
	}
	w.worker.causes.hub.mu.Lock()
	w.worker.causes.hub.more(2)
	w.worker.causes.hub.mu.Unlock()
	w.happens(0, create, "a")
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	if len(w.queue) > 0 || w.causes.full() {
		t.Error("they are kept")
	}
	w.worker.causes.kept = manyCauses
	w.worker.group = brokenGroup{w.fake()}
	if err := w.worker.serve(); !errors.Is(err, errOther) {
		t.Errorf("the queue cannot be read: %v", err)
	}
}

// A rename whose request was withheld comes whole.
func TestShift(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(11, 1))
	w.happens(0, create, "secret")
	w.drained()
	w.happens(0, rename, "x", "y")
	w.happens(0, create, "a")
	w.drained()
	w.served(requestItem(11, 1), requestItem(12, 1))
	w.told("11: +secret", "11: x>y", "12: +a")
}

// A directory that has no path is watched all the same.
func TestNoPath(t *testing.T) {
	w := newWorld(t)
	item := w.watchItem(1)
	unix.Close(item.FD)
	dir, about := w.open(item)
	if about.Directory != "?" {
		t.Errorf("it is called %q", about.Directory)
	}
	dir.Close()
}

// A request of a watch that was refused after it had been handed on is refused too.
func TestRequestOfRefusedWatch(t *testing.T) {
	w := newWorld(t)
	w.worker.post(requestItem(11, 1))
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	w.told("ack 11: EPROTO")
}

// What has taken too long to be handed over is closed.
func TestLeaveTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := countFDs(t)
		w.leaves(func() { w.slowDetach = 2 * leaveWithin })
		if w.loop.left != nil {
			t.Error("it is left all the same")
		}
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// Traces of a directory leave out changes elsewhere.
func TestConcerns(t *testing.T) {
	for dir, want := range map[string]string{"/a": "/a /a/b from:/a/b", "/a/": "/a/b from:/a/b", "/": "/a /ab /a/b from:/a/b", "/x": ""} {
		var got []string
		for _, path := range []string{"/a", "/ab", "/a/b", "from:/a/b"} {
			key, at := "path", path
			if rest, ok := strings.CutPrefix(path, "from:"); ok {
				key, at = "from", rest
			}
			r := slog.NewRecord(time.Time{}, LevelTrace, "change", 0)
			if r.Add("watch", 1, key, at); concerns(r, dir) {
				got = append(got, path)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s concerns %q, want %q", dir, got, want)
		}
	}
}
