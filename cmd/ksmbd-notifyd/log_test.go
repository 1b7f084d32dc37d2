// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

func sayAll(log *slog.Logger) {
	log.Debug("not seen")
	log.Info("alone")
	log.With("watch", 1).WithGroup("g").Error("failed", "err", errors.New("a\nb"), "name", "x", "time", 2)
}

// A terminal or a file gets a time and a level.
func TestLogLine(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1234") // of some other output
	var b bytes.Buffer
	sayAll(newLogger(&b, slog.LevelInfo))
	const stamp = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} `
	want := "^" + stamp + "info: alone\n" + stamp + `error: failed watch=1 g\.err="a\\nb" g\.name=x g\.time=2` + "\n$"
	if !regexp.MustCompile(want).Match(b.Bytes()) {
		t.Errorf("got %q", &b)
	}
}

// file returns one that newLogger takes for the journal.
func journal(t *testing.T) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	return f
}

// The journal gets a priority, and the line that says why the daemon ends too.
func TestLogJournal(t *testing.T) {
	f := journal(t)
	log := newLogger(f, ipc.LevelTrace)
	log.Warn("w")
	log.Debug("d")
	quieter(log).Debug("t")
	sayAll(newLogger(f, slog.LevelInfo))
	finish(f, errors.New("no more"))
	got, err := os.ReadFile(f.Name())
	want := "<4>w\n<7>d\n<7>t\n<6>alone\n<3>failed watch=1 g.err=\"a\\nb\" g.name=x g.time=2\n<3>ksmbd-notifyd: no more\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
}

// What writing the log changes in a watched directory is not for the log to tell.
func TestLogOfJournal(t *testing.T) {
	f := journal(t)
	log := newLogger(f, ipc.LevelTrace)
	trace := func(args ...any) { log.Log(t.Context(), ipc.LevelTrace, "change", args...) }
	trace("path", "/var/log/journal/0123/system.journal")
	trace("path", "//run/log/journal/0123/system.journal")
	trace("from", "/var/log/journal/a", "path", "/srv/a")
	trace("path", "/var/log/journals")
	log.Warn("warning", "path", "/var/log/journal")
	got, err := os.ReadFile(f.Name())
	if want := "<7>change path=/var/log/journals\n<4>warning path=/var/log/journal\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
	var b bytes.Buffer
	newLogger(&b, ipc.LevelTrace).Log(t.Context(), ipc.LevelTrace, "change", "path", "/var/log/journal")
	if b.Len() == 0 {
		t.Error("what is not the journal lacks it")
	}
}

// What fanotify says of its work takes -vv.
func TestLogLevels(t *testing.T) {
	for verbose, want := range []string{"i", "d i", "d t i"} {
		var b bytes.Buffer
		log := newLogger(&b, verbosity[verbose])
		log.Debug("d")
		quieter(log).Debug("t")
		quieter(log).Info("i")
		var got []string
		for line := range strings.Lines(b.String()) {
			got = append(got, line[len(line)-2:len(line)-1])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("-v %d times: %q", verbose, &b)
		}
	}
}

// A thousand watches that fail make a few lines, which say that there is more.
func TestLogBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := newLogger(&b, slog.LevelDebug)
		for round := range 2 {
			for i := range 1000 {
				log.Warn("often", "i", i)
			}
			log.Info("seldom", "round", round)
			time.Sleep(burstEvery)
		}
		for range 10 {
			log.Debug("always")
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), ": ")
			got = append(got, line)
		}
		var want []string
		for round := range 2 {
			for i := range maxBurst {
				line := "often i=" + strconv.Itoa(i)
				if i == 0 && round == 1 {
					line += " omitted=995"
				}
				if i == maxBurst-1 {
					line += ` more="omitted for 10s"`
				}
				want = append(want, line)
			}
			want = append(want, "seldom round="+strconv.Itoa(round))
		}
		want = append(want, slices.Repeat([]string{"always"}, 10)...)
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}
