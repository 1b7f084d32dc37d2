// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// What clients send that mean harm, or are only fast.

// TestSMB1Negotiate: nothing of a PDU that is no SMB2 is taken for SMB2. Before anybody has logged in, this one says at
// Command's place that it is a CREATE, with a name of 128 KiB. What it reads beyond its buffer KASAN tells.
func TestSMB1Negotiate(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	_, tree := w.connect(smb2.Options{})
	call, _ := w.park(w.open(tree, ""), wireNames())
	for _, n := range []int{39, 64, 112, 120, 4096} {
		pdu := make([]byte, n)
		copy(pdu, "\xffSMB\x72")
		pdu[12] = 5
		if n >= 112 {
			copy(pdu[108:], "\xff\xff\xfe\xff")
		}
		for range 5 {
			c, err := net.Dial("tcp", wireEnv("SMB2_TEST_ADDR", "127.0.0.1:445"))
			w.ok(err)
			w.ok(c.SetDeadline(time.Now().Add(100 * time.Millisecond)))
			_, err = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(n)), pdu...))
			w.ok(err)
			c.Read(make([]byte, 4)) // whatever it is
			c.Close()
		}
	}
	w.touch("file")
	w.told(call, "ADDED file")
}

// TestAsyncIDs: an AsyncId that was free is not given again at once, or a CANCEL that crosses the response would end the
// next request.
func TestAsyncIDs(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	seen := make(map[uint64]bool)
	for range 5 {
		call, interim := w.park(f, wireNames())
		if seen[interim.ID] {
			t.Fatalf("AsyncId %d was given before", interim.ID)
		}
		seen[interim.ID] = true
		w.touch("file")
		w.told(call, "ADDED file")
		w.ok(c.CancelAsync(w.ctx, interim.ID)) // too late
		w.quiet(c)
		call, _ = w.park(f, wireNames())
		w.ok(call.Cancel(w.ctx))
		w.ends(call, smb2.StatusCancelled)
		w.ok(c.Err())
		w.ok(os.Remove(filepath.Join(w.dir, "file")))
		w.told(w.send(f, wireNames()), "REMOVED file")
	}
}

// TestCancelBefore: CANCELs may be handled before the requests that they are for, all of them.
func TestCancelBefore(t *testing.T) {
	for name, o := range map[string]smb2.Options{"plain": {}, "encrypted": {Cipher: smb2.AES128GCM}} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			w := newWire(t, wireLimit)
			c, tree := w.connect(o)
			f := w.open(tree, "")
			w.arm(f, wireNames())
			const n = 8
			w.quiet(c)
			for i := range uint64(n) {
				w.ok(c.CancelMessage(w.ctx, c.NextID()+i+1)) // an ECHO is first
			}
			w.quiet(c)
			for range n {
				w.ends(w.send(f, wireNames()), smb2.StatusCancelled)
			}
			call, _ := w.park(f, wireNames())
			w.touch("file")
			w.told(call, "ADDED file")
		})
	}
}

// TestCancelledAtTheEnd: a connection that ends does not wait for the daemon to acknowledge what its client has cancelled.
func TestCancelledAtTheEnd(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	before := connections(t)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	daemon := server.notifyd.cmd.Process
	w.ok(daemon.Signal(syscall.SIGSTOP))
	defer daemon.Signal(syscall.SIGCONT)
	call := w.send(f, wireNames())
	w.ok(call.Cancel(w.ctx))
	w.quiet(c)
	c.Reset()
	const ackTimeout = 2 * time.Second // see kernel/notify.h
	for start := time.Now(); connections(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > ackTimeout*3/4 {
			t.Fatal("the connection waits for the daemon")
		}
	}
}

// TestExpired: a session that fails to log in again ends what it has pending, and that only; to fail once more ends
// nothing.
func TestExpired(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	_, tree := w.connect(smb2.Options{})
	other, _ := w.park(w.open(tree, ""), wireNames())
	c, tree := w.connect(smb2.Options{})
	for range 3 {
		own, _ := w.park(w.open(tree, ""), wireNames())
		second, _ := w.park(w.open(tree, ""), wireNames())
		for range 5 {
			body := append([]byte{25, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 88, 0, 32, 0}, make([]byte, 8+32)...)
			if _, err := c.Do(w.ctx, &smb2.Request{Command: smb2.SessionSetup, Body: body}); err == nil {
				t.Fatal("zeros are a login")
			}
		}
		w.ends(own, smb2.StatusNotifyCleanup)
		w.ends(second, smb2.StatusNotifyCleanup)
		c, tree = w.connect(smb2.Options{})
	}
	w.touch("file")
	w.told(other, "ADDED file")
}

// TestPausedReader: a client that stops reading holds up nobody, gets whole what was sent meanwhile when it goes on, and
// is given up when it does not.
func TestPausedReader(t *testing.T) {
	for name, o := range map[string]smb2.Options{"plain": {}, "encrypted": {Cipher: smb2.AES128GCM}} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			w := newWire(t, 2*long)
			w.mkdir("other")
			_, tree := w.connect(smb2.Options{})
			healthy := w.open(tree, "other")
			c2, tree2 := w.connect(smb2.Options{})
			o.ReadBuffer = 16384
			o.User, o.Password, o.Credits, o.Dialect = "user", "pass", 512, smb2.Dialect311
			slow, err := smb2.Dial(w.ctx, wireEnv("SMB2_TEST_ADDR", "127.0.0.1:445"), o)
			w.ok(err)
			t.Cleanup(func() { slow.Close() })
			f := w.open(w.tree(slow), "")
			large := smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 1 << 20}
			w.arm(f, large)

			round := 0
			// fill has 1,500 records wait for one request, which are more than the socket takes.
			fill := func() (*smb2.Call, []string) {
				var want []string
				round++
				for i := range 1500 {
					name := fmt.Sprintf("%s-%d-%d", strings.Repeat("n", 200), round, i)
					w.touch(name)
					want = append(want, "ADDED "+name)
				}
				return w.send(f, large), want
			}
			aside := func(name string) {
				call, _ := w.park(healthy, wireNames())
				begun := time.Now()
				w.touch("other/" + name)
				w.told(call, "ADDED "+name)
				t.Logf("another client was told after %v", time.Since(begun))
				_, err := c2.Do(w.ctx, tree2.DisconnectRequest())
				w.ok(err)
				tree2 = w.tree(c2)
			}

			// pause has at most one more response read, that of an ECHO.
			pause := func() (resume func(), echo *smb2.Call) {
				resume = sync.OnceFunc(slow.Pause())
				t.Cleanup(resume)
				calls, err := slow.Send(w.ctx, smb2.EchoRequest())
				w.ok(err)
				return resume, calls[0]
			}
			resume, before := pause()
			call, want := fill()
			after, err := slow.Send(w.ctx, smb2.EchoRequest())
			w.ok(err)
			aside("a")
			time.Sleep(time.Second)
			resume()
			w.ends(before, smb2.StatusSuccess)
			r, err := call.Final(w.ctx)
			w.ok(err)
			if r.Status == smb2.StatusNotifyEnumDir { // a daemon that was late, on a machine that is
				t.Log("told to list the directory anew")
			} else if got := w.records(r); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("told %v, %d records, of %d", r.Status, len(got), len(want))
			}
			w.ends(after[0], smb2.StatusSuccess)
			w.quiet(slow)

			n := connections(t)
			pause()
			fill()
			aside("b")
			w.ok(until(long, func() error {
				if left := connections(t); left != n-1 {
					return fmt.Errorf("%d connections, there were %d", left, n)
				}
				return nil
			}))
			aside("c")
		})
	}
}
