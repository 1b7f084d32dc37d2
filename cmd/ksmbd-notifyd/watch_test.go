// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// lineOutput is read line by line while it is written. It takes what is written
// without waiting for the reader.
type lineOutput struct {
	*io.PipeWriter
	lines chan string
}

func newOutput() *lineOutput {
	r, w := io.Pipe()
	o := &lineOutput{w, make(chan string, 10000)}
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			o.lines <- s.Text()
		}
		close(o.lines)
	}()
	return o
}

// next waits for the next line.
func (o *lineOutput) next(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-o.lines:
		if !ok {
			t.Fatal("the output has ended")
		}
		return line
	case <-time.After(30 * time.Second):
		t.Fatal("no line of output")
	}
	return ""
}

// until returns the lines up to and without the one that ends in end. Of equal
// neighbours it keeps one: whether they merge is a matter of time.
func (o *lineOutput) until(t *testing.T, end string) []string {
	t.Helper()
	var lines []string
	for {
		line := o.next(t)
		if strings.HasSuffix(line, end) {
			return slices.Compact(lines)
		}
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
}

// tmpfs makes a directory in a tmpfs, where events are those of section
// "What each operation delivers" with nothing of a disk's own.
func tmpfs(t *testing.T) string {
	t.Helper()
	needRoot(t)
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "ksmbd-notifyd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func shell(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// command is "ksmbd-notifyd watch" at work.
type command struct {
	stdout, stderr *lineOutput
	log            []string // lines on stderr before it watched
	status         chan int
}

// start starts the command and waits until it watches.
func start(t *testing.T, args ...string) *command {
	t.Helper()
	c := &command{stdout: newOutput(), stderr: newOutput(), status: make(chan int, 1)}
	go func() {
		c.status <- run(append([]string{"watch"}, args...), c.stdout, c.stderr)
		c.stdout.Close()
		c.stderr.Close()
	}()
	for {
		line := c.stderr.next(t)
		if strings.HasPrefix(line, "watching ") {
			return c
		}
		c.log = append(c.log, line)
	}
}

// terminate ends the command as systemd does.
func (c *command) terminate(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := <-c.status; status != 0 {
		t.Errorf("status %d after SIGTERM", status)
	}
}

func TestWatchEngine(t *testing.T) {
	for _, test := range []struct {
		name, before string
		args         []string
		do           string
		want         []string
	}{
		{
			name: "what issue 2 shows",
			do:   "touch f; echo x > f; mv f g; mkdir d; mv g d/; mv d/g .; rm g",
			want: []string{"ADDED f", "MODIFIED f", "RENAMED_OLD_NAME f", "RENAMED_NEW_NAME g",
				"ADDED d", "REMOVED g", "ADDED g", "REMOVED g"},
		},
		{
			name:   "not below",
			before: "mkdir d",
			do:     "touch d/f; mkdir d/e; rm d/f",
		},
		{
			name: "tree", args: []string{"-r"}, before: "mkdir -p a/b/c",
			do: "mkdir a/b/c/d; echo x > a/b/c/d/f; mv a/b/c/d/f a/g; rm a/g; mv a/b a/e; rmdir a/e/c/d",
			want: []string{"ADDED a/b/c/d", "ADDED a/b/c/d/f", "MODIFIED a/b/c/d/f", "REMOVED a/b/c/d/f", "ADDED a/g",
				"REMOVED a/g", "RENAMED_OLD_NAME a/b", "RENAMED_NEW_NAME a/e", "REMOVED a/e/c/d"},
		},
		{
			name: "directory names", args: []string{"--filter=dir-name"},
			do:   "touch f; mkdir d; mv d e; mv f g; chmod 700 e; rm g; rmdir e",
			want: []string{"ADDED d", "RENAMED_OLD_NAME d", "RENAMED_NEW_NAME e", "REMOVED e"},
		},
		{
			name: "file names", args: []string{"--filter", "file-name"},
			do:   "mkdir d; touch f; echo x > f; mv d e; rm f; rmdir e",
			want: []string{"ADDED f", "REMOVED f"},
		},
		{
			name: "attributes without names", args: []string{"--filter=attributes,creation"}, before: "touch f; mkdir d",
			do:   "mv f g; mv d e; chmod 600 g",
			want: []string{"MODIFIED g"},
		},
		{
			name: "size", args: []string{"--filter=size"}, before: "touch f",
			do:   "chmod 600 f; echo x >> f; rm f",
			want: []string{"MODIFIED f"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := tmpfs(t)
			shell(t, dir, test.before)
			c := start(t, append(test.args, dir)...)
			// An end mark that passes whatever the filter.
			shell(t, dir, test.do+"; touch 1.end; mkdir 2.end; chmod 700 1.end; echo x >> 1.end")
			got := c.stdout.until(t, ".end")
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			c.terminate(t)
		})
	}
}

func TestWatchJSON(t *testing.T) {
	dir := tmpfs(t)
	c := start(t, "--json", "--filter=file-name", dir)
	shell(t, dir, `touch f; mv f "$(printf 'g\nh')"`)
	for _, want := range []string{
		`{"action":"ADDED","name":"f"}`,
		`{"action":"RENAMED_OLD_NAME","name":"f"}`,
		`{"action":"RENAMED_NEW_NAME","name":"g\nh"}`,
	} {
		if got := c.stdout.next(t); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	c.terminate(t)
}

// A terminal has colours, unless its user wants none; a file never.
func TestWatchColors(t *testing.T) {
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer ptmx.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !hasColors(ptmx) {
		t.Error("a terminal has no colours")
	}
	if hasColors(io.Discard) || hasColors(journal(t)) {
		t.Error("a file has colours")
	}
	t.Setenv("NO_COLOR", "1")
	if hasColors(ptmx) {
		t.Error("NO_COLOR is not respected")
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	if hasColors(ptmx) {
		t.Error("a dumb terminal has colours")
	}

	var b bytes.Buffer
	c := &client{colors: true}
	c.print(&b, "ADDED", "a")
	c.print(&b, "RENAMED_NEW_NAME", "b")
	c.print(&b, "ENUM_DIR", "")
	want := "\x1b[32mADDED\x1b[0m             a\n\x1b[36mRENAMED_NEW_NAME\x1b[0m  b\n\x1b[35mENUM_DIR\x1b[0m\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", &b, want)
	}
}

// A directory whose name is for a terminal is written out, as in errors.
func TestWatchOddName(t *testing.T) {
	var msg strings.Builder
	(&client{dir: "/a\x1b[2J", msg: &msg}).Ack(0, 0)
	if want := `watching /a\x1b[2J` + "\n"; msg.String() != want {
		t.Errorf("got %q, want %q", &msg, want)
	}
}

// The directory is removed: there is nothing more to print.
func TestWatchRemoved(t *testing.T) {
	for _, args := range [][]string{nil, {"-r"}} {
		dir := filepath.Join(tmpfs(t), "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c := start(t, append(args, dir)...)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if got, want := c.stderr.next(t), "ksmbd-notifyd: "+dir+" was removed"; got != want {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
		if status := <-c.status; status != 1 {
			t.Errorf("%q: status %d", args, status)
		}
	}
}

// -v tells of the watch and its requests, -vv also of each event and record.
func TestWatchVerbose(t *testing.T) {
	dir := tmpfs(t)
	c := start(t, "-vv", dir)
	shell(t, dir, "touch f")
	c.stdout.next(t)
	c.terminate(t)
	for line := range c.stderr.lines {
		c.log = append(c.log, line)
	}
	log := strings.Join(c.log, "\n")
	for _, want := range []string{
		"debug: watch watch=1 path=" + dir + " tree=false filter=file-name,dir-name,",
		"debug: request request=1 watch=1 buffer=1048576",
		"trace: change watch=1 op=create path=" + dir + "/f thread=",
		"trace: record watch=1 action=ADDED name=f",
		"debug: complete request=1 watch=1 records=1",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
}

// More changes at once than fanotify queues or a buffer takes: each file is
// told, or that something was lost after the last that was.
func TestWatchLosesNothingSilently(t *testing.T) {
	dir := tmpfs(t)
	c := start(t, "--filter=file-name", dir)
	const files = 20000
	for i := range files {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for next := 0; next < files; {
		line := c.stdout.next(t)
		switch {
		case line == "ENUM_DIR":
			t.Logf("ENUM_DIR instead of file %d", next)
			// What follows is newer than the loss.
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != files {
				t.Fatalf("%d entries, %v", len(entries), err)
			}
			next = files
		case strings.Join(strings.Fields(line), " ") == "ADDED "+strconv.Itoa(next):
			next++
		default:
			t.Fatalf("%q instead of file %d", line, next)
		}
	}
	c.terminate(t)
}

// Nothing is printed that nobody can read.
func TestWatchOutputFails(t *testing.T) {
	dir := tmpfs(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	stderr := newOutput()
	ended := make(chan error, 1)
	go func() {
		c := &client{dir: dir, filter: ipc.All, out: full, msg: stderr}
		ended <- watch(context.Background(), slog.New(slog.DiscardHandler), c)
	}()
	stderr.next(t)
	shell(t, dir, "touch f")
	if err := <-ended; !errors.Is(err, unix.ENOSPC) {
		t.Errorf("ends with %v", err)
	}
}
