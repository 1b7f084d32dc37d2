// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ksmbd-notifyd/test/smb2"
)

// What a client pays that is told of no change: each request with our module against the same with the distribution's,
// in one guest, in rounds. While somebody watches another directory of the same filesystem, and while nobody does.

// stockLimit is how much of the stock module's time a request may take. SET_INFO has causes to note while there is a watch,
// see kernel/notify_cause.c. CREATE is reported only: what it makes, the daemon reads.
func stockLimit(what, mode string) float64 {
	switch {
	case mode == "nobody watches":
		return 1.02
	case what == "CREATE":
		return math.Inf(1)
	case strings.HasPrefix(what, "SET_INFO"):
		return 1.05
	default:
		return 1.02
	}
}

// A round's medians are of so many samples, each of a request for each of so many files: the client waits once for
// all of them, so that what is measured is the server.
const (
	stockSamples = 25
	stockFiles   = 40
)

// quietTime is after what time nothing that comes of a request is counted for the next.
const quietTime = 20 * time.Millisecond

// stockRequests are what is measured, in this order, of each file.
var stockRequests = []string{"ECHO", "CREATE", "WRITE", "READ", "SET_INFO size", "SET_INFO times", "CLOSE"}

// stockModes are what is compared; the stock module's is what the others are divided by.
var stockModes = []string{"stock", "nobody watches", "watched elsewhere"}

// serveWith has another module serve, with the daemon if it is ours.
func serveWith(name string) error {
	if err := errors.Join(stopNotifyd(), stopMountd(), unloadModule()); err != nil {
		return err
	}
	*module = name
	if err := errors.Join(loadModule(), startMountd()); err != nil {
		return err
	}
	if name == "stock" {
		return nil
	}
	return startNotifyd()
}

// benchStock fails where ours took more than it may in every round.
func benchStock(rounds int, out io.Writer) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	our := *module
	dir := filepath.Join(share, "bench")
	if err := errors.Join(os.MkdirAll(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
		return err
	}
	took := make(map[string][]map[string]time.Duration)
	for round := range rounds {
		for i := range stockModes {
			mode := stockModes[(i+round)%len(stockModes)]
			name := our
			if mode == "stock" {
				name = mode
			}
			if err := serveWith(name); err != nil {
				return err
			}
			medians, err := stockRound(mode == "watched elsewhere", dir)
			if err != nil {
				return fmt.Errorf("%s: %w", mode, err)
			}
			took[mode] = append(took[mode], medians)
		}
		fmt.Fprintf(out, "bench-stock: round %d of %d\n", round+1, rounds)
	}
	var errs []error
	fmt.Fprintf(out, "%-16s%12s", "", "stock")
	for _, mode := range stockModes[1:] {
		fmt.Fprintf(out, "%20s", mode)
	}
	fmt.Fprintln(out)
	for _, what := range stockRequests {
		fmt.Fprintf(out, "%-16s%10.3fms", what, ms(took["stock"][0][what]))
		for _, mode := range stockModes[1:] {
			var ratios []float64
			for i, medians := range took[mode] {
				ratios = append(ratios, float64(medians[what])/float64(took["stock"][i][what]))
			}
			fmt.Fprintf(out, "%20s", fmt.Sprintf("%.3f (%.3f-%.3f)", quantile(ratios, 0.5), slices.Min(ratios), slices.Max(ratios)))
			if limit := stockLimit(what, mode); slices.Min(ratios) > limit {
				errs = append(errs, fmt.Errorf("%s, %s: %.3f × what it takes with the stock module, at most %.2f", what, mode, slices.Min(ratios), limit))
			}
		}
		fmt.Fprintln(out)
	}
	return errors.Join(errs...)
}

// stockRound returns the medians of what each request takes.
func stockRound(watched bool, dir string) (map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	run := &benchRun{server: ours, dir: dir}
	c, err := run.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if watched {
		beside := filepath.Join(dir, "beside")
		if err := errors.Join(os.MkdirAll(beside, 0o777), os.Chmod(beside, 0o777)); err != nil {
			return nil, err
		}
		other, err := run.connect(ctx)
		if err != nil {
			return nil, err
		}
		defer other.Close()
		f, err := other.open(ctx, `bench\beside`)
		if err != nil {
			return nil, err
		}
		if _, _, err := park(ctx, f, smb2.NotifyParams{Filter: 0xfff, Length: 4096}); err != nil {
			return nil, err
		}
	}
	samples := make(map[string][]time.Duration)
	data := []byte(strings.Repeat("x", 4096))
	var files [stockFiles]*smb2.File
	do := map[string]func(i int) error{
		"ECHO":           func(int) error { _, err := c.Do(ctx, smb2.EchoRequest()); return err },
		"CREATE":         func(i int) (err error) { files[i], err = c.create(ctx, fmt.Sprintf(`bench\f%d`, i)); return },
		"WRITE":          func(i int) error { return files[i].Write(ctx, 0, data) },
		"READ":           func(i int) error { _, err := files[i].Read(ctx, 0, 4096); return err },
		"SET_INFO size":  func(i int) error { return files[i].SetSize(ctx, 8192) },
		"SET_INFO times": func(i int) error { return files[i].SetBasic(ctx, smb2.Basic{LastWrite: time.Unix(1e9, 0)}) },
		"CLOSE":          func(i int) error { return files[i].Close(ctx) },
	}
	for range stockSamples {
		for _, what := range stockRequests {
			var group errgroup.Group
			start := time.Now()
			for i := range files {
				group.Go(func() error { return do[what](i) })
			}
			if err := group.Wait(); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			samples[what] = append(samples[what], time.Since(start)/stockFiles)
			time.Sleep(quietTime)
		}
		for i := range files {
			if err := os.Remove(filepath.Join(dir, fmt.Sprint("f", i))); err != nil {
				return nil, err
			}
		}
		time.Sleep(quietTime)
	}
	medians := make(map[string]time.Duration)
	for what, s := range samples {
		slices.Sort(s)
		medians[what] = s[len(s)/2]
	}
	return medians, nil
}
