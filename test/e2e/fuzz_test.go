// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ksmbd-notifyd/test/fuzz"
	"ksmbd-notifyd/test/smb2"
)

var (
	fuzzFor = flag.Duration("fuzz", 10*time.Second, "for how long each fuzzer runs")
	seed    = flag.Uint64("seed", 0, "what the fuzzers' input is made of; 0: a new one")
)

// fuzzer is one run of a fuzzer: cases are numbered, and the seed and its number make a case.
type fuzzer struct {
	*testing.T
	what     string
	seed     uint64
	end      time.Time
	next     atomic.Uint64 // the next case
	messages atomic.Uint64 // sent
	dropped  atomic.Uint64 // connections, by the server
	silent   atomic.Uint64 // connections
	done     chan struct{}
	wg       sync.WaitGroup
}

// newFuzzer starts to say how far it is.
func newFuzzer(t *testing.T) *fuzzer {
	begin(t)
	f := &fuzzer{T: t, what: t.Name(), seed: *seed, end: time.Now().Add(*fuzzFor), done: make(chan struct{})}
	if f.seed == 0 {
		f.seed = uint64(time.Now().UnixNano())
	}
	t.Logf("%s: SEED=%d", f.what, f.seed)
	mark(fmt.Sprintf("%s: SEED=%d", f.what, f.seed))
	start, last := time.Now(), uint64(0)
	f.wg.Go(func() {
		const every = 10 * time.Second
		for tick := time.NewTicker(every); ; {
			select {
			case <-f.done:
				tick.Stop()
				fmt.Printf("%s: %d messages in %d cases, %.0f s, SEED=%d\n", f.what, f.messages.Load(), f.next.Load(),
					time.Since(start).Seconds(), f.seed)
				return
			case <-tick.C:
				n := f.messages.Load()
				fmt.Printf("%s: %d messages, %d/s, case %d, %.0f s to go, SEED=%d\n", f.what, n, (n-last)/uint64(every/time.Second),
					f.next.Load(), time.Until(f.end).Seconds(), f.seed)
				last = n
			}
		}
	})
	return f
}

// run runs cases on some workers until the time is over or one of them fails, and then looks whether the server is well.
func (f *fuzzer) run(workers int, one func(worker int, n uint64) error) {
	f.Helper()
	var failed atomic.Bool
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for time.Now().Before(f.end) && !failed.Load() {
				n := f.next.Add(1) - 1
				mark(fmt.Sprintf("%s: case %d", f.what, n))
				if err := one(worker, n); err != nil {
					f.Errorf("SEED=%d, case %d: %v", f.seed, n, err)
					if !failed.Swap(true) {
						keepStacks()
					}
				}
			}
		})
	}
	wg.Wait()
	close(f.done)
	f.wg.Wait()
}

// healthy says whether a client of its own is told of a change.
func (f *fuzzer) healthy() {
	f.Helper()
	w := newWire(f.T, long)
	c, tree := w.connect(smb2.Options{})
	call, _ := w.park(w.open(tree, ""), wireNames())
	w.touch("f")
	w.told(call, "ADDED f")
	w.quiet(c)
}

// keepStacks keeps where the kernel's own threads wait, to see who waits for whom, beside what it has kept before.
func keepStacks() {
	stacks, _ := filepath.Glob("/proc/[0-9]*/stack")
	var all bytes.Buffer
	uptime, _ := os.ReadFile("/proc/uptime")
	fmt.Fprintf(&all, "after %s", uptime)
	for _, name := range stacks {
		stack, _ := os.ReadFile(name)
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "comm"))
		if bytes.Contains(stack, []byte("ksmbd")) {
			fmt.Fprintf(&all, "%s %s%s\n", name, comm, stack)
		}
	}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} { // and whose bytes nobody has read
		table, _ := os.ReadFile(name)
		all.Write(table)
	}
	if f, err := os.OpenFile(filepath.Join(results, "stacks.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		f.Write(all.Bytes())
		f.Close()
	}
}

// TestFuzzSMB sends what clients send, and what is made of that, before and after they have logged on, while directories
// are watched. Connections are either dropped or go on to answer, and other clients are told of changes.
func TestFuzzSMB(t *testing.T) {
	pdus, err := fuzz.PDUs()
	if err != nil {
		t.Fatal(err)
	}
	f := newFuzzer(t)
	startWatch(t, "", user1)
	// Many at once: ksmbd lets a client wait for five seconds after a failed login.
	f.run(24, func(worker int, n uint64) error { return f.smb(pdus, lanes[worker%4], fmt.Sprint(worker), n) })
	for _, lane := range lanes {
		if err := empty(sharePath(lane)); err != nil {
			t.Error(err)
		}
	}
	f.healthy()
}

// syncLimit bounds how long a connection may be silent: ksmbd answers a failed login after 5 s, one at a time.
const syncLimit = time.Minute

// smb is a connection and what is sent on it. What it opens has names of its own.
func (f *fuzzer) smb(pdus []fuzz.PDU, lane, own string, n uint64) (err error) {
	r := fuzz.Rand(f.seed, n)
	ctx, cancel := context.WithTimeout(f.Context(), 10*time.Minute)
	defer cancel()
	raw, s := (*smb2.Raw)(nil), &fuzz.Session{}
	steps := 20 + r.IntN(1000)
	if r.IntN(4) == 0 {
		steps = 1 + r.IntN(8)
		raw, err = smb2.DialRaw(ctx, "127.0.0.1:445")
	} else {
		o := []smb2.Options{
			{Dialect: smb2.Dialect210},
			{Dialect: smb2.Dialect302},
			{Dialect: smb2.Dialect311},
			{Dialect: smb2.Dialect311, Cipher: smb2.AES128GCM},
		}[r.IntN(7)/2]
		if n%8 == 0 {
			empty(sharePath(lane)) // or not quite: others make new files there
		}
		raw, err = hostile(ctx, o, lane, own, s)
		if err != nil && ctx.Err() == nil { // as when ksmbd.mountd takes more than two seconds
			return f.unanswered(n, "logging on", err)
		}
	}
	if err != nil {
		return err
	}
	defer raw.Close()
	for i := range steps {
		frames := s.Step(r, pdus)
		if i == 0 { // all of them get their turn
			frames = s.Whole(r, pdus[n%uint64(len(pdus))])
		}
		for j, frame := range frames.Data {
			frame = raw.Seal(frame)
			f.messages.Add(1)
			if j == len(frames.Data)-1 && frames.Short > 0 {
				size := len(frame) + frames.Short
				raw.WriteBytes(ctx, append([]byte{0, byte(size >> 16), byte(size >> 8), byte(size)}, frame...))
				return nil
			}
			if err := raw.Write(ctx, frame); err != nil {
				if ctx.Err() != nil {
					return fmt.Errorf("step %d, %s: the server does not read: %w", i, frames.What, err)
				}
				return nil // dropped
			}
		}
		if i%32 == 31 || i == steps-1 {
			limit, cancel := context.WithTimeout(ctx, syncLimit)
			err := raw.Sync(limit)
			cancel()
			if err != nil { // after some input the stock module is silent too, though it goes on
				return f.unanswered(n, fmt.Sprintf("step %d, %s", i, frames.What), err)
			}
		}
		if raw.Closed() {
			return nil
		}
	}
	return nil
}

// unanswered takes down that a server that goes on has left a client without its answer. It fails where that is not rare.
func (f *fuzzer) unanswered(n uint64, what string, err error) error {
	f.Logf("case %d, %s: %v", n, what, err)
	keepStacks()
	if f.silent.Add(1) > 2+n/50 {
		return errors.New("too many clients that are not answered any more")
	}
	return nil
}

// hostile logs on, opens some files and watches directories, and is then no client any more.
func hostile(ctx context.Context, o smb2.Options, lane, own string, s *fuzz.Session) (*smb2.Raw, error) {
	user, password, _ := strings.Cut(user1, "%")
	o.User, o.Password, o.Credits = user, password, 512
	c, err := smb2.Dial(ctx, "127.0.0.1:445", o)
	if err != nil {
		return nil, err
	}
	s.MessageID = 1000
	err = func() error {
		tree, err := c.TreeConnect(ctx, lane)
		if err != nil {
			return err
		}
		s.Tree = tree.ID
		for _, p := range []smb2.CreateParams{
			{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory},
			{Name: "d" + own, Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf, Options: smb2.OptionDirectory},
			{Name: "f" + own, Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf, Options: smb2.OptionFile},
			{Name: "f" + own, Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf, Options: smb2.OptionFile},
		} {
			file, err := tree.Create(ctx, p)
			if err != nil {
				return err
			}
			s.Files = append(s.Files, file.ID)
			if p.Options != smb2.OptionDirectory {
				continue
			}
			if _, err := file.Notify(ctx, smb2.NotifyParams{Tree: true, Filter: smb2.FilterAll, Length: 4096}); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		c.Close()
		return nil, err
	}
	raw := c.Raw()
	s.ID = raw.SessionID
	return raw, nil
}

// empty removes what is in a directory: clients that were hostile may have left much.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o777)
}

// leaks has the kernel look for memory that nothing points to any more. It needs a kernel that can, see test/guest/debug.sh.
func leaks() error {
	if _, err := os.Stat(kmemleak); err != nil {
		return nil
	}
	for range 2 { // what a first look finds may be on its way
		time.Sleep(6 * time.Second) // objects must be so old
		if err := os.WriteFile(kmemleak, []byte("scan"), 0); err != nil {
			return err
		}
	}
	found, err := os.ReadFile(kmemleak)
	if err != nil {
		return err
	}
	if bytes.Contains(found, []byte("unreferenced object")) {
		os.WriteFile(filepath.Join(results, "kmemleak.txt"), found, 0o644)
		return fmt.Errorf("memory leaks: %.2000s", found)
	}
	return nil
}

// forgetLeaks has the kernel forget what leaked before.
func forgetLeaks() error {
	if _, err := os.Stat(kmemleak); err != nil {
		return nil
	}
	return os.WriteFile(kmemleak, []byte("clear"), 0)
}

const kmemleak = "/sys/kernel/debug/kmemleak"
