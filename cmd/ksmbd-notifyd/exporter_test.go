// SPDX-License-Identifier: GPL-2.0-or-later

//go:build !small

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// freePort returns one of this machine that nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	// In a network namespace of its own lo is down at first. Elsewhere this fails or changes nothing.
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if lo, err := unix.NewIfreq("lo"); err == nil {
			lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
		}
		unix.Close(fd)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// scrape fails unless there are metrics at a port.
func scrape(port string) error {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && !strings.Contains(string(text), "\nksmbd_notifyd_serving 0\n") {
		err = fmt.Errorf("no metrics: %s", text)
	}
	return err
}

// Metrics can be had over the network, and nothing else.
func TestExporter(t *testing.T) {
	port := freePort(t)
	settings := writeSettings(t, "[global]\nmetrics = "+port+"\n")
	stderr, daemon := startDaemon(t)
	stderr.next(t)
	ended := make(chan int)
	var said, second strings.Builder
	go func() { ended <- run([]string{"metrics", "--settings", settings}, io.Discard, &said) }()
	var err error
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if err = scrape(port); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/status", "/trace", "/"} {
		answer, err := http.Get("http://127.0.0.1:" + port + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
	status := run([]string{"metrics", "--settings", settings}, io.Discard, &second)
	if status != 1 || !strings.HasPrefix(second.String(), "ksmbd-notifyd: offering metrics: ") {
		t.Errorf("a second one: %d, %q", status, &second)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil { // all of them are this process
		t.Fatal(err)
	}
	<-daemon
	if status := <-ended; status != 0 || said.Len() > 0 {
		t.Errorf("status %d, %q", status, &said)
	}
}

// Without a daemon there is one line that says so.
func TestExporterWithoutDaemon(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", t.TempDir())
	port := freePort(t)
	done := make(chan error)
	go func() { done <- export(t.Context(), "127.0.0.1:"+port, runtimeDir()) }()
	var err error
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if err = scrape(port); err != nil && strings.Contains(err.Error(), "the daemon does not run") {
			return
		}
	}
	t.Error(err)
}

func TestQuitMetrics(t *testing.T) {
	port := freePort(t)
	stderr, ended := startDaemon(t)
	stderr.next(t)
	quits(t, func(*lineOutput) {
		for start := time.Now(); scrape(port) != nil && time.Since(start) < 10*time.Second; {
			time.Sleep(10 * time.Millisecond)
		}
	}, "metrics", "--settings", writeSettings(t, "[global]\nmetrics = "+port+"\n"))
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	<-ended
}
