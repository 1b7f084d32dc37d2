// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/ipc"
)

// noFamily is what the daemon says when there is no ksmbd that can notify, as
// on the machine of a test.
const noFamily = "the kernel has no generic netlink family ksmbd-notify: load the ksmbd module that has this project's notify patch"

// listenSystemd makes what tells systemd tell the test.
func listenSystemd(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	socket.SetReadDeadline(time.Now().Add(30 * time.Second))
	return socket
}

// hearSystemd returns what hears what systemd is told.
func hearSystemd(t *testing.T) (hear func(want string)) {
	t.Helper()
	socket := listenSystemd(t)
	return func(want string) {
		t.Helper()
		b := make([]byte, 1000)
		n, err := socket.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("systemd hears %q, %v, want %q", b[:n], err, want)
		}
	}
}

// startDaemon starts the daemon with a directory of its own.
func startDaemon(t *testing.T, args ...string) (stderr *lineOutput, ended chan int) {
	t.Helper()
	needRoot(t)
	t.Setenv("RUNTIME_DIRECTORY", filepath.Join(t.TempDir(), "run"))
	stderr = newOutput()
	ended = make(chan int, 1)
	go func() {
		ended <- run(args, new(strings.Builder), stderr)
		stderr.Close()
	}()
	return stderr, ended
}

// The daemon waits for ksmbd, is ready meanwhile, has systemd know that it is
// alive, and ends when told to.
func TestDaemonWaitsAndEnds(t *testing.T) {
	hear := hearSystemd(t)
	t.Setenv("WATCHDOG_USEC", "100000")
	stderr, ended := startDaemon(t, "-n", "-v")
	if line := stderr.next(t); !strings.Contains(line, "warn: waiting for ksmbd reason=") {
		t.Errorf("line %q", line)
	}
	hear("READY=1\nSTATUS=Waiting for ksmbd: " + noFamily)
	hear("WATCHDOG=1\nSTATUS=Waiting for ksmbd: " + noFamily)
	hear("WATCHDOG=1")
	t.Setenv("NOTIFY_SOCKET", "") // or its last words are any
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
}

// What systemd keeps has all that was left.
func TestStore(t *testing.T) {
	socket := listenSystemd(t)
	s := &systemd{log: slog.New(slog.NewTextHandler(t.Output(), nil)), limit: "16384"}
	left := []ipc.Part{
		{Superblock: ipc.Superblock{Type: "ext4", Device: "8:1"},
			Watches: map[uint64]ipc.Left{1: {Whole: true, Records: []genl.Record{{Action: genl.ActionAdded, Name: "d/\xff", Directory: "\x00\xfe"}}}, 2: {Mounts: []string{"m"}}}},
		{Superblock: ipc.Superblock{Type: "xfs", Device: "8:2"}, Watches: map[uint64]ipc.Left{3: {}}},
	}
	for i := range left {
		queue, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		left[i].Queue = queue
	}
	s.store(&ipc.Handover{Family: 30, Registrations: 3, Parts: left})
	kept := make(map[string]*os.File)
	for _, name := range []string{storedQueue + "0", storedQueue + "1", storedWatches} {
		said, rights := make([]byte, 1000), make([]byte, unix.CmsgSpace(4))
		n, nrights, _, _, err := socket.ReadMsgUnix(said, rights)
		if err != nil {
			t.Fatal(err)
		}
		if want := "FDSTORE=1\nFDNAME=" + name; string(said[:n]) != want {
			t.Errorf("systemd hears %q, want %q", said[:n], want)
		}
		messages, err := unix.ParseSocketControlMessage(rights[:nrights])
		if err != nil || len(messages) != 1 {
			t.Fatalf("%d messages, %v", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%d files, %v", len(fds), err)
		}
		kept[name] = os.NewFile(uintptr(fds[0]), name)
		defer kept[name].Close()
	}
	if _, err := decode(kept, "131072"); err == nil {
		t.Error("it can be had though the queue is shorter than one would be now")
	}
	h, err := decode(kept, s.limit)
	if err != nil || h.Family != 30 || h.Registrations != 3 || len(h.Parts) != 2 {
		t.Fatalf("read %+v, %v", h, err)
	}
	for i, part := range h.Parts {
		if part.Queue != kept[storedQueue+strconv.Itoa(i)] || part.Superblock != left[i].Superblock || !reflect.DeepEqual(part.Watches, left[i].Watches) {
			t.Errorf("part %d: %+v", i, part)
		}
	}
	delete(kept, storedQueue+"1")
	if _, err := decode(kept, s.limit); err == nil {
		t.Error("a queue is missing, and that is no error")
	}
	// The version before had one queue, and other words for what is in it.
	if _, err := decode(map[string]*os.File{"fanotify": kept[storedQueue+"0"], "watches": kept[storedWatches]}, s.limit); err == nil {
		t.Error("what another version left is taken")
	}
}

// writeSettings makes a file of them.
func writeSettings(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ksmbd-notifyd.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each SIGHUP has the settings read anew, and those that are not in order change
// nothing. One that was started with -v has it whatever comes.
func TestDaemonReload(t *testing.T) {
	file := writeSettings(t, "")
	stderr, ended := startDaemon(t, "-v", "--settings="+file)
	stderr.next(t)
	for _, test := range []struct{ text, line string }{
		{"[global]\nverbose = 2\n[Docs]\nchange notify = no\n",
			"info: settings were read file=" + file + " verbose=2 restrictions=\"change notify is off in docs\""},
		{"[global]\nverbose = 3\n", "error: the settings stay as they are reason=\"" + file + ", [global] verbose = 3: it is a number from 0 to 2\""},
		{"[Docs]\npath = /docs\n", "error: the settings stay as they are reason=\"" + file + ", [Docs] path = /docs: there is no such setting\""},
		{"", "info: settings were read file=" + file + " verbose=1 restrictions=\"\""},
	} {
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if line := stderr.next(t); !strings.HasSuffix(line, test.line) {
			t.Errorf("line %q, want %q", line, test.line)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
}

// Settings that are not in order end a daemon at its start, and -t says so before.
func TestDaemonRefusesSettings(t *testing.T) {
	needRoot(t)
	good, bad := writeSettings(t, "[global]\n"), writeSettings(t, "[global]\nchange notify = perhaps\n")
	why := "ksmbd-notifyd: " + bad + ", [global] change notify = perhaps: it is yes or no\n"
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-t", "--settings", good}, 0, ""},
		{[]string{"-t", "--settings", bad}, 1, why},
		{[]string{"--settings", bad}, 1, why},
		{[]string{"--test", "--settings", "/nowhere"}, 1, "ksmbd-notifyd: reading /nowhere: no such file or directory\n"},
	} {
		var stdout, stderr strings.Builder
		if status := run(test.args, &stdout, &stderr); status != test.status || stderr.String() != test.says || stdout.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q", test.args, status, &stdout, &stderr)
		}
	}
}

// A loop that is stuck does not feed the watchdog, though all else goes on.
func TestWatchdogOfStuckLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hear := hearSystemd(t)
		t.Setenv("WATCHDOG_USEC", "100000")
		log := slog.New(slog.DiscardHandler)
		d := ipc.NewDaemon(log, nil) // whose Run is not called: nobody answers
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		(&systemd{log: log}).run(ctx, d)
		hear("STOPPING=1")
	})
}

// The line says what to do, also to the second daemon that only waits.
func TestSecondDaemonEnds(t *testing.T) {
	stderr, ended := startDaemon(t)
	stderr.next(t)
	var second strings.Builder
	if status := run(nil, new(strings.Builder), &second); status != 1 || second.String() != "ksmbd-notifyd: "+errRunning.Error()+"\n" {
		t.Errorf("status %d, %q", status, &second)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ended
}

// With no room for its socket the daemon says so in a line, and serves. Once there is room
// it has one.
func TestDaemonOnFullDisk(t *testing.T) {
	needRoot(t)
	full := t.TempDir()
	if err := unix.Mount("none", full, "tmpfs", 0, "nr_inodes=2"); err != nil { // its root and a directory
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(full, unix.MNT_DETACH) })
	dir := filepath.Join(full, "run")
	if s, err := listen(dir); err == nil {
		s.Close()
		t.Fatal("there is room")
	}
	t.Setenv("RUNTIME_DIRECTORY", dir)
	stderr, ended := newOutput(), make(chan int, 1)
	go func() { ended <- run([]string{"-n"}, new(strings.Builder), stderr) }()
	if line := stderr.next(t); !strings.Contains(line, "error: there is no status, it is tried again every=10s err=") || !strings.Contains(line, "no space left on device") {
		t.Errorf("line %q", line)
	}
	if line := stderr.next(t); !strings.Contains(line, "warn: waiting for ksmbd reason=") {
		t.Errorf("line %q", line)
	}
	if err := unix.Mount("none", full, "tmpfs", unix.MS_REMOUNT, "nr_inodes=10"); err != nil {
		t.Fatal(err)
	}
	if line := stderr.next(t); !strings.Contains(line, "info: there is status now") {
		t.Errorf("line %q", line)
	}
	if _, err := os.Stat(filepath.Join(dir, socketName)); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
}
