// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

const (
	create   = fanotify.Create
	remove   = fanotify.Delete
	rename   = fanotify.Rename
	modify   = fanotify.Modify
	gone     = fanotify.Gone
	overflow = fanotify.Overflow
)

// Fetch, drain, act: what was done before ksmbd queued a request is all in the
// request's answer. Without the drain the request would pend, and the first
// change alone would complete it later.
func TestDrainBeforeServe(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	for i := range 10 {
		w.happens(0, create, fmt.Sprint(i))
	}
	w.served(requestItem(1, 1))
	w.drained()
	w.told("1: +0 +1 +2 +3 +4 +5 +6 +7 +8 +9")
}

// A new watch sees nothing of what happened before its item was fetched.
func TestDrainBeforeWatch(t *testing.T) {
	w := newWorld(t)
	// The fake group hands this to whichever watch is there when it is drained.
	w.queue = append(w.queue, func() {
		if len(w.watch) > 0 {
			w.watch[0].fn(fanotify.Change{Op: create, Name: []byte("before")})
		}
	})
	w.served(w.watchItem(1), requestItem(1, 1))
	w.drained()
	w.told()
}

// The first record completes a pending request at once; the others wait for
// the next request and complete it all together.
func TestFirstRecordRule(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.happens(0, create, "c")
	w.drained()
	w.told("1: +a")
	w.served(requestItem(2, 1))
	w.told("2: +b +c")
	w.served(requestItem(3, 1))
	w.told()
}

func TestFirstRenameIsOne(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	w.happens(0, rename, "a", "b")
	w.happens(0, rename, "d/a", "b")
	w.drained()
	w.told("1: a>b")
	w.served(requestItem(2, 1))
	w.told("2: -d/a +b")
}

func TestRequestsAreFirstInFirstOut(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(3, 1), requestItem(4, 1), requestItem(5, 1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.drained()
	w.told("3: +a", "4: +b")
	w.happens(0, create, "c")
	w.drained()
	w.told("5: +c")
}

func TestWatchesAreIndependent(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), w.watchItem(2), requestItem(1, 1), requestItem(2, 2))
	w.happens(0, create, "a")
	w.happens(1, create, "a")
	w.happens(1, create, "b")
	w.drained()
	w.told("1: +a", "2: +a")
	w.served(requestItem(3, 1), requestItem(4, 2))
	w.told("4: +b")
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1), requestItem(2, 1), cancelItem(1), cancelItem(99))
	w.happens(0, create, "a")
	w.drained()
	w.told("2: +a")
	if len(w.waiting) != 0 {
		t.Errorf("%d requests are left", len(w.waiting))
	}
	// The watch goes on without a request.
	w.served(requestItem(3, 1), cancelItem(3))
	w.happens(0, create, "b")
	w.served(requestItem(4, 1))
	w.told("4: +b")
}

// The request has ended in ksmbd while the record was on its way: nothing that
// was not taken is lost.
func TestEndedRequestKeepsRecords(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	w.answers = []error{unix.ENOENT}
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.drained()
	w.told("1: +a")
	w.served(requestItem(2, 1))
	w.told("2: +a +b")
}

func TestEndedRequestPassesRecordsOn(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1), requestItem(2, 1), requestItem(3, 1))
	w.answers = []error{unix.ENOENT, fmt.Errorf("wrapped: %w", unix.ENOENT)}
	w.happens(0, create, "a")
	w.drained()
	w.told("1: +a", "2: +a", "3: +a")
}

func TestEndedRequestKeepsOverflow(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	w.answers = []error{unix.ENOENT}
	w.happens(0, overflow)
	w.drained()
	w.told("1: ENUM_DIR")
	w.served(requestItem(2, 1))
	w.told("2: ENUM_DIR")
	w.happens(0, create, "a")
	w.served(requestItem(3, 1))
	w.told("3: +a")
}

// The client's user may see none of the records: the request comes once more, and
// is the oldest still.
func TestWithheldRecords(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(11, 1), requestItem(12, 1))
	w.happens(0, create, "secret")
	w.drained()
	w.told("11: +secret")
	// It has pended all the time: what came first meanwhile completes it.
	w.happens(0, rename, "x", "y")
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.happens(0, create, "c")
	w.drained()
	w.told("12: x>y")
	w.served(requestItem(12, 1), requestItem(11, 1), requestItem(13, 1))
	w.told("12: +a", "11: +b", "13: +c")
	if w.budget.total() != 0 {
		t.Errorf("%d bytes are charged", w.budget.total())
	}
}

// Each item is acknowledged when it has been handled, those that are fetched
// together after one drain.
func TestBatch(t *testing.T) {
	w := newWorld(t)
	w.batch = 10
	w.served(w.watchItem(1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.served(requestItem(11, 1), w.watchItem(2), requestItem(22, 2), cancelItem(22), unwatchItem(2))
	w.told("11: +a +b")
	if want := []uint64{1, 11, 2, 22}; !slices.Equal(w.acked, want) {
		t.Errorf("acknowledged %v, want %v", w.acked, want)
	}
}

// ksmbd cannot take the records: the client is told to list anew.
func TestRefusedRecords(t *testing.T) {
	for _, err := range []error{unix.EMSGSIZE, unix.ENOBUFS, unix.EINVAL, errOther} {
		w := newWorld(t)
		w.served(w.watchItem(1), requestItem(1, 1))
		w.answers = []error{err}
		w.happens(0, create, "a")
		w.happens(0, create, "b")
		w.drained()
		w.told("1: +a", "1: ENUM_DIR")
		w.served(requestItem(2, 1))
		w.told("2: +b")
	}
}

// Nothing can be told for a while: what is to be told waits.
func TestRefusedStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.items = []any{w.watchItem(1), requestItem(1, 1)}
		w.answers = []error{unix.ENOMEM, unix.ENOMEM, unix.ENOMEM}
		stop := w.serving()
		synctest.Wait()
		w.happens(0, create, "a")
		w.wake <- struct{}{}
		synctest.Wait()
		w.told("1: +a", "1: ENUM_DIR")
		sleepRetry()
		w.told("1: ENUM_DIR")
		sleepRetry()
		w.told("1: ENUM_DIR")
		sleepRetry()
		w.told()
		stop()
	})
}

func TestOverflow(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	w.happens(0, create, "a")
	w.happens(0, overflow)
	w.happens(0, create, "b")
	w.served(requestItem(1, 1))
	w.told("1: ENUM_DIR")
	w.happens(0, create, "c")
	w.served(requestItem(2, 1))
	w.told("2: +c")

	w.served(requestItem(3, 1))
	w.happens(0, overflow)
	w.drained()
	w.told("3: ENUM_DIR")
}

func TestQueueOverflow(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	for i := range 1000 {
		w.happens(0, create, fmt.Sprint(i))
	}
	w.served(requestItem(1, 1), requestItem(2, 1))
	w.told("1: ENUM_DIR")
	w.happens(0, create, "a")
	w.drained()
	w.told("2: +a")
}

// Three records of 14 bytes and 2 of padding, which the last has not.
func TestBufferLength(t *testing.T) {
	for _, test := range []struct {
		first, second uint32
		want          string
	}{
		{46, 46, "+a +b +c"},
		{45, 46, "ENUM_DIR"}, // the first length is a ceiling
		{46, 45, "ENUM_DIR"},
		{buffer, 46, "+a +b +c"},
		{buffer, 45, "ENUM_DIR"},
		{45, buffer, "ENUM_DIR"},
		{0, buffer, "ENUM_DIR"},
		{buffer, 0, "ENUM_DIR"},
	} {
		w := newWorld(t)
		watch, request := w.watchItem(1), requestItem(1, 1)
		watch.BufferLength, request.BufferLength = test.first, test.second
		w.served(watch)
		w.happens(0, create, "a")
		w.happens(0, create, "b")
		w.happens(0, create, "c")
		w.served(request)
		w.told("1: " + test.want)
		if w.budget.total() != 0 {
			t.Errorf("%d bytes count as queued", w.budget.total())
		}
	}
}

// A buffer of no length pends like any other, and then is too small.
func TestBufferOfZero(t *testing.T) {
	w := newWorld(t)
	request := requestItem(1, 1)
	request.BufferLength = 0
	w.served(w.watchItem(1), request)
	w.told()
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.drained()
	w.told("1: ENUM_DIR")
	w.served(requestItem(2, 1))
	w.told("2: +b")
}

// A client may have what is left by all: there is room for one more.
func TestBudget(t *testing.T) {
	w := newWorld(t)
	w.budget.limit = 60
	items := []any{w.watchItem(1), w.watchItem(2), w.watchItem(3)}
	for i := range items {
		item := items[i].(genl.Item)
		item.Client = uint64(i/2 + 1) // the first two are of one
		items[i] = item
	}
	w.served(items...)
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.happens(1, create, "c") // is too much
	w.happens(2, create, "d")
	w.happens(2, create, "e") // is too much
	w.served(requestItem(11, 1), requestItem(22, 2), requestItem(33, 3))
	w.told("11: +a +b", "22: ENUM_DIR", "33: ENUM_DIR")
	if w.budget.total() != 0 {
		t.Errorf("%d bytes count as queued", w.budget.total())
	}

	// A client may have less than what is left, over all its watches.
	w.budget.limit = maxQueued
	w.control.policy.ClientKiB = 1
	long := strings.Repeat("f", 150) // 312 bytes in a record
	for _, name := range []string{"a", "b", "c"} {
		w.happens(0, create, name+long)
	}
	w.happens(1, create, long) // is too much for the client
	for _, name := range []string{"a", "b", "c"} {
		w.happens(2, create, name+long)
	}
	w.served(requestItem(51, 1), requestItem(52, 2), requestItem(53, 3))
	three := " +a" + long + " +b" + long + " +c" + long
	w.told("51:"+three, "52: ENUM_DIR", "53:"+three)
	w.control.policy.ClientKiB = 0

	// What is told at once, nobody keeps.
	w.budget.limit = 0
	w.served(requestItem(44, 1))
	w.happens(0, create, "g")
	w.drained()
	w.told("44: +g")
	w.served(unwatchItem(1), unwatchItem(2), unwatchItem(3))
	if len(w.budget.clients) != 0 {
		t.Errorf("accounts %v are left", w.budget.clients)
	}
}

// A queue that fills faster than what is to be told goes by is told of in between,
// and nothing is told twice or out of turn.
func TestHurry(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), w.watchItem(2))
	for i := range 2000 {
		if i == 1000 { // no more than 230 fit
			w.queue = append(w.queue, func() {})
		}
		w.queue = append(w.queue, func() {
			if i%150 == 140 { // the client has asked again, and the other one too
				w.loop.dispatch(w.t.Context(), []genl.Item{requestItem(uint64(1000+i), 1), requestItem(uint64(5000+i), 2)})
			}
		})
		w.happens(0, create, fmt.Sprintf("%04d", i))
	}
	w.drained()
	w.served()
	var got []string
	for _, line := range w.log {
		request, records, _ := strings.Cut(line, ": ")
		if request > "5" {
			t.Errorf("another watch was told %.50s", line)
		}
		got = append(got, strings.Fields(records)...)
	}
	for i, name := range got {
		if want := fmt.Sprintf("+%04d", i); name != want {
			t.Fatalf("record %d is %s, want %s", i, name, want)
		}
	}
	if len(got) < 1800 {
		t.Errorf("%d records were told", len(got))
	}
}

func TestMerging(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	for _, name := range []string{"a", "a", "b", "a", "a"} {
		w.happens(0, modify, name)
	}
	w.happens(0, remove, "a")
	w.happens(0, rename, "x", "y")
	w.happens(0, rename, "x", "y")
	w.served(requestItem(1, 1))
	w.told("1: *a *b *a -a x>y x>y")
}

func TestRescanOfNewWatch(t *testing.T) {
	w := newWorld(t)
	watch := w.watchItem(1)
	watch.Rescan = true
	w.served(watch)
	w.happens(0, create, "a")
	w.served(requestItem(1, 1), requestItem(2, 1))
	w.told("1: ENUM_DIR")
}

// ksmbd gave up waiting for us and let clients have their PENDING.
func TestRescanOfKnownWatch(t *testing.T) {
	w := newWorld(t)
	again := w.watchItem(1)
	again.Rescan = true
	w.served(w.watchItem(1), requestItem(1, 1), again)
	w.told("1: ENUM_DIR")
	if len(w.watch) != 1 {
		t.Errorf("%d watches", len(w.watch))
	}
	w.served(requestItem(2, 1))
	w.told()
}

func TestGone(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1), requestItem(2, 1), requestItem(3, 1))
	w.answers = []error{nil, unix.ENOENT}
	w.happens(0, create, "a")
	w.happens(0, gone)
	w.drained()
	w.told("1: +a", "2: DELETE_PENDING", "3: DELETE_PENDING")
	w.served(requestItem(4, 1))
	w.told("4: DELETE_PENDING")
	w.served(unwatchItem(1))
	if len(w.watches)+len(w.waiting)+w.budget.total() != 0 {
		t.Errorf("watches %v, waiting %v, %d bytes are left", w.watches, w.waiting, w.budget.total())
	}
}

func TestGoneWithoutRequest(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1))
	w.happens(0, create, "a")
	w.happens(0, gone)
	w.served(requestItem(1, 1), requestItem(2, 1))
	w.told("1: DELETE_PENDING", "2: DELETE_PENDING")
}

func TestUnwatch(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.served(unwatchItem(1), unwatchItem(1), unwatchItem(99))
	w.told("1: +a")
	if !w.watch[0].closed {
		t.Error("the watch is not closed")
	}
	if len(w.watches)+len(w.waiting)+w.budget.total() != 0 {
		t.Errorf("watches %v, waiting %v, %d bytes are left", w.watches, w.waiting, w.budget.total())
	}
}

func TestWatchRefused(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("marking: %w", unix.ENOSPC), "ack 1: ENOSPC"},
		{errOther, "ack 1: EIO"},
	} {
		w := newWorld(t)
		w.refuse = test.err
		w.served(w.watchItem(1))
		w.told(test.want)
		if len(w.watches) != 0 {
			t.Errorf("watches %v are left", w.watches)
		}
	}
}

// Who asks does not wait for the ends of others, however many there are.
func TestEndsComeLast(t *testing.T) {
	w := newWorld(t)
	const many = 10 * maxEnds
	w.batch = 64
	var items []any
	for id := range uint64(many) {
		items = append(items, w.watchItem(id+1))
	}
	w.served(items...)
	items = nil
	for id := range uint64(many) {
		items = append(items, unwatchItem(id+1))
	}
	w.worker.post(items...)
	w.worker.post(w.watchItem(many+1), requestItem(many+2, many+1))
	if err := w.worker.serve(); err != nil {
		t.Fatal(err)
	}
	if w.waiting[many+2] == nil {
		t.Error("the request was not looked at")
	}
	if n := len(w.watches); n != many+1-maxEnds {
		t.Errorf("%d watches are left", n)
	}
	for rounds := 0; len(w.watches) > 1; rounds++ {
		select {
		case <-w.worker.wake:
		default:
			t.Fatalf("%d watches are left, and it sleeps", len(w.watches))
		}
		if err := w.worker.serve(); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody may wait for ever for a watch that there is not.
func TestRequestOfUnknownWatch(t *testing.T) {
	w := newWorld(t)
	w.served(requestItem(1, 7))
	w.told("ack 1: EPROTO")
}

func TestRequestTwice(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1), requestItem(1, 1))
	w.happens(0, create, "a")
	w.happens(0, create, "b")
	w.drained()
	w.told("1: +a")
}

func TestMalformedItemIsIgnored(t *testing.T) {
	w := newWorld(t)
	w.batch = 2
	w.served(fmt.Errorf("item: %w", genl.ErrMalformed), w.watchItem(1),
		fmt.Errorf("item: %w", genl.ErrMalformed), requestItem(1, 1))
	w.happens(0, create, "a")
	w.drained()
	w.told("1: +a")
}

func TestNameThatNoRecordCarries(t *testing.T) {
	w := newWorld(t)
	watch, request := w.watchItem(1), requestItem(1, 1)
	watch.BufferLength, request.BufferLength = 1<<20, 1<<20
	w.served(watch, request)
	w.happens(0, create, string(make([]byte, genl.MaxName+1)))
	w.drained()
	w.told("1: ENUM_DIR")
}

func TestFilterAndTreeReachFanotify(t *testing.T) {
	w := newWorld(t)
	watch := w.watchItem(1)
	watch.Tree, watch.Filter = true, uint32(Size)
	w.served(watch, requestItem(1, 1))
	if f := w.watch[0]; !f.tree || f.ops != modify || f.path != "/" {
		t.Errorf("watch of %s with ops %b, tree %v", f.path, f.ops, f.tree)
	}
	w.happens(0, create, "a")
	w.happens(0, modify, "b")
	w.drained()
	w.told("1: *b")
}

// A completion may have made room for an item whose doorbell was lost.
func TestCompletionAsksAgain(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(1, 1))
	if len(w.loop.bell) > 0 {
		t.Error("asks again with nothing completed")
	}
	w.happens(0, create, "a")
	w.drained()
	if len(w.loop.bell) == 0 {
		t.Error("does not ask again after a completion")
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	before := countFDs(t)
	w := newWorld(t)
	w.served(w.watchItem(1), w.watchItem(1), w.watchItem(2), unwatchItem(2))
	w.refuse = errOther
	w.served(w.watchItem(3))
	w.worker.group = brokenGroup{w.fake()}
	w.items = []any{w.watchItem(4)}
	if err := w.serveAll(); !errors.Is(err, errOther) {
		t.Errorf("error %v", err)
	}
	w.worker.close()
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

type brokenGroup struct{ fakeGroup }

func (brokenGroup) Drain() error { return errOther }

// serving has a conversation with the fakes, and returns what ends it.
func (w *world) serving() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error)
	w.loop = newLoop(slog.New(slog.DiscardHandler), w, w.opens) // a fresh one, as Serve does
	go func() { ended <- w.loop.run(ctx, w.bell) }()
	return func() {
		w.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	}
}

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.items = []any{w.watchItem(1)} // from before the first ring
		stop := w.serving()
		synctest.Wait()
		if len(w.watch) != 1 {
			t.Fatalf("%d watches", len(w.watch))
		}

		w.items = append(w.items, requestItem(1, 1))
		w.bell <- struct{}{}
		synctest.Wait()
		w.happens(0, create, "a")
		w.wake <- struct{}{}
		synctest.Wait()
		w.told("1: +a")

		// Within the gap nothing is read, until ksmbd asks.
		w.happens(0, create, "b")
		w.wake <- struct{}{}
		synctest.Wait()
		if len(w.queue) != 1 {
			t.Error("read within the gap")
		}
		w.items = append(w.items, requestItem(2, 1))
		w.bell <- struct{}{}
		synctest.Wait()
		w.told("2: +b")

		stop()
		if !w.watch[0].closed {
			t.Error("the watch is not closed")
		}
	})
}

func TestServeRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.items = []any{fmt.Errorf("%w: %w", ErrRetry, unix.EMFILE), w.watchItem(1)}
		stop := w.serving()
		synctest.Wait()
		w.mu.Lock()
		if len(w.items) != 1 {
			t.Error("did not wait")
		}
		w.mu.Unlock()
		sleepRetry()
		if len(w.watch) != 1 {
			t.Error("did not try again")
		}
		stop()
	})
}

// What was fetched already is not lost when more cannot be.
func TestServeRetriesForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.items = []any{w.itemOf(1, "anne", "docs"), w.itemOf(2, "anne", "docs"), ErrRetry, requestItem(3, 1)}
		l := newLoop(slog.New(slog.DiscardHandler), w, w.opens)
		l.control.policy = Policy{UserWatches: 1}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- l.run(ctx, w.bell) }()
		synctest.Wait()
		w.told("ack 2: ENOSPC")
		if !slices.Equal(w.acked, []uint64{1, 2, 3}) {
			t.Errorf("acknowledged %d", w.acked)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestServeEndsWithErrors(t *testing.T) {
	for name, start := range map[string]func(w *world) (Kernel, Group){
		"kernel": func(w *world) (Kernel, Group) {
			w.items = []any{errOther}
			return w, w.fake()
		},
		"drain": func(w *world) (Kernel, Group) {
			w.items = []any{w.watchItem(1)}
			w.wake <- struct{}{}
			return w, brokenGroup{w.fake()}
		},
		"wait": func(w *world) (Kernel, Group) {
			w.items = []any{w.watchItem(1)}
			return w, deafGroup{w.fake()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			k, g := start(newWorld(t))
			err := Serve(t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), k, nil, func(Superblock) (Group, error) { return g, nil })
			if !errors.Is(err, errOther) {
				t.Errorf("error %v", err)
			}
		})
	}
}

type deafGroup struct{ fakeGroup }

func (deafGroup) WaitUntil(time.Time) (bool, error) { return false, errOther }

// A filesystem that nobody watches any more is left after a while, and watched again when somebody asks.
func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		delete(w.loop.workers, w.filesystem) // that one does not run
		ctx, end := context.WithCancel(t.Context())
		defer end()
		workersAfter := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			w.loop.mu.Lock()
			defer w.loop.mu.Unlock()
			w.loop.causes.mu.Lock()
			defer w.loop.causes.mu.Unlock()
			// That which does not run hears of causes too.
			if n, hear := len(w.loop.workers), len(w.loop.causes.of)-1; n != want || hear != want {
				t.Errorf("%d workers, %d of which hear of causes, want %d", n, hear, want)
			}
		}
		workers := func(want int) {
			t.Helper()
			workersAfter(2*retireAfter, want)
		}
		w.loop.dispatch(ctx, []genl.Item{w.watchItem(1)})
		workers(1)
		w.loop.mu.Lock()
		first := w.loop.workers[w.filesystem]
		w.loop.mu.Unlock()
		w.loop.dispatch(ctx, []genl.Item{unwatchItem(1)})
		workersAfter(retireAfter-time.Second, 1)
		workers(0)
		select {
		case <-first.ended:
		default:
			t.Error("it goes on")
		}
		w.loop.dispatch(ctx, []genl.Item{w.rescanItem(2), requestItem(22, 2)})
		workers(1)
		w.told("22: ENUM_DIR")
	})
}

// When there can be no more groups, filesystems share one.
func TestMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		delete(w.loop.workers, w.filesystem)
		w.loop.leaves, w.loop.settled = true, true
		var groups atomic.Int32
		w.loop.open = func(Superblock) (Group, error) {
			if groups.Add(1) > 1 {
				return nil, fmt.Errorf("too many: %w", unix.EMFILE)
			}
			time.Sleep(time.Second) // the others want one meanwhile
			return w.fake(), nil
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		w.loop.dispatch(ctx, []genl.Item{w.watchItem(1), requestItem(11, 1)})
		synctest.Wait()
		other := w.watchItem(2)
		other.Device = 0x802
		hangs := w.watchItem(3)
		hangs.Device, hangs.Filesystem = 0x803, "fuse"
		w.loop.dispatch(ctx, []genl.Item{other, requestItem(22, 2), hangs})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.told("ack 3: EMFILE")
		w.happens(1, fanotify.Create, "a")
		w.wake <- struct{}{}
		synctest.Wait()
		w.told("22: +a")
		w.loop.leave(ctx)
		w.told("detach")
		if n := len(w.loop.left.Parts); n != 1 {
			t.Errorf("%d parts are left to the next daemon", n)
		}
		w.loop.left.Close()
		w.loop.dispatch(ctx, []genl.Item{unwatchItem(1), unwatchItem(2)})
		time.Sleep(2 * retireAfter)
		synctest.Wait()
		w.loop.mu.Lock()
		defer w.loop.mu.Unlock()
		for fs, worker := range w.loop.workers {
			if !MayHang(fs.Type) {
				t.Errorf("a worker of %v is left, %v", fs, worker.filesystem)
			}
		}
	})
}

// A watch that comes with its end is not its user's any more, whether it was admitted or not.
func TestUserOfWatchThatEnded(t *testing.T) {
	w := newWorld(t)
	w.loop.control.policy = Policy{UserWatches: 1}
	w.loop.dispatch(t.Context(), []genl.Item{w.itemOf(1, "anne", "docs"), w.itemOf(2, "anne", "docs"), unwatchItem(1), unwatchItem(2)})
	w.served()
	w.told("ack 2: ENOSPC")
	if len(w.loop.users)+len(w.loop.routes) > 0 {
		t.Errorf("users %v, routes %v", w.loop.users, w.loop.routes)
	}
	w.served(w.itemOf(3, "anne", "docs"))
	w.told()
}
