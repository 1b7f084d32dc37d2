// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
)

// serveGroup has the test program serve a group, see TestMain.
const serveGroup = "KSMBD_NOTIFYD_TEST_SERVE_GROUP"

func TestMain(m *testing.M) {
	if os.Getenv(serveGroup) != "" {
		if err := ServeGroup(os.NewFile(3, "calls"), os.NewFile(4, "wakes"), OpenFanotify(slog.New(slog.DiscardHandler))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// cannotRun skips a test that lacks something, and says what. CI has all of it: there it fails.
func cannotRun(t *testing.T, lacks string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(lacks)
	}
	t.Skip(lacks)
}

// groupCommand runs this program as the process of a filesystem, see TestMain.
func groupCommand() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveGroup+"=1")
	cmd.Stderr = os.Stderr
	return cmd
}

// openProcess opens a group of another process, which it returns too.
func openProcess(t *testing.T) (Group, *exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		cannotRun(t, "only root can have a fanotify group that watches trees")
	}
	cmd := groupCommand()
	g, err := OpenProcess(func() *exec.Cmd { return cmd })(Superblock{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g, cmd
}

func openDir(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), dir)
}

// Another process's group tells what one of this process does.
func TestProcess(t *testing.T) {
	before := countFDs(t)
	g, _ := openProcess(t)
	dir := t.TempDir()
	var got []string
	tell := func(c fanotify.Change) {
		if c.Op == fanotify.Create || c.Op == fanotify.Rename || c.Op == fanotify.Gone {
			got = append(got, fmt.Sprintf("%v %s>%s %v", c.Op, c.OldName, c.Name, c.OldName == nil))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mark, err := g.Watch(openDir(t, dir), false, fanotify.Create|fanotify.Rename, tell)
	if err != nil {
		t.Fatal(err)
	}
	if s := mark.Strategy(); s != "directory mark" {
		t.Errorf("strategy %q", s)
	}
	var want []string
	for i := range 3 * partOfDrain {
		name := fmt.Sprint(i)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%v >%s true", fanotify.Create, name))
	}
	if err := os.Rename(filepath.Join(dir, "0"), filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	want = append(want, fmt.Sprintf("%v 0>a false", fanotify.Rename))
	for len(got) < len(want) && ctx.Err() == nil {
		deadline, _ := ctx.Deadline()
		_, err := g.WaitUntil(deadline)
		if err := errors.Join(err, g.Drain()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d changes, want %d: %.300q", len(got), len(want), got)
	}
	if err := mark.Close(); err != nil {
		t.Error(err)
	}

	// Errors keep their numbers.
	gone := openDir(t, filepath.Join(dir, "..", filepath.Base(dir)))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Watch(gone, false, fanotify.Create, tell); !errors.Is(err, unix.ENOENT) {
		t.Errorf("watching what was removed: %v", err)
	}

	for ready := true; ready; { // what has happened last may be there to be read yet
		if ready, err = g.WaitUntil(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	for _, wait := range []func() error{
		func() error { return g.SleepUntil(time.Time{}) },
		func() error { _, err := g.WaitUntil(time.Time{}); return err },
	} {
		g.Wake()
		if err := wait(); err != nil {
			t.Error(err)
		}
		woken := make(chan error)
		go func() { woken <- wait() }()
		g.Wake()
		if err := <-woken; err != nil {
			t.Error(err)
		}
	}
	g.Close()
	for countFDs(t) > before { // the process's own is closed when that has ended, and so may be those of tests before
		if ctx.Err() != nil {
			t.Fatalf("%d file descriptors before, %d after", before, countFDs(t))
		}
		time.Sleep(time.Millisecond)
	}
}

// A process that is held up holds up nobody who ends; one that has died is an error.
func TestProcessDies(t *testing.T) {
	g, cmd := openProcess(t)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stat := []byte(nil); !bytes.Contains(stat, []byte(") T ")); { // it may yet answer before that
		var err error
		if stat, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	drained := make(chan error)
	go func() { drained <- g.Drain() }()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-drained; !errors.Is(err, errLost) {
		t.Errorf("Drain: %v", err)
	}
	var err error
	for err == nil { // it may have said before that there is something
		_, err = g.WaitUntil(time.Time{})
	}
	if !errors.Is(err, errLost) {
		t.Errorf("WaitUntil: %v", err)
	}
}
