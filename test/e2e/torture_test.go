// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mustPass are the smb2.notify tests that pass every time.
var mustPass = []string{
	"tcon", "close", "logoff", "tdis", "tdis1", "double", "tcp", "overflow", "basedir", "file", "handle-permissions",
	"rmdir1", "rmdir2", "rmdir3", "rmdir4", "valid-req",
}

// regression are the suites in which ours must pass whatever the stock module passes.
var regression = []string{"smb2.compound", "smb2.lock", "smb2.dir", "smb2.credits"}

// verdict of one smbtorture test.
type verdict struct {
	result string // PASS, FAIL, SKIP, ERROR, TIMEOUT or how smbtorture ended
	reason string // its first line
	took   time.Duration
}

func (v verdict) String() string {
	return strings.TrimSpace(fmt.Sprintf("%-7s %5.1fs  %s", v.result, v.took.Seconds(), v.reason))
}

// torture runs one smbtorture test in a process of its own, for a bounded time, and keeps what it said unless it passed.
func torture(name string, limit time.Duration) (verdict, error) {
	if err := cleanShare(); err != nil {
		return verdict{}, err
	}
	mark("smbtorture " + name)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "smbtorture", "//127.0.0.1/TEST", "-U", user1, name)
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
		os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0) // who is blocked, and where
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

// testsOf lists the tests of a suite by the names that smbtorture takes.
func testsOf(suite string) ([]string, error) {
	out, err := exec.Command("smbtorture", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("listing smbtorture's tests: %w", err)
	}
	var names []string
	for _, name := range strings.Fields(string(out)) {
		if !strings.HasPrefix(name, suite+".") {
			continue
		}
		test, _, _ := strings.Cut(name[len(suite)+1:], ".")
		if name = suite + "." + test; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("smbtorture has no suite %s", suite)
	}
	return names, nil
}

func TestTortureMustPass(t *testing.T) {
	for _, name := range mustPass {
		t.Run(name, func(t *testing.T) {
			for i := range *tries {
				v, err := torture("smb2.notify."+name, 30*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if v.result == "TIMEOUT" {
					t.Fatalf("try %d of %d: %v", i+1, *tries, v)
				}
				if v.result != "PASS" {
					t.Errorf("try %d of %d: %v", i+1, *tries, v)
				}
			}
		})
	}
}

// TestTortureRest lists what else of the suite passes. Only a test that does not end is a failure:
// smb2.notify.mask sleeps for most of two minutes.
func TestTortureRest(t *testing.T) {
	names, err := testsOf("smb2.notify")
	if err != nil {
		t.Fatal(err)
	}
	names = append(names, "smb2.notify-inotify.inotify-rename")
	var table bytes.Buffer
	for _, name := range names {
		if slices.Contains(mustPass, strings.TrimPrefix(name, "smb2.notify.")) {
			continue
		}
		v, err := torture(name, 4*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-38s %v", name, v)
		fmt.Fprintf(&table, "%s\t%s\t%s\n", name, v.result, v.reason)
		if v.result == "TIMEOUT" {
			t.Errorf("%s did not end", name)
		}
	}
	if err := os.WriteFile(filepath.Join(results, "notify.tsv"), table.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// twice runs a test again when it did not pass: some come and go under emulation, whatever the module.
func twice(name string, limit time.Duration) (verdict, error) {
	v, err := torture(name, limit)
	if err == nil && v.result != "PASS" && v.result != "SKIP" {
		v, err = torture(name, limit)
	}
	return v, err
}

// recordRegression writes the verdicts of the regression suites to a file.
func recordRegression(file string) error {
	var table bytes.Buffer
	for _, suite := range regression {
		names, err := testsOf(suite)
		if err != nil {
			return err
		}
		for _, name := range names {
			v, err := twice(name, time.Minute)
			if err != nil {
				return err
			}
			fmt.Printf("%-40s %v\n", name, v)
			fmt.Fprintf(&table, "%s\t%s\n", name, v.result)
		}
	}
	return os.WriteFile(file, table.Bytes(), 0o644)
}

// TestRegression compares with the verdicts recorded with the stock module.
func TestRegression(t *testing.T) {
	if *baseline == "" {
		t.Fatal("no verdicts of the stock module to compare with; see -record")
	}
	stock, err := os.ReadFile(*baseline)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	for line := range strings.Lines(string(stock)) {
		name, was, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			t.Fatalf("bad line in %s: %q", *baseline, line)
		}
		try := torture
		if was == "PASS" {
			try = twice
		}
		v, err := try(name, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&table, "%s\t%s\t%s\n", name, was, v.result)
		switch {
		case was == "PASS" && v.result != "PASS":
			t.Errorf("%s passes with the stock module, with ours: %v", name, v)
		case was != v.result:
			t.Logf("%s: %s with the stock module, now %v", name, was, v)
		}
	}
	if err := os.WriteFile(filepath.Join(results, "regression.tsv"), table.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
