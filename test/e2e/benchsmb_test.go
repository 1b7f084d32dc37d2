// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How fast clients are told by ksmbd with this project, and by the distribution's smbd: one after the other, in rounds,
// in one directory, with the same client. What counts is the ratio in a round. What is measured is in benchrows_test.go.

// benchServers are the two, ours first.
var benchServers = [2]struct{ name, addr string }{{"ours", "127.0.0.1:445"}, {"smbd", "127.0.0.1:1445"}}

const ours, theirs = 0, 1

// benchSizes are what the two forms differ in.
type benchSizes struct {
	samples  int // of a client that waits for one change
	watchers int // of one directory, each on a connection of its own
	few      int // watchers of one directory, on four connections
	watches  int // of as many directories; ksmbd opens 10,000 files at the most
	creates  int // that are counted
	files    int // that each of four clients creates
	rounds   int // of those that take long
}

var benchForms = map[string]benchSizes{
	"short": {samples: 30, watchers: 10, few: 50, watches: 100, creates: 100, files: 50, rounds: 1},
	"full":  {samples: 150, watchers: 100, few: 1000, watches: 9500, creates: 2000, files: 200, rounds: 2},
}

// benchRow is what is measured of each server in each round; lower is better.
type benchRow struct {
	Name    string       `json:"name"`
	Unit    string       `json:"unit"`
	Medians [2][]float64 `json:"medians"` // of the rounds: ours, smbd's
	P99     [2][]float64 `json:"p99"`     // where a round has a hundred samples
	Failed  [2]string    `json:"failed"`  // the reason where there is no figure
}

type benchRun struct {
	sizes  benchSizes
	dir    string // on the server, below the share
	server int    // the one that is measured now
	rows   []*benchRow
}

func (b *benchRun) row(name, unit string) *benchRow {
	for _, r := range b.rows {
		if r.Name == name {
			return r
		}
	}
	r := &benchRow{Name: name, Unit: unit}
	b.rows = append(b.rows, r)
	return r
}

// add records what a round has measured.
func (b *benchRun) add(name, unit string, samples ...float64) {
	r := b.row(name, unit)
	r.Medians[b.server] = append(r.Medians[b.server], quantile(samples, 0.5))
	if len(samples) >= 100 {
		r.P99[b.server] = append(r.P99[b.server], quantile(samples, 0.99))
	}
}

func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// benchSMB measures for so many rounds and writes what it has found to results. In the short form it fails where a client
// of ours waits longer than one of smbd's in every round, by more than a tenth.
func benchSMB(form string, rounds int, out io.Writer) error {
	sizes, ok := benchForms[form]
	if !ok {
		return fmt.Errorf("no form %q of the benchmark, only short and full", form)
	}
	smbd, err := startSmbd()
	if err != nil {
		return err
	}
	defer smbd.stop() // how it ends is no concern of ours
	run := &benchRun{sizes: sizes, dir: filepath.Join(share, "bench")}
	start := time.Now()
	for round := range rounds {
		for i := range benchServers {
			run.server = (i + round) % len(benchServers)
			if err := run.round(round, out); err != nil {
				return fmt.Errorf("%s, round %d: %w", benchServers[run.server].name, round+1, err)
			}
		}
		fmt.Fprintf(out, "bench-smb: round %d of %d after %v\n", round+1, rounds, time.Since(start).Round(time.Second))
		if err := run.report(form, round+1, out); err != nil {
			return err
		}
	}
	if form != "short" {
		return nil
	}
	return run.behind()
}

// round measures all of one server once.
func (b *benchRun) round(round int, out io.Writer) error {
	parts := []struct {
		name string
		long bool
		fn   func(context.Context) error
	}{
		{"floors", false, b.floors},
		{"one client", false, b.oneClient},
		{"a watch tree under load", false, b.underLoad},
		{"a change over SMB", false, b.smbChange},
		{"watchers", false, b.watchers},
		{"watchers on few connections", false, b.fewConnections},
		{"watches", true, b.watches},
		{"a burst", true, b.burst},
		{"server CPU", true, b.serverCPU},
		{"local file creation", false, b.localCreation},
		{"file creation over SMB", true, b.smbCreation},
	}
	for _, part := range parts {
		if matched, err := regexp.MatchString(*benchParts, part.name); err != nil {
			return err
		} else if !matched {
			continue
		}
		if part.long && round >= b.sizes.rounds {
			continue
		}
		if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(b.dir, 0o777), os.Chmod(b.dir, 0o777)); err != nil {
			return err
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		err := part.fn(ctx)
		cancel()
		fmt.Fprintf(out, "bench-smb: %s: %s: %v\n", benchServers[b.server].name, part.name, time.Since(start).Round(time.Millisecond))
		switch {
		case err == nil:
		case b.server == ours:
			return fmt.Errorf("%s: %w", part.name, err)
		default: // what smbd cannot do is a result
			fmt.Fprintf(out, "bench-smb: smbd: %s: %v\n", part.name, err)
			b.row(part.name, "").Failed[theirs] = err.Error()
		}
	}
	return nil
}

// startSmbd starts the distribution's smbd beside ksmbd, with the same directory and users.
func startSmbd() (*process, error) {
	const dir = "/run/smbd"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := `[global]
	workgroup = WORKGROUP
	smb ports = 1445
	server min protocol = SMB2_10
	load printers = no
	disable spoolss = yes
	map to guest = never
	log level = 0
	kernel change notify = yes
`
	for _, option := range []string{"lock directory", "state directory", "cache directory", "pid directory", "private dir", "ncalrpc dir", "binddns dir"} {
		conf += fmt.Sprintf("\t%s = %s\n", option, dir)
	}
	conf += "[TEST]\n\tpath = " + share + "\n\tread only = no\n"
	file := filepath.Join(dir, "smb.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	for _, u := range []string{user1, user2} {
		name, password, _ := strings.Cut(u, "%")
		if err := command("sh", "-c", fmt.Sprintf("printf '%%s\\n%%s\\n' %s %s | smbpasswd-4.17 -c %s -L -a -s %s", password, password, file, name)); err != nil {
			return nil, err
		}
	}
	p, err := start("smbd", "smbd-4.17", "--foreground", "--no-process-group", "--debug-stdout", "-s", file)
	if err != nil {
		return nil, err
	}
	err = until(long, func() error {
		select {
		case <-p.done:
			return fmt.Errorf("smbd ended: %w, see smbd.log", p.err)
		default:
		}
		c, err := net.Dial("tcp", benchServers[theirs].addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// ratio is the median of the rounds' ratios, and their spread; not a number when there is none.
func (r *benchRow) ratio() (median, low, high float64) {
	var ratios []float64
	for i := range min(len(r.Medians[ours]), len(r.Medians[theirs])) {
		ratios = append(ratios, r.Medians[ours][i]/r.Medians[theirs][i])
	}
	if len(ratios) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	return quantile(ratios, 0.5), slices.Min(ratios), slices.Max(ratios)
}

// behind fails when ours was slower in every round, by more than a tenth.
func (b *benchRun) behind() error {
	var errs []error
	for _, r := range b.rows {
		if _, low, _ := r.ratio(); low > 1.1 && r.Unit != "" {
			errs = append(errs, fmt.Errorf("%s: behind smbd in every round, %.2f × at the least", r.Name, low))
		}
	}
	return errors.Join(errs...)
}

func (b *benchRun) report(form string, rounds int, out io.Writer) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	machine := fmt.Sprintf("a guest of %d emulated processors%s, Linux %s, smbd 4.17, share on %s; %s form, %d rounds",
		numCPU(), *benchClock, unix.ByteSliceToString(uts.Release[:]), *fsType, form, rounds)
	var table, plot strings.Builder
	fmt.Fprintf(&table, "| p50, lower is better | smbd | ours | ratio | its spread | p99: smbd | ours |\n|---|---|---|---|---|---|---|\n")
	cell := func(values []float64, unit string) string {
		if v := quantile(values, 0.5); !math.IsNaN(v) {
			return fmt.Sprintf("%.3g %s", v, unit)
		}
		return "–"
	}
	for _, r := range b.rows {
		if r.Unit == "" {
			fmt.Fprintf(&table, "| %s | fails | | | | | |\n", r.Name)
			continue
		}
		ratio, spread := "–", ""
		if median, low, high := r.ratio(); !math.IsNaN(median) {
			ratio, spread = fmt.Sprintf("%.2f", median), fmt.Sprintf("%.2f–%.2f", low, high)
			fmt.Fprintf(&plot, "%q\t%g\t%g\t%g\n", r.Name, median, low, high)
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s | %s | %s | %s |\n", r.Name, cell(r.Medians[theirs], r.Unit), cell(r.Medians[ours], r.Unit),
			ratio, spread, cell(r.P99[theirs], r.Unit), cell(r.P99[ours], r.Unit))
	}
	fmt.Fprintf(&table, "\nMedians of the rounds, measured in %s.\n", machine)
	fmt.Fprint(out, "\n", table.String(), "\n")
	figures, err := json.MarshalIndent(struct {
		Machine string      `json:"machine"`
		Rows    []*benchRow `json:"rows"`
	}{machine, b.rows}, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"md": []byte(table.String()), "json": append(figures, '\n'), "tsv": []byte(plot.String())} {
		if err := os.WriteFile(filepath.Join(results, "bench-smb."+name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func numCPU() int {
	text, _ := os.ReadFile("/proc/cpuinfo")
	return strings.Count(string(text), "processor\t")
}
