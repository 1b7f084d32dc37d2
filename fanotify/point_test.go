// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/test/limit"
)

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := errJoin(os.MkdirAll(dir, 0o755), unix.Mount("none", dir, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// mountAutofs makes dir an automount point, whose automounter is a process group that is not
// this one's: who sets it off waits. The test fails then.
func mountAutofs(t *testing.T, dir string) {
	t.Helper()
	asked, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	automounter := exec.Command("sleep", "1h")
	automounter.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := automounter.Start(); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", answers.Fd(), automounter.Process.Pid)
	err = unix.Mount("test", dir, "autofs", 0, opts)
	answers.Close()
	pulled := make(chan bool, 1)
	go func() {
		_, err := asked.Read(make([]byte, 1))
		if pulled <- err == nil; err == nil { // nobody answers, so that the test cannot go on
			panic("the automount point was set off")
		}
	}()
	t.Cleanup(func() {
		for unix.Unmount(dir, 0) == nil {
		}
		automounter.Process.Kill()
		automounter.Wait()
		<-pulled
		asked.Close()
	})
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("no autofs: %v", err)
		}
		t.Skipf("no autofs: %v", err)
	}
}

// What is mounted on an automount point is watched, and the point itself is not set off: one
// that was there before the watch, one that came later, and one in what has been moved in.
func TestAutomount(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			dir := filepath.Join(mnt, "w")
			for _, d := range []string{"w/before", "w/later", "out/d/moved"} {
				if err := os.MkdirAll(filepath.Join(mnt, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			mountAutofs(t, dir+"/before")
			mountAutofs(t, mnt+"/out/d/moved")
			g := openTest(t)
			defer g.Close()
			_, told := watchTest(t, g, dir, true, Create|Rename)
			_, single := watchTest(t, g, dir, false, Create|Rename)
			drain(t, g)
			wantTold(t, told)
			mountAutofs(t, dir+"/later") // over what was there
			drain(t, g)
			wantTold(t, told, "overflow")
			if err := os.Rename(mnt+"/out/d", dir+"/d"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Rename(dir+"/d", mnt+"/out/d") })
			drain(t, g)
			wantTold(t, told, "rename . -> d/", "overflow") // with what is mounted in it
			for _, name := range []string{"before", "later", "d/moved"} {
				auto := filepath.Join(dir, name)
				for range 2 { // it expires, and is mounted again
					if err := unix.Mount("none", auto, "tmpfs", 0, "size=1m"); err != nil {
						t.Fatal(err)
					}
					drain(t, g)
					wantTold(t, told, "overflow")
					if err := os.MkdirAll(auto+"/d", 0o755); err != nil {
						t.Fatal(err)
					}
					touch(t, auto+"/d/f")
					drain(t, g)
					wantTold(t, told, "create "+name+"/d/", "create "+name+"/d/f")
					if err := unix.Unmount(auto, 0); err != nil {
						t.Fatal(err)
					}
					drain(t, g)
					wantTold(t, told, "overflow")
				}
			}
			wantTold(t, single, "rename . -> d/")
		})
	}
}

// A mount that cannot be opened is told as an Overflow as long as that lasts, and is
// tried again.
func TestMountRefused(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	g.retryAfter = time.Millisecond
	_, told := watchTest(t, g, dir, true, Create)
	_, single := watchTest(t, g, dir, false, Create)
	drain(t, g)
	mountTmpfs(t, dir+"/m")
	drain(t, g)
	*told, *single = nil, nil

	if err := errJoin(unix.Unmount(dir+"/m", 0), unix.Mount("none", dir+"/m", "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	undo := limit.Files(t, -1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs error
	for range 3 {
		*told = nil
		for !slices.Contains(*told, "overflow") && errs == nil {
			errs = errors.Join(g.Wait(ctx), g.Drain())
		}
	}
	if undo(); errs != nil {
		t.Fatal(errs)
	}
	for g.retry.Load() != nil {
		if err := g.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		drain(t, g)
	}
	*told = nil
	touch(t, dir+"/m/f")
	drain(t, g)
	wantTold(t, told, "create m/f")
	wantTold(t, single)
}

// The main thread is none of those that go to another mount namespace: /proc/self/mountinfo has
// the mounts of its own.
func init() { runtime.LockOSThread() }

// newSandbox returns what runs in another mount namespace, as a sandboxed service does, on a
// thread of its own that does not come back.
func newSandbox(t *testing.T) (inside func(do func() error)) {
	turn, done := make(chan func() error), make(chan error)
	t.Cleanup(func() { close(turn) })
	go func() {
		runtime.LockOSThread()
		for do := range turn {
			done <- do()
		}
	}()
	inside = func(do func() error) {
		t.Helper()
		turn <- do
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	inside(func() error {
		if err := errJoin(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SLAVE, "")); err != nil {
			return err
		}
		table, err := os.ReadFile("/proc/thread-self/mountinfo")
		for _, m := range mounts.Parse(table).All() {
			if strings.HasPrefix(m.Kind, "fuse") { // whose server ends with its last mount: others may wait for that
				unix.Unmount(m.Point, unix.MNT_DETACH)
			}
		}
		return err
	})
	return inside
}

// What the process's own mount namespace hides is watched all the same, also what is
// mounted later: the directory that was handed over is in the namespace that counts.
func TestSandbox(t *testing.T) {
	outside := mountTest(t, "tmpfs")
	dir := filepath.Join(outside, "home")
	mountTmpfs(t, dir+"/m")
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	inside := newSandbox(t)
	inside(func() error { return unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY, "size=1m") })
	g := openTest(t)
	defer g.Close()
	var told []string
	inside(func() error {
		_, err := g.Watch(f, true, Create, func(c Change) { told = append(told, c.String()) })
		return err
	})
	touch(t, dir+"/m/1")
	if err := os.MkdirAll(dir+"/m/x/y", 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, dir+"/m/x/y/2")
	inside(g.Drain)
	wantTold(t, &told, "create m/1", "create m/x/", "create m/x/y/", "create m/x/y/2")
	mountTmpfs(t, dir+"/later/n")
	inside(g.Drain)
	wantTold(t, &told, "overflow", "create later/", "create later/n/")
	touch(t, dir+"/later/n/3")
	inside(g.Drain)
	wantTold(t, &told, "create later/n/3")
}

// A filesystem below a watch tree is unmounted as if nobody watched it, and then its
// device is free, whether somebody drains or not.
func TestUnmount(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	img, m := dir+"/img", dir+"/m"
	// As a system has its mounts: what is mounted is so in sandboxes too.
	if err := errJoin(unix.Mount("", dir, "", unix.MS_SHARED, ""), os.Mkdir(m, 0o755), os.WriteFile(img, nil, 0o600), os.Truncate(img, 16<<20)); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.ext4", "-q", "-F", img)
	device := run("losetup", "--show", "-f", img)
	t.Cleanup(func() { exec.Command("losetup", "-d", device).Run() })
	for _, reader := range []string{"running", "sandboxed", "stopped"} {
		t.Run(reader, func(t *testing.T) {
			stopped, inside := reader == "stopped", func(do func() error) { do() }
			if reader == "sandboxed" {
				inside = newSandbox(t)
			}
			g := openTest(t)
			defer g.Close()
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			seen := make(chan struct{}, 1000)
			if _, err := g.Watch(f, true, allOps, func(c Change) {
				if strings.HasPrefix(string(c.Name), "m/ready") {
					seen <- struct{}{}
				}
			}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			if stopped {
				close(ended)
			} else {
				go inside(func() error {
					defer close(ended)
					for g.Wait(ctx) == nil && g.Drain() == nil {
					}
					return nil
				})
			}
			defer func() {
				cancel()
				<-ended
			}()
			late, busy := 0, 0
			for i := range 100 {
				if err := unix.Mount(device, m, "ext4", 0, ""); err != nil {
					t.Fatalf("round %d: mounting again: %v", i, err)
				}
				if stopped {
					drain(t, g)
				} else {
					for n := 0; len(seen) == 0; n++ { // until it is watched
						touch(t, fmt.Sprintf("%s/ready%d", m, n))
						time.Sleep(time.Millisecond)
					}
					for len(seen) > 0 {
						<-seen
					}
				}
				for j := range 10 {
					d := fmt.Sprintf("%s/%d/%d/x", m, i, j)
					if err := os.MkdirAll(d, 0o755); err != nil {
						t.Fatal(err)
					}
					touch(t, d+"/f")
					os.Rename(d+"/f", d+"/g")
				}
				for err := unix.Unmount(m, 0); err != nil; err = unix.Unmount(m, 0) {
					if busy++; stopped || busy > 3 { // a system call of who looks may be interrupted in the middle
						t.Fatalf("round %d: unmounting: %v", i, err)
					}
					time.Sleep(10 * time.Millisecond) // for it to go on
				}
				// Who looks has a moment to let go of the superblock, one who does not look has none.
				fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
				for end := time.Now().Add(time.Second); err != nil && !stopped && time.Now().Before(end); late++ {
					time.Sleep(100 * time.Microsecond)
					fd, err = unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
				}
				if err != nil {
					t.Fatalf("round %d: the device after umount: %v", i, err)
				}
				unix.Close(fd)
			}
			cancel()
			<-ended
			t.Logf("busy %d times, the device was free after %d looks", busy, late)
		})
	}
}

// A watch in a btrfs subvolume that is deleted ends.
func TestSubvolumeDeleted(t *testing.T) {
	dir := mountTest(t, "btrfs")
	for _, c := range []struct {
		name string
		tree bool
	}{{"s", true}, {"s/d/e", true}, {"s", false}, {"s/d/e", false}} {
		t.Run(fmt.Sprint(c.name, c.tree), func(t *testing.T) {
			if out, err := exec.Command("btrfs", "-q", "subvolume", "create", dir+"/s").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := errJoin(os.MkdirAll(dir+"/s/d/e", 0o755), os.MkdirAll(dir+"/other/d", 0o755)); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			_, told := watchTest(t, g, filepath.Join(dir, c.name), c.tree, Create)
			_, other := watchTest(t, g, dir+"/other/d", false, Create)
			if out, err := exec.Command("btrfs", "-q", "subvolume", "delete", dir+"/s").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			drain(t, g)
			wantTold(t, told, "gone")
			wantTold(t, other)
		})
	}
}

// Outdated positions can be a loop, from which nobody comes to the watched directory: who sees the mounts in it cannot be
// found out either.
func TestLoop(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	if err := errJoin(os.MkdirAll(dir+"/a/b/m", 0o755), os.Mkdir(dir+"/o", 0o755), unix.Mount(dir+"/o", dir+"/a/b/m", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/a/b/m", unix.MNT_DETACH) })
	g := openTest(t)
	defer g.Close()
	w, told := watchTest(t, g, dir, true, Create)
	_, other := watchTest(t, g, dir, true, Delete)
	touch(t, dir+"/a/b/1")
	drain(t, g)
	wantTold(t, told, "create a/b/1")
	for _, n := range w.fs.nodes {
		if n.name == "a" {
			for _, b := range w.fs.nodes {
				if b.parent == n {
					w.fs.move(n, b, "a")
				}
			}
		}
	}
	touch(t, dir+"/a/b/2")
	drain(t, g)
	wantTold(t, told, "overflow")
	wantTold(t, other, "overflow")
	touch(t, dir+"/a/b/3")
	drain(t, g)
	wantTold(t, told, "create a/b/3")
}

// A directory is renamed after the mounts have been read and before one below it is looked for.
func TestRenamedMeanwhile(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	if err := os.MkdirAll(dir+"/a/b/m", 0o755); err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	mountTmpfs(t, dir+"/a/b/m")
	g.mounts.poll()
	for _, n := range g.mounts.namespaces {
		if _, err := n.Table(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(dir+"/a", dir+"/c"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/c/b/m", unix.MNT_DETACH) })
	drain(t, g)
	*told = nil
	touch(t, dir+"/c/b/m/f")
	drain(t, g)
	wantTold(t, told, "create c/b/m/f")
}
