// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ksmbd-notifyd/ipc"
)

// The command and the daemon, with no ksmbd: what the daemon waits for.
func TestStatusOfWaitingDaemon(t *testing.T) {
	stderr, ended := startDaemon(t)
	stderr.next(t)
	var human, object, bad strings.Builder
	if status := run([]string{"status"}, &human, &bad); status != 0 || bad.Len() > 0 {
		t.Errorf("status %d, stderr %q", status, &bad)
	}
	if want := ": " + noFamily + "\n"; !strings.HasPrefix(human.String(), "state      waiting since ") || !strings.Contains(human.String(), want) {
		t.Errorf("got %s", &human)
	}
	if status := run([]string{"status", "--json"}, &object, &bad); status != 0 || bad.Len() > 0 {
		t.Errorf("status %d, stderr %q", status, &bad)
	}
	var r report
	if err := json.Unmarshal([]byte(object.String()), &r); err != nil || r.Serving || r.Waiting != noFamily || r.Version != version {
		t.Errorf("%+v, %v of %s", r, err, &object)
	}

	dir := os.Getenv("RUNTIME_DIRECTORY")
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory of the socket: %v, %v", st.Mode(), err)
	}
	nobody := program(65534, "status")
	out, err := nobody.CombinedOutput()
	if nobody.ProcessState.ExitCode() != 1 || string(out) != "ksmbd-notifyd: the daemon's status is for root only\n" {
		t.Errorf("as nobody: %v, %q", err, out)
	}

	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ended
	if _, err := os.Stat(filepath.Join(dir, socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// No daemon, or one that was killed: one line.
func TestStatusWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("RUNTIME_DIRECTORY", dir)
	for range 2 {
		var stdout, stderr strings.Builder
		status := run([]string{"status"}, &stdout, &stderr)
		if want := "ksmbd-notifyd: the daemon does not run: systemctl enable --now ksmbd-notifyd\n"; status != 1 || stdout.Len() > 0 || stderr.String() != want {
			t.Errorf("status %d, stdout %q, stderr %q", status, &stdout, &stderr)
		}
		// What a killed daemon leaves.
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err == nil {
			err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, socketName)})
			syscall.Close(fd)
		}
		if err != nil && err != syscall.EADDRINUSE {
			t.Fatal(err)
		}
	}
	// It is in nobody's way.
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// Whatever another release's daemon answers, and whoever else has its socket, there is one line.
func TestStatusOfOther(t *testing.T) {
	const other = "ksmbd-notifyd: the daemon that runs is of another release, and does not understand this: systemctl restart ksmbd-notifyd\n"
	newer := `{"version": "9", "serving": true, "policy": {"new": 1}, "filesystems": null, "watches": [{"directory": "/a", "more": [1]}], "x": {"y": 1}}`
	for _, test := range []struct {
		args         []string
		code         int
		answer, want string // on standard error; "" for success
	}{
		{[]string{"status"}, 200, newer, ""},
		{[]string{"status"}, 200, `{"version": "9", "watches": "many"}`, other},
		{[]string{"status"}, 200, "", other},
		{[]string{"status"}, 200, "[]", other},
		{[]string{"status"}, 404, "404 page not found\n", other},
		{[]string{"status", "-j"}, 404, "404 page not found\n", other},
		{[]string{"trace", "docs"}, 404, "404 page not found\n", other},
		{[]string{"status"}, 503, "a\x1b\nb", `ksmbd-notifyd: a\x1b\nb` + "\n"},
	} {
		dir := t.TempDir()
		t.Setenv("RUNTIME_DIRECTORY", dir)
		l, err := net.Listen("unix", filepath.Join(dir, socketName))
		if err != nil {
			t.Fatal(err)
		}
		server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.code)
			io.WriteString(w, test.answer)
		})}
		go server.Serve(l)
		var stdout, stderr strings.Builder
		status := run(test.args, &stdout, &stderr)
		server.Close()
		if stderr.String() != test.want || status != min(1, len(test.want)) || (stdout.Len() == 0) != (test.want != "") {
			t.Errorf("%q, answered %d %q: status %d, %q", test.args, test.code, test.answer, status, &stderr)
		}
	}
}

// What RUNTIME_DIRECTORY names may be there for something else: it stays as it is.
func TestListenWhereOthersAre(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	shell(t, dir, "mkdir -m 755 open; mkdir -m 700 theirs mine; chown 65534 theirs; ln -s mine link; touch file")
	for name, want := range map[string]string{
		"open": "or others than its owner may enter it: ", "theirs": "is somebody else's, or", "link": "not a directory", "file": "not a directory", "mine": "", "new": "",
	} {
		path := filepath.Join(dir, name)
		before, _ := os.Stat(path)
		s, err := listen(path)
		if err == nil {
			s.Close()
		}
		if err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
		if after, err := os.Stat(path); err != nil || before != nil && after.Mode() != before.Mode() || name == "new" && after.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, %v", name, after.Mode(), err)
		}
	}
}

// A daemon that does not answer, or ends instead.
func TestNoStatus(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, os.ErrDeadlineExceeded, fmt.Errorf("reading: %w", context.DeadlineExceeded)} {
		if got := noStatus(err).Error(); got != "the daemon does not answer in 10s: systemctl restart ksmbd-notifyd" {
			t.Errorf("%v: %s", err, got)
		}
	}
	const ended = "ksmbd-notifyd: the daemon has ended: systemctl status ksmbd-notifyd\n"
	for _, said := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"} {
		dir := t.TempDir()
		t.Setenv("RUNTIME_DIRECTORY", dir)
		l, err := net.Listen("unix", filepath.Join(dir, socketName))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer l.Close()
			if c, err := l.Accept(); err == nil {
				c.Read(make([]byte, 1000))
				io.WriteString(c, said)
				c.Close()
			}
		}()
		var stdout, stderr strings.Builder
		if status := run([]string{"status"}, &stdout, &stderr); status != 1 || stdout.Len() > 0 || stderr.String() != ended {
			t.Errorf("after %q: status %d, %q, %q", said, status, &stdout, &stderr)
		}
	}
}

// A daemon that is stuck: the reader is told after a while.
func TestStatusOfStuckDaemon(t *testing.T) {
	d := ipc.NewDaemon(slog.New(slog.DiscardHandler), nil) // whose Run is not called: nobody answers
	for _, what := range []string{"/status", "/trace"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		answer := httptest.NewRecorder()
		handlers(d).ServeHTTP(answer, httptest.NewRequestWithContext(ctx, "GET", what, nil))
		want := "the daemon is stuck: it does not answer in 5s: systemctl restart ksmbd-notifyd\n"
		if answer.Code != http.StatusServiceUnavailable || answer.Body.String() != want {
			t.Errorf("%s: %d %s", what, answer.Code, answer.Body)
		}
	}
}

func TestStatusForPeople(t *testing.T) {
	at := time.Date(2026, 11, 24, 10, 0, 0, 0, time.Local)
	r := report{Version: "1.0", Kernel: "6.12.1", Started: at, Server: serverRuns, Status: ipc.Status{
		Policy: ipc.Policy{Shares: map[string]bool{"scratch\x1b": false, "test": true}, UserWatches: 100, ClientKiB: 256},
		Incidents: []ipc.Incident{
			{Last: at, Count: 1, Kind: ipc.QueueOverflow, Reason: "a reason\xff\t\u009b"},
			{Last: at.Add(time.Hour), Count: 3, Kind: ipc.Refusal, Directory: "/srv/\n", User: "user", Share: "test", Reason: "another"},
		},
		Serving: true, Since: at.Add(time.Minute), Module: "0.9",
		Open:         ipc.Open{Watches: 2, Trees: 1, Requests: 1, QueuedBytes: 30},
		Total:        ipc.Total{Watches: 5, Refused: 1, Requests: 9, Responses: 8, EnumDirs: 2, Records: 7, Overflows: 3, QueueOverflows: 1},
		LastOverflow: &ipc.Loss{Time: at.Add(time.Hour), Directory: "/srv", Reason: "a reason"},
		Filesystems: []ipc.Filesystem{
			{Type: "ext4", Device: "8:1", Strategy: "filesystem mark", Watches: 2},
			{Type: "fuse.\x1b[2J", Device: "0:8", Strategy: "directory marks", Watches: 1, MountOnly: true},
			{Type: "nfs4", Device: "0:9", Strategy: "directory marks", Watches: 1, MountOnly: true},
		},
		Watches: []ipc.WatchStatus{
			{Directory: "/srv", Tree: true, User: "user", Share: "TEST", Since: at, Pending: 1, Filter: ipc.All.String()},
			{Directory: "/srv/a\nb", User: "\x1b[2J", Share: "TEST", Since: at, Queued: 2, Overflows: 3, Overflowed: true, Filter: "file-name,ea"},
		},
	}}
	const want = `state      serving ksmbd since 2026-11-24 10:01:00
module     0.9, kernel 6.12.1
daemon     1.0, running since 2026-11-24 10:00:00
settings   change notify is off in scratch\x1b; a user may have 100 watches; 256 KiB of records may wait for a client
watches    2 open, 1 with all that is below; 5 so far, 1 refused
requests   1 pending; 9 so far, 8 answered
records    30 bytes queued; 7 told
overflows  3 of watches, 1 of the fanotify queue; the last at 2026-11-24 11:00:00 in /srv: a reason
ENUM_DIR   2 told

FILESYSTEM    DEVICE  STRATEGY         WATCHES  TOLD
ext4          8:1     filesystem mark  2        all changes
fuse.\x1b[2J  0:8     directory marks  1        only what goes through this mount
nfs4          0:9     directory marks  1        only what goes through this mount

DIRECTORY    TREE  USER       SHARE  SINCE                PENDING  QUEUED  OVERFLOWS  FILTER
/srv         yes   user       TEST   2026-11-24 10:00:00  1        0       0          all
"/srv/a\nb"  no    "\x1b[2J"  TEST   2026-11-24 10:00:00  0        lost    3          file-name,ea

INCIDENT        LAST                 TIMES  DIRECTORY  USER  SHARE  REASON
queue-overflow  2026-11-24 10:00:00  1      -          -     -      a reason\xff\t\u009b
refused         2026-11-24 11:00:00  3      "/srv/\n"  user  test   another
`
	var b strings.Builder
	if err := r.print(&b); err != nil || b.String() != want {
		t.Errorf("%v, got\n%swant\n%s", err, &b, want)
	}

	// ksmbd.control -s: the module is there, and serves nobody.
	b.Reset()
	r.Server = "shutdown"
	const stopped = "state      ready to serve since 2026-11-24 10:01:00, but ksmbd does not run: systemctl start ksmbd\n"
	if err := r.print(&b); err != nil || !strings.HasPrefix(b.String(), stopped) {
		t.Errorf("%v, got\n%swant\n%s", err, &b, stopped)
	}
}

// Where there is no /run, as on routers, the socket has a place too.
func TestRunDir(t *testing.T) {
	root := t.TempDir()
	if got := runDir(root); got != root+"/var/run" {
		t.Errorf("without /run: %s", got)
	}
	if err := os.Mkdir(root+"/run", 0o700); err != nil {
		t.Fatal(err)
	}
	if got := runDir(root); got != root+"/run" {
		t.Errorf("with /run: %s", got)
	}
	t.Setenv("RUNTIME_DIRECTORY", "/a/b:/c")
	if got := runtimeDir(); got != "/a/b" {
		t.Errorf("with RUNTIME_DIRECTORY: %s", got)
	}
}
