// SPDX-License-Identifier: GPL-2.0-or-later

// Package fanotify reports what changes in and below directories, by name,
// on Linux 5.17 and later. See fanotify(7).
//
// A watch of one directory takes an inode mark, shared by all watches of that
// directory. A watch tree takes one filesystem mark, shared by all watch
// trees of that filesystem, and a tree of directory handles that turns the
// handles in events into names. What can neither be named nor kept is told as
// Overflow: nothing is dropped in silence.
//
// A Group belongs to one goroutine; another may call Wait or WaitUntil. It starts
// no goroutine that outlives a call.
package fanotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/fanotify/raw"
)

// Op is what happened to a name. As a set it says what a watch asks for.
type Op uint32

const (
	Create Op = 1 << iota // a name came to be: create, mkdir, link, mknod, symlink
	Delete                // a name went
	Rename                // a name was changed or moved
	Modify                // contents or size changed, or the modification time was set
	Attrib                // mode, owner, times or extended attributes changed; not the access time alone, which is told as reading is

	// What follows is always told, asked for or not.

	Gone     // the watched directory itself was removed; nothing more will come
	Overflow // changes were lost or cannot be named: list the directory anew
)

// A Change is what happened to one name below a watched directory. It has
// exactly one Op, but Modify and Attrib come together where the kernel has merged
// them.
//
// Name and OldName are relative to the watched directory, with '/' between
// components, and valid only during the callback. A Rename has both, or no
// OldName when the name was moved in, or no Name when it was moved out.
//
// Parent and OldParent are the directories that Name and OldName are in, as the
// bytes of a struct file_handle, see open_by_handle_at(2). File is what the
// name stands for in the same form, where it is known, valid as Name is. Thread
// is who did it, as fanotify(7) has it in pid; 0 where that is not known.
//
// It happened after Since and before Until, in nanoseconds of CLOCK_MONOTONIC.
// Since is 0 if that is not known.
type Change struct {
	Op                Op
	Dir               bool // the name stands for a directory
	Name, OldName     []byte
	Parent, OldParent string
	File              []byte
	Thread            int32
	Since, Until      int64
}

const (
	// maxBatch bounds the memory for what is read in one Drain. It holds more
	// than a queue of 128 Ki events; beyond it the batch counts as overflowed.
	maxBatch = 32 << 20
	// keepBatch is what stays allocated between two batches.
	keepBatch = 1 << 20
	// minRead is more than the longest event: three handles, two names.
	minRead = 4096
	// patience bounds the milliseconds that a Drain waits in all.
	patience = 16
)

// A Group is what is watched, and the fanotify groups that tell of it.
type Group struct {
	log         *slog.Logger
	file        *os.File // an epoll of the queues and the mounts
	conn        syscall.RawConn
	woke        [8]unix.EpollEvent       // what WaitUntil found ready, which epoll then ignores until it asks for that again
	asleep      int                      // how many of these it ignores now
	found       bool                     // whether it found anything
	look        func(epoll uintptr) bool // asks epoll
	until       time.Time                // what it waits for at the longest
	awake       atomic.Bool              // WaitUntil is not to wait
	queues      []*queue                 // the first is shared by all filesystems that can
	filesystems map[fsKey]*filesystem
	maxNodes    int
	maxMarks    int
	retryAfter  time.Duration
	spare       time.Duration
	retry       atomic.Pointer[time.Time] // when Drain is to be called though nothing happened
	inherited   []byte                    // the marks that came with the first queue, see Inherit
	inheriting  bool                      // the watches of that are being opened anew

	leaves      func(kind string) bool // see Leave
	watchApart  func(dir *os.File, m mounts.Mount) Apart
	mounts      mountTable
	points      map[int]*point       // mounts that watch trees see, by id
	asked       [opCount]int         // watch trees that ask for an op
	refused     map[string]time.Time // when the log told last that a mount cannot be watched
	retryMounts time.Time            // when to try that again; else zero
	owed        []*Watch             // who is to be told of an Overflow
	entered     []*point             // mounts that are looked at
	enteredAt   uint64               // mounts.moves when they were entered
	left        uint64               // how often they were left

	queue     *queue // whose turn it is
	movedIn   bool   // a directory came into a watch tree
	misplaced bool   // a mount was not where the table says: a rename that is yet to be told may be why
	ahead     bool   // a directory was looked up on disk: its position may be newer than events that are still queued
	at, next  int    // where in its batch the event that is being told begins, and the one after it
	batch     uint64 // its number
	putOff    int    // how often settling was put off in it
	patience  int    // how often this Drain may yet wait for an event that is on its way
	creator   int32  // the thread that created names in it, or several
	remover   int32  // the one that removed some
	replaced  replacements
	overflows uint64
	from, to  scope // where the event at hand happened
	nesting   scope // where a mount is
}

// A queue is a fanotify group of the kernel's.
type queue struct {
	fd          int
	filesystems map[uint64]*filesystem // by fsid
	buf         []byte                 // the batch: what was read and has not been told
	told        uint64                 // how many bytes were read before the batch: with an offset in it, a position in the queue
	full        bool                   // part of the batch was lost
	empty       int64                  // when it was found so last, 0 if that is not known
	since       int64                  // when it was so before the batch
	until       int64                  // when it was read last
}

// Open makes a group. Its queues are limited by fs.fanotify.max_queued_events.
// It needs CAP_SYS_ADMIN and Linux 5.17.
func Open(log *slog.Logger) (*Group, error) {
	g := &Group{
		log: log, maxNodes: maxNodes, maxMarks: maxMarks, retryAfter: retryAfter, spare: spare,
		filesystems: make(map[fsKey]*filesystem), refused: make(map[string]time.Time), points: make(map[int]*point),
		replaced: replacements{make(map[int32]replacement), make(map[int]string)},
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("opening epoll: %w", err)
	}
	if err = unix.SetNonblock(fd, true); err == nil { // so that the runtime waits for it
		g.file = os.NewFile(uintptr(fd), "fanotify")
		g.look = g.asks
		g.conn, err = g.file.SyscallConn()
	}
	if err == nil {
		_, err = g.openQueue()
	}
	if err == nil {
		err = g.mounts.open(g)
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// poll adds fd to what Wait waits for. When Wait has found it ready, epoll ignores it
// until the next Wait: else each event would wake this process, also while it is at work.
func (g *Group) poll(fd int, events uint32) error {
	var err error
	ctlErr := g.conn.Control(func(epoll uintptr) {
		err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(fd)})
	})
	if err = cmp.Or(ctlErr, err); err != nil {
		return fmt.Errorf("waiting for fanotify: %w", err)
	}
	return nil
}

func (g *Group) openQueue() (*queue, error) {
	q := &queue{filesystems: make(map[uint64]*filesystem)}
	if err := g.reopen(q); err != nil {
		return nil, err
	}
	g.queues = append(g.queues, q)
	return q, nil
}

// reopen replaces a queue by an empty one without marks.
func (g *Group) reopen(q *queue) error {
	q.empty = before()
	// FAN_REPORT_TID: what a rename replaced is found by its thread, see replace.go. It also
	// keeps the kernel from merging what different threads did.
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME_TARGET|unix.FAN_REPORT_TID|
		unix.FAN_UNLIMITED_MARKS|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("opening fanotify: the kernel was built without it: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("opening fanotify: it takes root, or CAP_SYS_ADMIN: %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("opening fanotify: it takes Linux 5.17 or later: %w", err)
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("opening fanotify: too many open files, or groups (fs.fanotify.max_user_groups): %w", err)
	case err != nil:
		return fmt.Errorf("opening fanotify: %w", err)
	}
	return g.replace(q, fd)
}

// replace gives a queue another fanotify group, which it takes ownership of.
func (g *Group) replace(q *queue, fd int) error {
	if err := g.poll(fd, unix.EPOLLIN); err != nil {
		unix.Close(fd)
		return err
	}
	if q.fd > 0 {
		unix.Close(q.fd)
	}
	q.fd = fd
	return nil
}

// closeQueue ends a queue with all its marks.
func (g *Group) closeQueue(q *queue) {
	unix.Close(q.fd)
	i := slices.Index(g.queues, q)
	g.queues = slices.Delete(g.queues, i, i+1)
}

// Wait blocks until there is something for Drain to do, ctx is done or the group
// is closed. The latter two are errors, context.Cause's and os.ErrClosed.
func (g *Group) Wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, g.Wake)()
	for ctx.Err() == nil {
		if ready, err := g.WaitUntil(time.Time{}); ready || err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// WaitUntil blocks until there is something for Drain to do, which it says, until a
// time that is not zero, or until Wake. It fails with os.ErrClosed if the group is
// closed.
func (g *Group) WaitUntil(until time.Time) (ready bool, err error) {
	retry := g.retry.Load()
	if retry != nil && (until.IsZero() || retry.Before(until)) {
		until = *retry
	}
	g.found = false
	err = g.sleep(until, g.look)
	return g.found || retry != nil && !time.Now().Before(*retry), err
}

// SleepUntil blocks until a time that is not zero, or until Wake, whatever there is for
// Drain to do. It fails as WaitUntil does.
func (g *Group) SleepUntil(until time.Time) error {
	return g.sleep(until, func(uintptr) bool { return false })
}

// Wake ends a WaitUntil or SleepUntil that has begun, or else the next one. Anybody may
// call it.
func (g *Group) Wake() {
	g.awake.Store(true)
	g.file.SetReadDeadline(passed) // fails only for a closed group, which nobody can wait for
}

// passed is the deadline that Wake sets.
var passed = time.Unix(1, 0)

// sleep blocks until done, which is asked when there may be something in the epoll, says
// so, until a time that is not zero, or until Wake.
func (g *Group) sleep(until time.Time, done func(epoll uintptr) bool) error {
	if !until.Equal(g.until) {
		g.file.SetReadDeadline(until) // fails as Read does
		g.until = until
	}
	if g.awake.Swap(false) {
		// Wake's deadline may have been replaced by the one above, or be set only after this:
		// so it is not known now, and the next sleep sets its own.
		g.until = passed
		return nil
	}
	err := g.conn.Read(done)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		g.awake.Store(false)
		g.until = passed
		return nil
	}
	if err != nil {
		if _, closed := g.file.Stat(); errors.Is(closed, os.ErrClosed) {
			err = os.ErrClosed // which a RawConn does not call by its name
		}
		return fmt.Errorf("waiting for fanotify: %w", err)
	}
	return nil
}

// asks looks what there is in the epoll, and has it say what comes.
func (g *Group) asks(epoll uintptr) bool {
	for ; g.asleep > 0; g.asleep-- {
		e := g.woke[g.asleep-1]
		e.Events = e.Events&(unix.EPOLLIN|unix.EPOLLPRI) | unix.EPOLLONESHOT
		raw.EpollModify(int(epoll), int(e.Fd), &e) // fails for a queue that was closed
	}
	n, err := raw.EpollReady(int(epoll), g.woke[:])
	g.asleep = max(n, 0)
	// A look too many costs one EAGAIN. That mounts have changed, the runtime's poller takes
	// from this epoll when it looks what has woken it.
	g.found = n != 0 || err != nil || g.mounts.poll()
	return g.found
}

// Drain reads the queue until it is empty and then calls the watches' fn, in
// the order of what happened on a filesystem. An fn must not call the group or
// its watches.
func (g *Group) Drain() error {
	if len(g.queues) == 0 {
		return fmt.Errorf("reading fanotify: %w", os.ErrClosed)
	}
	defer g.leave()
	g.ahead = false
	g.patience = patience
	if g.mounts.poll() || !g.retryMounts.IsZero() && !time.Now().Before(g.retryMounts) {
		g.refresh()
		for _, p := range g.points {
			g.movedIn = g.movedIn || p.moving // try again when all has been told
		}
	}
	g.batch++
	g.takeApart()
	g.tellOwed()
	for _, fs := range g.filesystems {
		fs.tellUnplaced()
	}
	for i := 0; i < len(g.queues); i++ { // what is told may replace a queue
		g.queue = g.queues[i]
		g.batch++
		if err := g.read(g.queue); err != nil {
			return err
		}
		g.dispatch()
		g.queue.forgetBatch()
	}
	if g.movedIn {
		g.movedIn = false
		g.refreshMoved() // mounts may have come along
		g.batch++
		g.tellOwed()
	}
	g.misplaced = false
	g.schedule()
	return nil
}

// schedule sets when Drain is to be called though no new event comes: to try again what
// could not be done, and to tell events that have been read already, for which epoll wakes
// nobody. A Wait that has begun is ended if that is earlier than what it waits for.
func (g *Group) schedule() {
	at, now := g.retryMounts, len(g.owed) > 0 || g.movedIn
	for _, fs := range g.filesystems {
		for _, due := range []time.Time{fs.retry, fs.again, fs.unguarded} {
			if at.IsZero() || !due.IsZero() && due.Before(at) {
				at = due
			}
		}
		if due := fs.unplaced.told.Add(g.spare); fs.unplaced.ops != 0 && (at.IsZero() || due.Before(at)) {
			at = due
		}
		now = now || len(fs.doubts) > 0 || fs.stale && fs.retry.IsZero()
	}
	for _, q := range g.queues {
		now = now || len(q.buf) > 0
	}
	if now {
		at = time.Now()
	}
	if at.IsZero() {
		g.retry.Store(nil)
		return
	}
	retry := at
	if old := g.retry.Swap(&retry); old == nil || retry.Before(*old) {
		g.Wake()
	}
}

// forgetBatch ends a batch that has been told.
func (q *queue) forgetBatch() {
	q.told += uint64(len(q.buf))
	if q.buf = q.buf[:0]; cap(q.buf) > keepBatch {
		q.buf = nil
	}
}

// Overflows says how often part of a queue was lost.
func (g *Group) Overflows() uint64 { return g.overflows }

// read appends to the batch what waits in the queue.
func (g *Group) read(q *queue) error {
	if len(q.buf) == 0 {
		q.since = q.empty
	}
	defer func() { q.until = after() }()
	for {
		if cap(q.buf)-len(q.buf) < minRead {
			if len(q.buf) >= maxBatch {
				q.full = true
				return nil
			}
			q.buf = slices.Grow(q.buf, max(len(q.buf), 16*minRead))
		}
		room := q.buf[len(q.buf):cap(q.buf)]
		began := before()
		n, err := raw.Read(q.fd, room)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			q.empty = began
			return nil
		case err != nil:
			return fmt.Errorf("reading fanotify: %w", err)
		default:
			q.buf = q.buf[:len(q.buf)+n]
			if len(room)-n >= minRead { // there was no other event
				q.empty = began
				return nil
			}
		}
	}
}

// readOn reads what waits into the batch that the next Drain tells. It returns the position
// in the queue that it came to: events of what has happened until now are before that.
func (g *Group) readOn(q *queue) uint64 {
	if err := g.read(q); err != nil { // the next Drain meets it again
		g.log.Debug("cannot read on", "err", err)
		return 0
	}
	return q.told + uint64(len(q.buf))
}

// clock relates CLOCK_MONOTONIC to package time, whose clock takes no system call to read:
// at began, CLOCK_MONOTONIC was between from and to, in nanoseconds.
var clock = func() (c struct {
	began    time.Time
	from, to int64
}) {
	now := func() int64 {
		var ts unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
		return ts.Nano()
	}
	c.from, c.began, c.to = now(), time.Now(), now()
	return c
}()

// before returns a CLOCK_MONOTONIC that is not later than now, nanoseconds.
func before() int64 { return clock.from + int64(time.Since(clock.began)) }

// after returns one that is not earlier.
func after() int64 { return clock.to + int64(time.Since(clock.began)) }

// Close closes the group, its watches and their directories.
func (g *Group) Close() error {
	for id := range g.points {
		g.remove(id)
	}
	for _, fs := range g.filesystems {
		for len(fs.watches) > 0 {
			fs.watches[len(fs.watches)-1].Close()
		}
	}
	err := g.file.Close()
	for len(g.queues) > 0 {
		g.closeQueue(g.queues[0])
	}
	g.mounts.close()
	return err
}
