// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// connections counts those that ksmbd has: each has a thread named after its client's port, or address since 7.3.
func connections(t *testing.T) (n int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && bytes.HasPrefix(comm, []byte("ksmbd:")) {
			n++
		}
	}
	return n
}

// TestMultichannel: a request is answered on the channel that it came by, with that channel's key, whatever ends it.
func TestMultichannel(t *testing.T) {
	for _, o := range []smb2.Options{
		{Dialect: smb2.Dialect300, Sign: true},
		{Dialect: smb2.Dialect311, Sign: true},
		{Dialect: smb2.Dialect311, Cipher: smb2.AES128GCM},
	} {
		t.Run(fmt.Sprintf("%v-%v", o.Dialect, o.Cipher), func(t *testing.T) {
			begin(t)
			w := newWire(t, wireLimit)
			c1, tree := w.connect(o)
			c2 := w.bind(c1)
			f1 := w.open(tree, "")
			f2 := f1.On(c2)
			check := func(r *smb2.Response) {
				t.Helper()
				w.protected(o, r)
				w.quiet(c1)
				w.quiet(c2)
			}

			// In the order in which they came, each where it came from.
			first, _ := w.park(f2, wireNames())
			second, _ := w.park(f1, wireNames())
			w.touch("a")
			check(w.told(first, "ADDED a"))
			w.touch("b")
			check(w.told(second, "ADDED b"))

			call, _ := w.park(f2, wireNames())
			w.ok(call.Cancel(w.ctx))
			check(w.ends(call, smb2.StatusCancelled))

			// The handle is the session's: it is closed over one channel while requests pend on both.
			first, _ = w.park(f2, wireNames())
			second, _ = w.park(f1, wireNames())
			w.ok(f1.Close(w.ctx))
			check(w.ends(first, smb2.StatusNotifyCleanup))
			check(w.ends(second, smb2.StatusNotifyCleanup))

			// A channel that is lost takes its requests with it and leaves the watch as it is.
			f1 = w.open(tree, "")
			c3 := w.bind(c1)
			before := connections(t)
			w.park(f1.On(c3), wireNames())
			c3.Reset()
			w.ok(until(long, func() error {
				if n := connections(t); n != before-1 {
					return fmt.Errorf("%d connections, there were %d", n, before)
				}
				return nil
			}))
			w.touch("c")
			w.told(w.send(f1, wireNames()), "ADDED c")

			last, _ := w.park(f1.On(c2), wireNames())
			_, err := c1.Do(w.ctx, smb2.LogoffRequest())
			w.ok(err)
			w.ends(last, smb2.StatusNotifyCleanup)
		})
	}
}

// reconfigure restarts ksmbd with more global options, and the daemon: one that finds a module anew has missed something.
func reconfigure(t *testing.T, options string) {
	t.Helper()
	conf, err := os.ReadFile(confFile)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(conf []byte) {
		err := errors.Join(os.WriteFile(confFile, conf, 0o644), stopNotifyd(), stopMountd(), unloadModule(),
			loadModule(), startMountd(), startNotifyd())
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { restart(conf) })
	restart(bytes.Replace(conf, []byte("[global]\n"), []byte("[global]\n"+options), 1))
}

// openWatches gives how many watches the daemon's log tells of that have not ended.
func openWatches(t *testing.T) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(results, "notifyd.log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(log, []byte("debug: watch ")) - bytes.Count(log, []byte("debug: unwatch "))
}

// durable has durable handles turned on if that can be. It returns what opens a directory with one, and what of that is
// other when the client takes it up again.
func durable(t *testing.T) (w *wire, p smb2.CreateParams, again func(*smb2.File) []smb2.Context, can bool) {
	t.Helper()
	options := leaseOptions(true)
	reconfigure(t, options)
	begin(t)
	w = newWire(t, long)
	lease, guid := smb2.LeaseContext([16]byte{1}), [16]byte{2}
	p = smb2.CreateParams{
		Name: w.name, Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
		Oplock: smb2.OplockLease, Contexts: []smb2.Context{lease, smb2.DurableContext(guid)},
	}
	again = func(f *smb2.File) []smb2.Context { return []smb2.Context{lease, f.ReconnectContext(guid)} }
	return w, p, again, strings.Contains(options, "durable")
}

// TestDurable: a durable handle outlives its connection, and so does its watch. Its requests end, but what happens while
// the client is away the first request on the handle that it takes up again is told. Without one nothing stays behind.
func TestDurable(t *testing.T) {
	w, p, again, can := durable(t)
	if !can {
		t.Log("ksmbd-tools before 3.5 cannot turn durable handles on: the handle goes with the connection")
	}
	watches := openWatches(t)
	settled := func(n int) {
		t.Helper()
		w.ok(until(long, func() error {
			if now := openWatches(t); now != watches+n {
				return fmt.Errorf("%d watches more than before, want %d", now-watches, n)
			}
			return nil
		}))
	}

	o := smb2.Options{ClientGUID: [16]byte{3}}
	conns := connections(t)
	c, tree := w.connect(o)
	r, err := c.Do(w.ctx, tree.CreateRequest(p))
	w.ok(err)
	if r.Granted("DH2Q") != can {
		t.Fatalf("a durable handle is granted: %v", !can)
	}
	f, err := tree.Created(r)
	w.ok(err)
	call, _ := w.park(f, wireNames())
	w.touch("a")
	w.told(call, "ADDED a")
	w.park(f, wireNames())
	settled(1)
	lost := func(c *smb2.Conn, conns int) {
		t.Helper()
		c.Reset()
		w.ok(until(long, func() error {
			if n := connections(t); n != conns {
				return fmt.Errorf("%d connections, there were %d", n, conns)
			}
			return nil
		}))
	}
	lost(c, conns)
	away := 0
	if can {
		away = 1
	}
	settled(away)
	w.touch("b")

	_, tree = w.connect(o)
	if can {
		p.Contexts = again(f)
	}
	f = w.create(tree, p)
	if can {
		w.told(w.send(f, wireNames()), "ADDED b")
	}
	call, _ = w.park(f, wireNames())
	w.touch("c")
	w.told(call, "ADDED c")
	w.park(f, wireNames())
	settled(1)
	w.ok(f.Close(w.ctx))
	settled(0)

	// Nobody comes back for this one: it is there when the module is unloaded. That nobody may delete the directory was meant
	// as long as somebody has it open.
	p.Contexts, p.KeepsName = []smb2.Context{smb2.LeaseContext([16]byte{1}), smb2.DurableContext([16]byte{4})}, true
	conns = connections(t)
	c, tree = w.connect(o)
	w.park(w.create(tree, p), wireNames())
	lost(c, conns)
	settled(away)
	_, other := w.connect2()
	f, err = other.Create(w.ctx, smb2.CreateParams{Name: p.Name, Access: smb2.AccessDelete, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
	w.ok(err)
	w.ok(f.Close(w.ctx))
}

// TestDurableUntold: a client that lost its connection without a word may not have what it was told last. Unless it has asked
// again since, it is told to list the directory anew when it takes up its durable handle.
func TestDurableUntold(t *testing.T) {
	w, p, again, can := durable(t)
	if !can {
		t.Skip("ksmbd-tools before 3.5, as Debian 12 has them, cannot turn durable handles on: make test-series has others")
	}
	o := smb2.Options{ClientGUID: [16]byte{3}}
	c, tree := w.connect(o)
	f := w.create(tree, p)
	comesBack := func() {
		t.Helper()
		o.PreviousSession = c.SessionID()
		c, tree = w.connect(o)
		p.Contexts = again(f)
		f = w.create(tree, p)
	}
	call, _ := w.park(f, wireNames())
	w.touch("a")
	w.told(call, "ADDED a")
	comesBack()
	w.enumDir(w.ends(w.send(f, wireNames()), smb2.StatusNotifyEnumDir))

	call, _ = w.park(f, wireNames())
	w.touch("b")
	w.told(call, "ADDED b")
	w.park(f, wireNames())
	comesBack()
	w.touch("c")
	w.told(w.send(f, wireNames()), "ADDED c")
}

// TestLeasedDirectory: a client that has a directory open and does not share its deletion has it stay, until it closes it. One
// that keeps the handle for its lease alone is asked to give it up.
func TestLeasedDirectory(t *testing.T) {
	reconfigure(t, leaseOptions(true))
	begin(t)
	w := newWire(t, long)
	w.mkdir("dir")
	_, tree := w.connect(smb2.Options{ClientGUID: [16]byte{1}})
	_, other := w.connect2()
	p := smb2.CreateParams{Name: w.path("dir"), Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory, KeepsName: true}
	remove := smb2.CreateParams{Name: p.Name, Access: smb2.AccessDelete, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}

	open := w.create(tree, p)
	if _, err := other.Create(w.ctx, remove); !errors.Is(err, smb2.StatusSharingViolation) {
		t.Errorf("with the directory open elsewhere: %v", err)
	}
	w.ok(open.Close(w.ctx))

	p.Oplock, p.Contexts = smb2.OplockLease, []smb2.Context{smb2.LeaseContext([16]byte{2})}
	kept := w.create(tree, p)
	closed := make(chan error, 1)
	go func() { closed <- closeWhenAsked(w.ctx, kept) }()
	f, err := other.Create(w.ctx, remove)
	w.ok(err)
	w.ok(<-closed)
	w.ok(f.Delete(w.ctx))
	w.ok(f.Close(w.ctx))
}

// TestLargest: a buffer of 8 MiB, the most that ksmbd can be told to allow, may come back full.
func TestLargest(t *testing.T) {
	reconfigure(t, "\tsmb2 max trans = 8388608\n")
	begin(t)
	w := newWire(t, 4*long)
	c, tree := w.connect(smb2.Options{Cipher: smb2.AES128GCM})
	if c.MaxTransact() != 8<<20 {
		t.Fatalf("MaxTransactSize is %d", c.MaxTransact())
	}
	f := w.open(tree, "")
	p := smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 8 << 20}
	w.arm(f, p)
	var want []string
	for i := range 16000 {
		name := fmt.Sprintf("%s-%05d", strings.Repeat("n", 240), i)
		w.touch(name)
		want = append(want, "ADDED "+name)
	}
	r := w.ends(w.send(f, p), smb2.StatusSuccess)
	t.Logf("a response of %d bytes", len(r.Body))
	if got := w.records(r); !slices.Equal(got, want) {
		t.Fatalf("told %d records of %d, or others", len(got), len(want))
	}
	p.Length++
	w.refused(f, p, smb2.StatusInvalidParameter)
}

// TestCredits: an asynchronous request costs no credits in the long run, nor anything else.
func TestCredits(t *testing.T) {
	begin(t)
	w := newWire(t, 10*time.Minute)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	const batch = 100
	balance, start := c.Credits(), time.Now()
	for done := 0; done < *requests; done += batch {
		var calls [batch]*smb2.Call
		for i := range calls {
			calls[i] = w.send(f, wireNames())
		}
		for i, call := range calls {
			interim := w.pending(call)
			if i%2 == 0 {
				w.ok(c.CancelAsync(w.ctx, interim.ID))
			} else {
				w.ok(call.Cancel(w.ctx))
			}
		}
		for _, call := range calls {
			w.ends(call, smb2.StatusCancelled)
		}
		if now := c.Credits(); now < balance {
			t.Fatalf("after %d requests: %d credits of %d left", done+batch, now, balance)
		}
	}
	t.Logf("%d requests in %v, %v each; %d credits, then %d", *requests, time.Since(start),
		time.Since(start)/time.Duration(*requests), balance, c.Credits())
	w.touch("file")
	w.told(w.send(f, wireNames()), "ADDED file")
}
