// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/ipc"
)

// goodMachine is one on which everything works, but for its shares.
type goodMachine struct {
	machine
	t       *testing.T
	config  string
	file    string // that modinfo finds, if any
	release string // that the file says
}

func newMachine(t *testing.T) *goodMachine {
	needRoot(t)
	g := &goodMachine{t: t, file: "/lib/modules/6.12.1/updates/ksmbd.ko", release: "1.0"}
	serving, err := json.Marshal(report{Status: ipc.Status{Serving: true, Open: ipc.Open{Watches: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	g.machine = machine{
		release: "6.12.1-amd64",
		root:    t.TempDir(),
		family:  func() error { return nil },
		tools:   func() string { return "3.4.9" },
		open:    fanotify.Open,
		status:  func() ([]byte, error) { return serving, nil },
		modinfo: func(args ...string) (string, error) {
			switch {
			case g.file == "":
				return "", errors.New("exit status 1")
			case slices.Equal(args, []string{"-n", "ksmbd"}):
				return g.file, nil
			case slices.Equal(args, []string{"-F", "notify", "ksmbd"}):
				return g.release, nil
			}
			t.Errorf("modinfo %q", args)
			return "", nil
		},
	}
	g.write("sys/module/ksmbd/refcnt", "1\n")
	g.write("sys/class/ksmbd-control/stats", "2 running 445 1\n")
	g.write("proc/sys/fs/fanotify/max_queued_events", "131072\n")
	g.config = g.write("ksmbd.conf", "[global]\n[Docs]\n\tpath = "+tmpfs(t)+"\n")
	return g
}

func (g *goodMachine) write(name, text string) (path string) {
	g.t.Helper()
	path = filepath.Join(g.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func (g *goodMachine) remove(name string) {
	g.t.Helper()
	if err := os.RemoveAll(filepath.Join(g.root, name)); err != nil {
		g.t.Fatal(err)
	}
}

// checked returns what check says, and whether all is well.
func (g *goodMachine) checked() (string, bool) {
	var b strings.Builder
	ok := g.check(&checker{out: &b}, g.config)
	return b.String(), ok
}

func TestCheckGood(t *testing.T) {
	g := newMachine(t)
	got, ok := g.checked()
	_, path, _ := strings.Cut(got, "Docs: ")
	path, kind, _ := strings.Cut(path, ", ")
	kind, _, _ = strings.Cut(kind, ":")
	want := `ok    kernel    6.12.1-amd64
ok    module    loaded and notifies, release 1.0 in /lib/modules/6.12.1/updates/ksmbd.ko
ok    ksmbd     runs
ok    daemon    serves ksmbd, 3 watches are open
ok    fanotify  tells the names of what changes
ok    queue     fs.fanotify.max_queued_events is 131072
ok    share     Docs: ` + path + ", " + kind + `: all changes are told, by a filesystem mark
`
	if !ok || got != want {
		t.Errorf("%v, got\n%swant\n%s", ok, got, want)
	}
}

// What can be wrong has one line that says what to do, and the exit status says
// so if it will not work.
func TestCheckMistakes(t *testing.T) {
	noFamily := func() error { return ipc.ErrNoFamily }
	for _, test := range []struct {
		name string
		make func(*goodMachine)
		want string
		ok   bool
	}{
		{"no module", func(g *goodMachine) { g.family, g.file = noFamily, "" },
			"FAIL  module    there is no ksmbd in /lib/modules/6.12.1-amd64: install ksmbd-notify-dkms", false},
		{"stock module", func(g *goodMachine) { g.family, g.release = noFamily, "" },
			"FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko is the stock one and cannot notify: install ksmbd-notify-dkms", false},
		{"stock module in memory", func(g *goodMachine) { g.family = noFamily },
			"FAIL  module    the one that is loaded cannot notify, /lib/modules/6.12.1/updates/ksmbd.ko can: " +
				"systemctl stop ksmbd; rmmod ksmbd; systemctl start ksmbd", false},
		{"module not loaded", func(g *goodMachine) { g.family = noFamily; g.remove("sys/module") },
			"FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko can notify and is not loaded: systemctl start ksmbd", false},
		{"stock module at the next boot", func(g *goodMachine) { g.release = "" },
			"note  module    loaded and notifies, but the next boot takes the stock one, /lib/modules/6.12.1/updates/ksmbd.ko: " +
				"install ksmbd-notify-dkms, or run depmod", true},
		{"no netlink", func(g *goodMachine) { g.family = func() error { return unix.EPROTONOSUPPORT } },
			"FAIL  module    protocol not supported", false},
		{"Linux 6.1", func(g *goodMachine) { g.family, g.machine.release = noFamily, "6.1.0-30-amd64" },
			"FAIL  kernel    6.1.0-30-amd64: ksmbd of Linux 6.1 crashes by itself, with or without notifications: boot Linux " + series, false},
		{"Linux without hooks", func(g *goodMachine) { g.family, g.machine.release = noFamily, "6.18.44" },
			"FAIL  kernel    6.18.44: there is no module for Linux 6.18: boot Linux " + series, false},
		{"ksmbd stopped", func(g *goodMachine) { g.write("sys/class/ksmbd-control/stats", "2 startup 445 1\n") },
			"FAIL  ksmbd     does not run: systemctl start ksmbd", false},
		{"ksmbd not loaded", func(g *goodMachine) { g.remove("sys") },
			"FAIL  ksmbd     does not run: systemctl start ksmbd", false},
		{"no daemon", func(g *goodMachine) {
			dir := g.t.TempDir()
			g.status = func() ([]byte, error) { return get(dir, "/status") }
		},
			"FAIL  daemon    the daemon does not run: systemctl enable --now ksmbd-notifyd", false},
		{"daemon waits", func(g *goodMachine) {
			g.status = func() ([]byte, error) { return []byte(`{"waiting":"something"}`), nil }
		},
			"FAIL  daemon    waits, see module: something", false},
		{"old fanotify", func(g *goodMachine) {
			g.open = func(*slog.Logger) (*fanotify.Group, error) { return nil, errors.New("it takes Linux 5.17") }
		}, "FAIL  fanotify  it takes Linux 5.17", false},
		{"queue limit too low", func(g *goodMachine) { g.write("proc/sys/fs/fanotify/max_queued_events", "16384\n") },
			"note  queue     fs.fanotify.max_queued_events is 16384, and clients list directories anew after more changes at once: " +
				"sysctl -w fs.fanotify.max_queued_events=131072", true},
		{"no queue limit", func(g *goodMachine) { g.remove("proc") }, "FAIL  queue     reading fs.fanotify.max_queued_events: ", false},
		{"no configuration", func(g *goodMachine) { g.config = "/nowhere" },
			"FAIL  shares    reading /nowhere: no such file or directory", false},
		{"bad configuration", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs\n") }, "FAIL  shares    reading ", false},
		{"no shares", func(g *goodMachine) { g.write("ksmbd.conf", "[global]\n[IPC$]\n") }, "note  shares    ", true},
		{"no path", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\n") }, "FAIL  share     Docs: has no path in ", false},
		{"no directory", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /nowhere/\n") },
			"FAIL  share     Docs: /nowhere: no such file or directory: make the directory, or correct the share's path", false},
		{"mount point, old ksmbd-tools", func(g *goodMachine) {
			g.tools = func() string { return "3.4.7" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\n")
		}, "FAIL  share     Docs: /dev/shm is a mount point, and ksmbd-tools 3.4.7 serve the directory under it: share a directory in it", false},
		{"mount point, ksmbd-tools", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\n") },
			"ok    share     Docs: /dev/shm, ", true},
		{"share on a filesystem that cannot be marked", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /proc\n") },
			"FAIL  share     Docs: /proc, proc: changes right in a watched directory are told, but not below it: ", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newMachine(t)
			test.make(g)
			got, ok := g.checked()
			lines := slices.Collect(strings.Lines(got))
			n := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, test.want) })
			if n < 0 || ok != test.ok {
				t.Errorf("%v, got\n%swant %s", ok, got, test.want)
			}
		})
	}
}

// The configuration is read as ksmbd.mountd reads it.
func TestReadShares(t *testing.T) {
	for _, test := range []struct {
		config string
		want   []share
	}{
		{"; nothing\n", nil},
		{"[global]\n\tread only = ; yes\n\tpath = \n[a]\n\tcomment = it's \"so\"\n\tpath = /a b # here\n", []share{{"a", "/a b"}}},
		{"[A]\nPATH=/first\npath=/second\n[GLOBAL]\npath = /all\n[b]\n[ipc$]\npath=/x\n", []share{{"A", "/first"}, {"b", "/all"}}},
		{"[global]\nroot directory = /root\n[a]\npath = /a\n", []share{{"a", "/root/a"}}},
		{"[a]\npath = /%(b)s\\\n\tb = c\n", []share{{"a", `/%(b)s\`}}},
		{"[a]\npath = /x\n[a]\npath = /y\n", []share{{"a", "/x"}}},
	} {
		name := filepath.Join(t.TempDir(), "conf")
		if err := os.WriteFile(name, []byte(test.config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readShares(name); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, %v, want %q", test.config, got, err, test.want)
		}
	}
}

func TestMountsHidden(t *testing.T) {
	for version, want := range map[string]bool{
		"3.4.7": true, "3.3.12": true, "3.4.8": true, "2.9.9": true, "3.4.9": false, "3.4.10": false, "3.5.0": false, "3.5": false, "": false,
	} {
		if got := mountsHidden(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// check knows every series that there are hooks for.
func TestSeries(t *testing.T) {
	hooks, err := filepath.Glob("../../kernel/*/hooks.patch")
	if err != nil || len(hooks) == 0 {
		t.Fatalf("no hooks: %v", err)
	}
	for i, path := range hooks {
		hooks[i] = filepath.Base(filepath.Dir(path))
	}
	if got := fmt.Sprint(hooks); got != fmt.Sprint(strings.Fields(strings.ReplaceAll(series, " or ", " "))) {
		t.Errorf("there are hooks for %s, check knows %q", got, series)
	}
}
