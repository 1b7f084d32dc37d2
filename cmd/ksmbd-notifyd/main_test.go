// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/ipc"
)

// TestMain makes the test's program be ksmbd-notifyd where a test says so.
func TestMain(m *testing.M) {
	if os.Getenv("KSMBD_NOTIFYD_TEST_RUN") != "" {
		if few, err := strconv.ParseUint(os.Getenv("KSMBD_NOTIFYD_TEST_FILES"), 10, 64); err == nil {
			unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: few})
		}
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv("KSMBD_NOTIFYD_TEST_RUN", "1") // for the processes that it starts
	os.Exit(m.Run())
}

// program is ksmbd-notifyd as a process of its own, and with a user id that of
// somebody.
func program(uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "KSMBD_NOTIFYD_TEST_RUN=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

func TestHelpAndVersion(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"--help"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"check", "-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"status", "-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"-nv", "--once", "-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"--nodetach=1", "-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"watch", "-h"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"-v", "watch", "dir", "--help"}, "See ksmbd-notifyd(8) for more details.\n"},
		{[]string{"-V"}, "ksmbd-notifyd version unknown\n"},
		{[]string{"--version"}, "ksmbd-notifyd version unknown\n"},
	} {
		var stdout, stderr strings.Builder
		if status := run(test.args, &stdout, &stderr); status != 0 || stderr.Len() > 0 {
			t.Errorf("%q: status %d, stderr %q", test.args, status, &stderr)
		}
		if !strings.HasSuffix(stdout.String(), test.want) {
			t.Errorf("%q: stdout ends in %q", test.args, stdout.String()[max(0, stdout.Len()-60):])
		}
	}
}

// What could not be written was not said.
func TestHelpOnFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"-h"}, {"-V"}, {"check", "-h"}, {"status", "-h"}, {"trace", "-h"}, {"watch", "-h"}, {"metrics", "-h"}} {
		var stderr strings.Builder
		if status := run(args, full, &stderr); status != 1 || stderr.String() != "ksmbd-notifyd: writing: no space left on device\n" {
			t.Errorf("%q: status %d, %q", args, status, &stderr)
		}
	}
}

// Where there is no /proc one line says so.
func TestNoProc(t *testing.T) {
	needRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--once"}, {"check"}, {"watch", "/dev/shm"}} {
		hide := "mount -t tmpfs none /proc && exec \"$@\""
		out, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c", hide, "sh", exe}, args...)...).CombinedOutput()
		said := slices.DeleteFunc(strings.SplitAfter(string(out), "\n"), func(line string) bool {
			return strings.HasPrefix(line, "==") // the race detector lacks it too
		})
		if err == nil || strings.Join(said, "") != "ksmbd-notifyd: there is no /proc here: mount -t proc proc /proc\n" {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
}

// However few files may be open, there is one line, and no trace of Go's own.
func TestFewFiles(t *testing.T) {
	needRoot(t)
	for _, args := range [][]string{{"--once"}, {"status"}, {"check"}, {"trace"}, {"watch", "/dev/shm"}, {"metrics"}, {"-t", "--settings=/dev/null"}} {
		for _, n := range []int{4, 6, 8, 31, 32} {
			cmd := program(0, args...)
			cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+t.TempDir(), "KSMBD_NOTIFYD_TEST_FILES="+strconv.Itoa(n))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			limit := time.Minute
			if n == 32 { // that is enough
				limit = 200 * time.Millisecond
			}
			stop := time.AfterFunc(limit, func() { cmd.Process.Signal(syscall.SIGTERM) })
			cmd.Wait()
			stop.Stop()
			got := out.String()
			if strings.Contains(got, "goroutine") || n < 32 && (cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(got, "ksmbd-notifyd: only ") || strings.Count(got, "\n") != 1) {
				t.Errorf("%q with %d files: %v, %s", args, n, cmd.ProcessState, got)
			}
		}
	}
}

// Every option is in the help, with both its forms, and the other way round.
func TestHelpNamesEveryOption(t *testing.T) {
	for _, args := range [][]string{nil, {"watch"}, {"status"}, {"check"}, {"trace"}, {"metrics"}} {
		var help, stderr strings.Builder
		run(append(args, "-h"), &help, &stderr)
		for _, m := range regexp.MustCompile(`(?m)^  (?:-(\w),|   ) --([a-z]+)`).FindAllStringSubmatch(help.String(), -1) {
			forms := []string{"--" + m[2]}
			if m[1] != "" {
				forms = append(forms, "-"+m[1])
			}
			for _, form := range forms {
				stderr.Reset()
				run(append(args, "--help", form), new(strings.Builder), &stderr)
				if strings.Contains(stderr.String(), "unknown") && !strings.Contains(stderr.String(), "filter") {
					t.Errorf("%q %s: %s", args, form, &stderr)
				}
			}
		}
	}
}

// Bad use: one line that says what, one that says where to look.
func TestMisuse(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-x"}, "'x'"},
		{[]string{"--nope"}, "--nope"},
		{[]string{"--once=perhaps"}, "perhaps"},
		{[]string{"start"}, `"start"`},
		{[]string{"watch"}, "no directory"},
		{[]string{"watch", ""}, "no directory"},
		{[]string{"trace", ""}, "the share or directory has no name"},
		{[]string{"check", "--config="}, "--config needs the name of a file"},
		{[]string{"watch", "a", "b"}, `"b"`},
		{[]string{"watch", "-x", "a"}, "'x'"},
		{[]string{"watch", "--filter", "names", "a"}, `"names"`},
		{[]string{"watch", "--filter"}, "filter"},
		{[]string{"watch", "--once", "a"}, "--once"},
		{[]string{"status", "-x"}, "'x'"},
		{[]string{"status", "now"}, `"now"`},
		{[]string{"check", "-x"}, "'x'"},
		{[]string{"check", "--config"}, "config"},
		{[]string{"check", "it"}, `"it"`},
		{[]string{"trace", "a", "b"}, `"b"`},
		{[]string{"trace", "-x"}, "'x'"},
		{[]string{"metrics", "-x"}, "'x'"},
		{[]string{"metrics", "9842"}, `"9842"`},
		{[]string{"--settings=/x", "check"}, "--settings is the daemon's: options of check come after it"},
		{[]string{"-t", "--settings=/x", "status"}, " is the daemon's: options of status come after it"},
		{[]string{"--once", "status"}, "--once is the daemon's"},
		{[]string{"-v", "check"}, "--verbose is the daemon's"},
		{[]string{"-n", "watch", "/dev/shm"}, "--nodetach is the daemon's"},
		{[]string{"-v", "start"}, `"start"`},
		{[]string{"--verbose=x"}, `invalid argument "x" for "-v, --verbose" flag: invalid syntax`},
		{[]string{"--a\x1b\nb"}, `--a\x1b\nb`},
	} {
		var stdout, stderr strings.Builder
		status := run(test.args, &stdout, &stderr)
		lines := strings.Split(stderr.String(), "\n")
		if status != 1 || stdout.Len() > 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], "ksmbd-notifyd: ") ||
			!strings.Contains(lines[0], test.want) || !strings.HasPrefix(lines[1], "Try `ksmbd-notifyd") ||
			!strings.HasSuffix(lines[1], "--help' for more information.") {
			t.Errorf("%q: status %d, stdout %q, stderr %q", test.args, status, &stdout, &stderr)
		}
	}
}

// Bad surroundings: one line, which says what.
func TestOneClearLine(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--once"}, "no generic netlink family ksmbd-notify: load the ksmbd module"},
		{[]string{"watch", file}, file + ": not a directory"},
		{[]string{"watch", file + ".none"}, file + ".none: no such file or directory"},
		{[]string{"watch", "-r", "/proc"}, "/proc cannot be watched: "},
		{[]string{"watch", strings.Repeat("x", 200000)}, "ksmbd-notifyd: looking at " + strings.Repeat("x", 80) + "...: argument list too long\n"},
	} {
		var stdout, stderr strings.Builder
		if status := run(test.args, &stdout, &stderr); status != 1 {
			t.Errorf("%q: status %d", test.args, status)
		}
		if stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 ||
			!strings.HasPrefix(stderr.String(), "ksmbd-notifyd: ") || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%q: stdout %q, stderr %q", test.args, &stdout, &stderr)
		}
	}
}

// Where nobody answers there is one line too, and whoever does not wait for it need not.
func TestWatchStuck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "stuck")
	stuckAt(t, dir)
	if err := os.Symlink(dir, dir+".link"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, dir + "/below", dir + ".link"} {
		var out bytes.Buffer
		cmd := program(0, "watch", name)
		cmd.Stdout, cmd.Stderr = &out, &out
		want := "ksmbd-notifyd: " + name + " has not answered in 5s: a FUSE program, a server or a disk is stuck\n"
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 || out.String() != want {
			t.Errorf("%v, %q, want %q", err, &out, want)
		}
	}
	cmd := program(0, "watch", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // whenever it comes
	start := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); time.Since(start) > answerWithin/2 {
		t.Errorf("%v after SIGINT: %v", time.Since(start), err)
	}
}

// What gets stuck while it is watched is told of, and Ctrl-C ends it.
func TestWatchGetsStuck(t *testing.T) {
	dir, under := filepath.Join(t.TempDir(), "dir"), tmpfs(t)
	server := mountFUSE(t, under, dir)
	cmd := program(0, "watch", "-r", dir)
	out, errs := newOutput(), newOutput()
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line := errs.next(t); line != "watching "+dir {
		t.Fatal(line)
	}
	shell(t, dir, "mkdir a")
	if line := out.next(t); line != "ADDED             a" {
		t.Error(line)
	}
	// What is looked at when it is made: the server stops right then.
	server.Process.Signal(syscall.SIGSTOP)
	stuck := exec.Command("sh", "-c", "mkdir "+dir+"/b; mkdir "+dir+"/b/c")
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil || time.Since(start) > answerWithin {
		t.Errorf("%v after SIGINT: %v", time.Since(start), err)
	}
	server.Process.Signal(syscall.SIGCONT)
	stuck.Wait()
}

// Ctrl-\ ends who looks on as Ctrl-C does, with nothing to say.
func TestQuit(t *testing.T) {
	stderr, ended := startDaemon(t)
	stderr.next(t)
	for _, args := range [][]string{{"watch", tmpfs(t)}, {"watch", "-r", t.TempDir()}, {"trace"}} {
		quits(t, func(out *lineOutput) { out.next(t) }, args...)
	}
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	<-ended
}

// quits says that a command ends at SIGQUIT, once it has begun.
func quits(t *testing.T, begun func(out *lineOutput), args ...string) {
	t.Helper()
	out := newOutput()
	cmd := program(0, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun(out)
	cmd.Process.Signal(syscall.SIGQUIT)
	err := cmd.Wait()
	out.Close()
	for line := range out.lines {
		t.Errorf("%q: %s", args, line)
	}
	if err != nil {
		t.Errorf("%q: %v", args, err)
	}
}

// In a directory that is gone, and for one that is named by a dot.
func TestTraceOfWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("RUNTIME_DIRECTORY", dir)
	asked := make(chan string, 2)
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.FormValue("directory") })}
	go server.Serve(l)
	defer server.Close()
	gone := filepath.Join(dir, "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	for arg, want := range map[string]string{".": gone, "..": dir} {
		run([]string{"trace", arg}, new(strings.Builder), new(strings.Builder))
		if got := <-asked; got != want {
			t.Errorf("%s: asked for %q, want %q", arg, got, want)
		}
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	os.Unsetenv("PWD")
	if run([]string{"trace", "./a"}, new(strings.Builder), &stderr); !strings.HasPrefix(stderr.String(), "ksmbd-notifyd: ./a: this runs in a directory that is gone: give the whole path\n") {
		t.Errorf("%q", &stderr)
	}
}

// runWithout runs on a thread of its own, without capabilities.
func runWithout(t *testing.T, args ...string) (status int, stderr string) {
	t.Helper()
	var out strings.Builder
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			status = run(args, new(strings.Builder), &out)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return status, out.String()
}

func TestMissingCapabilities(t *testing.T) {
	const line = "ksmbd-notifyd: must be run as root, missing: "
	status, stderr := runWithout(t, "--once")
	if want := line + "CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_DAC_READ_SEARCH\n"; status != 1 || stderr != want {
		t.Errorf("daemon: status %d, %q, want %q", status, stderr, want)
	}
	status, stderr = runWithout(t, "check")
	if want := line + "CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH\n"; status != 1 || stderr != want {
		t.Errorf("check: status %d, %q, want %q", status, stderr, want)
	}
	status, stderr = runWithout(t, "watch", "/")
	if want := line + "CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH\n"; status != 1 || stderr != want {
		t.Errorf("watch: status %d, %q, want %q", status, stderr, want)
	}
}

func TestRecordLines(t *testing.T) {
	for _, test := range []struct {
		name, human, object string
	}{
		{"a/b c", `ADDED             a/b c`, "a/b c"},
		{"\u65e5\u672c", "ADDED             \u65e5\u672c", "\u65e5\u672c"},
		{"<&>", `ADDED             <&>`, "<&>"},
		{"a\nADDED b", `ADDED             "a\nADDED b"`, "a\nADDED b"},
		{"\x1b[2J", `ADDED             "\x1b[2J"`, "\x1b[2J"},
		{`q"\`, `ADDED             "q\"\\"`, `q"\`},
		{"\xff\xfea", `ADDED             "\xff\xfea"`, "\ufffd\ufffda"},
		{"end ", `ADDED             "end "`, "end "},
		{"\x7f\u009b2J\u202e\U000e0001\U0001f600", `ADDED             "\x7f\u009b2J\u202e\U000e0001😀"`, "\x7f\u009b2J\u202e\U000e0001\U0001f600"},
	} {
		added := []ipc.Completion{{Records: []genl.Record{{Action: genl.ActionAdded, Name: test.name}}}}
		var out bytes.Buffer
		c := &client{out: &out}
		c.Complete(added)
		if out.String() != test.human+"\n" {
			t.Errorf("%q is printed as %q, want %q", test.name, &out, test.human)
		}

		out.Reset()
		c.json = true
		c.Complete(added)
		var got map[string]string
		line := out.Bytes()
		if err := json.Unmarshal(line, &got); err != nil || !utf8.Valid(line) || bytes.Count(line, []byte("\n")) != 1 || visible(string(line[:len(line)-1])) != string(line[:len(line)-1]) {
			t.Errorf("%q: object %q, %v", test.name, line, err)
		}
		if len(got) != 2 || got["action"] != "ADDED" || got["name"] != test.object {
			t.Errorf("%q: object %q", test.name, line)
		}
	}
	var out bytes.Buffer
	c := &client{out: &out}
	c.Complete([]ipc.Completion{{Status: genl.StatusEnumDir}})
	c.json = true
	c.Complete([]ipc.Completion{{Status: genl.StatusEnumDir}})
	if want := "ENUM_DIR\n" + `{"action":"ENUM_DIR","name":""}` + "\n"; out.String() != want {
		t.Errorf("ENUM_DIR is printed as %q, want %q", &out, want)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const lacks = "only root can watch trees with fanotify and have what a daemon has" // CI is root: there it fails
	if os.Getenv("CI") != "" {
		t.Fatal(lacks)
	}
	t.Skip(lacks)
}

// The manual has every option, and all that status and check give as JSON.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../packaging/ksmbd-notifyd.8")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(text)
	for command, usage := range usages {
		for _, o := range optionsOf(usage) {
			if !regexp.MustCompile(`(?m)^\.It (Fl \w , )?Fl ` + regexp.QuoteMeta(o[1:]) + `( |$)`).MatchString(manual) {
				t.Errorf("%q: %s is missing", command, o)
			}
		}
	}
	var keys []string
	var add func(of reflect.Type)
	add = func(of reflect.Type) {
		for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range of.NumField() {
			f := of.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
				keys = append(keys, name)
			}
			add(f.Type)
		}
	}
	add(reflect.TypeFor[report]())
	add(reflect.TypeFor[line]())
	for _, key := range keys {
		if !regexp.MustCompile(`(?m)^(\.(It )?(Li|Sx|Pq) |\.Li )(.* )?` + key + `( |$)`).MatchString(manual) {
			t.Errorf("the JSON's %s is missing", key)
		}
	}
	if len(keys) < 40 {
		t.Errorf("only %d keys are known", len(keys))
	}
}
