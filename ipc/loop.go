// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// LevelTrace is the level of what is logged of each record.
const LevelTrace = slog.LevelDebug - 4

const (
	// gap is the least time between two reads of the fanotify queue, unless
	// ksmbd asks. Reading each event as it comes costs six times as much.
	gap = 2 * time.Millisecond

	// retryAfter is the pause before something that failed for no reason of
	// the protocol is tried again.
	retryAfter = time.Second

	// maxQueued bounds the records of all watches that wait for a request,
	// in bytes as they would take in clients' buffers. They take about twice
	// that of memory.
	maxQueued = 64 << 20
)

// Errors of a Kernel that Serve acts upon.
var (
	// ErrAgain: nothing is queued. From Next.
	ErrAgain = errors.New("nothing is queued")
	// ErrRetry: the item stays queued. From Next.
	ErrRetry = errors.New("try again later")
	// ErrNoRequest: the request has ended already. From Complete and CompleteStatus.
	ErrNoRequest error = unix.ENOENT
	// ErrWithheld: the client may see none of the records. From Complete.
	ErrWithheld error = unix.ENODATA
)

// Kernel is ksmbd's side of the conversation, see ksmbd-notify.yaml.
type Kernel interface {
	// Next returns the oldest queued item, and thereby acknowledges the one
	// before. The caller owns the item's FD. ErrAgain says that nothing is
	// queued, genl.ErrMalformed costs one item, ErrRetry may pass, and any
	// other error ends the conversation.
	Next() (genl.Item, error)
	Armed(watch uint64, errno unix.Errno) error
	Complete(request uint64, records []genl.Record) error
	CompleteStatus(request uint64, status genl.Status) error
	// Causes returns what SMB requests have changed since the last time.
	Causes() (genl.Causes, error)
}

// Group is what Serve needs of a fanotify.Group. See there.
type Group interface {
	Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error)
	Wait(ctx context.Context) error
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

// Fanotify returns g as a Group.
func Fanotify(g *fanotify.Group) Group { return group{g} }

type group struct{ *fanotify.Group }

func (g group) Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return g.Group.Watch(dir, tree, ops, fn)
}

// watch is a directory that ksmbd wants watched for one open handle.
type watch struct {
	id      uint64
	mark    Mark
	filter  Filter
	queue   queue
	pending []request // oldest first
	gone    bool      // the directory was removed
	about   WatchStatus
	log     *slog.Logger
}

// request is a client's that waits for records of a watch.
type request struct {
	id     uint64
	length int // of the client's buffer, bytes
}

// loop is the state of one conversation with one ksmbd.
type loop struct {
	log     *slog.Logger
	kernel  Kernel
	group   Group
	watches map[uint64]*watch
	trees   int               // of the watches
	waiting map[uint64]*watch // by id of a pending request
	budget  budget
	causes  causes
	stats   *stats
	control *control
	users   map[string]int // watches by their user
	heritage
	leaves bool      // whether there is to be a handover to the next daemon
	left   *Handover // what that is, after run

	again bool             // ksmbd is to be asked for items
	retry <-chan time.Time // when to try again, after an error; else nil
	asks  <-chan func()    // to be called
	woke  atomic.Int64     // when the queue was found to hold something that is not read yet, in ns of Unix time; else 0
	read  time.Time        // when what is told now was there to be read
}

func newLoop(log *slog.Logger, k Kernel, g Group) *loop {
	return &loop{
		log: log, kernel: k, group: g,
		watches: make(map[uint64]*watch),
		waiting: make(map[uint64]*watch),
		budget:  budget{limit: maxQueued},
		causes:  causes{fetch: k.Causes},
		stats:   newStats(),
		control: new(control),
		users:   make(map[string]int),
		again:   true, // what was queued before bell could ring
	}
}

// Serve converses with k until ctx is done, which is no error, or the Kernel or
// the Group ends it. A value in bell says that k may have items. All watches
// are dropped in the end.
func Serve(ctx context.Context, log *slog.Logger, k Kernel, bell <-chan struct{}, g Group) error {
	return newLoop(log, k, g).run(ctx, bell)
}

func (l *loop) run(ctx context.Context, bell <-chan struct{}) error {
	defer l.close()

	ctx, cancel := context.WithCancel(ctx)
	readable := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- l.await(ctx, readable) }()
	defer func() {
		cancel()
		if ended != nil {
			<-ended
		}
	}()

	for {
		if l.again {
			if err := l.serve(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			l.leave()
			return nil
		case err := <-ended:
			if ended = nil; err == nil { // ctx is done
				l.leave()
			}
			return err
		case <-bell:
			l.again = true
		case <-l.retry:
			l.again, l.retry = true, nil
			for _, w := range l.watches {
				l.deliver(w)
			}
		case fn := <-l.asks:
			fn()
		case <-readable:
			if err := l.drain(); err != nil {
				return err
			}
		}
	}
}

// await says in readable when the group's queue is to be drained: at once for
// the first event, then after a gap.
func (l *loop) await(ctx context.Context, readable chan<- struct{}) error {
	for {
		if err := l.group.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		l.woke.CompareAndSwap(0, time.Now().UnixNano())
		select {
		case readable <- struct{}{}: // the loop drains now
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(gap):
		case <-ctx.Done():
			return nil
		}
	}
}

// close drops all watches.
func (l *loop) close() {
	for _, w := range l.watches {
		l.drop(w)
	}
	l.disinherit()
}

// drain has the watches told of what happened until now.
func (l *loop) drain() error {
	l.read = time.Now()
	if woke := l.woke.Swap(0); woke != 0 {
		l.read = time.Unix(0, woke)
	}
	l.causes.next()
	before := l.group.Overflows()
	err := l.group.Drain()
	if n := l.group.Overflows() - before; n > 0 {
		l.stats.total.QueueOverflows += n
		l.stats.note(Incident{Kind: QueueOverflow, Reason: "more changed at once than fs.fanotify.max_queued_events"})
		l.log.Warn("the fanotify queue overflowed, clients will list their directories anew: " +
			"if that is often, raise fs.fanotify.max_queued_events")
	}
	return err
}

// serve takes items from ksmbd until there are none: fetch, drain, act. What
// happened before ksmbd queued an item is in the watches' queues before the item
// is acted upon, and a new watch sees nothing of it.
func (l *loop) serve(ctx context.Context) error {
	l.again = false
	for ctx.Err() == nil {
		item, err := l.kernel.Next()
		switch {
		case err == nil:
		case errors.Is(err, ErrAgain):
			return l.settle()
		case errors.Is(err, genl.ErrMalformed):
			// A watch that came to nothing shows with its first request.
			l.log.Error("ignoring an item of ksmbd", "err", err)
			continue
		case errors.Is(err, ErrRetry):
			l.log.Error("asking ksmbd for an item failed, will try again", "err", err)
			l.retry = time.After(retryAfter)
			return l.settle()
		default:
			return err
		}
		if !l.inherits(item) {
			err := l.settle()
			if err == nil {
				err = l.drain()
			}
			if err != nil {
				if item.FD >= 0 {
					unix.Close(item.FD)
				}
				return err
			}
		}
		l.act(item)
	}
	return nil
}

func (l *loop) act(item genl.Item) {
	switch item.Type {
	case genl.ItemTypeWatch:
		l.watch(item)
	case genl.ItemTypeRequest:
		l.request(item)
	case genl.ItemTypeCancel:
		l.log.Debug("cancel", "request", item.RequestID)
		l.forget(item.RequestID)
	case genl.ItemTypeUnwatch:
		l.log.Debug("unwatch", "watch", item.WatchID)
		if w := l.watches[item.WatchID]; w != nil {
			l.drop(w)
		}
	}
}

// watch arms a watch, or marks the one that there is for a rescan.
func (l *loop) watch(item genl.Item) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", item.FD))
	if err != nil {
		path = "?" // only for people
	}
	dir := os.NewFile(uintptr(item.FD), path)
	filesystem, device := FilesystemOf(dir)
	about := WatchStatus{
		ID: item.WatchID, Directory: path, Tree: item.Tree, Filter: Filter(item.Filter).String(), User: item.User, Share: item.Share,
		Since: time.Now(), Filesystem: filesystem, Device: device,
	}
	log := l.control.logger(l.log, about)
	w := l.watches[item.WatchID]
	known := w != nil
	if known {
		dir.Close()
	} else {
		w, err = l.arm(item, dir)
	}
	// Not before: whoever asked may be changing things already.
	log.Debug("watch", "watch", item.WatchID, "path", path, "tree", item.Tree, "filter", Filter(item.Filter),
		"buffer", item.BufferLength, "rescan", item.Rescan, "user", item.User, "share", item.Share)
	switch {
	case known:
		l.lose(w, lostBelow)
	case err != nil:
		level := slog.LevelWarn
		if errors.Is(err, unix.ENOENT) || errors.Is(err, errOff) { // removed meanwhile, or it is as wanted
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "directory cannot be watched, its client is refused: see ksmbd-notifyd check",
			"path", path, "filesystem", filesystem, "tree", item.Tree, "err", err)
		l.stats.total.Refused++
		l.stats.note(Incident{Kind: Refusal, Directory: path, User: item.User, Share: item.Share, Reason: err.Error()})
		errno := unix.EIO
		errors.As(err, &errno)
		l.refuse(item.WatchID, errno)
	default:
		w.about, w.log = about, log
		w.about.Strategy = w.mark.Strategy()
		l.watches[w.id] = w
		l.users[item.User]++
		l.stats.total.Watches++
		if item.Tree {
			l.trees++
		}
	}
}

// arm makes a watch of an item and has dir watched for it.
func (l *loop) arm(item genl.Item, dir *os.File) (*watch, error) {
	if err := l.control.policy.admits(item, l.users[item.User]); err != nil {
		dir.Close()
		return nil, err
	}
	w := &watch{
		id:     item.WatchID,
		filter: Filter(item.Filter),
		queue:  queue{limit: int(item.BufferLength), budget: &l.budget},
	}
	var err error
	w.mark, err = l.group.Watch(dir, item.Tree, w.filter.Ops(), func(c fanotify.Change) { l.changed(w, c) })
	if err == nil && !l.takeOver(w) && item.Rescan {
		w.queue.overflow()
	}
	return w, err
}

// refuse ends a watch in ksmbd, with all its requests.
func (l *loop) refuse(watch uint64, errno unix.Errno) {
	if err := l.kernel.Armed(watch, errno); err != nil && !errors.Is(err, unix.ENOENT) {
		l.log.Error("refusing a watch failed", "watch", watch, "err", err)
	}
}

func (l *loop) request(item genl.Item) {
	w := l.watches[item.WatchID]
	log := l.log
	if w != nil {
		log = w.log
	}
	log.Debug("request", "request", item.RequestID, "watch", item.WatchID, "buffer", item.BufferLength)
	switch {
	case w == nil:
		l.log.Error("request for a watch that there is not", "request", item.RequestID, "watch", item.WatchID)
		l.refuse(item.WatchID, unix.EPROTO)
		return
	case l.waiting[item.RequestID] != nil:
		l.log.Error("request came twice", "request", item.RequestID, "watch", item.WatchID)
		return
	case !l.control.policy.Tells(w.about.Share): // which it did when the watch was armed
		l.refuse(item.WatchID, unix.ENOSYS)
		l.drop(w)
		return
	}
	l.stats.total.Requests++
	w.pending = append(w.pending, request{item.RequestID, int(item.BufferLength)})
	l.waiting[item.RequestID] = w
	l.deliver(w)
}

// forget drops a request that has ended.
func (l *loop) forget(id uint64) {
	if w := l.waiting[id]; w != nil {
		delete(l.waiting, id)
		w.pending = slices.DeleteFunc(w.pending, func(r request) bool { return r.id == id })
	}
}

// drop drops a watch that has ended.
func (l *loop) drop(w *watch) {
	for _, r := range w.pending {
		delete(l.waiting, r.id)
	}
	w.queue.clear()
	delete(l.watches, w.id)
	if l.users[w.about.User]--; l.users[w.about.User] == 0 {
		delete(l.users, w.about.User)
	}
	if w.about.Tree {
		l.trees--
	}
	if err := w.mark.Close(); err != nil {
		l.log.Warn("ending a watch failed", "watch", w.id, "err", err)
	}
}

// changed takes in what fanotify tells of a watch. It runs within Drain.
func (l *loop) changed(w *watch, c fanotify.Change) {
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
	records := w.filter.records(c, l.causes.of(c))
	if w.log.Enabled(context.Background(), LevelTrace) {
		w.trace(c, records)
	}
	if len(w.queue.records) == 0 {
		w.queue.since = l.read
	}
	if why := w.queue.push(records); why != "" {
		l.overflowed(w, why)
	}
	l.deliver(w)
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
func (l *loop) lose(w *watch, why string) {
	if !w.queue.lost {
		w.queue.overflow()
		l.overflowed(w, why)
	}
	l.deliver(w)
}

// overflowed takes down that w has lost records. That one client was slow is no
// concern of others.
func (l *loop) overflowed(w *watch, why string) {
	level := slog.LevelDebug
	if why == tooMany {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "overflow", "watch", w.id, "path", w.about.Directory, "reason", why)
	w.about.Overflows++
	l.stats.total.Overflows++
	l.stats.loss = &Loss{time.Now(), w.about.Directory, why}
	l.stats.of(w.about.Share).Overflows++
	l.stats.note(Incident{Kind: Overflow, Directory: w.about.Directory, User: w.about.User, Share: w.about.Share, Reason: why})
}

// deliver completes requests of w, oldest first, as long as there is something
// to tell. What is told leaves the queue only once ksmbd has taken it.
func (l *loop) deliver(w *watch) {
	for len(w.pending) > 0 && (w.gone || w.queue.waiting()) {
		r := w.pending[0]
		status, err := l.complete(w, r)
		l.again = true // the doorbell may have been lost
		switch {
		case err == nil:
			l.stats.count(w, status)
			w.queue.clear()
			l.forget(r.id)
		case errors.Is(err, ErrNoRequest):
			w.log.Debug("request has ended already", "request", r.id)
			l.forget(r.id)
		case errors.Is(err, ErrWithheld):
			w.log.Debug("records were withheld", "request", r.id)
			w.queue.clear()
		case status == 0:
			// ksmbd can take a status if anything.
			l.log.Error("completing a request with records failed", "request", r.id, "err", err)
			w.queue.overflow()
			l.overflowed(w, refused)
		default:
			l.log.Error("completing a request failed, will try again", "request", r.id, "err", err)
			l.retry = time.After(retryAfter)
			return
		}
	}
}

// complete completes one request of w with what is to be told, and returns the
// status if it was that.
func (l *loop) complete(w *watch, r request) (genl.Status, error) {
	var status genl.Status
	switch {
	case w.gone:
		status = genl.StatusDeletePending
	case !w.queue.fits(r.length):
		status = genl.StatusEnumDir
	default:
		w.log.Debug("complete", "request", r.id, "watch", w.id, "records", len(w.queue.records))
		return 0, l.kernel.Complete(r.id, w.queue.records)
	}
	w.log.Debug("complete", "request", r.id, "watch", w.id, "status", status)
	return status, l.kernel.CompleteStatus(r.id, status)
}
