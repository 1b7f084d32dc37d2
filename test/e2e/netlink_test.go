// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/test/smb2"
)

// family talks to ksmbd as a daemon would, or would not.
type family struct {
	*genetlink.Conn
	genetlink.Family
}

func dialFamily(t *testing.T) *family {
	t.Helper()
	c, err := genetlink.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetOption(netlink.ExtendedAcknowledge, true); err != nil {
		t.Fatal(err)
	}
	f, err := c.GetFamily(genl.FamilyName)
	if err != nil {
		t.Fatal(err)
	}
	return &family{c, f}
}

// say sends one message and returns ksmbd's error, and what it says in words.
func (f *family) say(cmd uint8, data []byte) (error, string) {
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: f.Version}, Data: data}
	flags := netlink.Request | netlink.Acknowledge
	if cmd == genl.CmdNext || cmd == genl.CmdRegister { // the reply does for an acknowledgement
		flags = netlink.Request
	}
	_, err := f.Execute(m, f.ID, flags)
	var op *netlink.OpError
	if errors.As(err, &op) {
		return err, op.Message
	}
	return err, ""
}

// attributes encodes what a well-behaved daemon never would.
func attributes(t *testing.T, fill func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	e := netlink.NewAttributeEncoder()
	fill(e)
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recordOf is a complete of request 1 with one record, whose attributes are given.
func recordOf(t *testing.T, fill func(*netlink.AttributeEncoder) error) []byte {
	return attributes(t, func(e *netlink.AttributeEncoder) {
		e.Uint64(genl.ACompleteRequestID, 1)
		e.Nested(genl.ACompleteRecord, fill)
	})
}

func named(action uint32, name string) func(*netlink.AttributeEncoder) error {
	return func(e *netlink.AttributeEncoder) error {
		e.Uint32(genl.ARecordAction, action)
		e.Bytes(genl.ARecordName, []byte(name))
		return nil
	}
}

// TestMalformedNetlink: bad input gets an errno, words where the errno alone would not do, and nothing else.
func TestMalformedNetlink(t *testing.T) {
	begin(t)
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	f := dialFamily(t)
	register := func(version uint32) []byte {
		return attributes(t, func(e *netlink.AttributeEncoder) { e.Uint32(genl.ARegisterVersion, version) })
	}
	ack := func(id uint64, errno uint32) []byte {
		return attributes(t, func(e *netlink.AttributeEncoder) {
			e.Uint64(genl.AAckID, id)
			e.Uint32(genl.AAckErrno, errno)
		})
	}
	status := func(request uint64, status uint32) []byte {
		return attributes(t, func(e *netlink.AttributeEncoder) {
			e.Uint64(genl.ACompleteRequestID, request)
			e.Uint32(genl.ACompleteStatus, status)
		})
	}
	type message struct {
		what  string
		cmd   uint8
		data  []byte
		want  error
		words bool
	}
	check := func(f *family, messages []message) {
		t.Helper()
		for _, m := range messages {
			err, words := f.say(m.cmd, m.data)
			if !errors.Is(err, m.want) {
				t.Errorf("%s: %v, want %v", m.what, err, m.want)
			}
			if m.words && words == "" {
				t.Errorf("%s: %v without a word", m.what, err)
			}
		}
	}

	for _, missing := range []int{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH, unix.CAP_NET_ADMIN} {
		withoutCapabilities(t, func() {
			check(f, []message{{"register without a capability", genl.CmdRegister, register(genl.ProtocolVersion), unix.EPERM, missing != unix.CAP_NET_ADMIN}})
		}, missing)
	}
	check(f, []message{
		{"next, unregistered", genl.CmdNext, nil, unix.EPERM, false},
		{"ack, unregistered", genl.CmdAck, ack(1, 1), unix.EPERM, false},
		{"complete, unregistered", genl.CmdComplete, status(1, 1), unix.EPERM, false},
		{"ready is not for daemons", genl.CmdReady, nil, unix.EOPNOTSUPP, false},
		{"no such command", 200, nil, unix.EOPNOTSUPP, false},
		{"register without version", genl.CmdRegister, nil, unix.EINVAL, false},
		{"register of version 0", genl.CmdRegister, register(0), unix.EPROTONOSUPPORT, true},
		{"register of the version before", genl.CmdRegister, register(genl.ProtocolVersion - 1), unix.EPROTONOSUPPORT, true},
		{"register of the last version", genl.CmdRegister, register(math.MaxUint32), unix.EPROTONOSUPPORT, true},
		{"register with half a version", genl.CmdRegister, attributes(t, func(e *netlink.AttributeEncoder) {
			e.Uint16(genl.ARegisterVersion, 1)
		}), unix.EINVAL, true},
		{"register, and rubbish after it", genl.CmdRegister, append(register(genl.ProtocolVersion), 1, 2, 3, 4, 5, 6, 7, 8), unix.EINVAL, true},
		{"register", genl.CmdRegister, register(genl.ProtocolVersion), nil, false},
	})
	check(dialFamily(t), []message{
		{"a second register", genl.CmdRegister, register(genl.ProtocolVersion), unix.EBUSY, true},
		{"next of another socket", genl.CmdNext, nil, unix.EPERM, false},
		{"complete of another socket", genl.CmdComplete, status(1, 1), unix.EPERM, false},
	})
	long := strings.Repeat("x", 4096)
	check(f, []message{
		{"register again", genl.CmdRegister, register(genl.ProtocolVersion), unix.EBUSY, true},
		{"next with nothing queued", genl.CmdNext, nil, nil, false},
		{"ack of nothing", genl.CmdAck, nil, unix.EINVAL, false},
		{"ack, no such item", genl.CmdAck, ack(1<<60, 5), unix.ENOENT, false},
		{"ack, errno 0", genl.CmdAck, ack(1, 0), unix.ERANGE, true},
		{"ack, errno 4096", genl.CmdAck, ack(1, 4096), unix.ERANGE, true},
		{"complete with nothing", genl.CmdComplete, nil, unix.EINVAL, false},
		{"complete, no request", genl.CmdComplete, status(1<<60, 1), unix.ENOENT, false},
		{"complete with status 0", genl.CmdComplete, status(1, 0), unix.ERANGE, true},
		{"complete with status 3", genl.CmdComplete, status(1, 3), unix.ERANGE, true},
		{"complete with neither", genl.CmdComplete, attributes(t, func(e *netlink.AttributeEncoder) {
			e.Uint64(genl.ACompleteRequestID, 1)
		}), unix.EINVAL, true},
		{"complete with both", genl.CmdComplete, append(recordOf(t, named(1, "a")), attributes(t, func(e *netlink.AttributeEncoder) {
			e.Uint32(genl.ACompleteStatus, 1)
		})...), unix.EINVAL, true},
		{"unknown attribute", genl.CmdComplete, attributes(t, func(e *netlink.AttributeEncoder) { e.Uint32(99, 1) }), unix.EINVAL, true},
		{"record of nothing", genl.CmdComplete, recordOf(t, func(*netlink.AttributeEncoder) error { return nil }), unix.EINVAL, true},
		{"record without name", genl.CmdComplete, recordOf(t, func(e *netlink.AttributeEncoder) error {
			e.Uint32(genl.ARecordAction, 1)
			return nil
		}), unix.EINVAL, true},
		{"record without action", genl.CmdComplete, recordOf(t, func(e *netlink.AttributeEncoder) error {
			e.Bytes(genl.ARecordName, []byte("a"))
			return nil
		}), unix.EINVAL, true},
		{"record with action 0", genl.CmdComplete, recordOf(t, named(0, "a")), unix.ERANGE, true},
		{"record with action 6", genl.CmdComplete, recordOf(t, named(6, "a")), unix.ERANGE, true},
		{"record with an empty name", genl.CmdComplete, recordOf(t, named(1, "")), unix.ERANGE, true},
		{"record with a name of 4096 bytes", genl.CmdComplete, recordOf(t, named(1, long)), unix.ERANGE, true},
		{"record with a NUL in its name", genl.CmdComplete, recordOf(t, named(1, "a\x00b")), unix.EINVAL, true},
		{"a record that ends too early", genl.CmdComplete, append(status(1, 1), 200, 0, genl.ACompleteRecord, 0x80), unix.EINVAL, true},
		{"records for no request", genl.CmdComplete, recordOf(t, named(1, long[1:])), unix.ENOENT, false},
	})

	f.Close()
	withoutCapabilities(t, func() {
		check(dialFamily(t), []message{
			{"register, not admin", genl.CmdRegister, register(genl.ProtocolVersion), unix.EPERM, false},
			{"next, not admin", genl.CmdNext, nil, unix.EPERM, false},
		})
	})
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	runSteps(t, startWatch(t, "", user1), sequence)
}

// withoutCapabilities runs f on a thread that lacks these, or has none, and which ends with it.
func withoutCapabilities(t *testing.T, f func(), lacks ...int) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var has [2]unix.CapUserData
		var err error
		if len(lacks) > 0 {
			err = unix.Capget(&header, &has[0])
		}
		for _, c := range lacks {
			has[c/32].Effective &^= 1 << (c % 32)
		}
		if err == nil {
			err = unix.Capset(&header, &has[0])
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// stopped says whether every thread of a process is stopped.
func stopped(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err != nil {
			return err
		}
		// The name, in parentheses, may have anything in it.
		if !bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" T")) {
			return fmt.Errorf("running still: %s", stat)
		}
	}
	return err
}

// TestStuckDaemon: a daemon that does nothing holds up PENDING for a bounded time only, and what it has missed then
// is told as a directory to be listed anew.
func TestStuckDaemon(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	_, tree := w.connect(smb2.Options{})
	armed, fresh := w.open(tree, ""), w.open(tree, "")
	first, _ := w.park(armed, wireNames()) // the daemon is known to serve

	daemon := server.notifyd.cmd.Process
	w.ok(daemon.Signal(syscall.SIGSTOP))
	defer daemon.Signal(syscall.SIGCONT)
	w.ok(until(long, func() error { return stopped(daemon.Pid) }))
	second, _ := w.park(fresh, wireNames())
	third, _ := w.park(fresh, wireNames())
	w.touch("f")
	w.ok(daemon.Signal(syscall.SIGCONT))

	w.told(first, "ADDED f")
	w.ends(second, smb2.StatusNotifyEnumDir)
	w.touch("g")
	w.told(third, "ADDED g")
}
