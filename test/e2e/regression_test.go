// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whatever of smbtorture passes with the stock module passes with ours. What is about CHANGE_NOTIFY TestTorture runs.

// runs is how often a test runs: to be among those that pass with the stock module it must pass each time, and with ours
// once. Some come and go under emulation, whatever the module; smb2.lock.overlap passes with the stock one now and then.
const runs = 3

// sideBySide runs tests, on as many shares at a time as there are lanes, and each of them again as long as again says so.
func sideBySide(names []string, limit time.Duration, again func(v verdict) bool, done func(name string, v verdict)) error {
	todo := make(chan string, len(names))
	for _, name := range names {
		todo <- name
	}
	close(todo)
	var (
		mu     sync.Mutex
		failed error
		wg     sync.WaitGroup
	)
	for _, share := range lanes {
		wg.Go(func() {
			for name := range todo {
				v, err := torture(name, share, limit)
				for n := 1; n < runs && err == nil && again(v); n++ {
					v, err = torture(name, share, limit)
				}
				mu.Lock()
				failed = errors.Join(failed, err)
				done(name, v)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// recordRegression writes the names of the tests that pass to a file, one a line.
func recordRegression(file string) error {
	names, err := testsOf(regexp.MustCompile(*regression))
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, notifyTests.MatchString)
	var table bytes.Buffer
	passes := func(v verdict) bool { return v.result == "PASS" }
	err = sideBySide(names, time.Minute, passes, func(name string, v verdict) {
		fmt.Printf("%-60s %v\n", name, v)
		if passes(v) {
			fmt.Fprintln(&table, name)
		}
	})
	return errors.Join(err, os.WriteFile(file, table.Bytes(), 0o644))
}

// TestRegression runs what passed when it was recorded with the stock module, with more time: it may be busier now.
func TestRegression(t *testing.T) {
	if *baseline == "" {
		t.Fatal("no verdicts of the stock module to compare with; see -record")
	}
	begin(t)
	stock, err := os.ReadFile(*baseline)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	passed := 0
	fails := func(v verdict) bool { return v.result != "PASS" && v.result != "SKIP" && v.result != "TIMEOUT" }
	err = sideBySide(strings.Fields(string(stock)), 3*time.Minute, fails, func(name string, v verdict) {
		fmt.Fprintf(&table, "%s\t%s\t%s\n", name, v.result, v.reason)
		reason, known := expected(name)
		switch {
		case v.result == "PASS":
			passed++
		case known:
			t.Logf("%s does not pass, as expected (%s): %v", name, reason, v)
		default:
			t.Errorf("%s passes with the stock module, with ours: %v", name, v)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d tests pass", passed)
	if err := os.WriteFile(filepath.Join(results, "regression.tsv"), table.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
