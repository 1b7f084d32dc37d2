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
	"ksmbd-notifyd/test/limit"
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

// What depends on a program, a server or a network, or is not known, has a process of its own; what routers have in
// their flash needs none.
func TestMayHang(t *testing.T) {
	for kind, want := range map[string]bool{
		"": false, "ext4": false, "overlay": false, "jffs2": false, "ubifs": false, "f2fs": false,
		"fuse": true, "fuseblk": true, "fuse.sshfs": true, "nfs4": true, "cifs": true, "autofs": true, "new": true,
	} {
		if MayHang(kind) != want {
			t.Errorf("%q: %v", kind, !want)
		}
	}
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
		time.Sleep(10 * time.Millisecond) // most likely it sleeps by then
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

// served is a group that is another's but for this test, which has a goroutine in the place of the process.
func serveFake(t *testing.T, open func(w *world) Opener) (w *world, g Group, err error, ended <-chan error) {
	t.Helper()
	w = newWorld(t)
	ours, theirs, err := socketPairs()
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- ServeGroup(theirs[0], theirs[1], open(w)) }()
	if g, err = connect(ours); err == nil {
		t.Cleanup(func() { g.Close() })
	}
	return w, g, err, end
}

func fakeOpener(w *world) Opener { return w.opens }

// What is asked of a process is done there, and what it is told is told here: all of it, and also
// what is told while it does something else.
func TestServeGroup(t *testing.T) {
	w, g, err, ended := serveFake(t, fakeOpener)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	tell := func(c fanotify.Change) {
		got = append(got, fmt.Sprintf("%v %s>%s %v %v", c.Op, c.OldName, c.Name, c.OldName == nil, c.Name == nil))
	}
	first, err := g.Watch(openDir(t, "/"), true, create, tell)
	if err != nil || first.Strategy() != "tree true" {
		t.Fatalf("%v, %v", first, err)
	}
	w.meanwhile = func(fn func(fanotify.Change)) {
		fn(fanotify.Change{Op: overflow})
		w.watch[0].fn(fanotify.Change{Op: rename, OldName: []byte{}})
		w.watch[0].fn(fanotify.Change{Op: rename, Name: []byte{}})
	}
	second, err := g.WatchMount(openDir(t, "/"), 7, create, tell)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		fmt.Sprintf("%v > true true", overflow), fmt.Sprintf("%v > false true", rename), fmt.Sprintf("%v > true false", rename),
	}
	if !slices.Equal(got, want) {
		t.Errorf("while it was watched, told %q, want %q", got, want)
	}
	got, want = nil, nil
	for i := range 2*partOfDrain + 1 {
		w.happens(0, create, fmt.Sprint(i))
		want = append(want, fmt.Sprintf("%v >%d true false", create, i))
	}
	w.wake <- struct{}{}
	if ready, err := g.WaitUntil(time.Time{}); !ready || err != nil {
		t.Errorf("ready %v, %v", ready, err)
	}
	w.lost = 3
	if err := g.Drain(); err != nil || g.Overflows() != 3 {
		t.Errorf("%v, %d overflows", err, g.Overflows())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d changes, want %d: %.300q", len(got), len(want), got)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Close(); !errors.Is(err, unix.EIO) { // an error without a number
		t.Errorf("closed twice: %v", err)
	}
	w.refuse = fmt.Errorf("marking: %w", unix.ENOSPC)
	if _, err := g.Watch(openDir(t, "/"), true, create, tell); !errors.Is(err, unix.ENOSPC) || err.Error() != w.refuse.Error() {
		t.Errorf("refused: %v", err)
	}
	if err := g.SleepUntil(time.Now()); err != nil {
		t.Error(err)
	}
	g.Leave(nil, nil)
	if _, ok := first.Handover(); ok || !g.Settled() {
		t.Error("what may hang is handed over")
	}
	_, err = g.Detach()
	for _, err := range []error{err, g.Inherit(nil), g.Confirm()} {
		if !errors.Is(err, errHere) {
			t.Errorf("it is handed over: %v", err)
		}
	}
	g.Close()
	if err := <-ended; err != nil {
		t.Errorf("the process ends with %v", err)
	}
}

// Each watch of a process is told what concerns it, as long as it is open, and of those that could not be opened
// nothing is left.
func TestServeGroupWatches(t *testing.T) {
	before := countFDs(t)
	w, g, err, ended := serveFake(t, fakeOpener)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var marks []Mark
	for i := range 3 {
		mark, err := g.Watch(openDir(t, "/"), true, create, func(c fanotify.Change) {
			got = append(got, fmt.Sprintf("%d: %s %s %s", i, c.OldName, c.Name, c.File))
		})
		if err != nil {
			t.Fatal(err)
		}
		if marks = append(marks, mark); i == 1 {
			w.refuse = errOther
			if _, err := g.Watch(openDir(t, "/"), true, create, nil); err == nil {
				t.Error("it is not refused")
			}
			w.refuse = nil
		}
	}
	if err := marks[1].Close(); err != nil {
		t.Error(err)
	}
	w.queue = append(w.queue, func() {
		file := []byte("file")
		for _, f := range w.watch {
			f.fn(fanotify.Change{Op: create, Name: []byte("a"), File: file})
		}
		copy(file, "gone") // as it may be used for others
	})
	w.happens(0, rename, "b", "c")
	if err := g.Drain(); err != nil {
		t.Error(err)
	}
	if want := []string{"0:  a file", "2:  a file", "0: b c "}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if n := len(g.(*process).watches); n != 2 {
		t.Errorf("%d watches are known", n)
	}
	g.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

// A directory that the process cannot take is an error there, which says why, and the next one is its own.
func TestServeGroupDirectory(t *testing.T) {
	_, g, err, _ := serveFake(t, fakeOpener)
	if err != nil {
		t.Fatal(err)
	}
	p := g.(*process)
	watch := func() error {
		_, err := g.Watch(openDir(t, "/"), false, create, nil)
		return err
	}
	dir := openDir(t, "/")
	undo := limit.Files(t, -1)
	_, err = g.Watch(dir, false, create, nil)
	undo()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("with too few files: %v", err)
	}
	for _, beside := range [][]byte{nil, unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})} {
		if _, _, err := p.wakes.WriteMsgUnix([]byte{0}, beside, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := p.do(call{What: callWatch, Watch: 99}); !errors.Is(err, unix.EPROTO) {
			t.Errorf("with %d bytes beside it: %v", len(beside), err)
		}
	}
	if err := watch(); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// What goes wrong in the process, or with it, is heard.
func TestServeGroupFails(t *testing.T) {
	if _, _, err, ended := serveFake(t, func(*world) Opener {
		return func(Superblock) (Group, error) { return nil, fmt.Errorf("opening: %w", unix.EMFILE) }
	}); !errors.Is(err, unix.EMFILE) || <-ended != nil {
		t.Errorf("it cannot be opened: %v", err)
	}
	_, g, err, _ := serveFake(t, func(w *world) Opener {
		return func(Superblock) (Group, error) { return deafGroup{w.fake()}, nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.WaitUntil(time.Time{}); !errors.Is(err, errLost) {
		t.Errorf("it cannot wait: %v", err)
	}
	_, g, err, _ = serveFake(t, func(w *world) Opener {
		return func(Superblock) (Group, error) { return brokenGroup{w.fake()}, nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Drain(); err == nil || err.Error() != errOther.Error() {
		t.Errorf("it cannot drain: %v", err)
	}
	_, g, err, ended := serveFake(t, fakeOpener)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.(*process).calls.WriteString("\x03nonsense"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("it takes nonsense for a call")
	}
	for what, do := range map[string]func() error{
		"watching": func() error { _, err := g.Watch(openDir(t, "/"), false, create, nil); return err },
		"draining": g.Drain,
	} {
		if err := do(); !errors.Is(err, errLost) {
			t.Errorf("%s when it has ended: %v", what, err)
		}
	}
}

// However few files can be opened, a process is started as a whole, or not at all and that is said.
func TestProcessWithFewFiles(t *testing.T) {
	g, _ := openProcess(t) // what the runtime opens once is open
	g.Close()
	for n := 0; ; n++ {
		before := countFDs(t)
		undo := limit.Files(t, n)
		g, err := OpenProcess(groupCommand)(Superblock{})
		undo()
		if err == nil {
			g.Close()
			break
		}
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, errLost) || n > 20 {
			t.Fatalf("with %d files: %v", n, err)
		}
		if after := countFDs(t); after > before {
			t.Errorf("with %d files: %d file descriptors before, %d after", n, before, after)
		}
	}
	undo := limit.Files(t, -1)
	_, err := OpenFanotify(slog.New(slog.DiscardHandler))(Superblock{})
	undo()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("fanotify with no file: %v", err)
	}
}
