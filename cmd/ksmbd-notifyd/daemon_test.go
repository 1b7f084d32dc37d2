// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ksmbd-notifyd/ipc"
)

// noFamily is what the daemon says when there is no ksmbd that can notify, as
// on the machine of a test.
const noFamily = "the kernel has no generic netlink family ksmbd-notify: load the ksmbd module that has this project's notify patch"

// hearSystemd makes what tells systemd tell the test, and returns what hears it.
func hearSystemd(t *testing.T) (hear func(want string)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func(want string) {
		t.Helper()
		socket.SetReadDeadline(time.Now().Add(30 * time.Second))
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

// One that was started with -v has it whatever comes.
func TestTurn(t *testing.T) {
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug)
	stderr := newOutput()
	hangup := make(chan os.Signal)
	go turn(t.Context(), hangup, newLogger(stderr, level), level, 1)
	for _, want := range []slog.Level{ipc.LevelTrace, slog.LevelDebug, ipc.LevelTrace} {
		hangup <- syscall.SIGHUP
		stderr.next(t)
		if level.Level() != want {
			t.Errorf("level %v, want %v", level.Level(), want)
		}
	}
}

// Each SIGHUP is one -v more, and after two of them none again.
func TestDaemonReload(t *testing.T) {
	stderr, ended := startDaemon(t)
	stderr.next(t)
	for _, want := range []string{"1", "2", "0", "1"} {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if line := stderr.next(t); !strings.HasSuffix(line, "info: verbosity was changed verbose="+want) {
			t.Errorf("line %q, want verbose=%s", line, want)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
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
