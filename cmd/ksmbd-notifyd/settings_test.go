// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

func TestReadSettings(t *testing.T) {
	for _, test := range []struct {
		text string
		want settings
	}{
		{"", settings{metrics: "127.0.0.1:9842"}},
		{"[Global]\nChange Notify = NO ; for now\nmax watches per user=10\nmax queued per client = 512\nmetrics = 9999\nverbose = 1\n[Docs]\nchange notify = yes\n[scratch]\nchange notify = off\n",
			settings{ipc.Policy{Off: true, UserWatches: 10, ClientKiB: 512, Shares: map[string]bool{"docs": true, "scratch": false}}, "127.0.0.1:9999", 1}},
		{"[global]\nmetrics = [::1]:80\n", settings{metrics: "[::1]:80"}},
		{"[global]\nmetrics = 192.0.2.1:80\n", settings{metrics: "192.0.2.1:80"}},
	} {
		if test.want.policy.Shares == nil {
			test.want.policy.Shares = make(map[string]bool)
		}
		if got, err := readSettings(writeSettings(t, test.text)); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %+v, %v, want %+v", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{"change notify = no\n", "[global]\nnotify = no\n", "[global]\nchange notify\n", "[a]\nverbose = 1\n", "[global]\nverbose = -1\n",
		"[global]\nchange notify =\n", "[a]\nchange notify = ; no\n", "[global]\nnotify = \t\n",
		"[global]\nmetrics = localhost:80\n", "[global]\nmetrics = 0\n", "[global]\nmetrics = 70000\n", "[global]\nmetrics = 1.2.3.4:0\n", "[global]\nmax watches per user = many\n", "[global]\nmax queued per client = 64M\n"} {
		if got, err := readSettings(writeSettings(t, text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// A file that is none, or that somebody has named and is not there, is an error and
// holds nobody up.
func TestReadSettingsOfNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo, unreadable := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink("link", unreadable)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/nowhere": "no such file or directory", dir: "is a directory", "/dev/zero": "it has more than 16 MiB, and is no configuration",
		unreadable: "too many levels of symbolic links", writeSettings(t, "[global]\r\nverbose = 1\r\n"): `line 1: "[global]\r": it is neither a section nor a key and its value; ` +
			"it ends in a carriage return, as all lines of Windows do: dos2unix removes them",
		writeSettings(t, "\ufeff[global]\n"):             `line 1: "\ufeff[global]": it is neither a section nor a key and its value; it begins with a byte order mark, remove that`,
		writeSettings(t, strings.Repeat("x", 1000)+"\n"): "line 1: " + strings.Repeat("x", 80) + "...: it is neither a section nor a key and its value",
	} {
		if s, err := readSettings(path); err == nil || err.Error() != "reading "+path+": "+want {
			t.Errorf("%s: %+v, %v, want %s", path, s, err, want)
		}
	}
	if _, err := readSettings(""); err == nil || err.Error() != `reading "": no such file or directory` {
		t.Errorf("no name: %v", err)
	}
	for _, path := range []string{fifo, "/dev/null"} {
		if s, err := readSettings(path); err != nil || !reflect.DeepEqual(s, noSettings()) {
			t.Errorf("%s: %+v, %v", path, s, err)
		}
	}
}

// The file in the package has all settings, with the values that they have without
// it, and all of its lines are in order.
func TestReferenceSettings(t *testing.T) {
	text, err := os.ReadFile("../../packaging/ksmbd-notifyd.conf")
	if err != nil {
		t.Fatal(err)
	}
	none := noSettings()
	if got, err := readSettings("../../packaging/ksmbd-notifyd.conf"); err != nil || !reflect.DeepEqual(got, none) {
		t.Errorf("as it is: %+v, %v", got, err)
	}
	example := regexp.MustCompile(`(?m)^; ?(\[|\t)`).ReplaceAllString(string(text), "$1")
	got, err := readSettings(writeSettings(t, example))
	if err != nil {
		t.Errorf("%v, without the comments:\n%s", err, example)
	}
	if want := map[string]bool{"scratch": false}; !reflect.DeepEqual(got.policy.Shares, want) || got.policy.Off || got.metrics != none.metrics || got.verbose != 0 {
		t.Errorf("without the comments: %+v", got)
	}
	source, err := os.ReadFile("settings.go")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`case "([a-z]+ [a-z ]+|metrics|verbose)":`).FindAllStringSubmatch(string(source), -1)
	if len(keys) != 5 {
		t.Errorf("%d settings: %q", len(keys), keys)
	}
	man, err := os.ReadFile("../../packaging/ksmbd-notifyd.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if !strings.Contains(example, "\n\t"+key[1]+" = ") {
			t.Errorf("%s is not in the file", key[1])
		}
		if !strings.Contains(string(man), ".It Li "+key[1]) {
			t.Errorf("%s is not in the man page", key[1])
		}
	}
}

// However much is in a file, reading it takes no longer for each line.
func TestManySections(t *testing.T) {
	var sections, keys strings.Builder
	sections.WriteString("[all]\n")
	keys.WriteString("[global]\npath = /\n")
	for i := range 100000 {
		fmt.Fprintf(&sections, "[\u00e4%d]\nchange notify = no\n", i)
		fmt.Fprintf(&keys, "key%d = x\n", i)
	}
	start := time.Now()
	if s, err := readSettings(writeSettings(t, sections.String())); err != nil || len(s.policy.Shares) != 100000 {
		t.Errorf("%d shares, %v", len(s.policy.Shares), err)
	}
	for _, text := range []string{sections.String(), keys.String()} {
		if c, err := parseConf(text, newestTools); err != nil || len(readShares(c)) != len(c.sections)-strings.Count(text, "[global]") {
			t.Error(err)
		}
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// What is wrong with settings is one line, whatever is in them, and not a long one.
func TestOddSettingsAreOneLine(t *testing.T) {
	for _, text := range []string{"[global]\nmetrics = " + strings.Repeat("\u202e", 100000) + "\n", "[global]\n" + strings.Repeat("k", 100000) + " = 1\n",
		"[a\u009b2J]\nchange notify = x\n", "[a\u2028]\nb\u202ec = x\n", "\x1b[2J\n", "[a]\nchange notify = \u009b\n"} {
		file := filepath.Join(t.TempDir(), "settings")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr strings.Builder
		status := run([]string{"-t", "--settings", file}, &stdout, &stderr)
		line, end, _ := strings.Cut(stderr.String(), "\n")
		if status != 1 || end != "" || visible(line) != line || len(line) > 1000 || !strings.HasPrefix(line, "ksmbd-notifyd: ") {
			t.Errorf("%q: status %d, %q", text, status, &stderr)
		}
	}
}
