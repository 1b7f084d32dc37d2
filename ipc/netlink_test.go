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
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// netlinkWorld is a generic netlink with or without ksmbd's family.
type netlinkWorld struct {
	t *testing.T
	d *Daemon

	mu      sync.Mutex
	family  uint16      // its id, 0 when there is none
	daemon  *fakeSocket // the registered one
	errno   unix.Errno  // what register answers, else 0
	items   [][]byte    // encoded
	bells   []*fakeSocket
	sockets int    // open ones
	count   uint32 // of registrations
	log     []string
}

// groupOfControl is the group id of nlctrl's notify.
const groupOfControl = 16

type fakeSocket struct {
	w      *netlinkWorld
	groups []uint32
	rings  chan error
	closed chan struct{}
}

func (w *netlinkWorld) dial() (socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sockets++
	return &fakeSocket{w: w, rings: make(chan error, 16), closed: make(chan struct{})}, nil
}

// load loads or, with id 0, unloads ksmbd. All who listen for families hear it.
func (w *netlinkWorld) load(id uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.family, w.daemon = id, nil
	w.ring(groupOfControl, nil)
}

func (w *netlinkWorld) ring(group uint32, err error) {
	for _, s := range w.bells {
		if slices.Contains(s.groups, group) {
			s.rings <- err
		}
	}
}

// queue queues an item and rings.
func (w *netlinkWorld) queue(item []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items = append(w.items, item)
	w.ring(uint32(w.family), nil)
}

func (w *netlinkWorld) said(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.log, want) {
		w.t.Errorf("happened: %q, want %q", w.log, want)
	}
	w.log = nil
}

func (s *fakeSocket) GetFamily(name string) (genetlink.Family, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	switch {
	case name == "nlctrl":
		return genetlink.Family{ID: unix.GENL_ID_CTRL, Name: name,
			Groups: []genetlink.MulticastGroup{{ID: groupOfControl, Name: "notify"}}}, nil
	case name == genl.FamilyName && s.w.family != 0:
		return genetlink.Family{ID: s.w.family, Version: genl.FamilyVersion, Name: name,
			Groups: []genetlink.MulticastGroup{{ID: uint32(s.w.family), Name: genl.McgrpNotifyd}}}, nil
	}
	return genetlink.Family{}, &netlink.OpError{Op: "receive", Err: syscall.ENOENT}
}

func (s *fakeSocket) JoinGroup(id uint32) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.groups == nil {
		s.w.bells = append(s.w.bells, s)
	}
	s.groups = append(s.groups, id)
	return nil
}

func (s *fakeSocket) SetReadBuffer(bytes int) error  { return nil }
func (s *fakeSocket) SetWriteBuffer(bytes int) error { return nil }

func (s *fakeSocket) Receive() ([]genetlink.Message, []netlink.Message, error) {
	select {
	case err := <-s.rings:
		return nil, nil, err
	case <-s.closed:
		return nil, nil, &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", unix.EBADF)}
	}
}

func (s *fakeSocket) Close() error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.sockets--
	close(s.closed)
	if s.w.daemon == s {
		s.w.daemon = nil
	}
	return nil
}

func (s *fakeSocket) Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	fail := func(errno unix.Errno) ([]genetlink.Message, error) {
		return nil, &netlink.OpError{Op: "receive", Err: errno, Message: "in words"}
	}
	replies := m.Header.Command == genl.CmdRegister || m.Header.Command == genl.CmdNext
	if replies == (flags&netlink.Acknowledge != 0) || flags&netlink.Request == 0 {
		w.t.Errorf("command %d is sent with flags %v", m.Header.Command, flags)
	}
	switch {
	case family != w.family:
		return fail(unix.ENOENT)
	case m.Header.Command == genl.CmdRegister:
		request, err := genl.DecodeRegister(m.Data)
		if err != nil || request.Version != genl.ProtocolVersion {
			w.t.Errorf("register %+v, %v", request, err)
		}
		if w.errno != 0 {
			return fail(w.errno)
		}
		w.daemon = s
		w.count++
		w.log = append(w.log, fmt.Sprintf("register %d", family))
		reply, err := genl.Register{Version: 1, MaxBufferLength: 1 << 20, AckTimeout: 2000, Release: "1.0", Registrations: w.count}.Encode()
		return []genetlink.Message{{Data: reply}}, err
	case w.daemon != s:
		return fail(unix.EPERM)
	case m.Header.Command == genl.CmdNext:
		if len(w.items) == 0 {
			return fail(unix.EAGAIN)
		}
		item := w.items[0]
		w.items = w.items[1:]
		return []genetlink.Message{{Data: item}}, nil
	case m.Header.Command == genl.CmdComplete:
		c, err := genl.DecodeComplete(m.Data)
		if err != nil {
			return fail(unix.EINVAL)
		}
		if c.Status != 0 {
			w.log = append(w.log, fmt.Sprintf("%d: %v", c.RequestID, c.Status))
		} else {
			w.log = append(w.log, fmt.Sprintf("%d: %s", c.RequestID, recordString(c.Records)))
		}
		return nil, nil
	case m.Header.Command == genl.CmdArmed:
		a, err := genl.DecodeArmed(m.Data)
		if err != nil {
			return fail(unix.EINVAL)
		}
		w.log = append(w.log, fmt.Sprintf("armed %d: %s", a.WatchID, unix.ErrnoName(unix.Errno(a.Errno))))
		return nil, nil
	}
	return fail(unix.EOPNOTSUPP)
}

func encoded(t *testing.T, item genl.Item) []byte {
	t.Helper()
	b, err := item.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// running runs a Daemon in w with a fake group.
func (w *netlinkWorld) running(once bool, change ...func(*Daemon)) (g *world, lines *strings.Builder, end func() error) {
	g = newWorld(w.t)
	lines = new(strings.Builder)
	log := slog.New(slog.NewTextHandler(lines, nil))
	d := NewDaemon(log, fakeGroup{g})
	d.Once, d.dial = once, w.dial
	d.Changed = func(s Status) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.log = append(w.log, fmt.Sprintf("serving %v", s.Serving))
	}
	for _, f := range change {
		f(d)
	}
	w.d = d
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	return g, lines, func() error {
		cancel()
		return <-ended
	}
}

func (w *netlinkWorld) end(end func() error) {
	w.t.Helper()
	if err := end(); err != nil {
		w.t.Errorf("Run: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sockets != 0 {
		w.t.Errorf("%d sockets are left open", w.sockets)
	}
}

func TestDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, _, end := w.running(false)
		synctest.Wait()
		w.said("register 30", "serving true")
		w.queue(encoded(t, g.watchItem(1)))
		w.queue(encoded(t, requestItem(1, 1)))
		synctest.Wait()
		g.happens(0, create, "a")
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("1: +a")
		w.end(end)
	})
}

// One daemon ends, the next one goes on, and the third cannot.
func TestDaemonHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		leaves := func(d *Daemon) { d.Leaves = true }
		g, _, end := w.running(false, leaves)
		synctest.Wait()
		w.queue(encoded(t, g.watchItem(1)))
		w.queue(encoded(t, requestItem(11, 1)))
		synctest.Wait()
		w.end(end)
		w.said("register 30", "serving true")

		inherits := func(d *Daemon) { d.Inherited = w.d.Left }
		w.items = [][]byte{encoded(t, g.rescanItem(1)), encoded(t, requestItem(11, 1))}
		meanwhile := func(d *Daemon) { d.group.(fakeGroup).happens(0, create, "meanwhile") }
		g, lines, end := w.running(false, leaves, inherits, meanwhile)
		synctest.Wait()
		w.said("register 30", "serving true", "11: +meanwhile")
		if !strings.Contains(lines.String(), "going on where the last daemon ended") {
			t.Errorf("it says %s", lines)
		}
		w.end(end)

		lacks := func(d *Daemon) { d.group.(fakeGroup).lacking = errOther }
		w.items = [][]byte{encoded(t, g.rescanItem(1))}
		g, lines, end = w.running(false, lacks, inherits)
		synctest.Wait()
		w.said("register 30", "serving true", "register 30", "serving true")
		if !strings.Contains(lines.String(), "starting over, clients will list their directories anew") || !g.watch[0].closed {
			t.Errorf("it says %s", lines)
		}
		w.end(end)
	})
}

// The family may come, go, and come again with another id.
func TestDaemonOutlivesModule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t}
		g, lines, end := w.running(false)
		synctest.Wait()
		w.said("serving false")
		w.mu.Lock()
		w.ring(groupOfControl, nil) // some other family
		w.mu.Unlock()
		synctest.Wait()
		w.said()
		if n := strings.Count(lines.String(), "waiting for ksmbd"); n != 1 {
			t.Errorf("%d lines say what is waited for", n)
		}

		w.load(30)
		synctest.Wait()
		w.said("register 30", "serving true")
		w.queue(encoded(t, g.watchItem(1)))
		synctest.Wait()
		if len(g.watch) != 1 || g.watch[0].closed {
			t.Fatal("no watch")
		}

		w.load(0)
		synctest.Wait()
		if !g.watch[0].closed {
			t.Error("the watch outlives the module")
		}
		sleepRetry()
		w.said("serving false", "serving false")

		w.load(31)
		synctest.Wait()
		w.said("register 31", "serving true")
		w.queue(encoded(t, g.watchItem(1)))
		w.queue(encoded(t, requestItem(1, 1)))
		synctest.Wait()
		g.happens(1, create, "a")
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("1: +a")

		// Reloaded so quickly that the id is the same: we are a stranger.
		w.load(31)
		sleepRetry()
		w.said("serving false", "register 31", "serving true")
		w.end(end)
	})
}

func TestDaemonDoorbell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, _, end := w.running(false)
		synctest.Wait()
		w.said("register 30", "serving true")
		for i, err := range []error{unix.ENOBUFS, errOther} {
			w.mu.Lock()
			w.items = append(w.items, encoded(t, g.watchItem(uint64(i))))
			w.ring(30, err)
			w.mu.Unlock()
			synctest.Wait()
			if len(g.watch) != i+1 {
				t.Errorf("%v: not served", err)
			}
		}
		w.mu.Lock()
		w.ring(30, unix.EIO)
		w.mu.Unlock()
		synctest.Wait()
		if err := end(); !errors.Is(err, unix.EIO) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestDaemonErrors(t *testing.T) {
	for name, test := range map[string]struct {
		family uint16
		errno  unix.Errno
		once   bool
		want   error
	}{
		"once":    {0, 0, true, ErrNoFamily},
		"busy":    {30, unix.EBUSY, false, ErrBusy},
		"version": {30, unix.EPROTONOSUPPORT, false, ErrVersion},
		"other":   {30, unix.EPERM, false, unix.EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &netlinkWorld{t: t, family: test.family, errno: test.errno}
				_, _, end := w.running(test.once)
				synctest.Wait()
				err := end()
				if !errors.Is(err, test.want) {
					t.Errorf("Run: %v, want %v", err, test.want)
				}
				if test.want == unix.EPERM && !strings.Contains(err.Error(), "in words") {
					t.Errorf("ksmbd's own words are lost: %v", err)
				}
				if w.sockets != 0 {
					t.Errorf("%d sockets are left open", w.sockets)
				}
			})
		})
	}
}

// A malformed item costs its descriptor's closing and a line, nothing else.
func TestDaemonMalformedItem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := countFDs(t)
		w := &netlinkWorld{t: t, family: 30}
		g, lines, end := w.running(false)
		watch := g.watchItem(1)
		watch.Type = 99
		ae := netlink.NewAttributeEncoder()
		ae.Uint32(genl.AItemType, 99)
		ae.Int32(genl.AItemFD, int32(watch.FD))
		b, err := ae.Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.queue(b)
		w.queue([]byte{1, 2, 3})
		w.queue(nil)
		w.queue(encoded(t, requestItem(1, 1)))
		synctest.Wait()
		w.said("register 30", "serving true", "armed 1: EPROTO")
		w.end(end)
		if n := strings.Count(lines.String(), "ignoring an item"); n != 3 {
			t.Errorf("%d lines of 3: %s", n, lines)
		}
		if after := countFDs(t); after != before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// nextErrors are told apart by errno, not by what they say of timeouts.
func TestNextErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want error
	}{
		{&netlink.OpError{Op: "receive", Err: syscall.EAGAIN}, ErrAgain},
		{&netlink.OpError{Op: "receive", Err: syscall.EINTR}, ErrRetry},
		{&netlink.OpError{Op: "receive", Err: syscall.EMFILE}, ErrRetry},
		{&netlink.OpError{Op: "receive", Err: syscall.ENOENT}, errLost},
		{&netlink.OpError{Op: "receive", Err: syscall.EPERM}, errLost},
		{&netlink.OpError{Op: "validate", Err: errOther}, errLost},
	} {
		k := &ksmbd{log: slog.New(slog.NewTextHandler(io.Discard, nil)), socket: failing{err: test.err}}
		if _, err := k.Next(); !errors.Is(err, test.want) {
			t.Errorf("%v becomes %v, want %v", test.err, err, test.want)
		}
	}
}

type failing struct {
	socket
	err error
}

func (f failing) Execute(genetlink.Message, uint16, netlink.HeaderFlags) ([]genetlink.Message, error) {
	return nil, f.err
}

// The real thing: a socket that hears of families, and no family of ours
// unless somebody loaded it.
func TestRealNetlink(t *testing.T) {
	s, err := dialSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := getFamily(s); err != nil && !errors.Is(err, ErrNoFamily) {
		t.Error(err)
	}

	d := NewDaemon(slog.New(slog.DiscardHandler), nil)
	bell, err := d.openBell()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.listen(ctx, bell, make(chan struct{}, 1)) }()
	cancel()
	bell.Close()
	if err := <-ended; err != nil {
		t.Errorf("listen ends with %v", err)
	}
}

// Messages of 4 MiB pass through the socket as sized after registration: to
// the controller, which does not want them, and back with its error.
func TestRealNetlinkLargeMessage(t *testing.T) {
	s, err := dialSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if os.Geteuid() != 0 {
		t.Skip("takes root to size the socket")
	}
	if err := errors.Join(s.SetReadBuffer(8<<20), s.SetWriteBuffer(8<<20)); err != nil {
		t.Fatal(err)
	}
	m := genl.Complete{RequestID: 1}
	for size := 0; size < 4<<20; size += genl.MaxName {
		m.Records = append(m.Records, genl.Record{Action: genl.ActionAdded, Name: strings.Repeat("x", genl.MaxName)})
	}
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Execute(genetlink.Message{Header: genetlink.Header{Command: 99}, Data: data}, unix.GENL_ID_CTRL, withoutReply)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("error %v", err)
	}
	t.Logf("error as expected: %.200v", err)
	// The socket is in step after it.
	if _, err := s.GetFamily("nlctrl"); err != nil {
		t.Error(err)
	}
}
