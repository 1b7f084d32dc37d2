// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
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
	"ksmbd-notifyd/test/limit"
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
	acked   []uint64
	ended   []uint64 // requests that have
	log     []string

	faults  map[string]error    // of what is done with a socket, each met once
	replies []genetlink.Message // to register, if not nil
}

// fault returns the error that is to be met, if any.
func (w *netlinkWorld) fault(what string) error {
	err := w.faults[what]
	delete(w.faults, what)
	return err
}

// groupOfControl is the group id of nlctrl's notify.
const groupOfControl = 16

type fakeSocket struct {
	w      *netlinkWorld
	groups []uint32
	rings  chan error
	closed chan struct{}

	answers [][]byte // datagrams that wait to be received
	errs    []error  // of Recv, before these
}

func (w *netlinkWorld) dial() (socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fault(fmt.Sprint("dial ", w.sockets)); err != nil {
		return nil, err
	}
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
	if err := s.w.fault("family " + name); err != nil {
		return genetlink.Family{Name: name}, err
	}
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
	if err := s.w.fault(fmt.Sprint("group ", id)); err != nil {
		return err
	}
	if s.groups == nil {
		s.w.bells = append(s.w.bells, s)
	}
	s.groups = append(s.groups, id)
	return nil
}

func (s *fakeSocket) SetReadBuffer(bytes int) error  { return nil }
func (s *fakeSocket) SetWriteBuffer(bytes int) error { return s.w.fault("buffer") }

func (s *fakeSocket) Wait() error {
	select {
	case err := <-s.rings:
		return err
	case <-s.closed:
		return &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", unix.EBADF)}
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
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if flags != netlink.Request {
		s.w.t.Errorf("command %d is sent with flags %v", m.Header.Command, flags)
	}
	reply, errno := s.do(m.Header.Command, family, m.Data)
	if errno != 0 {
		return nil, &netlink.OpError{Op: "receive", Err: errno, Message: "in words"}
	}
	if s.w.replies != nil {
		defer func() { s.w.replies = nil }()
		return s.w.replies, nil
	}
	return []genetlink.Message{{Data: reply}}, nil
}

// Send does what the kernel does with a datagram.
func (s *fakeSocket) Send(b []byte) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for len(b) > 0 {
		m, rest, err := genl.NextMessage(b)
		if err != nil {
			s.w.t.Errorf("datagram: %v", err)
			return nil
		}
		head := b[:unix.NLMSG_HDRLEN]
		b = rest
		family := binary.NativeEndian.Uint16(head[4:])
		reply, errno := s.do(m.Cmd, family, m.Data)
		switch {
		case errno != 0:
			answer := genl.AppendMessage(nil, unix.NLMSG_ERROR, 0, m.Seq)[:unix.NLMSG_HDRLEN]
			answer = binary.NativeEndian.AppendUint32(answer, uint32(-int32(errno)))
			answer = append(answer, head...)
			genl.EndMessage(answer, 0)
			s.answers = append(s.answers, answer)
		case reply != nil:
			answer := append(genl.AppendMessage(nil, family, m.Cmd, m.Seq), reply...)
			genl.EndMessage(answer, 0)
			s.answers = append(s.answers, answer)
		}
	}
	return nil
}

func (s *fakeSocket) Recv(b []byte) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		return 0, err
	}
	if len(s.answers) == 0 {
		return 0, unix.EAGAIN
	}
	n := copy(b, s.answers[0])
	s.answers = s.answers[1:]
	return n, nil
}

// do handles a message. A reply is not nil.
func (s *fakeSocket) do(cmd uint8, family uint16, data []byte) (reply []byte, errno unix.Errno) {
	w := s.w
	switch {
	case family != w.family:
		return nil, unix.ENOENT
	case cmd == genl.CmdRegister:
		request, err := genl.DecodeRegister(data)
		if err != nil || request.Version != genl.ProtocolVersion {
			w.t.Errorf("register %+v, %v", request, err)
		}
		if w.errno != 0 {
			return nil, w.errno
		}
		w.daemon = s
		w.count++
		w.log = append(w.log, fmt.Sprintf("register %d", family))
		reply, err = genl.Register{Version: genl.ProtocolVersion, MaxBufferLength: 1 << 20, AckTimeout: 2000, Release: "1.0", Registrations: w.count}.Encode()
		if err != nil {
			w.t.Error(err)
		}
		return reply, 0
	case w.daemon != s:
		return nil, unix.EPERM
	case cmd == genl.CmdNext:
		reply := []byte{}
		for _, item := range w.items {
			reply = binary.NativeEndian.AppendUint16(reply, uint16(4+len(item)))
			reply = binary.NativeEndian.AppendUint16(reply, genl.AItemsItem|netlink.Nested)
			reply = append(reply, item...)
			for len(reply)%4 != 0 {
				reply = append(reply, 0)
			}
		}
		w.items = nil
		reply = binary.NativeEndian.AppendUint16(reply, 4)
		return binary.NativeEndian.AppendUint16(reply, genl.AItemsAll), 0
	case cmd == genl.CmdCauses:
		return []byte{}, 0
	case cmd == genl.CmdComplete:
		c, err := genl.DecodeComplete(data)
		if err != nil {
			return nil, unix.EINVAL
		}
		if c.Status != 0 {
			w.log = append(w.log, fmt.Sprintf("%d: %v", c.RequestID, c.Status))
		} else {
			w.log = append(w.log, fmt.Sprintf("%d: %s", c.RequestID, recordString(c.Records)))
		}
		if i := slices.Index(w.ended, c.RequestID); i >= 0 {
			return nil, unix.ENOENT
		}
		return nil, 0
	case cmd == genl.CmdAck:
		a, err := genl.DecodeAck(data)
		if err != nil {
			return nil, unix.EINVAL
		}
		w.acked = append(w.acked, a.ID)
		if a.Errno != 0 {
			w.log = append(w.log, fmt.Sprintf("ack %d: %s", a.ID, unix.ErrnoName(unix.Errno(a.Errno))))
		}
		return nil, 0
	}
	return nil, unix.EOPNOTSUPP
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
	d := NewDaemon(log, g.opens)
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
		w.queue(encoded(t, requestItem(2, 1)))
		synctest.Wait()
		w.mu.Lock()
		if !slices.Equal(w.acked, []uint64{1, 2}) { // though nothing else is said
			t.Errorf("acknowledged %v", w.acked)
		}
		w.mu.Unlock()
		g.happens(0, create, "a")
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("2: +a")
		w.end(end)
	})
}

// fake changes the fake group of a daemon that is to run.
func fake(fn func(*world)) func(*Daemon) {
	return func(d *Daemon) {
		g, _ := d.open(Superblock{})
		fn(g.(fakeGroup).world)
	}
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
		g, lines, end := w.running(false, leaves, inherits, fake(func(g *world) { g.happens(0, create, "meanwhile") }))
		synctest.Wait()
		w.said("register 30", "serving true", "11: +meanwhile")
		if !strings.Contains(lines.String(), "going on where the last daemon ended") {
			t.Errorf("it says %s", lines)
		}
		w.end(end)

		lacks := fake(func(g *world) { g.lacking = errOther })
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
		for i, err := range []error{unix.ENOBUFS, nil} {
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

// A request of no watch is acknowledged at once, though ksmbd has no more items to ask for.
func TestDaemonUnknownWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		_, _, end := w.running(false)
		synctest.Wait()
		w.mu.Lock()
		w.items = append(w.items, encoded(t, requestItem(7, 3)))
		w.ring(30, nil)
		w.mu.Unlock()
		synctest.Wait()
		w.said("register 30", "serving true", "ack 7: EPROTO")
		w.end(end)
	})
}

func TestDaemonErrors(t *testing.T) {
	other, err := genl.Register{Version: genl.ProtocolVersion + 1}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		family  uint16
		errno   unix.Errno
		once    bool
		want    error
		faults  map[string]error
		early   bool // before it looks for ksmbd
		replies []genetlink.Message
	}{
		"once":                 {once: true, want: ErrNoFamily},
		"busy":                 {family: 30, errno: unix.EBUSY, want: ErrBusy},
		"version":              {family: 30, errno: unix.EPROTONOSUPPORT, once: true, want: ErrVersion},
		"other":                {family: 30, errno: unix.EPERM, want: unix.EPERM},
		"unloaded meanwhile":   {family: 30, errno: unix.ENOENT, once: true, want: ErrNoFamily},
		"unloaded before that": {family: 30, faults: map[string]error{"group 30": unix.ENOENT}, once: true, want: ErrNoFamily},
		"version of the reply": {family: 30, once: true, replies: []genetlink.Message{{Data: other}}, want: ErrVersion},
		"no socket":            {family: 30, faults: map[string]error{"dial 0": unix.EMFILE}, early: true, want: unix.EMFILE},
		"no second socket":     {family: 30, faults: map[string]error{"dial 1": unix.EMFILE}, want: unix.EMFILE},
		"no controller":        {family: 30, faults: map[string]error{"family nlctrl": unix.EIO}, early: true, want: unix.EIO},
		"no news of families":  {family: 30, faults: map[string]error{"group 16": unix.EIO}, early: true, want: unix.EIO},
		"no answer":            {family: 30, faults: map[string]error{"family " + genl.FamilyName: unix.EIO}, want: unix.EIO},
		"no doorbell":          {family: 30, faults: map[string]error{"group 30": unix.EPERM}, want: unix.EPERM},
		"no room":              {family: 30, faults: map[string]error{"buffer": unix.EPERM}, want: unix.EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &netlinkWorld{t: t, family: test.family, errno: test.errno, faults: test.faults, replies: test.replies}
				queue, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				_, _, end := w.running(test.once, func(d *Daemon) { d.Inherited = &Handover{Parts: []Part{{Queue: queue}}} })
				synctest.Wait()
				if err := queue.Close(); !errors.Is(err, os.ErrClosed) && !test.early {
					t.Error("what was inherited is left open")
				}
				err = end()
				if !errors.Is(err, test.want) {
					t.Errorf("Run: %v, want %v", err, test.want)
				}
				if test.errno == unix.EPERM && !strings.Contains(err.Error(), "in words") {
					t.Errorf("ksmbd's own words are lost: %v", err)
				}
				if w.sockets != 0 {
					t.Errorf("%d sockets are left open", w.sockets)
				}
			})
		})
	}
}

// What waits for a ksmbd that can notify waits for one of its own release as well, and says for which it does.
func TestDaemonWaitsForRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30, errno: unix.EPROTONOSUPPORT}
		_, lines, end := w.running(false)
		synctest.Wait()
		w.said("serving false")
		for _, step := range []struct {
			family uint16
			errno  unix.Errno
			want   error
		}{{0, 0, ErrNoFamily}, {31, unix.EPROTONOSUPPORT, ErrVersion}, {31, unix.EPROTONOSUPPORT, ErrVersion}} {
			w.mu.Lock()
			w.errno = step.errno
			w.mu.Unlock()
			w.load(step.family)
			synctest.Wait()
			if s := w.status(); s.Serving || s.Waiting != step.want.Error() {
				t.Errorf("%+v: status %+v", step, s)
			}
		}
		w.said("serving false", "serving false")
		if err := w.d.SetPolicy(t.Context(), Policy{}); err != nil { // which is for later
			t.Error(err)
		}
		if n := strings.Count(lines.String(), "waiting for ksmbd"); n != 3 {
			t.Errorf("%d lines say what is waited for: %s", n, lines)
		}
		w.mu.Lock()
		w.errno = 0
		w.mu.Unlock()
		w.load(32)
		synctest.Wait()
		w.said("register 32", "serving true")
		w.end(end)
	})
}

// A reply to register that nobody understands is asked for again.
func TestDaemonStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, replies := range [][]genetlink.Message{{}, {{}, {}}, {{Data: []byte{1, 2, 3}}}} {
			w := &netlinkWorld{t: t, family: 30, replies: replies}
			_, lines, end := w.running(false)
			synctest.Wait()
			w.said("register 30", "serving false")
			sleepRetry()
			w.said("register 30", "serving true")
			if !strings.Contains(lines.String(), "starting over") {
				t.Errorf("it says %s", lines)
			}
			w.end(end)
		}
		// It ends meanwhile.
		w := &netlinkWorld{t: t, family: 30, replies: []genetlink.Message{}}
		_, _, end := w.running(false)
		synctest.Wait()
		w.end(end)
	})
}

// ksmbd is unloaded just when it was found, and loaded again.
func TestDaemonMissesModule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30, faults: map[string]error{"group 30": unix.ENOENT}}
		_, _, end := w.running(false)
		synctest.Wait()
		w.said("serving false")
		w.load(31)
		synctest.Wait()
		w.said("register 31", "serving true")
		w.end(end)
	})
}

// A family that is not what it is called cannot be listened to.
func TestJoinGroup(t *testing.T) {
	s := &fakeSocket{w: new(netlinkWorld)}
	if err := joinGroup(s, genetlink.Family{Name: "other"}, genl.McgrpNotifyd); err == nil || !strings.Contains(err.Error(), "no group") {
		t.Errorf("no such group: %v", err)
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
		w.said("register 30", "serving true", "ack 1: EPROTO")
		w.end(end)
		if n := strings.Count(lines.String(), "malformed message"); n != 3 {
			t.Errorf("%d items of 3: %s", n, lines)
		}
		if after := countFDs(t); after > before {
			t.Errorf("%d file descriptors before, %d after", before, after)
		}
	})
}

// Errors of Next are told apart by errno, not by what they say of timeouts.
func TestNextErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want error
	}{
		{unix.EINTR, ErrRetry},
		{unix.EMFILE, ErrRetry},
		{unix.ENOENT, errLost},
		{unix.EPERM, errLost},
		{errOther, errLost},
	} {
		k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: failing{err: test.err}}
		if _, _, err := k.Next(); !errors.Is(err, test.want) {
			t.Errorf("%v becomes %v, want %v", test.err, err, test.want)
		}
	}
}

type failing struct {
	socket
	err error
}

func (f failing) Send([]byte) error { return f.err }

// scripted is a socket from which that is received, datagrams or errors.
type scripted struct {
	socket
	answers []any
	sent    [][]byte
}

func (s *scripted) Send(b []byte) error {
	s.sent = append(s.sent, slices.Clone(b))
	return nil
}

func (s *scripted) Recv(b []byte) (int, error) {
	if len(s.answers) == 0 {
		return 0, unix.EAGAIN
	}
	next := s.answers[0]
	s.answers = s.answers[1:]
	if err, ok := next.(error); ok {
		return 0, err
	}
	return copy(b, next.([]byte)), nil
}

// A reply that is lost may have had items in it: only another registration has ksmbd offer them
// again. So it is whatever the reason is called.
func TestLostReplies(t *testing.T) {
	for _, answers := range [][]any{
		nil,
		{unix.ENOBUFS},
		{unix.EMSGSIZE},
		{unix.ENOMEM},
		{[]byte("nonsense")},
		{make([]byte, 64)},
	} {
		k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: &scripted{answers: answers}, in: make([]byte, 4096)}
		if _, _, err := k.Next(); !errors.Is(err, errLost) || errors.Is(err, ErrRetry) || errors.Is(err, genl.ErrMalformed) {
			t.Errorf("after %v: %v", answers, err)
		}
		k.socket = &scripted{answers: answers}
		if _, err := k.Causes(); err == nil {
			t.Errorf("after %v: there are causes", answers)
		}
	}
}

// reply is a datagram that answers the first message that is sent.
func reply(cmd uint8, data []byte) []byte {
	b := append(genl.AppendMessage(nil, 30, cmd, 1), data...)
	genl.EndMessage(b, 0)
	return b
}

// There may be more items when there are some, and ksmbd does not say that these are all.
func TestNextSaysMore(t *testing.T) {
	for _, items := range [][]genl.Item{nil, {requestItem(1, 2)}} {
		for _, all := range []bool{false, true} {
			data, err := genl.EncodeItems(items, all)
			if err != nil {
				t.Fatal(err)
			}
			k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: &scripted{answers: []any{reply(genl.CmdNext, data)}}, in: make([]byte, 4096)}
			got, more, err := k.Next()
			if err != nil || !slices.Equal(got, items) || more != (len(items) > 0 && !all) {
				t.Errorf("%v, all %v: %v, more %v, %v", items, all, got, more, err)
			}
		}
	}
}

// What has no answer that can be read may have failed.
func TestCompleteInDoubt(t *testing.T) {
	for _, answer := range []any{unix.ENOMEM, []byte("nonsense"), unix.ENOBUFS} {
		k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: &scripted{answers: []any{answer}}, in: make([]byte, 4096)}
		for _, doubt := range []bool{true, false} { // and what comes after that has not
			completions := []Completion{{Request: 1, Status: genl.StatusEnumDir}}
			if k.Complete(completions); (completions[0].Err != nil) != doubt {
				t.Errorf("after %v: %v", answer, completions[0].Err)
			}
		}
	}
}

func TestCausesOfKsmbd(t *testing.T) {
	want := genl.Causes{Lost: 3, Causes: []genl.Cause{{Thread: 1, Filter: 4, File: "f", Begun: 5, Ended: 6}}}
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: &scripted{answers: []any{reply(genl.CmdCauses, data), reply(genl.CmdCauses, data)}}, in: make([]byte, 4096)}
	for i := range 2 {
		k.seq = 0
		if got, err := k.Causes(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d: %+v, %v", i, got, err)
		}
	}
}

// Acknowledgements go before what ksmbd is asked for, which is to know of them, and after completions. Nothing is
// not sent.
func TestSendOrder(t *testing.T) {
	for _, test := range []struct {
		do   func(k *ksmbd)
		want []uint8
	}{
		{func(k *ksmbd) { k.Next() }, []uint8{genl.CmdAck, genl.CmdNext}},
		{func(k *ksmbd) { k.Causes() }, []uint8{genl.CmdAck, genl.CmdCauses}},
		{func(k *ksmbd) { k.Complete([]Completion{{Request: 1, Status: genl.StatusEnumDir}}) }, []uint8{genl.CmdComplete, genl.CmdAck}},
		{func(k *ksmbd) { k.Flush() }, []uint8{genl.CmdAck}},
	} {
		s := new(scripted)
		k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: s, family: genetlink.Family{ID: 30}, in: make([]byte, 4096)}
		k.Flush()
		k.Ack(1, 0)
		test.do(k)
		k.Flush()
		var got []uint8
		for b := slices.Concat(s.sent...); len(b) > 0; {
			m, rest, err := genl.NextMessage(b)
			if err != nil {
				t.Fatal(err)
			}
			got, b = append(got, m.Cmd), rest
		}
		if len(s.sent) != 1 || !slices.Equal(got, test.want) {
			t.Errorf("%d datagrams of %v, want %v", len(s.sent), got, test.want)
		}
	}
}

// ksmbd's own words are told.
func TestWords(t *testing.T) {
	datagram := genl.AppendMessage(nil, unix.NLMSG_ERROR, 0, 1)[:unix.NLMSG_HDRLEN]
	binary.NativeEndian.PutUint16(datagram[6:], unix.NLM_F_CAPPED|unix.NLM_F_ACK_TLVS)
	datagram = append(binary.NativeEndian.AppendUint32(datagram, uint32(0xffffffff-uint32(unix.EINVAL)+1)), make([]byte, unix.NLMSG_HDRLEN)...)
	datagram = binary.NativeEndian.AppendUint16(datagram, 4+8)
	datagram = append(binary.NativeEndian.AppendUint16(datagram, 1), "no good\x00"...) // NLMSGERR_ATTR_MSG
	genl.EndMessage(datagram, 0)
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: &scripted{answers: []any{datagram}}, in: make([]byte, 4096)}
	if _, _, err := k.Next(); !errors.Is(err, unix.EINVAL) || !errors.Is(err, ErrRetry) || !strings.HasSuffix(err.Error(), "no good") {
		t.Errorf("error %v", err)
	}
}

// What cannot be sent is an error of each request, and of the acknowledgements nobody hears.
func TestNothingIsSent(t *testing.T) {
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: failing{err: unix.ENOBUFS}, family: genetlink.Family{ID: 30}}
	k.Ack(1, unix.EPROTO)
	k.Flush()
	completions := []Completion{{Request: 1, Status: genl.StatusEnumDir}, {Request: 2, Status: genl.StatusEnumDir}}
	k.Complete(completions)
	for _, c := range completions {
		if !errors.Is(c.Err, unix.ENOBUFS) {
			t.Errorf("request %d: %v", c.Request, c.Err)
		}
	}
	if len(k.out) > 0 {
		t.Error("some of it is kept")
	}
	w := &netlinkWorld{t: t, family: 30}
	k.socket, k.in = &fakeSocket{w: w}, make([]byte, 4096)
	w.daemon = k.socket.(*fakeSocket)
	k.Ack(2, unix.EPROTO)
	k.Flush()
	w.said("ack 1: EPROTO", "ack 2: EPROTO")
	s := &fakeSocket{w: w}
	w.daemon = s
	k = &ksmbd{log: slog.New(slog.DiscardHandler), socket: s, family: genetlink.Family{ID: 30}, in: make([]byte, 4096)}
	if m, err := k.Causes(); err != nil || m.Lost != 0 || m.Causes != nil {
		t.Errorf("causes %+v, %v", m, err)
	}
}

// Each of many completions in a datagram has an end of its own, and what goes with
// them does not confuse it.
func TestCompletions(t *testing.T) {
	w := &netlinkWorld{t: t, family: 30, ended: []uint64{3, 5}}
	s := &fakeSocket{w: w}
	w.daemon = s
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: s, family: genetlink.Family{ID: 30}, in: make([]byte, 4096)}
	a := []genl.Record{{Action: genl.ActionAdded, Name: "a"}}
	completions := func() []Completion {
		return []Completion{
			{Request: 1, Records: a}, {Request: 3, Records: a}, {Request: 4, Records: []genl.Record{{Action: genl.ActionAdded}}},
			{Request: 5, Status: genl.StatusEnumDir}, {Request: 7, Records: a},
		}
	}
	k.Ack(8, unix.EPROTO)
	cs := completions()
	k.Complete(cs)
	w.said("1: +a", "3: +a", "5: ENUM_DIR", "7: +a", "ack 8: EPROTO")
	for i, want := range []error{nil, ErrNoRequest, nil, ErrNoRequest, nil} {
		if i != 2 && !errors.Is(cs[i].Err, want) || i == 2 && (cs[i].Err == nil || errors.Is(cs[i].Err, ErrNoRequest)) {
			t.Errorf("%d: %v", cs[i].Request, cs[i].Err)
		}
	}
	k.Ack(9, 0)
	if _, _, err := k.Next(); err != nil {
		t.Error(err)
	}
	k.Ack(10, 0)
	k.Flush()
	if want := []uint64{8, 9, 10}; !slices.Equal(w.acked, want) {
		t.Errorf("acknowledged %v", w.acked)
	}

	// An answer was lost: nobody knows whose.
	s.errs = []error{unix.ENOBUFS}
	cs = completions()
	k.Complete(cs)
	for i, want := range []error{ErrDoubt, ErrNoRequest, nil, ErrNoRequest, ErrDoubt} {
		if i != 2 && !errors.Is(cs[i].Err, want) {
			t.Errorf("in doubt: %d: %v", cs[i].Request, cs[i].Err)
		}
	}
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
	before := countFDs(t)
	_, noModule := os.Stat("/sys/module/ksmbd")
	if err := FindFamily(); !errors.Is(err, ErrNoFamily) && (err != nil || noModule != nil) {
		t.Error(err)
	}
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
	undo := limit.Files(t, -1)
	err = FindFamily()
	undo()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("with no file: %v", err)
	}
	datagram := genl.AppendMessage(nil, unix.GENL_ID_CTRL, 99, 1) // is an error
	genl.EndMessage(datagram, 0)
	if err := s.Send(datagram); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(make([]byte, 1)); err != unix.EMSGSIZE {
		t.Errorf("an answer that is longer than the buffer: %v", err)
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
// the controller, which does not want them, and says so; and many in one go, each
// of which has an answer.
func TestRealNetlinkDatagrams(t *testing.T) {
	s, err := dialSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if os.Geteuid() != 0 {
		cannotRun(t, "only root can make a socket's buffers as large")
	}
	if err := errors.Join(s.SetReadBuffer(1<<20), s.SetWriteBuffer(8<<20)); err != nil {
		t.Fatal(err)
	}
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: s, family: genetlink.Family{ID: unix.GENL_ID_CTRL}, in: make([]byte, 4096)}
	large := Completion{Request: 1}
	for size := 0; size < 4<<20; size += genl.MaxName {
		large.Records = append(large.Records, genl.Record{Action: genl.ActionAdded, Name: strings.Repeat("x", genl.MaxName)})
	}
	completions := []Completion{large}
	for i := range 100 {
		completions = append(completions, Completion{Request: uint64(i), Status: genl.StatusEnumDir})
	}
	k.Complete(completions)
	for i, c := range completions {
		// The controller's command 5 dumps operations, and takes no such attributes.
		if errno := unix.Errno(0); !errors.As(c.Err, &errno) {
			t.Fatalf("completion %d: error %v", i, c.Err)
		}
	}
	t.Logf("errors as expected: %.200v", completions[1].Err)
	// The socket is in step after it.
	if _, err := s.GetFamily("nlctrl"); err != nil {
		t.Error(err)
	}
}

// One that asks ksmbd costs no memory. How long it takes is for make bench.
func BenchmarkExchange(b *testing.B) {
	s, err := dialSocket()
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	k := &ksmbd{log: slog.New(slog.DiscardHandler), socket: s, family: genetlink.Family{ID: unix.GENL_ID_CTRL}, in: make([]byte, 4096)}
	b.ReportAllocs()
	for b.Loop() {
		k.Ack(1, 0)
		k.Flush()
	}
}
