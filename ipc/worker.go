// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
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

	// stuckAfter is when a filesystem that has not answered is spoken of.
	stuckAfter = 2 * time.Second

	// part is how many completions go to ksmbd together. More of them delay
	// the first clients that are told, fewer all others.
	part = 24

	// retireAfter is how long a worker without watches waits for others.
	retireAfter = 30 * time.Second

	// maxInbox is when a worker's inbox is rid of what needs no answer.
	maxInbox = 1024

	// maxEnds is how many ends are served before it is looked whether a client
	// waits for something.
	maxEnds = 16
)

// watch is a directory that ksmbd wants watched for one open handle.
type watch struct {
	id      uint64
	mark    Mark
	filter  Filter
	queue   queue
	pending []request // oldest first
	telling bool      // its oldest request is in the outbox
	last    uint64    // id of the newest request
	gone    bool      // the directory was removed
	about   WatchStatus
	log     *slog.Logger
}

// request is a client's that waits for records of a watch. It comes again if the
// client's user may see none of those that it was completed with, and has pended all
// the time: the first that has happened since is what completes it.
type request struct {
	id     uint64
	length int // of the client's buffer, bytes
	again  bool
}

// outgoing is a completion in the outbox.
type outgoing struct {
	Completion
	watch *watch
	since time.Time // when the first of the records was there to be read
}

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

	// What is to be done. wake has a value when there is something.
	inboxMu sync.Mutex
	inbox   []any // genl.Item, unwanted, or func() error to be called
	ends    []any // genl.Item that nobody waits for, to be done after these
	posted  atomic.Uint64
	wake    chan struct{}

	since atomic.Int64 // when the worker began what it is about, in ns of Unix time; else 0
	what  atomic.Pointer[string]
	alarm *time.Timer // speak, as long as armed
	armed atomic.Bool
	stuck atomic.Bool // and somebody was told

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
	looked      uint64 // what of posted the inbox was looked through for
	heritage
	retry time.Time // when to try again, after an error; else zero
	ready bool      // the queue was found to hold something, and was not read since
	found time.Time // when that was
	rests time.Time // until when it is left alone
}

// Superblock is a filesystem as ksmbd knows it.
type Superblock struct {
	Type   string // as proc_pid_mountinfo(5) has it
	Device string // major:minor
}

// unwanted is a watch item that is to be refused.
type unwanted struct {
	genl.Item
	why error
}

// lastChange is the change of which records were made last: many watches may have them.
type lastChange struct {
	name, old []byte
	change    fanotify.Change
	filter    Filter
	cause     Filter
	event     event
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

// post puts something in the inbox. It never waits.
func (l *worker) post(what ...any) {
	l.inboxMu.Lock()
	for _, what := range what {
		if end, ok := what.(genl.Item); ok && isEnd(end) {
			if len(l.inbox) < maxInbox || !l.withdraw(end) {
				l.ends = append(l.ends, end)
			}
			continue
		}
		l.inbox = append(l.inbox, what)
	}
	l.posted.Add(1)
	l.inboxMu.Unlock()
	l.poke()
}

// isEnd says whether an item is the end of a request or a watch. What else there
// is of that was posted before, and may be done before.
func isEnd(item genl.Item) bool {
	return item.Type == genl.ItemTypeCancel || item.Type == genl.ItemTypeUnwatch
}

// withdraw makes room in the inbox of a worker that does not get on: what has
// ended before it was looked at needs no answer any more, as ksmbd does not wait
// for longer than its timeout. It says whether the end itself is to be forgotten.
func (l *worker) withdraw(end genl.Item) bool {
	had := len(l.inbox)
	l.inbox = slices.DeleteFunc(l.inbox, func(what any) bool {
		item, ok := what.(genl.Item)
		return ok && (end.Type == genl.ItemTypeCancel && item.Type == genl.ItemTypeRequest && item.RequestID == end.RequestID ||
			end.Type == genl.ItemTypeUnwatch && item.Type != genl.ItemTypeWatch && item.WatchID == end.WatchID)
	})
	return end.Type == genl.ItemTypeCancel && len(l.inbox) < had
}

// run does what there is to do until ctx is done, or the worker is retired.
func (l *worker) run(ctx context.Context, open Opener, part *Part) error {
	defer close(l.ended)
	if l.before != nil {
		l.begin(&waitingBefore)
		select {
		case <-l.before.ended:
			l.before = nil
		case <-ctx.Done():
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
		if len(l.watches) > 0 {
			idle = time.Time{}
		} else if idle.IsZero() {
			idle = time.Now().Add(retireAfter)
		}
		if err := l.sleep(sooner(l.retry, idle)); err != nil {
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
			return true
		}
		if errors.Is(err, unix.EMFILE) && l.merge(l) {
			return false
		}
		for _, what := range l.take() {
			switch what := what.(type) {
			case func() error:
				what()
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
	case !l.eager: // somebody was told
		return now.Add(gap)
	case l.credit < 0:
		return now.Add(min(-l.credit*readShare, gap))
	}
	return now
}

// What a worker may be about.
var (
	readingChanges = "reading changes"
	waitingBefore  = "what was left off"
	openingGroup   = "opening fanotify"
)

// begin says that the worker is about something that may block on the filesystem,
// until end.
func (l *worker) begin(what *string) {
	l.what.Store(what)
	l.since.Store(time.Now().UnixNano())
	if !l.armed.Swap(true) { // once in a while: to set a timer may take waking another thread
		l.alarm.Reset(stuckAfter)
	}
}

func (l *worker) end() {
	since := time.Unix(0, l.since.Swap(0))
	if l.stuck.Swap(false) {
		l.log.Info("a filesystem answers again", "filesystem", l.filesystem.Type, "device", l.filesystem.Device, "after", time.Since(since))
	}
}

// doing returns what the worker is about and since when, if that is long ago.
func (l *worker) doing() *Doing {
	since := l.since.Load()
	if since == 0 || time.Since(time.Unix(0, since)) < stuckAfter {
		return nil
	}
	return &Doing{time.Unix(0, since), *l.what.Load()}
}

// speak says that the filesystem does not answer, if it does not.
func (l *worker) speak() {
	l.armed.Store(false)
	since := l.since.Load()
	if since == 0 {
		return
	}
	doing := l.doing()
	if doing == nil { // it has begun after the alarm was set
		if !l.armed.Swap(true) {
			l.alarm.Reset(time.Until(time.Unix(0, since).Add(stuckAfter)))
		}
		return
	}
	l.stuck.Store(true)
	l.stats.note(Incident{Kind: Stuck, Reason: fmt.Sprintf("the %s on device %s does not answer: %s", l.filesystem.Type, l.filesystem.Device, doing.What)})
	l.log.Warn("a filesystem does not answer, what changes in it is told when it does", "filesystem", l.filesystem.Type,
		"device", l.filesystem.Device, "since", doing.Since, "in", doing.What)
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
	if l.read = time.Now(); l.ready {
		l.read, l.ready = l.found, false
	}
	l.causes.next()
	l.eager = true
	before := l.group.Overflows()
	l.begin(&readingChanges)
	err := l.group.Drain()
	l.end()
	l.mu.Lock()
	l.flush()
	l.mu.Unlock()
	if n := l.group.Overflows() - before; n > 0 {
		l.stats.overflowed(n)
		l.log.Warn("the fanotify queue overflowed, clients will list their directories anew: " +
			"if that is often, raise fs.fanotify.max_queued_events")
	}
	return err
}

// take empties the inbox, and takes some of the ends.
func (l *worker) take() []any {
	l.inboxMu.Lock()
	defer l.inboxMu.Unlock()
	n := min(len(l.ends), maxEnds)
	taken := append(l.inbox, l.ends[:n]...)
	l.inbox, l.ends = nil, l.ends[n:]
	if len(l.ends) == 0 {
		l.ends = nil
	} else {
		l.poke()
	}
	return taken
}

// serve does what is in the inbox: fetch, drain, act. What happened before ksmbd
// queued an item is in the watches' queues before the item is acted upon, and a new
// watch sees nothing of it.
func (l *worker) serve() error {
	l.eager = true
	drained, told := false, 0
	inbox := l.take()
	for i, what := range inbox {
		if fn, ok := what.(func() error); ok {
			if err := fn(); err != nil {
				release(inbox[i+1:])
				return err
			}
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
		if told++; told%part == 0 {
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

// release closes what items refer to that nobody acts upon any more.
func release(inbox []any) {
	for _, what := range inbox {
		item, _ := what.(genl.Item)
		if refused, ok := what.(unwanted); ok {
			item = refused.Item
		}
		if item.Type == genl.ItemTypeWatch {
			unix.Close(item.FD)
		}
	}
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

// watch arms a watch, or marks the one that there is for a rescan.
func (l *worker) watch(item genl.Item) {
	dir, about := l.open(item)
	log := l.control.logger(l.log, about)
	w := l.watches[item.WatchID]
	known := w != nil
	var err error
	if known {
		dir.Close()
	} else {
		w, err = l.arm(item, dir)
	}
	// Not before: whoever asked may be changing things already.
	log.Debug("watch", "watch", item.WatchID, "path", about.Directory, "tree", item.Tree, "filter", Filter(item.Filter),
		"buffer", item.BufferLength, "rescan", item.Rescan, "user", item.User, "share", item.Share)
	switch {
	case known:
		l.mu.Lock()
		l.lose(w, lostBelow)
		l.mu.Unlock()
		l.kernel.Ack(item.WatchID, 0)
	case err != nil:
		l.refused(item, about, log, err)
	default:
		l.mu.Lock()
		w.about, w.log = about, log
		w.about.Strategy = w.mark.Strategy()
		l.watches[w.id] = w
		if item.Tree {
			l.trees++
		}
		l.mu.Unlock()
		l.kernel.Ack(item.WatchID, 0)
		l.stats.count(func(t *Total) { t.Watches++ })
	}
}

// open returns the directory of a watch item, and what there is to say of it.
func (l *worker) open(item genl.Item) (*os.File, WatchStatus) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", item.FD))
	if err != nil {
		path = "?" // only for people
	}
	return os.NewFile(uintptr(item.FD), path), WatchStatus{
		ID: item.WatchID, Directory: path, Tree: item.Tree, User: unique.Make(item.User).Value(), Share: unique.Make(item.Share).Value(),
		Since: time.Now(), Filesystem: l.filesystem.Type, Device: l.filesystem.Device,
	}
}

// arm makes a watch of an item and has dir watched for it.
func (l *worker) arm(item genl.Item, dir *os.File) (*watch, error) {
	w := &watch{
		id:     item.WatchID,
		filter: Filter(item.Filter),
		queue:  queue{limit: int(item.BufferLength), budget: l.budget.of(item)},
	}
	name := "watching " + dir.Name()
	l.begin(&name)
	defer l.end()
	var err error
	w.mark, err = l.group.Watch(dir, item.Tree, w.filter.Ops(), func(c fanotify.Change) { l.changed(w, c) })
	if err == nil && !l.takeOver(w) && item.Rescan {
		w.queue.overflow()
	}
	if err != nil {
		w.queue.budget.leave()
	}
	return w, err
}

// refuse refuses what is not wanted.
func (l *worker) refuse(item unwanted) {
	switch item.Type {
	case genl.ItemTypeWatch:
		dir, about := l.open(item.Item)
		dir.Close()
		l.refused(item.Item, about, l.control.logger(l.log, about), item.why)
	case genl.ItemTypeRequest:
		l.kernel.Ack(item.RequestID, unix.EPROTO)
	}
}

// refused has ksmbd end a watch that is not armed.
func (l *worker) refused(item genl.Item, about WatchStatus, log *slog.Logger, err error) {
	level := slog.LevelWarn
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errOff) { // removed meanwhile, or it is as wanted
		level = slog.LevelDebug
	}
	log.Log(context.Background(), level, "directory cannot be watched, its client is refused: see ksmbd-notifyd check",
		"path", about.Directory, "filesystem", l.filesystem.Type, "tree", item.Tree, "err", err)
	l.stats.count(func(t *Total) { t.Refused++ })
	l.stats.note(Incident{Kind: Refusal, Directory: about.Directory, User: item.User, Share: item.Share, Reason: err.Error()})
	errno := unix.EIO
	errors.As(err, &errno)
	l.kernel.Ack(item.WatchID, errno)
	l.forget(item.WatchID)
}

func (l *worker) request(item genl.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.watches[item.WatchID]
	log := l.log
	if w != nil {
		log = w.log
	}
	log.Debug("request", "request", item.RequestID, "watch", item.WatchID, "buffer", item.BufferLength)
	switch {
	case w == nil:
		// It has been refused, after its request was queued; in any other case
		// nobody may wait for ever.
		l.kernel.Ack(item.RequestID, unix.EPROTO)
		return
	case l.waiting[item.RequestID] != nil:
		l.log.Error("request came twice", "request", item.RequestID, "watch", item.WatchID)
		return
	}
	l.stats.count(func(t *Total) { t.Requests++ })
	if len(l.outbox) > 0 && w.telling {
		l.flush()
	}
	// One whose records were withheld comes again, and is the oldest still.
	i, _ := slices.BinarySearchFunc(w.pending, item.RequestID, func(r request, id uint64) int { return cmp.Compare(r.id, id) })
	w.pending = slices.Insert(w.pending, i, request{item.RequestID, int(item.BufferLength), item.RequestID <= w.last})
	w.last = max(w.last, item.RequestID)
	l.waiting[item.RequestID] = w
	l.deliver(w)
	l.kernel.Ack(item.RequestID, 0)
}

// forgetRequest drops a request that has ended.
func (l *worker) forgetRequest(id uint64) {
	if w := l.waiting[id]; w != nil {
		delete(l.waiting, id)
		w.pending = slices.DeleteFunc(w.pending, func(r request) bool { return r.id == id })
	}
}

// drop drops a watch that has ended.
func (l *worker) drop(w *watch) {
	l.mu.Lock()
	l.flush()
	for _, r := range w.pending {
		delete(l.waiting, r.id)
	}
	w.queue.clear()
	w.queue.budget.leave()
	delete(l.watches, w.id)
	if w.about.Tree {
		l.trees--
	}
	l.mu.Unlock()
	name := "ending the watch of " + w.about.Directory
	l.begin(&name)
	defer l.end()
	if err := w.mark.Close(); err != nil {
		l.log.Warn("ending a watch failed", "watch", w.id, "err", err)
	}
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
	// A request that waits for its turn is served now, rather than that its client lists anew.
	if len(w.pending) == 0 && !w.queue.room(e) {
		l.hurry(w)
		l.deliver(w)
	}
	if len(w.queue.records) == 0 {
		w.queue.since = l.read
	}
	// What a request takes at once, nobody has to keep.
	direct := len(w.pending) > 0 && !w.queue.waiting() && !w.telling
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
	posted := l.posted.Load()
	if l.looked == posted {
		return
	}
	l.inboxMu.Lock()
	var found *genl.Item
	for i, what := range l.inbox {
		if item, ok := what.(genl.Item); ok && item.WatchID == w.id {
			if item.Type == genl.ItemTypeRequest {
				found = &item
				l.inbox = slices.Delete(l.inbox, i, i+1)
			}
			break
		}
	}
	l.inboxMu.Unlock()
	if found == nil {
		return
	}
	w.log.Debug("request", "request", found.RequestID, "watch", w.id, "buffer", found.BufferLength)
	l.stats.count(func(t *Total) { t.Requests++ })
	w.pending = append(w.pending, request{found.RequestID, int(found.BufferLength), found.RequestID <= w.last})
	w.last = max(w.last, found.RequestID)
	l.waiting[found.RequestID] = w
	l.kernel.Ack(found.RequestID, 0)
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
// there is something to tell. Where one is on its way already it is waited for:
// should that fail, what it has goes to the next.
func (l *worker) deliver(w *watch) {
	for len(w.pending) > 0 && (w.gone || w.queue.waiting()) && l.retry.IsZero() {
		if w.telling {
			l.flush()
			continue
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
		if l.eager || len(l.outbox) >= part {
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
	l.kernel.Complete(completions)
	now := time.Now()
	for i := range out {
		w, c := out[i].watch, &completions[i]
		w.telling = false
		switch {
		case c.Err == nil:
			l.stats.told(w.about.Share, c, now.Sub(out[i].since))
			l.forgetRequest(c.Request)
			continue
		case errors.Is(c.Err, ErrNoRequest):
			w.log.Debug("request has ended already", "request", c.Request)
			l.forgetRequest(c.Request)
			w.queue.unpush(c.Records, out[i].since)
		case c.Status == 0:
			// ksmbd can take a status if anything. Should it have taken the
			// records, it has no such request any more.
			l.log.Error("completing a request with records failed", "request", c.Request, "err", c.Err)
			w.queue.overflow()
			l.overflowed(w, refused)
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
