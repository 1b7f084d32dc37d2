// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

var crowd = flag.Int("crowd", 300, "how many connections the tests of starvation have that never read; watches are about five times as many")

// starving is what nobody may cost others more than: a ratio of medians of one run.
const starving = 2

// sample is how long a healthy client waits, in the median.
type sample struct {
	told time.Duration // from a change on the server to the response
	echo time.Duration // for an ECHO
}

// patient is a client to which nothing is done.
type patient struct {
	*wire
	conn *smb2.Conn
	file *smb2.File
	n    int
	base int // connections that there are
}

func newPatient(t *testing.T) *patient {
	begin(t)
	w := newWire(t, 15*time.Minute)
	c, tree := w.connect(smb2.Options{})
	return &patient{wire: w, conn: c, file: w.open(tree, ""), base: connections(t)}
}

// measure measures for a time, a round at least.
func (p *patient) measure(d time.Duration) sample {
	p.Helper()
	var told, echo []time.Duration
	for end := time.Now().Add(d); len(told) == 0 || time.Now().Before(end); {
		call, _ := p.park(p.file, wireNames())
		p.n++
		start := time.Now()
		p.touch(fmt.Sprint("f", p.n))
		r, err := call.Recv(p.ctx)
		p.ok(err)
		if r.Status != smb2.StatusSuccess && r.Status != smb2.StatusNotifyEnumDir { // that tells too
			p.Fatalf("a change is answered with %v", r.Status)
		}
		told = append(told, time.Since(start))

		start = time.Now()
		_, err = p.conn.Do(p.ctx, smb2.EchoRequest())
		p.ok(err)
		echo = append(echo, time.Since(start))
	}
	return sample{median(told), median(echo)}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// compare compares what was measured with and without something, by medians of the rounds.
func (p *patient) compare(without, with []sample) {
	p.Helper()
	for _, what := range []struct {
		name string
		of   func(sample) time.Duration
	}{
		{"change to told", func(s sample) time.Duration { return s.told }},
		{"ECHO", func(s sample) time.Duration { return s.echo }},
	} {
		medians := [2]time.Duration{}
		for i, samples := range [][]sample{without, with} {
			var d []time.Duration
			for _, s := range samples {
				d = append(d, what.of(s))
			}
			medians[i] = median(d)
		}
		ratio := float64(medians[1]) / float64(medians[0])
		p.Logf("%s: %v without, %v with: %.2f", what.name, medians[0].Round(10*time.Microsecond), medians[1].Round(10*time.Microsecond), ratio)
		if ratio > starving {
			p.Errorf("%s takes %.2f times as long, of %d allowed", what.name, ratio, starving)
		}
	}
}

// many runs n things, some at a time, and fails with the first of them.
func (p *patient) many(n int, one func(i int) error) {
	p.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for worker := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[worker] == nil; i = int(next.Add(1)) - 1 {
				errs[worker] = one(i)
			}
		})
	}
	wg.Wait()
	p.ok(errors.Join(errs...))
}

// watches opens so many watches, 475 a connection, each with a request that pends.
func (p *patient) watches(n int) (conns []*smb2.Conn) {
	const each = 475
	var mu sync.Mutex
	p.many((n+each-1)/each, func(int) error {
		c, tree, err := connectTo(lanes[2])
		if err != nil {
			return err
		}
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		for range each {
			file, err := tree.Create(p.ctx, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
			if err != nil {
				return err
			}
			call, err := file.Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 1024})
			if err != nil {
				return err
			}
			if _, err := call.Recv(p.ctx); err != nil {
				return err
			}
		}
		return nil
	})
	p.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	return conns
}

// end ends clients that have many watches, and waits for the server to have done with them.
func (p *patient) end(conns []*smb2.Conn) {
	p.Helper()
	for _, c := range conns {
		c.Close()
	}
	p.ok(until(5*time.Minute, func() error {
		if n := connections(p.T); n > p.base {
			return fmt.Errorf("%d connections are left, of %d", n, p.base)
		}
		return nil
	}))
	p.measure(0)
}

// storm repeats something on connections of its own until it is stopped. What is returned stops it.
func (p *patient) storm(n int, dial func() (*smb2.Conn, error), one func(context.Context, *smb2.Conn) error) func() {
	p.Helper()
	ctx, stop := context.WithCancel(p.ctx)
	var wg sync.WaitGroup
	var times atomic.Int64
	start := time.Now()
	for range n {
		c, err := dial()
		p.ok(err)
		wg.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				if err := one(ctx, c); err != nil && ctx.Err() == nil {
					p.Errorf("in the storm: %v", err)
					return
				}
				times.Add(1)
			}
		})
	}
	return func() {
		stop()
		wg.Wait()
		p.Logf("the storm: %.0f/s", float64(times.Load())/time.Since(start).Seconds())
	}
}

// TestStarveStalled: clients that never read what they are told, each with more to be told than its connection takes.
func TestStarveStalled(t *testing.T) {
	p := newPatient(t)
	// The less a connection takes, the fewer bytes are needed.
	const sysctl = "/proc/sys/net/ipv4/tcp_wmem"
	before, err := os.ReadFile(sysctl)
	p.ok(err)
	p.ok(os.WriteFile(sysctl, []byte("4096 4096 4096"), 0))
	defer os.WriteFile(sysctl, before, 0)

	without := []sample{p.measure(3 * time.Second)}
	conns, files := make([]*smb2.Conn, *crowd), make([]*smb2.File, *crowd)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	p.many(*crowd, func(i int) error {
		c, err := smb2.Dial(p.ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect210, User: "user", Password: "pass", Credits: 64, ReadBuffer: 2048})
		if err != nil {
			return err
		}
		conns[i] = c
		tree, err := c.TreeConnect(p.ctx, lanes[2])
		if err != nil {
			return err
		}
		if files[i], err = tree.Create(p.ctx, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}); err != nil {
			return err
		}
		call, err := files[i].Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 65536})
		if err != nil {
			return err
		}
		if _, err := call.Recv(p.ctx); err != nil {
			return err
		}
		return call.Cancel(p.ctx)
	})
	// What is told at once then: about 24 KiB.
	for i := range 120 {
		p.ok(os.WriteFile(filepath.Join(sharePath(lanes[2]), fmt.Sprintf("%096d", i)), nil, 0o666))
	}
	p.measure(0) // the server has got round to all of that
	for _, c := range conns {
		c.Stall()
	}
	p.many(*crowd, func(i int) error {
		_, err := files[i].Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 65536})
		return err
	})
	var with []sample
	for range 3 {
		with = append(with, p.measure(time.Second))
	}
	p.end(conns)
	without = append(without, p.measure(3*time.Second)) // how fast the machine is may have changed
	p.compare(without, with)
	p.ok(empty(sharePath(lanes[2])))
}

// TestStarveLogins: logins that fail, without credentials, while there are many watches of others.
func TestStarveLogins(t *testing.T) {
	p := newPatient(t)
	logins := func() func() {
		return p.storm(4, func() (*smb2.Conn, error) {
			return smb2.Connect(p.ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect210, User: "nosuch", Password: "x", Credits: 64})
		}, func(ctx context.Context, c *smb2.Conn) error {
			if err := c.LogOn(ctx); !refusal(err) {
				return fmt.Errorf("logged on: %w", err)
			}
			return nil
		})
	}
	var without, with []sample
	storm := func(rounds int) (samples []sample) {
		stop := logins()
		defer stop()
		for range rounds {
			samples = append(samples, p.measure(2*time.Second))
		}
		return samples
	}
	without = storm(2)
	conns := p.watches(5 * *crowd)
	with = storm(4)
	p.end(conns)
	without = append(without, storm(2)...) // how fast the machine is may have changed
	p.compare(without, with)
}

// TestStarveFlood: clients that ask and cancel without end cost others no more than clients that send as many ECHOs.
func TestStarveFlood(t *testing.T) {
	p := newPatient(t)
	var files sync.Map
	dial := func() (*smb2.Conn, error) {
		c, tree, err := connectTo(lanes[2])
		if err != nil {
			return nil, err
		}
		file, err := tree.Create(p.ctx, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
		files.Store(c, file)
		return c, err
	}
	const batch = 32
	echoes := func(ctx context.Context, c *smb2.Conn) error {
		var calls []*smb2.Call
		for range 2 * batch {
			more, err := c.Send(ctx, smb2.EchoRequest())
			if err != nil {
				return err
			}
			calls = append(calls, more...)
		}
		return finals(ctx, calls)
	}
	notifies := func(ctx context.Context, c *smb2.Conn) error {
		file, _ := files.Load(c)
		var calls []*smb2.Call
		for range batch {
			call, err := file.(*smb2.File).Notify(ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 1024})
			if err != nil {
				return err
			}
			if err := call.Cancel(ctx); err != nil {
				return err
			}
			calls = append(calls, call)
		}
		return finals(ctx, calls)
	}
	var without, with []sample
	for range 3 {
		stop := p.storm(4, dial, echoes)
		without = append(without, p.measure(2*time.Second))
		stop()
		stop = p.storm(4, dial, notifies)
		with = append(with, p.measure(2*time.Second))
		stop()
	}
	p.compare(without, with)
}

func finals(ctx context.Context, calls []*smb2.Call) error {
	for _, call := range calls {
		if _, err := call.Final(ctx); err != nil {
			return err
		}
	}
	return nil
}

// TestStarveDisconnect: clients with many watches go at once, and another asks for the first time.
func TestStarveDisconnect(t *testing.T) {
	p := newPatient(t)
	fresh := func() sample {
		file := p.open(p.file.Tree, "")
		defer file.Close(p.ctx)
		q := *p
		q.file = file
		s := q.measure(0)
		p.n = q.n
		return s
	}
	var without, with []sample
	for range 2 {
		for range 4 {
			without = append(without, fresh())
		}
		conns := p.watches(5 * *crowd)
		for _, c := range conns {
			c.Reset()
		}
		for range 4 {
			with = append(with, fresh())
		}
		p.end(conns)
	}
	p.compare(without, with)
}
