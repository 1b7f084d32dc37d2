// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

const traceUsage = `Usage: ksmbd-notifyd trace [OPTION]... [SHARE|DIR]

Follow what the daemon does for the clients that watch something in SHARE, or
in or above DIR, until interrupted: their watches and requests, each change
and what is told of it. All of them if neither is given.

  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

// runTrace is the command "trace".
func runTrace(args []string, stdout, stderr io.Writer) int {
	flags := pflag.NewFlagSet("trace", pflag.ContinueOnError)
	help := flags.BoolP("help", "h", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && *help:
		return say(stdout, stderr, traceUsage)
	case err == nil && flags.NArg() > 1:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(1))
	case err == nil && flags.NArg() == 1 && flags.Arg(0) == "":
		err = errors.New("the share or directory has no name")
	}
	what := url.Values{}
	if arg := flags.Arg(0); err == nil && (strings.Contains(arg, "/") || arg == "." || arg == "..") {
		var dir string
		if dir, err = filepath.Abs(arg); err != nil {
			err = fmt.Errorf("%s: this runs in a directory that is gone: give the whole path", printable(arg))
		}
		what.Set("directory", dir)
	} else if arg != "" {
		what.Set("share", arg)
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd trace")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	err = follow(ctx, runtimeDir(), "/trace?"+what.Encode(), stdout)
	if ctx.Err() != nil {
		err = nil // it was told to end
	}
	return finish(stderr, err)
}

// follow copies what the daemon says to out, as it comes.
func follow(ctx context.Context, dir, path string, out io.Writer) error {
	answer, err := open(ctx, dir, path, "")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(out, answer.Body)
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("the daemon has ended")
	}
	return fmt.Errorf("following the daemon: %w", withoutCall(err))
}

// tracing gives what the daemon does for some watches, until the client goes.
func tracing(d *ipc.Daemon) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		share, dir := r.FormValue("share"), r.FormValue("directory")
		ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
		defer cancel()
		t, stop, err := d.Trace(ctx, dir, func(s ipc.WatchStatus) bool {
			return (share == "" || ipc.FoldShare(share) == ipc.FoldShare(s.Share)) &&
				(dir == "" || within(s.Directory, dir) || s.Tree && within(dir, s.Directory) || s.Directory == dir)
		})
		if err != nil {
			http.Error(w, unserved(err).Error(), http.StatusServiceUnavailable)
			return
		}
		defer stop()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		control, b := http.NewResponseController(w), bufio.NewWriter(w)
		fmt.Fprintf(b, "%s following %d watches, and those to come\n", time.Now().Format(ipc.TraceTime), t.Watches)
		for errors.Join(b.Flush(), control.Flush()) == nil {
			select {
			case <-r.Context().Done():
				return
			case line := <-t.Lines:
				fmt.Fprintln(b, line)
			}
			for range len(t.Lines) {
				fmt.Fprintln(b, <-t.Lines)
			}
			if n := t.Dropped.Swap(0); n > 0 {
				fmt.Fprintln(b, time.Now().Format(ipc.TraceTime), n, "lines were dropped, they come faster than they are read")
			}
		}
	}
}

// within says whether a path is below dir, or is it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
