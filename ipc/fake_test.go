// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/genl"
)

// world is a worker and its conversation between a fake ksmbd and a fake fanotify
// group.
type world struct {
	t *testing.T
	*worker
	loop *loop

	mu  sync.Mutex // of log and items; all else passes with bell and wake
	log []string   // what the loop told ksmbd

	acked []uint64 // what was acknowledged

	// ksmbd
	slow    time.Duration // that Next takes
	items   []any         // genl.Item, or an error for Next to return
	caused  genl.Causes   // by SMB requests
	answers []error       // to completions; nil when there are no more
	takes   time.Duration // a completion
	batch   int           // items that Next returns, if not 1

	// fanotify
	refuse     error                          // for Watch to return
	meanwhile  func(fn func(fanotify.Change)) // called in Watch, with what the new watch is told by
	failing    map[string]error               // of other methods, by their names
	queue      []func()
	lost       uint64        // overflows of it
	unsettled  int           // for how many Drains
	lacking    error         // for Confirm to return
	mounts     []string      // below each watch
	slowDetach time.Duration // that Detach takes
	elsewhere  bool          // no watch has its marks in the first queue
	watch      []*fakeWatch  // in the order of Watch
	wake       chan struct{} // lets WaitUntil return
	bell       chan struct{}
}

type fakeWatch struct {
	w      *world
	path   string
	tree   bool
	ops    fanotify.Op
	fn     func(fanotify.Change)
	closed bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, wake: make(chan struct{}, 1), bell: make(chan struct{}, 1)}
	w.loop = newLoop(slog.New(slog.DiscardHandler), w, w.opens)
	w.worker = newWorker(w.loop.shared, Superblock{"ext4", "8:1"}, nil, w.loop)
	w.worker.group = w.fake()
	w.worker.started.Store(true)
	w.causes.join()
	w.loop.workers[w.filesystem] = w.worker
	return w
}

func (w *world) Next() (items []genl.Item, more bool, err error) {
	time.Sleep(w.slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.items) > 0 && len(items) < max(1, w.batch) {
		next := w.items[0]
		w.items = w.items[1:]
		if err, ok := next.(error); ok {
			return items, len(w.items) > 0, err
		}
		items = append(items, next.(genl.Item))
	}
	return items, len(w.items) > 0, nil
}

func (w *world) Causes() (genl.Causes, error) {
	defer func() { w.caused = genl.Causes{} }()
	return w.caused, nil
}

func (w *world) answer() error {
	if len(w.answers) == 0 {
		return nil
	}
	err := w.answers[0]
	w.answers = w.answers[1:]
	return err
}

func (w *world) tell(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, what)
}

func (w *world) Ack(id uint64, errno unix.Errno) {
	w.mu.Lock()
	w.acked = append(w.acked, id)
	w.mu.Unlock()
	if errno != 0 {
		w.tell(fmt.Sprintf("ack %d: %s", id, unix.ErrnoName(errno)))
	}
}

func (w *world) Flush() {}

func (w *world) Complete(completions []Completion) {
	time.Sleep(w.takes * time.Duration(len(completions)))
	for i := range completions {
		c := &completions[i]
		what := recordString(c.Records)
		if c.Status != 0 {
			what = c.Status.String()
		}
		w.tell(fmt.Sprintf("%d: %s", c.Request, what))
		c.Err = w.answer()
	}
}

// recordString writes records as "+a -b *c a>b", for ADDED, REMOVED, MODIFIED
// and the two of a rename.
func recordString(records []genl.Record) string {
	var b strings.Builder
	for i, r := range records {
		switch r.Action {
		case genl.ActionAdded, genl.ActionRemoved, genl.ActionModified, genl.ActionRenamedOldName:
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString([]string{"+", "-", "*", ""}[r.Action-1] + r.Name)
		case genl.ActionRenamedNewName:
			b.WriteString(">" + r.Name)
		}
	}
	return b.String()
}

// opens is an Opener.
func (w *world) opens(Superblock) (Group, error) { return w.fake(), nil }

type fakeGroup struct {
	*world
	awake chan struct{} // has a value after Wake
}

func (w *world) fake() fakeGroup { return fakeGroup{w, make(chan struct{}, 1)} }

func (g fakeGroup) Close() error { return nil }

func (g fakeGroup) Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	dir.Close()
	if g.meanwhile != nil {
		g.meanwhile(fn)
	}
	if g.refuse != nil {
		return nil, g.refuse
	}
	f := &fakeWatch{w: g.world, path: dir.Name(), tree: tree, ops: ops, fn: fn}
	g.world.watch = append(g.world.watch, f)
	return f, nil
}

func (g fakeGroup) WatchMount(dir *os.File, _ uint64, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return g.Watch(dir, true, ops, fn)
}

func (g fakeGroup) Leave(func(string) bool, func(*os.File, mounts.Mount) fanotify.Apart) {}

func (g fakeGroup) WaitUntil(until time.Time) (ready bool, err error) {
	return g.sleep(until, g.wake), nil
}

func (g fakeGroup) SleepUntil(until time.Time) error {
	g.sleep(until, nil)
	return nil
}

func (g fakeGroup) Wake() {
	select {
	case g.awake <- struct{}{}:
	default:
	}
}

// sleep says whether there was something in ready.
func (g fakeGroup) sleep(until time.Time, ready <-chan struct{}) bool {
	var over <-chan time.Time
	if !until.IsZero() {
		over = time.After(time.Until(until))
	}
	select {
	case <-g.awake:
	case <-over:
	case <-ready:
		return true
	}
	return false
}

func (g fakeGroup) Drain() error {
	for _, fn := range g.world.queue {
		fn()
	}
	g.world.queue = nil
	return nil
}

func (g fakeGroup) Overflows() uint64 { return g.lost }

func (g fakeGroup) Settled() bool {
	g.unsettled--
	return g.unsettled < 0
}

func (g fakeGroup) Detach() (*os.File, error) {
	g.tell("detach")
	time.Sleep(g.slowDetach)
	if err := g.failing["detach"]; err != nil {
		return nil, err
	}
	return os.Open(os.DevNull)
}

func (g fakeGroup) Inherit(*os.File) error { g.tell("inherit"); return g.refuse }

func (g fakeGroup) Confirm() error { g.tell("confirm"); return g.lacking }

func (f *fakeWatch) Handover() ([]string, bool) { return f.w.mounts, !f.w.elsewhere }

func (f *fakeWatch) Strategy() string { return fmt.Sprintf("tree %v", f.tree) }

func (f *fakeWatch) Close() error {
	if f.closed {
		f.w.t.Error("watch is closed twice")
	}
	f.closed = true
	return f.w.failing["close"]
}

// happens puts a change in the fanotify queue of the i-th watch. Names are
// overwritten after the callback, as they are valid only during it.
func (w *world) happens(i int, op fanotify.Op, names ...string) {
	w.change(i, fanotify.Change{Op: op}, names...)
}

func (w *world) change(i int, c fanotify.Change, names ...string) {
	w.queue = append(w.queue, func() {
		if w.watch[i].closed {
			return
		}
		if len(names) > 0 && names[0] != "" {
			c.Name = []byte(names[0])
		}
		if len(names) > 1 {
			c.Name, c.OldName = []byte(names[1]), []byte(names[0])
		}
		w.watch[i].fn(c)
		for _, b := range [][]byte{c.Name, c.OldName} {
			copy(b, strings.Repeat("!", len(b)))
		}
	})
}

// drained drains the queue, as when the group became readable.
func (w *world) drained() {
	if err := w.worker.drain(); err != nil {
		w.t.Fatal(err)
	}
}

// served queues items in ksmbd and serves them.
func (w *world) served(items ...any) {
	w.t.Helper()
	w.items = append(w.items, items...)
	if err := w.serveAll(); err != nil {
		w.t.Fatal(err)
	}
}

// serveAll does what a conversation does, and then the worker what it is to do.
func (w *world) serveAll() error {
	for {
		items, more, err := w.loop.fetch()
		if err != nil && !errors.Is(err, genl.ErrMalformed) && !errors.Is(err, ErrRetry) {
			return err
		}
		w.loop.dispatch(w.t.Context(), items)
		if !more && !errors.Is(err, ErrRetry) {
			w.loop.settle()
		}
		if err := w.worker.serve(); err != nil || !more {
			return err
		}
	}
}

// told checks what ksmbd was told since the last call.
func (w *world) told(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.log, want) {
		w.t.Errorf("ksmbd was told %q, want %q", w.log, want)
	}
	w.log = nil
}

// dir opens a directory as ksmbd does.
func (w *world) dir() int {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return fd
}

const buffer = 4096

func (w *world) watchItem(id uint64) genl.Item {
	return genl.Item{Type: genl.ItemTypeWatch, WatchID: id, FD: w.dir(),
		Filter: uint32(All), BufferLength: buffer, Device: 0x801, Filesystem: "ext4"}
}

func requestItem(id, watch uint64) genl.Item {
	return genl.Item{Type: genl.ItemTypeRequest, WatchID: watch, RequestID: id, FD: -1, BufferLength: buffer}
}

func cancelItem(id uint64) genl.Item {
	return genl.Item{Type: genl.ItemTypeCancel, WatchID: 1, RequestID: id, FD: -1}
}

func unwatchItem(id uint64) genl.Item {
	return genl.Item{Type: genl.ItemTypeUnwatch, WatchID: id, FD: -1}
}

// countFDs counts the descriptors that are open. A leak is that there are more than before: those of
// a process that an earlier test had may be closed meanwhile.
func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// sleepRetry lets a synctest's clock pass the time after which is tried again.
func sleepRetry() {
	time.Sleep(retryAfter)
	synctest.Wait()
}

var errOther = errors.New("something else")
