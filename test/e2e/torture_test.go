// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// notifyTests are those of smbtorture's tests that are about CHANGE_NOTIFY, as far as its version has them.
var notifyTests = regexp.MustCompile(`^smb2\.(notify\.|notify-inotify\.|compound\.interim\d|credits\..*notify_max_async_credits|change_notify_disabled\.)`)

// offTests want a share where changes are not told.
var offTests = regexp.MustCompile(`^smb2\.change_notify_disabled\.`)

// expectedFailures has a line for each test that cannot pass: its name, the versions of Samba by how they begin, the reason.
//
//go:embed expected-failures.txt
var expectedFailures string

// expected gives the reason why a test is expected to fail.
func expected(name string) (reason string, ok bool) {
	for line := range strings.Lines(expectedFailures) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) == 3 && f[0] == name && strings.HasPrefix(sambaVersion(), f[1]) {
			return f[2], true
		}
	}
	return "", false
}

// sambaVersion is that of smbtorture.
var sambaVersion = sync.OnceValue(func() string {
	out, _ := exec.Command(*smbtorture, "--version").Output() // smbtorture 4.17.12-Debian
	_, version, _ := strings.Cut(string(out), " ")
	return version
})

// again says how often a try may be repeated. smb2.notify.dir sends a request and at once deletes a file over another
// connection, and counts the records that the request brings. Under emulation the delete comes first at times: its
// record is then in the queue as well, as it must be.
var again = map[string]int{"smb2.notify.dir": 2}

// sleepers are tests that mostly sleep: their tries run side by side, on a share each.
var sleepers = []string{"smb2.notify.mask"}

// verdict of one smbtorture test.
type verdict struct {
	result string // PASS, FAIL, SKIP, ERROR, TIMEOUT or how smbtorture ended
	reason string // its first line
	took   time.Duration
}

func (v verdict) String() string {
	return strings.TrimSpace(fmt.Sprintf("%-7s %5.1fs  %s", v.result, v.took.Seconds(), v.reason))
}

// torture runs one smbtorture test on a share in a process of its own, for a bounded time, and keeps what it said unless
// it passed.
func torture(name, share string, limit time.Duration) (verdict, error) {
	if offTests.MatchString(name) {
		share = offShare
	}
	if err := clean(sharePath(share)); err != nil {
		return verdict{}, err
	}
	mark("smbtorture " + name)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, *smbtorture, "//127.0.0.1/"+share, "-U", user1, name)
	cmd.Dir = "/tmp"
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	out, err := cmd.CombinedOutput()
	v := verdict{took: time.Since(start)}
	lines := strings.Split(string(out), "\n")
	line := func(prefix string) bool {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) })
		if i >= 0 && strings.HasSuffix(lines[i], "[") && i+1 < len(lines) {
			v.reason = lines[i+1]
		}
		return i >= 0
	}
	switch {
	case ctx.Err() != nil:
		v.result = "TIMEOUT"
		if notifyTests.MatchString(name) {
			os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0) // who is blocked, and where
		}
	case line("error: "):
		v.result = "ERROR"
	case line("failure: "):
		v.result = "FAIL"
	case line("skip: "):
		v.result = "SKIP"
	case err == nil && line("success: "):
		v.result = "PASS"
	case err == nil:
		v.result = "SILENT"
	default:
		v.result, v.reason = "DIED", err.Error()
	}
	if v.result != "PASS" {
		file := filepath.Join(results, fmt.Sprintf("%s.%d.txt", name, start.UnixMilli()))
		if err := os.WriteFile(file, out, 0o644); err != nil {
			return v, err
		}
	}
	return v, nil
}

// testsOf lists the tests whose names match, as smbtorture takes them.
func testsOf(names *regexp.Regexp) ([]string, error) {
	out, err := exec.Command(*smbtorture, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("listing smbtorture's tests: %w", err)
	}
	var tests []string
	for _, name := range strings.Fields(string(out)) {
		// What is listed repeats a test's name: smb2.notify.dir.dir.
		if i := strings.LastIndexByte(name, '.'); i > 0 && strings.HasSuffix(name[:i], name[i:]) {
			name = name[:i]
		}
		if names.MatchString(name) && !slices.Contains(tests, name) {
			tests = append(tests, name)
		}
	}
	if len(tests) == 0 {
		return nil, fmt.Errorf("smbtorture has no tests %v", names)
	}
	return tests, nil
}

// try runs a test once, or again where it may be.
func try(name, share string, limit time.Duration) (v verdict, err error) {
	for i := 0; i <= again[name]; i++ {
		if v, err = torture(name, share, limit); err != nil || v.result == "PASS" {
			break
		}
	}
	return v, err
}

// tryAll runs a test n times, on the shares side by side, and stops after a try that did not end.
func tryAll(name string, n int, limit time.Duration, shares ...string) ([]verdict, error) {
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	var (
		mu       sync.Mutex
		verdicts []verdict
		failed   error
		wg       sync.WaitGroup
	)
	for _, share := range shares {
		wg.Go(func() {
			for range todo {
				v, err := try(name, share, limit)
				mu.Lock()
				verdicts, failed = append(verdicts, v), errors.Join(failed, err)
				mu.Unlock()
				if err != nil || v.result == "TIMEOUT" {
					return
				}
			}
		})
	}
	wg.Wait()
	return verdicts, failed
}

// TestTorture: every test of smbtorture that is about CHANGE_NOTIFY passes every time, but for those that are expected
// to fail.
func TestTorture(t *testing.T) {
	names, err := testsOf(notifyTests)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	for _, name := range names {
		t.Run(strings.TrimPrefix(name, "smb2."), func(t *testing.T) {
			begin(t)
			n, limit, shares := *tries, time.Minute, lanes[:1]
			if slices.Contains(sleepers, name) {
				n, limit, shares = *slow, 5*time.Minute, lanes
			}
			verdicts, err := tryAll(name, n, limit, shares...)
			if err != nil {
				t.Fatal(err)
			}
			reason, fails := expected(name)
			passed, worst := 0, verdicts[0]
			for _, v := range verdicts {
				if v.result == "PASS" {
					passed++
					continue
				}
				worst = v
				if !fails {
					t.Error(v)
				}
			}
			of := fmt.Sprintf("%d/%d", passed, n)
			switch {
			case !fails:
				t.Logf("passed %s: %v", of, worst)
			case passed == n:
				t.Errorf("passes, and is expected to fail: %s", reason)
			default:
				of = "expected"
				t.Logf("failed as expected (%s): %v", reason, worst)
			}
			fmt.Fprintf(&table, "%s\t%s\t%s\t%s\n", name, of, worst.result, worst.reason)
		})
	}
	if err := os.WriteFile(filepath.Join(results, "torture.tsv"), table.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
