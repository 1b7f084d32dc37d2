// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/genl"
)

// LevelTrace is the level of what is logged of each record.
const LevelTrace = slog.LevelDebug - 4

const (
	// retryAfter is the pause before something that failed for no reason of
	// the protocol is tried again.
	retryAfter = time.Second

	// maxQueued bounds the records of all watches that wait for a request,
	// in bytes as they would take in clients' buffers, and shareQueued is the part
	// of the memory that there is, should that be less. They take about twice that.
	maxQueued   = 64 << 20
	shareQueued = 16

	// askAgainAfter is when a completion has ksmbd asked whether it rang and was
	// not heard.
	askAgainAfter = time.Second

	// maxFetched bounds the items that are fetched before any is looked at.
	maxFetched = 16384

	// endWithin bounds how long an end waits for the filesystems.
	endWithin = 2 * time.Second
)

// Errors of a Kernel that Serve acts upon.
var (
	// ErrRetry: the items stay queued. From Next.
	ErrRetry = errors.New("try again later")
	// ErrNoRequest: the request has ended already. Of a Completion.
	ErrNoRequest error = unix.ENOENT
	// ErrDoubt: nobody knows whether ksmbd took it. Of a Completion.
	ErrDoubt = errors.New("an answer of ksmbd was lost")
)

// Kernel is ksmbd's side of the conversation, see ksmbd-notify.yaml.
type Kernel interface {
	// Next returns items that are queued, and whether there may be more. The
	// caller owns the items' FDs, also when there is an error: genl.ErrMalformed
	// costs items that are not among those returned, ErrRetry may pass, and any
	// other error ends the conversation.
	Next() (items []genl.Item, more bool, err error)
	// Ack says that a watch or request item has been handled, or, with an
	// errno, that its watch is not armed. It goes with what is said next.
	Ack(id uint64, errno unix.Errno)
	// Flush has what is to be said said.
	Flush()
	// Complete completes requests and sets the Err of each.
	Complete(completions []Completion)
	// Causes returns what SMB requests have changed since the last time.
	Causes() (genl.Causes, error)
}

// A Completion says how a request ends.
type Completion struct {
	Request uint64
	Status  genl.Status   // 0 with records
	Records []genl.Record // which are ksmbd's concern from then on
	Err     error

	seq uint32
}

// Opener opens a group for the watches of one filesystem.
type Opener func(Superblock) (Group, error)

// Group is what Serve needs of a fanotify.Group. See there.
type Group interface {
	io.Closer
	Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error)
	WatchMount(dir *os.File, device uint64, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error)
	Leave(leaves func(kind string) bool, watch func(dir *os.File, m mounts.Mount) fanotify.Apart)
	WaitUntil(until time.Time) (ready bool, err error)
	SleepUntil(until time.Time) error
	Wake()
	Drain() error
	Overflows() uint64
	Settled() bool
	Detach() (*os.File, error)
	Inherit(queue *os.File) error
	Confirm() error
}

// Mark is what a watch needs of a fanotify.Watch. See there.
type Mark interface {
	io.Closer
	Strategy() string
	Handover() (mounts []string, ok bool)
}

// OpenFanotify opens groups of this process.
func OpenFanotify(log *slog.Logger) Opener {
	return func(Superblock) (Group, error) {
		g, err := fanotify.Open(log)
		if err != nil {
			return nil, err
		}
		return group{g}, nil
	}
}

type group struct{ *fanotify.Group }

func (g group) Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return g.Group.Watch(dir, tree, ops, fn)
}

func (g group) WatchMount(dir *os.File, device uint64, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return g.Group.WatchMount(dir, device, ops, fn)
}

// shared is what the conversation and its workers share.
type shared struct {
	log       *slog.Logger
	kernel    Kernel
	stats     *stats
	control   *control
	budget    budget
	causes    causeHub
	opening   chan struct{}       // has a value while a group is opened that filesystems may share
	completed func(now time.Time) // called when requests were completed
}

// loop is one conversation with one ksmbd. It fetches what ksmbd has queued and
// hands it to the workers. It waits for none of them.
type loop struct {
	*shared
	open Opener
	asks <-chan func()          // to be called
	bell chan struct{}          // ksmbd may have something because of a completion
	past map[Superblock]*worker // of the conversations before

	mu      sync.Mutex
	workers map[Superblock]*worker
	routes  map[uint64]*route // by watch
	users   map[string]int    // watches by their user
	working context.Context   // of the workers
	failed  chan error        // why a worker has ended

	heirs   map[Superblock]*Part // what the last daemon left, and nobody has taken
	settled bool                 // nothing is to be taken any more
	leaves  bool                 // whether there is to be a handover to the next daemon
	left    *Handover            // what that is, after run

	asked   atomic.Int64     // when ksmbd was last asked for items, in ns of Unix time
	again   bool             // ksmbd is to be asked for items
	retry   <-chan time.Time // when to try again, after an error; else nil
	retries int              // errors in a row
}

// route says who has a watch.
type route struct {
	*worker
	user, share string
}

func newLoop(log *slog.Logger, k Kernel, open Opener) *loop {
	l := &loop{
		open: open, bell: make(chan struct{}, 1), past: make(map[Superblock]*worker),
		workers: make(map[Superblock]*worker), routes: make(map[uint64]*route), users: make(map[string]int),
		failed: make(chan error, 1), again: true, // what was queued before bell could ring
	}
	l.shared = &shared{
		log: log, kernel: k, stats: newStats(), control: new(control),
		budget: budget{limit: min(maxQueued, Memory()/shareQueued), most: func() int { return l.control.clientKiB() }}, causes: causeHub{fetch: k.Causes}, opening: make(chan struct{}, 1),
		completed: func(now time.Time) {
			if now.Sub(time.Unix(0, l.asked.Load())) < askAgainAfter {
				return
			}
			select {
			case l.bell <- struct{}{}: // the doorbell may have been lost
			default:
			}
		},
	}
	return l
}

// Serve converses with k until ctx is done, which is no error, or the Kernel or
// a Group ends it. A value in bell says that k may have items. All watches
// are dropped in the end.
func Serve(ctx context.Context, log *slog.Logger, k Kernel, bell <-chan struct{}, open Opener) error {
	return newLoop(log, k, open).run(ctx, bell)
}

func (l *loop) run(ctx context.Context, bell <-chan struct{}) error {
	working, stop := context.WithCancel(context.Background())
	defer l.end(stop)
	for {
		if l.again {
			if err := l.serve(ctx, working); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			l.leave(working)
			return nil
		case err := <-l.failed:
			return err
		case <-bell:
			l.again = true
		case <-l.bell:
			l.again = true
		case <-l.retry:
			l.again, l.retry = true, nil
		case fn := <-l.asks:
			fn()
		}
	}
}

// end ends the workers, and waits for those that get to their end. What holds one
// up cannot be helped: should its filesystem be watched again, that waits for it.
func (l *loop) end(stop context.CancelFunc) {
	stop()
	timeout := time.NewTimer(endWithin)
	defer timeout.Stop()
	l.mu.Lock()
	workers := maps.Clone(l.workers) // that may go meanwhile
	l.mu.Unlock()
	for fs, w := range workers {
		hangs := w
		select {
		case <-w.ended:
			hangs = w.before
		default:
			select {
			case <-w.ended:
				hangs = w.before
			case <-timeout.C:
				timeout.Reset(0)
			}
		}
		if l.past[fs] = hangs; hangs == nil {
			delete(l.past, fs)
			w.inbox.abandon() // what came after it had ended
		}
	}
	for _, part := range l.heirs {
		part.Queue.Close()
	}
}

// serve takes items from ksmbd until there are none.
func (l *loop) serve(ctx, working context.Context) error {
	for ctx.Err() == nil {
		l.again = false
		l.asked.Store(time.Now().UnixNano())
		items, more, err := l.fetch()
		switch {
		case err == nil:
			l.retries = 0
		case errors.Is(err, genl.ErrMalformed):
			// A watch that came to nothing shows with its first request.
			l.log.Error("ignoring items of ksmbd", "err", err)
		case errors.Is(err, ErrRetry):
			l.log.Error("asking ksmbd for items failed, will try again", "err", err)
			l.retry = time.After(retryAfter)
			if l.retries++; l.retries > 1 { // what the last daemon left has waited long enough
				l.settle()
			}
			return nil
		default:
			for _, item := range items {
				release([]any{item})
			}
			return err
		}
		l.dispatch(working, items)
		if !more && !l.again {
			l.settle()
			return nil
		}
		select { // clients that never stop asking keep nobody else from being answered
		case fn := <-l.asks:
			fn()
		case err := <-l.failed:
			return err
		default:
		}
	}
	return nil
}

// fetch takes items from ksmbd, and more of them if a user seems to have too many
// watches: that others have ended, ksmbd may tell later. An error that may pass, and is met
// when there are items already, is left for the next time: these are not to wait for that.
func (l *loop) fetch() (items []genl.Item, more bool, err error) {
	items, more, err = l.kernel.Next()
	for err == nil && more && len(items) < maxFetched && l.crowded(items) {
		var others []genl.Item
		others, more, err = l.kernel.Next()
		if items = append(items, others...); errors.Is(err, ErrRetry) {
			return items, true, nil
		}
	}
	return items, more, err
}

// crowded says whether somebody among items has one watch too many.
func (l *loop) crowded(items []genl.Item) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	more := make(map[string]int)
	for _, item := range items {
		r := l.routes[item.WatchID]
		switch {
		case item.Type == genl.ItemTypeUnwatch && r != nil:
			more[r.user]--
		case item.Type == genl.ItemTypeWatch && r == nil && l.control.tells(item.Share):
			more[item.User]++
		}
	}
	for user, n := range more {
		if n > 0 && l.control.full(l.users[user]+n) {
			return true
		}
	}
	return false
}

// dispatch hands items that were fetched together to the workers.
func (l *loop) dispatch(working context.Context, items []genl.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, item := range items { // who leaves makes room for who comes
		if item.Type == genl.ItemTypeUnwatch {
			l.leaveRoute(item.WatchID)
		}
	}
	var to *worker
	var batch []any
	post := func(w *worker, what any) {
		if w != to && to != nil {
			to.post(batch...)
			batch = batch[:0]
		}
		to, batch = w, append(batch, what)
	}
	for _, item := range items {
		r := l.routes[item.WatchID]
		switch {
		case item.Type == genl.ItemTypeWatch && r == nil:
			r = l.route(working, item)
			if err := l.control.admits(item, l.users[item.User]-1); err != nil {
				post(r.worker, unwanted{item, err})
				continue
			}
		case item.Type == genl.ItemTypeUnwatch:
			l.leaveRoute(item.WatchID) // of a watch that came with its end
			delete(l.routes, item.WatchID)
		case item.Type == genl.ItemTypeRequest && r == nil:
			l.kernel.Ack(item.RequestID, unix.EPROTO)
			l.again = true // which takes the acknowledgement along
		case item.Type == genl.ItemTypeRequest && !l.control.tells(r.share): // which it did when the watch was armed
			l.kernel.Ack(item.RequestID, unix.ECANCELED)
			l.again = true
			l.leaveRoute(item.WatchID)
			delete(l.routes, item.WatchID)
			item = genl.Item{Type: genl.ItemTypeUnwatch, WatchID: item.WatchID, FD: -1}
		}
		if r != nil {
			post(r.worker, item)
		}
	}
	if to != nil {
		to.post(batch...)
	}
}

// route finds the worker for a new watch, made if need be.
func (l *loop) route(working context.Context, item genl.Item) *route {
	r := &route{l.workerOf(working, Superblock{item.Filesystem, deviceName(item.Device)}), item.User, item.Share}
	l.routes[item.WatchID] = r
	l.users[item.User]++
	return r
}

// workerOf returns the worker of a filesystem, made if need be.
func (l *loop) workerOf(working context.Context, fs Superblock) *worker {
	w := l.workers[fs]
	if w != nil {
		return w
	}
	w = newWorker(l.shared, fs, l.past[fs], l)
	l.workers[fs] = w
	part := l.heirs[fs]
	delete(l.heirs, fs)
	l.working = working
	go func() {
		if err := w.run(working, l.open, part); err != nil {
			select {
			case l.failed <- err:
			default: // one is enough
			}
		}
	}()
	return w
}

// neighbour implements conversation.
func (l *loop) neighbour(fs Superblock) *worker {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.working == nil || l.working.Err() != nil {
		return nil
	}
	w := l.workerOf(l.working, fs)
	w.guests.Add(1)
	return w
}

// forget forgets a watch that is not armed.
func (l *loop) forget(watch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveRoute(watch)
	delete(l.routes, watch)
}

// retire implements conversation.
func (l *loop) retire(w *worker) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.inbox.empty() || w.guests.Load() > 0 {
		return false
	}
	for _, r := range l.routes {
		if r.worker == w {
			return false
		}
	}
	maps.DeleteFunc(l.workers, func(_ Superblock, other *worker) bool { return other == w })
	return true
}

// merge implements conversation. Filesystems that may hang are never together with
// others.
func (l *loop) merge(w *worker) bool {
	l.log.Warn("there can be no more fanotify groups: raise fs.fanotify.max_user_groups, or how many files the daemon may have open", "filesystem", w.filesystem.Type, "device", w.filesystem.Device)
	if MayHang(w.filesystem.Type) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for fs, other := range l.workers {
		if other == w || MayHang(fs.Type) || !other.started.Load() {
			continue
		}
		for _, r := range l.routes {
			if r.worker == w {
				r.worker = other
			}
		}
		l.workers[w.filesystem] = other
		for more := true; more; {
			var taken []any
			taken, more = w.inbox.take(true)
			other.post(taken...)
		}
		return true
	}
	return false
}

// leaveRoute takes a watch off its user's account.
func (l *loop) leaveRoute(watch uint64) {
	r := l.routes[watch]
	if r == nil || r.user == nobody {
		return
	}
	if l.users[r.user]--; l.users[r.user] == 0 {
		delete(l.users, r.user)
	}
	r.user = nobody
}

// nobody is the name of no user.
const nobody = "\x00"

// each calls fn for each worker.
func (l *loop) each(fn func(w *worker)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for fs, w := range l.workers {
		if fs == w.filesystem { // and not one that has it as well
			fn(w)
		}
	}
}

// settle ends the inheriting: ksmbd has no more watches that the last daemon
// had.
func (l *loop) settle() {
	if l.settled {
		return
	}
	l.settled = true
	for _, part := range l.heirs { // all its watches have ended
		part.Queue.Close()
	}
	l.heirs = nil
	l.each(func(w *worker) { w.post(w.settle) })
}
