// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/raw"
	"ksmbd-notifyd/genl"
)

// Errors of a daemon that need no more explanation.
var (
	// ErrNoFamily: no ksmbd that can notify is loaded.
	ErrNoFamily = errors.New("the kernel has no generic netlink family " + genl.FamilyName +
		": load the ksmbd module that has this project's notify patch")
	// ErrBusy: there can be one daemon only.
	ErrBusy = errors.New("another ksmbd-notifyd is registered with ksmbd")
	// ErrVersion: daemon and module are of different makes.
	ErrVersion = fmt.Errorf("ksmbd does not speak protocol version %d: "+
		"module and daemon must be of the same release, see ksmbd-notifyd check", genl.ProtocolVersion)

	// errLost: ksmbd was unloaded or takes us for somebody else.
	errLost = errors.New("registration with ksmbd is lost")
)

// socket is what is used of a *genetlink.Conn.
type socket interface {
	GetFamily(name string) (genetlink.Family, error)
	JoinGroup(id uint32) error
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)
	Close() error

	// Send sends a datagram. All answers to it are there when it returns.
	Send(datagram []byte) error
	// Recv receives one into b. EAGAIN says that there is none, ENOBUFS that
	// some were lost.
	Recv(b []byte) (int, error)
	// Wait waits until there is something to receive, and drops it. ENOBUFS says
	// that there was more.
	Wait() error
}

// conn is the socket that is one. What is said all the time does without the
// library: an exchange takes it 51 allocations, and three times as long. No handler
// of ksmbd's waits for anything, so it can be said by package raw.
type conn struct {
	*genetlink.Conn
	fd         syscall.RawConn
	send, recv func(fd uintptr) // made once, since Send and Recv are called one at a time
	b          []byte           // of these
	n          int
	err        error
}

func dialSocket() (socket, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	fd, err := c.SyscallConn()
	// So that errors carry ksmbd's own words, and nothing of ours.
	for _, option := range []netlink.ConnOption{netlink.ExtendedAcknowledge, netlink.CapAcknowledge} {
		err = cmp.Or(err, c.SetOption(option, true))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	conn := &conn{Conn: c, fd: fd}
	conn.send = func(fd uintptr) {
		for conn.err = unix.EINTR; conn.err == unix.EINTR; {
			conn.err = raw.Send(int(fd), conn.b)
		}
	}
	conn.recv = func(fd uintptr) {
		for conn.err = unix.EINTR; conn.err == unix.EINTR; {
			conn.n, conn.err = raw.Recv(int(fd), conn.b)
		}
	}
	return conn, nil
}

func (c *conn) Send(datagram []byte) error {
	c.b = datagram
	err := c.fd.Control(c.send)
	c.b = nil
	return cmp.Or(err, c.err)
}

func (c *conn) Recv(b []byte) (n int, err error) {
	c.b = b
	err = c.fd.Control(c.recv)
	c.b = nil
	if err = cmp.Or(err, c.err); err == nil && c.n > len(b) {
		err = unix.EMSGSIZE
	}
	return c.n, err
}

func (c *conn) Wait() error {
	var b [1]byte
	var err error
	waitErr := c.fd.Read(func(fd uintptr) bool {
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = raw.Recv(int(fd), b[:])
		}
		return err != unix.EAGAIN
	})
	return cmp.Or(waitErr, err)
}

// joinGroup makes s hear one multicast group of a family.
func joinGroup(s socket, family genetlink.Family, name string) error {
	for _, g := range family.Groups {
		if g.Name == name {
			if err := s.JoinGroup(g.ID); err != nil {
				return fmt.Errorf("joining group %s of family %s: %w", name, family.Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("family %s has no group %s", family.Name, name)
}

// getFamily resolves ksmbd's family. Its id differs each time the module is
// loaded. ErrNoFamily says that there is none.
func getFamily(s socket) (genetlink.Family, error) {
	family, err := s.GetFamily(genl.FamilyName)
	if errors.Is(err, os.ErrNotExist) {
		return family, ErrNoFamily
	}
	if err != nil {
		return family, fmt.Errorf("looking for family %s: %w", genl.FamilyName, err)
	}
	return family, nil
}

// FindFamily fails with ErrNoFamily unless a ksmbd that can notify is loaded.
func FindFamily() error {
	s, err := dialSocket()
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer s.Close()
	_, err = getFamily(s)
	return err
}

// ksmbd is the Kernel that is one: a registered socket.
type ksmbd struct {
	log    *slog.Logger
	family genetlink.Family

	registrations uint32 // of all daemons so far, once this one is registered

	mu     sync.Mutex
	socket socket
	out    []byte // what is to be sent
	acks   []byte // and what with that. It comes after completions: a client that holds PENDING may cancel what is yet to be told
	seq    uint32 // of the last message
	in     []byte
	errs   []genl.Message // answers to what was sent last
	doubt  bool           // some answers to it were lost
}

// maxOut is how many bytes of completions go in one datagram, but that one alone
// may take more.
const maxOut = 64 << 10

// register makes k's socket the daemon and returns the module's release. Closing
// the socket is the only way back.
func (k *ksmbd) register() (release string, err error) {
	data, err := genl.Register{Version: genl.ProtocolVersion}.Encode()
	if err != nil {
		return "", err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: genl.CmdRegister, Version: k.family.Version}, Data: data}
	// Without Acknowledge: the ack would stay behind as the answer to what
	// comes next. An error comes in any case.
	msgs, err := k.socket.Execute(m, k.family.ID, netlink.Request)
	switch {
	case errors.Is(err, unix.EBUSY):
		return "", ErrBusy
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return "", ErrVersion
	case errors.Is(err, unix.ENOENT): // unloaded just now
		return "", ErrNoFamily
	case err != nil:
		return "", fmt.Errorf("registering with ksmbd: %w", err)
	case len(msgs) != 1:
		return "", fmt.Errorf("%w: %d replies to register", errLost, len(msgs))
	}
	reply, err := genl.DecodeRegister(msgs[0].Data)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errLost, err)
	}
	if reply.Version != genl.ProtocolVersion {
		return "", ErrVersion
	}

	// Records take less than twice on the wire of what they take in a
	// client's buffer.
	size := 2*min(int(reply.MaxBufferLength), 64<<20) + 1<<16
	if err := errors.Join(k.socket.SetReadBuffer(1<<20), k.socket.SetWriteBuffer(size)); err != nil {
		return "", fmt.Errorf("sizing netlink socket to %d bytes: %w", size, err)
	}
	k.in = make([]byte, 64<<10)
	k.registrations = reply.Registrations
	k.log.Info("registered with ksmbd", "module", reply.Release)
	return reply.Release, nil
}

// begin appends the headers of a message to what is to be sent.
func (k *ksmbd) begin(cmd uint8) (start int) {
	start = len(k.out)
	k.seq++
	k.out = genl.AppendMessage(k.out, k.family.ID, cmd, k.seq)
	return start
}

// send sends what is to be sent. Should that fail the acknowledgements go with what is sent next:
// nobody else would say that a watch is refused.
func (k *ksmbd) send(acksFirst bool) error {
	at := len(k.out)
	if acksFirst {
		at = 0
	}
	k.out = slices.Insert(k.out, at, k.acks...)
	err := k.socket.Send(k.out)
	if k.out = k.out[:0]; err == nil {
		k.acks = k.acks[:0]
	}
	return err
}

// exchange sends what is to be sent and takes in the answers. ksmbd has handled
// all of it when it has been sent. Of messages without an answer it is known that
// they did not fail, unless answers were lost. With replies, the last one has a
// reply, which is returned; it is valid until the next exchange. Then the acknowledgements
// go first, so that it knows of them.
func (k *ksmbd) exchange(replies bool) (reply []byte, err error) {
	k.errs, k.doubt = k.errs[:0], false
	if err := k.send(replies); err != nil {
		return nil, err
	}
	for {
		n, err := k.socket.Recv(k.in)
		switch {
		case err == unix.EAGAIN:
			if replies {
				return nil, cmp.Or(k.lastErr(), errNoReply)
			}
			return nil, nil
		case err == unix.ENOBUFS:
			k.doubt = true
			continue
		case err != nil:
			return nil, fmt.Errorf("%w: %v", errNoReply, err) // not %w: ksmbd may have done what it was asked for
		}
		for rest := k.in[:n]; len(rest) > 0; {
			var m genl.Message
			if m, rest, err = genl.NextMessage(rest); err != nil {
				return nil, fmt.Errorf("%w: %v", errNoReply, err)
			}
			switch {
			case m.Reply && m.Seq == k.seq:
				return m.Data, nil
			case !m.Reply && m.Errno != 0:
				k.errs = append(k.errs, m)
			}
		}
	}
}

// errNoReply: what it has replied, if it has, is lost.
var errNoReply = errors.New("ksmbd did not reply")

// lastErr returns the error that the last message was answered by, if it was.
func (k *ksmbd) lastErr() error { return k.errOf(k.seq) }

func (k *ksmbd) errOf(seq uint32) error {
	for _, m := range k.errs {
		if m.Seq == seq {
			if m.Words != "" {
				return fmt.Errorf("%w: %s", m.Errno, m.Words)
			}
			return m.Errno
		}
	}
	return nil
}

// Next implements Kernel. The descriptor of a watch belongs to this process
// when it returns.
func (k *ksmbd) Next() (items []genl.Item, more bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	genl.EndMessage(k.out, k.begin(genl.CmdNext))
	reply, err := k.exchange(true)
	var errno unix.Errno
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
		// The family's id is nobody's any more, or of a module loaded since.
		return nil, false, fmt.Errorf("%w: %w", errLost, err)
	case errors.As(err, &errno):
		return nil, false, fmt.Errorf("%w: %w", ErrRetry, err)
	case err != nil: // replies out of step: only a new socket helps
		return nil, false, fmt.Errorf("%w: %w", errLost, err)
	}
	items, all, err := genl.DecodeItems(reply)
	more = len(items) > 0 && !all
	return slices.DeleteFunc(items, func(item genl.Item) bool {
		if item.Type == 0 && item.FD > 2 { // whatever is said, not the standard ones
			unix.Close(item.FD)
		}
		return item.Type == 0
	}), more, err
}

// Ack implements Kernel.
func (k *ksmbd) Ack(id uint64, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	start := len(k.acks)
	k.seq++
	k.acks = genl.AppendMessage(k.acks, k.family.ID, genl.CmdAck, k.seq)
	k.acks = genl.Ack{ID: id, Errno: uint32(errno)}.Append(k.acks)
	genl.EndMessage(k.acks, start)
}

// Flush implements Kernel.
func (k *ksmbd) Flush() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.acks) == 0 {
		return
	}
	// Of an item that has ended meanwhile the next exchange meets an error, and
	// nobody needs it.
	if err := k.send(false); err != nil { // of which Next hears too
		k.log.Debug("acknowledging failed", "err", err)
	}
}

// Complete implements Kernel.
func (k *ksmbd) Complete(completions []Completion) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(completions) > 0 {
		n := 0
		for n < len(completions) && len(k.out) < maxOut {
			c := &completions[n]
			start := k.begin(genl.CmdComplete)
			if k.out, c.Err = (genl.Complete{RequestID: c.Request, Status: c.Status, Records: c.Records}).Append(k.out); c.Err == nil {
				genl.EndMessage(k.out, start)
			} else {
				k.out = k.out[:start]
			}
			c.seq = k.seq
			n++
		}
		_, err := k.exchange(false)
		for i := range completions[:n] {
			c := &completions[i]
			switch {
			case c.Err != nil:
			case err != nil:
				c.Err = err
			default:
				if c.Err = k.errOf(c.seq); c.Err == nil && k.doubt {
					c.Err = ErrDoubt
				}
			}
		}
		completions = completions[n:]
	}
}

// Causes implements Kernel.
func (k *ksmbd) Causes() (genl.Causes, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	genl.EndMessage(k.out, k.begin(genl.CmdCauses))
	reply, err := k.exchange(true)
	if err == nil {
		var m genl.Causes
		if m, err = genl.DecodeCauses(reply); err == nil {
			return m, nil
		}
	}
	k.log.Debug("asking ksmbd for causes failed", "err", err)
	return genl.Causes{}, err
}
