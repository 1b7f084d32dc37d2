// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
)

// A thread that waits for an answer of a FUSE server cannot be killed, and a
// process with such a thread cannot end: its sockets and locks stay, and the next
// daemon cannot begin. So the group of a filesystem that may hang is one of a
// process of its own, which nobody waits for.

// localFilesystems are those whose answers depend on nobody but this kernel and its
// disks.
var localFilesystems = map[string]bool{
	"": true, "bcachefs": true, "btrfs": true, "erofs": true, "exfat": true, "ext2": true, "ext3": true, "ext4": true, "f2fs": true,
	"hfsplus": true, "iso9660": true, "jffs2": true, "jfs": true, "msdos": true, "nilfs2": true, "ntfs3": true, "overlay": true, "ramfs": true,
	"reiserfs": true, "rootfs": true, "squashfs": true, "tmpfs": true, "ubifs": true, "udf": true, "vfat": true, "xfs": true, "zfs": true,
}

// MayHang says of a type of filesystem that it may leave who asks it without an
// answer for long: because of a program, a server or a network.
func MayHang(kind string) bool { return !localFilesystems[kind] }

// call is what a process is asked for. The directory of a watch goes beside it.
type call struct {
	What  what
	Watch uint64
	Name  string // of the directory
	Tree  bool
	Ops   fanotify.Op

	Device uint64 // if not 0, what is mounted from that is to be watched alone
}

type what int

const (
	callWatch what = iota
	callClose
	callDrain
)

// answer is what it says. Those to Drain come in parts.
type answer struct {
	More      bool
	Changes   []change
	Strategy  string // of a watch
	Overflows uint64
	Err       string // "" for none
	Errno     unix.Errno
}

// change is one that a watch is told of.
type change struct {
	Watch    uint64
	Change   fanotify.Change
	Old, New bool // it has such a name, though that may be empty
}

// worded is an error number in other words than the C library's.
type worded struct {
	words string
	errno unix.Errno
}

func (e *worded) Error() string { return e.words }

func (e *worded) Unwrap() error { return e.errno }

func (a *answer) err() error {
	if a.Err == "" {
		return nil
	}
	return &worded{a.Err, cmp.Or(a.Errno, unix.EIO)}
}

// partOfDrain is how many changes an answer has at most.
const partOfDrain = 256

// process is a Group of another process.
type process struct {
	enc       *gob.Encoder
	dec       *gob.Decoder
	calls     *os.File
	wakes     *net.UnixConn // takes directories, and gives a byte when there is something to drain
	awake     chan struct{} // has a value when it is not to wait
	watches   map[uint64]func(fanotify.Change)
	last      uint64
	overflows uint64
}

// OpenProcess returns an Opener whose groups are of processes of their own, which run
// a command that calls ServeGroup.
func OpenProcess(command func() *exec.Cmd) Opener {
	return func(Superblock) (Group, error) {
		ours, theirs, err := socketPairs()
		if err != nil {
			return nil, fmt.Errorf("starting a process: %w", err)
		}
		cmd := command()
		cmd.ExtraFiles = theirs[:]
		err = cmd.Start()
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			ours[0].Close()
			ours[1].Close()
			return nil, fmt.Errorf("starting a process: %w", err)
		}
		go cmd.Wait() // it ends when we do, or when it can
		return connect(ours)
	}
}

// connect returns the group of the process that has the other ends.
func connect(ours [2]*os.File) (Group, error) {
	conn, err := net.FileConn(ours[1])
	ours[1].Close()
	if err != nil {
		ours[0].Close()
		return nil, fmt.Errorf("talking to a process: %w", err)
	}
	p := &process{
		enc: gob.NewEncoder(ours[0]), dec: gob.NewDecoder(ours[0]), calls: ours[0], wakes: conn.(*net.UnixConn),
		awake: make(chan struct{}, 1), watches: make(map[uint64]func(fanotify.Change)),
	}
	if _, err := p.answer(); err != nil { // it has opened fanotify
		p.Close()
		return nil, err
	}
	return p, nil
}

// socketPairs returns one for calls and one for what goes beside them.
func socketPairs() (ours, theirs [2]*os.File, err error) {
	for i, kind := range [2]int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			for ; i > 0; i-- {
				ours[i-1].Close()
				theirs[i-1].Close()
			}
			return ours, theirs, err
		}
		ours[i], theirs[i] = os.NewFile(uintptr(fds[0]), "process"), os.NewFile(uintptr(fds[1]), "process")
	}
	return ours, theirs, nil
}

// do has the process do something, and tells watches of the changes that it has.
func (p *process) do(c call) (answer, error) {
	if err := p.enc.Encode(c); err != nil {
		return answer{}, fmt.Errorf("%w: asking the process of a filesystem: %w", errLost, err)
	}
	return p.answer()
}

func (p *process) answer() (answer, error) {
	for {
		var a answer
		if err := p.dec.Decode(&a); err != nil {
			return answer{}, fmt.Errorf("%w: the process of a filesystem has ended: %w", errLost, err)
		}
		for _, c := range a.Changes {
			if fn := p.watches[c.Watch]; fn != nil {
				if c.Old && c.Change.OldName == nil {
					c.Change.OldName = []byte{}
				}
				if c.New && c.Change.Name == nil {
					c.Change.Name = []byte{}
				}
				fn(c.Change)
			}
		}
		if !a.More {
			p.overflows = a.Overflows
			return a, a.err()
		}
	}
}

// Watch implements Group.
func (p *process) Watch(dir *os.File, tree bool, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return p.watch(dir, call{Tree: tree, Ops: ops}, fn)
}

// WatchMount implements Group.
func (p *process) WatchMount(dir *os.File, device uint64, ops fanotify.Op, fn func(fanotify.Change)) (Mark, error) {
	return p.watch(dir, call{Device: device, Ops: ops}, fn)
}

// Leave implements Group: one that can hang is left to itself.
func (p *process) Leave(func(string) bool, func(*os.File, mounts.Mount) fanotify.Apart) {}

func (p *process) watch(dir *os.File, c call, fn func(fanotify.Change)) (Mark, error) {
	p.last++
	id := p.last
	_, _, err := p.wakes.WriteMsgUnix([]byte{0}, unix.UnixRights(int(dir.Fd())), nil)
	name := dir.Name()
	dir.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: giving a directory to the process of a filesystem: %w", errLost, err)
	}
	p.watches[id] = fn
	c.What, c.Watch, c.Name = callWatch, id, name
	a, err := p.do(c)
	if err != nil {
		delete(p.watches, id)
		return nil, err
	}
	return &remoteMark{p, id, a.Strategy}, nil
}

// WaitUntil implements Group.
func (p *process) WaitUntil(until time.Time) (ready bool, err error) {
	p.wakes.SetReadDeadline(until)
	select {
	case <-p.awake: // the deadline that Wake sets may have been replaced by the one above
		return false, nil
	default:
	}
	_, err = p.wakes.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		select {
		case <-p.awake:
		default:
		}
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: the process of a filesystem has ended: %w", errLost, err)
	}
	return true, nil
}

// SleepUntil implements Group.
func (p *process) SleepUntil(until time.Time) error {
	var over <-chan time.Time
	if !until.IsZero() {
		over = time.After(time.Until(until))
	}
	select {
	case <-p.awake:
	case <-over:
	}
	return nil
}

// Wake implements Group.
func (p *process) Wake() {
	select {
	case p.awake <- struct{}{}:
	default:
	}
	p.wakes.SetReadDeadline(time.Unix(1, 0))
}

// Drain implements Group.
func (p *process) Drain() error {
	_, err := p.do(call{What: callDrain})
	return err
}

// Overflows implements Group.
func (p *process) Overflows() uint64 { return p.overflows }

// errHere: what may hang is not handed over.
var errHere = errors.New("the queue is another process's")

// Settled implements Group.
func (p *process) Settled() bool { return true }

// Detach implements Group.
func (p *process) Detach() (*os.File, error) { return nil, errHere }

// Inherit implements Group.
func (p *process) Inherit(*os.File) error { return errHere }

// Confirm implements Group.
func (p *process) Confirm() error { return errHere }

// Close implements Group. It does not wait for the process.
func (p *process) Close() error { return errors.Join(p.calls.Close(), p.wakes.Close()) }

// remoteMark is the Mark of a watch in another process.
type remoteMark struct {
	*process
	id       uint64
	strategy string
}

func (m *remoteMark) Close() error {
	delete(m.watches, m.id)
	_, err := m.do(call{What: callClose, Watch: m.id})
	return err
}

func (m *remoteMark) Strategy() string { return m.strategy }

func (m *remoteMark) Handover() ([]string, bool) { return nil, false }

// ServeGroup is what a process does that OpenProcess has started: it has a group that
// open opens, and ends when nobody wants it any more. The files are those that it
// was started with.
func ServeGroup(calls, wakes *os.File, open Opener) error {
	defer calls.Close()
	conn, err := net.FileConn(wakes)
	wakes.Close()
	if err != nil {
		return err
	}
	beside := conn.(*net.UnixConn)
	defer beside.Close()
	enc, dec := gob.NewEncoder(calls), gob.NewDecoder(calls)
	s := &served{enc: enc, beside: beside, watches: make(map[uint64]Mark), drained: make(chan struct{}, 1)}
	if s.group, err = open(Superblock{}); err != nil {
		return enc.Encode(s.failed(err))
	}
	if err := enc.Encode(answer{}); err != nil {
		return err
	}
	go s.wake()
	for {
		var c call
		switch err := dec.Decode(&c); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		a := s.do(c)
		a.Changes, s.changes = s.changes, nil // also of what was told by Watch or Close: nobody may Drain for long
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

// served is a group that is served to another process.
type served struct {
	group   Group
	enc     *gob.Encoder
	beside  *net.UnixConn
	watches map[uint64]Mark
	changes []change
	drained chan struct{} // has a value when it was
	lost    error         // of who wants to know of changes
}

// wake says when there is something to drain, once until it is.
func (s *served) wake() {
	for {
		ready, err := s.group.WaitUntil(time.Time{})
		if err != nil {
			s.beside.Close() // which is heard
			return
		}
		if !ready {
			continue
		}
		if _, err := s.beside.Write([]byte{0}); err != nil {
			return
		}
		<-s.drained
	}
}

func (s *served) do(c call) answer {
	switch c.What {
	case callWatch:
		dir, err := s.directory(c.Name)
		if err != nil {
			return s.failed(err)
		}
		mark, err := s.watch(dir, c)
		if err != nil {
			return s.failed(err)
		}
		s.watches[c.Watch] = mark
		return answer{Strategy: mark.Strategy(), Overflows: s.group.Overflows()}
	case callClose:
		mark := s.watches[c.Watch]
		delete(s.watches, c.Watch)
		if mark == nil {
			return s.failed(os.ErrClosed)
		}
		return s.failed(mark.Close())
	default:
		err := s.group.Drain()
		select {
		case s.drained <- struct{}{}:
		default:
		}
		return s.failed(errors.Join(err, s.lost))
	}
}

func (s *served) watch(dir *os.File, c call) (Mark, error) {
	fn := func(told fanotify.Change) { s.told(c.Watch, told) }
	if c.Device != 0 {
		return s.group.WatchMount(dir, c.Device, c.Ops, fn)
	}
	return s.group.Watch(dir, c.Tree, c.Ops, fn)
}

// failed returns the answer that has an error, if it is one.
func (s *served) failed(err error) answer {
	var a answer
	if s.group != nil {
		a.Overflows = s.group.Overflows()
	}
	if err != nil {
		a.Err = err.Error()
		errors.As(err, &a.Errno)
	}
	return a
}

// told takes in a change, which is another's when it has returned.
func (s *served) told(watch uint64, c fanotify.Change) {
	told := change{Watch: watch, Change: c, Old: c.OldName != nil, New: c.Name != nil}
	told.Change.Name = append([]byte(nil), c.Name...)
	told.Change.OldName = append([]byte(nil), c.OldName...)
	told.Change.File = append([]byte(nil), c.File...)
	if s.changes = append(s.changes, told); len(s.changes) >= partOfDrain {
		s.lost = s.enc.Encode(answer{More: true, Changes: s.changes})
		s.changes = s.changes[:0]
	}
}

// directory takes the directory that goes with a call.
func (s *served) directory(name string) (*os.File, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, flags, _, err := s.beside.ReadMsgUnix(make([]byte, 1), rights) // close-on-exec
	if err == nil && flags&unix.MSG_CTRUNC != 0 {                        // the kernel could not open it here, and does not say why
		err = unix.EMFILE
	}
	if err != nil {
		return nil, fmt.Errorf("taking a directory: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("taking a directory: %d messages: %w", len(messages), unix.EPROTO)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil { // there is room for one
		return nil, fmt.Errorf("taking a directory: %w", unix.EPROTO)
	}
	return os.NewFile(uintptr(fds[0]), name), nil
}
