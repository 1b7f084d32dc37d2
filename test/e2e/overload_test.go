// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// What clients can have the daemon and the kernel keep for them, in KiB. README names both.
const (
	maxDaemon = 160 << 10
	maxKernel = 96 << 10
)

// daemonMemory is that which the daemon has and has had at the most, in KiB.
func daemonMemory() (now, most int, err error) { return memoryOf(server.notifyd.cmd.Process.Pid) }

// memoryOf is that which a process has and has had at the most, in KiB.
func memoryOf(pid int) (now, most int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for name, value := range map[string]*int{"VmRSS:": &now, "VmHWM:": &most} {
		_, rest, _ := bytes.Cut(status, []byte(name))
		if _, err := fmt.Sscan(string(rest), value); err != nil {
			return 0, 0, fmt.Errorf("%s %w", name, err)
		}
	}
	return now, most, nil
}

// memoryUse is what is in use, in KiB. That of the kernel has a meaning only as a difference.
type memoryUse struct{ daemon, kernel int }

func memoryUsed() (memoryUse, error) {
	daemon, _, err := daemonMemory()
	own, _, err2 := memoryOf(os.Getpid())
	return memoryUse{daemon, -int(available()) - daemon - own}, errors.Join(err, err2)
}

// TestOverload: 120 clients watch what is changed as fast as can be; 25 of them do not ask again, 20 have asked much and read nothing,
// and the daemon is held up for a time. Memory stays bounded, and all that read end with the names that are on the disk.
func TestOverload(t *testing.T) {
	quieten(t)
	const limitFile = "/proc/sys/fs/fanotify/max_queued_events"
	usual, err := os.ReadFile(limitFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(limitFile, usual, 0); err != nil {
			t.Error(err)
		}
	})
	for _, limit := range []string{"16384", "16"} {
		t.Run("queue of "+limit, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(limitFile, []byte(limit), 0), stopNotifyd()); err != nil {
				t.Fatal(err)
			}
			newStorm(t).overload(*fuzzFor)
		})
	}
}

// overload is TestOverload with a queue as it is.
func (s *storm) overload(lasts time.Duration) {
	s.listen(20, true)
	s.listenDeaf(20)
	s.check()
	var silent []*listener // that do not ask again
	for i, l := range s.listeners {
		if i/len(s.grounds)%4 == 1 {
			l.asking.Lock()
			silent = append(silent, l)
		}
	}

	first, err := memoryUsed()
	s.ok(err)
	var most memoryUse
	s.fast.Store(true)
	stop := s.work(false)
	start, spoken, held := time.Now(), time.Now(), false
	for time.Since(start) < lasts {
		time.Sleep(time.Second)
		now, err := memoryUsed()
		s.ok(err)
		most = memoryUse{max(most.daemon, now.daemon), max(most.kernel, now.kernel-first.kernel)}
		if !held && time.Since(start) > lasts/2 {
			held = true
			daemon := server.notifyd.cmd.Process
			s.ok(daemon.Signal(syscall.SIGSTOP))
			time.Sleep(min(30*time.Second, lasts/4))
			s.ok(daemon.Signal(syscall.SIGCONT))
		}
		if time.Since(spoken) > 10*time.Second {
			spoken = time.Now()
			fmt.Printf("%s: %v, %s\n", s.Name(), time.Since(start).Round(time.Second), s.sum(nil))
		}
	}
	stop()
	s.fast.Store(false)
	for _, l := range silent {
		l.asking.Unlock()
	}
	s.check()
	s.Logf("%v, %s; at the most the daemon had %d KiB, and the kernel %d KiB more than before", lasts, s.sum(nil), most.daemon, most.kernel)
	if most.daemon > maxDaemon || most.kernel > maxKernel {
		s.Errorf("the daemon may have %d KiB, the kernel %d more", maxDaemon, maxKernel)
	}
	s.end()
}

// listenDeaf starts clients that have much asked and read nothing of what they are told.
func (s *storm) listenDeaf(n int) {
	s.Helper()
	user, password, _ := strings.Cut(user1, "%")
	for i := range n {
		g := s.grounds[i%len(s.grounds)]
		c, err := smb2.Dial(s.ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect311, User: user, Password: password, Credits: 512, ReadBuffer: 2048})
		s.ok(err)
		s.Cleanup(func() { c.Close() })
		tree, err := c.TreeConnect(s.ctx, g.share)
		s.ok(err)
		file, err := tree.Create(s.ctx, smb2.CreateParams{Name: "w", Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
		s.ok(err)
		c.Stall()
		for range 400 {
			_, err := file.Notify(s.ctx, smb2.NotifyParams{Tree: true, Filter: smb2.FilterAll, Length: 64 << 10})
			s.ok(err)
		}
	}
}

// hoardLength is how many bytes each watch of hoard takes.
const hoardLength = 1 << 20

// hoardsTree says which of them are of a tree.
func hoardsTree(i int) bool { return i%2 == 0 }

// hoard has clients watch that do not ask, and then changes what is 100 MB of records for all of them.
func (p *patient) hoard() (conns []*smb2.Conn, files []*smb2.File) {
	p.Helper()
	const each = 5
	conns, files = make([]*smb2.Conn, 20), make([]*smb2.File, 20*each)
	p.many(len(conns), func(i int) error {
		c, err := smb2.Dial(p.ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect311, User: "user", Password: "pass", Credits: 512, ReadBuffer: 2048})
		if err != nil {
			return err
		}
		conns[i] = c
		p.Cleanup(func() { c.Close() })
		tree, err := c.TreeConnect(p.ctx, lanes[2])
		for j := i * each; err == nil && j < (i+1)*each; j++ {
			if files[j], err = tree.Create(p.ctx, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}); err != nil {
				break
			}
			var call *smb2.Call
			if call, err = files[j].Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: hoardLength, Tree: hoardsTree(j)}); err != nil {
				break
			}
			if _, err = call.Recv(p.ctx); err == nil {
				err = call.Cancel(p.ctx)
			}
		}
		return err
	})
	for i := range 2500 { // of names that take 400 bytes
		p.ok(os.WriteFile(filepath.Join(sharePath(lanes[2]), fmt.Sprintf("%0200d", i)), nil, 0o666))
	}
	return conns, files
}

// TestHoarders: clients that have much to be told and do not ask, and then ask and do not read, cost a bounded amount of memory,
// and others are told by name. When they have gone, so has that.
func TestHoarders(t *testing.T) {
	quieten(t)
	p := newPatient(t)
	dir := sharePath(lanes[2])
	before, err := memoryUsed()
	p.ok(err)
	// In the kernel, since the beginning.
	kernel := func() (int, error) {
		now, err := memoryUsed()
		return now.kernel - before.kernel, err
	}
	all, files := p.hoard()
	p.measure(0) // all that is in the daemon's queues
	s, err := readStatus()
	p.ok(err)
	_, most, err := daemonMemory()
	p.ok(err)
	t.Logf("%d watches hoard %d KiB of records, the daemon has had %d KiB at the most", len(files), s.Open.QueuedBytes>>10, most)
	if s.Open.QueuedBytes < 32<<20 || s.Open.QueuedBytes > 64<<20 {
		t.Errorf("%d bytes are queued, of 64 MiB that may be", s.Open.QueuedBytes)
	}
	if most > maxDaemon {
		t.Errorf("the daemon has had %d KiB, of %d", most, maxDaemon)
	}

	for _, c := range all {
		c.Stall()
	}
	p.many(len(files), func(i int) error {
		_, err := files[i].Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: hoardLength, Tree: hoardsTree(i)})
		return err
	})
	p.measure(time.Second)
	unread, err := kernel()
	p.ok(err)
	t.Logf("asked for, and not read: %d KiB more in the kernel", unread)
	if unread > maxKernel {
		t.Errorf("the kernel has %d KiB more, of %d", unread, maxKernel)
	}

	p.end(all)
	p.ok(empty(dir))
	p.ok(until(long, func() error {
		s, err := readStatus()
		left, err2 := kernel()
		if err == nil && (s.Open.QueuedBytes > 0 || left > 16<<10) {
			err = fmt.Errorf("%d bytes are queued, and the kernel has %d KiB more", s.Open.QueuedBytes, left)
		}
		return errors.Join(err, err2)
	}))
}

// TestFewMemory: a daemon that may have little memory, as by MemoryMax= of its unit, keeps less for clients that do not ask, and goes
// on. What the kernel has no memory left for in its queue is lost, and all that it may concern are told so.
func TestFewMemory(t *testing.T) {
	quieten(t)
	const most = 40 << 20
	group := controlGroup(t)
	set := func(bytes int) error {
		return os.WriteFile(filepath.Join(group, "memory.max"), []byte(fmt.Sprint(bytes)), 0)
	}
	join := func(group string) error {
		return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(os.Getpid())), 0)
	}
	if err := errors.Join(set(most), join(group), startNotifyd(), join(filepath.Dir(group))); err != nil {
		t.Fatal(err)
	}
	p := newPatient(t)
	p.hoard()
	p.measure(0)
	s, err := readStatus()
	p.ok(err)
	if s.Open.QueuedBytes == 0 || s.Open.QueuedBytes > most/16 {
		t.Errorf("%d bytes are queued, of %d that may be", s.Open.QueuedBytes, most/16)
	}

	overflows := func() int {
		log, err := os.ReadFile(filepath.Join(results, "notifyd.log"))
		p.ok(err)
		return bytes.Count(log, []byte("the fanotify queue overflowed"))
	}
	before := overflows()
	call, _ := p.park(p.file, wireNames())
	p.ok(server.notifyd.cmd.Process.Signal(syscall.SIGSTOP))
	current, err := os.ReadFile(filepath.Join(group, "memory.current"))
	p.ok(err)
	var now int
	fmt.Sscan(string(current), &now)
	p.ok(set(now)) // what each processor has taken in advance remains, some 100 KiB
	dir := sharePath(lanes[2])
	for i := range 2500 { // which are fewer than the queue takes; the kernel tries hard for each of them
		name := filepath.Join(dir, fmt.Sprintf("%0200d", i))
		p.ok(errors.Join(os.WriteFile(name+"x", nil, 0o666), os.Remove(name+"x")))
	}
	p.ok(set(most))
	p.ok(server.notifyd.cmd.Process.Signal(syscall.SIGCONT))
	r, err := call.Recv(p.ctx)
	p.ok(err)
	if r.Status != smb2.StatusNotifyEnumDir {
		t.Errorf("who watches another directory of the file system is told %v", r.Status)
	}
	p.ok(until(long, func() error { // it tells clients first
		if overflows() == before {
			return errors.New("the daemon does not say that its queue overflowed")
		}
		return nil
	}))
	p.measure(0)
	events, err := os.ReadFile(filepath.Join(group, "memory.events"))
	p.ok(err)
	if !bytes.Contains(events, []byte("oom_kill 0\n")) {
		t.Errorf("the daemon was killed: %s", events)
	}
	p.ok(empty(dir))
}

// controlGroup makes a control group whose memory can be limited, until the end of the test, when the daemon is started anew.
func controlGroup(t *testing.T) string {
	t.Helper()
	const root = "/sys/fs/cgroup"
	group := filepath.Join(root, "notifyd")
	if err := errors.Join(command("mount", "-t", "cgroup2", "none", root),
		os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0), os.Mkdir(group, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(stopNotifyd(), os.Remove(group), command("umount", root)); err != nil {
			t.Error(err)
		}
	})
	return group
}
