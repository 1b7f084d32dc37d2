// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWithin(t *testing.T) {
	for _, test := range []struct {
		path, dir string
		want      bool
	}{
		{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/a", "/a/b", false}, {"/a", "/", true}, {"/", "/", true}, {"/a/b", "/a/", true},
	} {
		if within(test.path, test.dir) != test.want {
			t.Errorf("%s in %s: %v", test.path, test.dir, !test.want)
		}
	}
}

// A trace begins at once, leaves when its reader does, and ends with the daemon.
func TestTrace(t *testing.T) {
	stderr, ended := startDaemon(t)
	stderr.next(t)
	begins := func(ctx context.Context) (end chan error, err error) {
		in, out := io.Pipe()
		end = make(chan error, 1)
		go func() {
			err := follow(ctx, runtimeDir(), "/trace?share=docs", out)
			out.CloseWithError(err)
			end <- err
		}()
		line := make([]byte, 200)
		n, err := in.Read(line)
		if err == nil && !strings.HasSuffix(string(line[:n]), " following 0 watches, and those to come\n") {
			err = errors.New(string(line[:n]))
		}
		return end, err
	}
	var ends []chan error
	var stops []context.CancelFunc
	for range 4 {
		ctx, stop := context.WithCancel(t.Context())
		end, err := begins(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ends, stops = append(ends, end), append(stops, stop)
	}
	if _, err := begins(t.Context()); err == nil || err.Error() != "as many traces are followed as can be" {
		t.Errorf("one too many: %v", err)
	}
	stops[0]()
	<-ends[0]
	var err error
	var last chan error
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if last, err = begins(t.Context()); err == nil {
			break
		}
	}
	if err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	if err := unix.Kill(unix.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := <-last; err == nil || err.Error() != "the daemon has ended" {
		t.Errorf("it ends with %v", err)
	}
	for _, stop := range stops {
		stop()
	}
}
