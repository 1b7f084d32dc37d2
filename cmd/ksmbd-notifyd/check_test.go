// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/ipc"
)

// goodMachine is one on which everything works, but for its shares.
type goodMachine struct {
	machine
	t        *testing.T
	config   string
	settings string
	file     string // that modinfo finds, if any
	release  string // that the file says
	report   report // what the daemon says
}

func newMachine(t *testing.T) *goodMachine {
	needRoot(t)
	g := &goodMachine{t: t, file: "/lib/modules/6.12.1/updates/ksmbd.ko", release: "1.0"}
	g.report = report{Version: version, Server: serverRuns, Status: ipc.Status{Serving: true, Open: ipc.Open{Watches: 3}}}
	g.machine = machine{
		release: "6.12.1-amd64",
		root:    t.TempDir(),
		family:  func() error { return nil },
		tools:   func() string { return "3.4.9" },
		known:   func(_, name string) bool { return name == "anne" },
		open:    fanotify.Open,
		try: func(path, tools string) tried {
			group, err := fanotify.Open(slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return tried{}
			}
			defer group.Close()
			return tryPath(group, path, tools)
		},
		status: func() ([]byte, error) { return json.Marshal(g.report) },
		modinfo: func(args ...string) (string, error) {
			switch {
			case len(args) == 3 && strings.Contains(args[2], "/"): // a file, which has only that
				text, err := os.ReadFile(args[2])
				return string(text), err
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
	g.write("run/ksmbd.lock", "123\n")
	g.write("proc/123/cmdline", "ksmbd.mountd\x00")
	g.link("net:[1]", "proc/self/ns/net")
	g.link("net:[1]", "proc/1/ns/net")
	g.settings = g.write("ksmbd-notifyd.conf", "")
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

func (g *goodMachine) link(target, name string) {
	g.t.Helper()
	path := filepath.Join(g.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		g.t.Fatal(err)
	}
	os.Remove(path)
	if err := os.Symlink(target, path); err != nil {
		g.t.Fatal(err)
	}
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
	var c checker
	ok := g.check(&c, g.config, g.settings)
	if err := c.print(&b, false); err != nil {
		g.t.Error(err)
	}
	checkSaid = append(checkSaid, slices.Collect(strings.Lines(b.String()))...)
	return b.String(), ok
}

// TestCheck tries what check says, and that nothing that it can say is left out.
func TestCheck(t *testing.T) {
	needRoot(t)
	checkSaid = nil
	good := t.Run("Good", testCheckGood)
	mistakes := t.Run("Mistakes", testCheckMistakes)
	stuck := t.Run("StuckShare", testCheckStuckShare)
	if !good || !mistakes || !stuck {
		return // they need not have said all
	}
	for _, l := range printed(t) {
		if !slices.ContainsFunc(checkSaid, l.MatchString) {
			t.Errorf("no test has the line %s", l)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`(?m)^    ((?:ok  |note|FAIL)  [a-z]+ +)(.*)$`).FindAllStringSubmatch(string(readme), -1)
	for _, m := range shown {
		words, _, _ := strings.Cut(m[2], "…")
		words = regexp.MustCompile(`^(?:[A-Za-z]+: )?(?:/[a-z/]+(?:, [a-z0-9.]+)?: )?`).ReplaceAllString(words, "") // the share's own
		words = regexp.MustCompile(`[0-9][-+.a-z0-9]*|/lib/modules/[^ ]*`).ReplaceAllString(words, "\x00")
		words = strings.ReplaceAll(regexp.QuoteMeta(words), "\x00", ".*")
		pattern := regexp.MustCompile("^" + m[1] + ".*" + words)
		if !slices.ContainsFunc(checkSaid, pattern.MatchString) {
			t.Errorf("README shows what no test has check say: %s%s", m[1], m[2])
		}
	}
	if len(shown) < 9 {
		t.Errorf("README shows only %d lines of check", len(shown))
	}
	said := strings.Join(checkSaid, "")
	for _, words := range wordsOfCheck(t) {
		if !strings.Contains(said, words) {
			t.Errorf("no test has check say %q", words)
		}
	}
}

// checkSaid has all lines that check has said in a test.
var checkSaid []string

func testCheckGood(t *testing.T) {
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
func testCheckMistakes(t *testing.T) {
	noFamily := func() error { return ipc.ErrNoFamily }
	// A kernel that is installed, and what there is of it.
	kernel := func(g *goodMachine, release string, more ...string) {
		g.write("lib/modules/"+release+"/kernel/fs/ext4.ko", "")
		g.write("usr/src/ksmbd-notify-1.0/dkms.conf", "")
		for _, name := range more {
			g.write(name, "1.0")
		}
	}
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
				"systemctl stop ksmbd && modprobe -r ksmbd && systemctl start ksmbd", false},
		{"module not loaded", func(g *goodMachine) { g.family = noFamily; g.remove("sys/module") },
			"FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko can notify and is not loaded: systemctl start ksmbd", false},
		{"stock module at the next boot", func(g *goodMachine) { g.release = "" },
			"note  module    loaded and notifies, but the next boot takes the stock one, /lib/modules/6.12.1/updates/ksmbd.ko: " +
				"install ksmbd-notify-dkms, or run depmod", true},
		{"no module at the next boot", func(g *goodMachine) { g.file = "" },
			"note  module    loaded and notifies, but modinfo finds none for the next boot: install ksmbd-notify-dkms, or run depmod\n", true},
		{"a module of another release", func(g *goodMachine) { g.write("sys/module/ksmbd/version", "0.9\n") },
			"note  module    loaded and notifies, but of release 0.9, and /lib/modules/6.12.1/updates/ksmbd.ko is of 1.0: " +
				"systemctl stop ksmbd && modprobe -r ksmbd && systemctl start ksmbd\n", true},
		{"a module for another kernel", func(g *goodMachine) {
			g.family, g.release = noFamily, ""
			kernel(g, "6.12.0-amd64", "lib/modules/6.12.0-amd64/updates/dkms/ksmbd.ko")
		}, "FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko is the stock one and cannot notify: there is one that can for Linux 6.12.0-amd64, " +
			"not for this: boot that, or install linux-headers-6.12.1-amd64", false},
		{"a module for another kernel, no source", func(g *goodMachine) {
			g.family, g.file = noFamily, ""
			kernel(g, "6.12.0-amd64", "lib/modules/6.12.0-amd64/updates/ksmbd.ko", "lib/modules/6.12.1-amd64/build/include/x")
		}, "FAIL  module    there is no ksmbd in /lib/modules/6.12.1-amd64: there is one that can for Linux 6.12.0-amd64, " +
			"not for this: boot that, or install linux-source-6.12", false},
		{"a module for another kernel, all that it takes", func(g *goodMachine) {
			g.family, g.file = noFamily, ""
			kernel(g, "6.12.0-amd64", "lib/modules/6.12.0-amd64/updates/ksmbd.ko", "lib/modules/6.12.1-amd64/build/include/x", "usr/src/linux-source-6.12.tar.xz")
		}, "FAIL  module    there is no ksmbd in /lib/modules/6.12.1-amd64: there is one that can for Linux 6.12.0-amd64, " +
			"not for this: boot that, or dkms install ksmbd-notify/1.0 -k 6.12.1-amd64", false},
		{"a module for another kernel, of no series", func(g *goodMachine) {
			g.family, g.file, g.machine.release = noFamily, "", "9.1.0-amd64"
			kernel(g, "6.12.0-amd64", "lib/modules/6.12.0-amd64/updates/ksmbd.ko")
		}, "FAIL  module    there is no ksmbd in /lib/modules/9.1.0-amd64: there is one that can for Linux 6.12.0-amd64: boot that\n", false},
		{"DKMS without headers", func(g *goodMachine) { g.family, g.file = noFamily, ""; kernel(g, "6.12.1-amd64") },
			"FAIL  module    there is no ksmbd in /lib/modules/6.12.1-amd64: ksmbd-notify-dkms is installed and has not built it: " +
				"install linux-headers-6.12.1-amd64\n", false},
		{"DKMS that could not build it", func(g *goodMachine) {
			g.family, g.release = noFamily, ""
			kernel(g, "6.12.1-amd64")
			g.write("var/lib/ksmbd-notify/6.12.1-amd64", "ksmbd-notify-dkms: kernel 6.12.1-amd64 keeps its own ksmbd, which tells no changes: "+
				"/x.tar.xz: it cannot be unpacked, fetch it anew; then: /usr/src/ksmbd-notify-1.0/install.sh\n")
		}, "FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko is the stock one and cannot notify: ksmbd-notify-dkms is installed and has not built it: " +
			"/x.tar.xz: it cannot be unpacked, fetch it anew; then: /usr/src/ksmbd-notify-1.0/install.sh\n", false},
		{"DKMS that could not build it for the next kernel", func(g *goodMachine) {
			kernel(g, "6.12.9-amd64")
			g.write("var/lib/ksmbd-notify/6.12.9-amd64", "ksmbd-notify-dkms: kernel 6.12.9-amd64 keeps its own ksmbd, which tells no changes: the disk is full; then: x\n")
		}, "note  next      Linux 6.12.9-amd64 is installed too and has no module yet: after the next boot nothing is told: the disk is full; then: x\n", true},
		{"DKMS that said something else", func(g *goodMachine) {
			kernel(g, "6.12.9-amd64")
			g.write("var/lib/ksmbd-notify/6.12.9-amd64", "\x00\xff\n")
		}, "note  next      Linux 6.12.9-amd64 is installed too and has no module yet: after the next boot nothing is told: install linux-headers-6.12.9-amd64\n", true},
		{"DKMS with a kernel of no series", func(g *goodMachine) {
			g.family, g.release, g.machine.release = noFamily, "", "9.1.0-amd64"
			kernel(g, "9.1.0-amd64")
		}, "FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko is the stock one and cannot notify: boot Linux " + series + "\n", false},
		{"no module for a kernel of no series", func(g *goodMachine) { g.family, g.file, g.machine.release = noFamily, "", "6.18.44" },
			"FAIL  module    there is no ksmbd in /lib/modules/6.18.44: boot Linux " + series + " and install ksmbd-notify-dkms\n", false},
		{"Secure Boot", func(g *goodMachine) {
			g.family = noFamily
			g.remove("sys/module")
			g.write("sys/firmware/efi/efivars/SecureBoot-8be4df61", "\x06\x00\x00\x00\x01")
		}, "FAIL  module    /lib/modules/6.12.1/updates/ksmbd.ko can notify and is not loaded: systemctl start ksmbd; " +
			"with Secure Boot DKMS's key must be enrolled before: mokutil --import /var/lib/dkms/mok.pub, then reboot\n", false},
		{"another network namespace", func(g *goodMachine) { g.family = noFamily; g.link("net:[2]", "proc/self/ns/net") },
			"FAIL  module    out of sight: this is a network namespace of its own, as of a container, and ksmbd's family is in the host's alone: " +
				"run ksmbd-notifyd on the host", false},
		{"container", func(g *goodMachine) { g.family = noFamily; g.write("sys/module/ksmbd/version", "1.0\n") },
			"FAIL  module    out of sight: ", false},
		{"next kernel has it", func(g *goodMachine) {
			kernel(g, "6.12.9-amd64", "lib/modules/6.12.9-amd64/updates/dkms/ksmbd.ko.xz")
		}, "ok    module    ", true},
		{"an older kernel without it", func(g *goodMachine) { kernel(g, "6.12.1-amd64"); kernel(g, "6.1.0-1-amd64") }, "ok    module    ", true},
		{"next kernel without headers", func(g *goodMachine) { kernel(g, "6.12.9-amd64"); kernel(g, "6.12.10-amd64") },
			"note  next      Linux 6.12.10-amd64 is installed too and has no module yet: after the next boot nothing is told: " +
				"install linux-headers-6.12.10-amd64", true},
		{"next kernel of no series", func(g *goodMachine) { kernel(g, "9.1.0-amd64") },
			"note  next      Linux 9.1.0-amd64 is installed too, and there is no module for it: after the next boot nothing is told; boot Linux " + series, true},
		{"kernels come without headers", func(g *goodMachine) {
			kernel(g, "6.12.1-amd64")
			g.write("var/lib/dpkg/status", "Package: linux-image-amd64\nStatus: install ok installed\n\nPackage: linux-headers-6.12.1-amd64\n"+
				"Status: install ok installed\n\nPackage: linux-image-6.12.1-amd64\nStatus: install ok installed\n\n"+
				"Package: linux-image-cloud-amd64\nStatus: install ok installed\n\nPackage: linux-headers-cloud-amd64\nStatus: install ok installed\n\n"+
				"Package: linux-image-6.1-amd64\nStatus: deinstall ok config-files\n")
		}, "note  next      linux-image-amd64 brings kernels without the headers that the module is built with: apt install linux-headers-amd64\n", true},
		{"no netlink", func(g *goodMachine) { g.family = func() error { return unix.EPROTONOSUPPORT } },
			"FAIL  module    protocol not supported", false},
		{"Linux 6.1", func(g *goodMachine) { g.family, g.machine.release = noFamily, "6.1.0-30-amd64" },
			"FAIL  kernel    6.1.0-30-amd64: ksmbd of Linux 6.1 crashes by itself, with or without notifications: boot Linux " + series, false},
		{"Linux without hooks", func(g *goodMachine) { g.family, g.machine.release = noFamily, "6.18.44" },
			"FAIL  kernel    6.18.44: there is no module for Linux 6.18: boot Linux " + series, false},
		{"ksmbd stopped", func(g *goodMachine) { g.write("sys/class/ksmbd-control/stats", "2 startup 445 1\n") },
			"FAIL  ksmbd     does not run: systemctl start ksmbd", false},
		{"no ksmbd-tools", func(g *goodMachine) { g.remove("sys"); g.tools = func() string { return "" } },
			"FAIL  ksmbd     does not run, and there are no ksmbd-tools to run it: install ksmbd-tools\n", false},
		{"ksmbd not loaded", func(g *goodMachine) { g.remove("sys") },
			"FAIL  ksmbd     does not run: systemctl start ksmbd", false},
		{"mountd died", func(g *goodMachine) { g.remove("proc/123") },
			"FAIL  ksmbd     answers, but ksmbd.mountd has died, and nobody can log in any more: systemctl restart ksmbd", false},
		{"mountd ended", func(g *goodMachine) { g.remove("run") }, "FAIL  ksmbd     answers, but ksmbd.mountd has died", false},
		{"another has mountd's id", func(g *goodMachine) { g.write("proc/123/cmdline", "bash\x00") }, "FAIL  ksmbd     answers, but ksmbd.mountd has died", false},
		{"mountd of ksmbd-tools that were built by hand", func(g *goodMachine) {
			g.remove("run")
			g.write("usr/local/var/run/ksmbd.lock", "123\n")
		}, "ok    ksmbd     runs\n", true},
		{"daemon of a ksmbd that stopped", func(g *goodMachine) { g.report.Server = "shutdown" }, "ok    daemon    is ready to serve ksmbd\n", true},
		{"settings", func(g *goodMachine) {
			g.write("ksmbd-notifyd.conf", "[global]\nmax watches per user = 7\n")
			g.report.Policy.UserWatches = 7
		}, "ok    settings  ROOT/ksmbd-notifyd.conf: a user may have 7 watches\n", true},
		{"settings that the daemon does not have", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmax watches per user = 7\n") },
			"note  settings  ROOT/ksmbd-notifyd.conf has changed since the daemon read it: systemctl reload ksmbd-notifyd\n", true},
		{"bad settings", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmax watches = 7\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [global] max watches = 7: there is no such setting: a daemon that starts with them ends\n", false},
		{"settings of no share", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[Photos]\nchange notify = no\n") },
			"note  settings  there is no share photos in ROOT/ksmbd.conf to which settings could apply\n", true},
		{"share that is off", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[docs]\nchange notify = no\n") },
			"note  share     Docs: /dev/shm/", true},
		{"share that is off, in full", func(g *goodMachine) {
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\n")
			g.write("ksmbd-notifyd.conf", "[global]\nchange notify = no\n")
		}, "note  share     Docs: /dev/shm: change notify is off, and no changes are told\n", true},
		{"no daemon", func(g *goodMachine) {
			dir := g.t.TempDir()
			g.status = func() ([]byte, error) { return get(dir, "/status") }
		},
			"FAIL  daemon    the daemon does not run: systemctl enable --now ksmbd-notifyd", false},
		{"a daemon of another release", func(g *goodMachine) { g.report.Version = "0.9" },
			"note  daemon    the one that runs is of release 0.9, this is unknown: systemctl restart ksmbd-notifyd\n", true},
		{"a daemon that says something else", func(g *goodMachine) {
			g.status = func() ([]byte, error) { return []byte(`{"version": 3}`), nil }
		}, "FAIL  daemon    the daemon that runs is of another release, and does not understand this: systemctl restart ksmbd-notifyd\n", false},
		{"daemon waits", func(g *goodMachine) {
			g.report = report{Version: version, Status: ipc.Status{Waiting: "something"}}
		},
			"FAIL  daemon    waits, see module: something", false},
		{"old fanotify", func(g *goodMachine) {
			g.open = func(*slog.Logger) (*fanotify.Group, error) { return nil, errors.New("it takes Linux 5.17") }
		}, "FAIL  fanotify  it takes Linux 5.17", false},
		{"queue limit too low", func(g *goodMachine) { g.write("proc/sys/fs/fanotify/max_queued_events", "16384\n") },
			"note  queue     fs.fanotify.max_queued_events is 16384, and clients list directories anew after more changes at once: " +
				"sysctl -w fs.fanotify.max_queued_events=131072", true},
		{"no queue limit", func(g *goodMachine) { g.remove("proc/sys") }, "note  queue     fs.fanotify.max_queued_events cannot be read, whether that is enough is not known: no such file or directory\n", true},
		{"no configuration", func(g *goodMachine) { g.config = "/nowhere" },
			"FAIL  shares    reading /nowhere: no such file or directory: ksmbd.addshare makes it, with a share\n", false},
		{"bad configuration", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs\n") }, "FAIL  shares    reading ", false},
		{"no shares", func(g *goodMachine) { g.write("ksmbd.conf", "[global]\n[IPC$]\n") }, "note  shares    ", true},
		{"no path", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\n") }, "FAIL  share     Docs: has no path in ", false},
		{"no directory", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /nowhere/\n") },
			"FAIL  share     Docs: /nowhere: no such file or directory: make the directory, or correct the share's path", false},
		{"symbolic link", func(g *goodMachine) {
			g.link("/dev/shm", "link")
			g.write("ksmbd.conf", "[Docs]\npath = "+g.root+"/link/\n")
		}, "FAIL  share     Docs: ROOT/link is a symbolic link, which ksmbd does not follow: give the share the path that it leads to\n", false},
		{"symbolic link on the way", func(g *goodMachine) {
			g.link("/dev", "link")
			g.write("ksmbd.conf", "[Docs]\npath = "+g.root+"/link/shm\n")
		}, "FAIL  share     Docs: ROOT/link is a symbolic link, which ksmbd does not follow: give the share the path that it leads to\n", false},
		{"relative path", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = dev/shm\n") },
			"FAIL  share     Docs: dev/shm does not begin with /, and ksmbd finds it nowhere: give the whole path\n", false},
		{"several paths", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /dev\nPATH = /dev/shm\n") },
			"FAIL  share     Docs: has several paths, /dev and /dev/shm, and ksmbd-tools 3.4.9 take any of them: leave one\n", false},
		{"force user", func(g *goodMachine) {
			g.tools = func() string { return "3.5.3" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\nforce user = anne\n")
		}, "ok    share     Docs: /dev/shm, ", true},
		{"nobody to force", func(g *goodMachine) {
			g.tools = func() string { return "3.5.3" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\nforce user = anne ; a comment\n")
		}, "FAIL  share     Docs: ksmbd-tools 3.5.3 leave it out: there is no user \"anne \" for force user\n", false},
		{"nobody to force, by ksmbd-tools of no version", func(g *goodMachine) {
			g.tools = func() string { return "" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\nforce user = bob\n")
		}, "FAIL  share     Docs: ksmbd-tools leave it out: there is no user bob for force user\n", false},
		{"a path that no process can be given", func(g *goodMachine) {
			g.try = func(path, tools string) tried { return tryElsewhere(time.Minute, path, tools) }
			g.write("ksmbd.conf", "[Docs]\npath = /"+strings.Repeat("x", 200000)+"\n")
		}, "FAIL  share     Docs: /" + strings.Repeat("x", 200000) + ": trying it failed: argument list too long\n", false},
		{"no group to force", func(g *goodMachine) {
			g.tools = func() string { return "3.5.6" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\nForce Group = staff\n")
		}, "FAIL  share     Docs: ksmbd-tools 3.5.6 leave it out: there is no group staff for force group\n", false},
		{"nobody to force, old ksmbd-tools", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\nforce user = nobody-there\n") },
			"ok    share     Docs: /dev/shm, ", true},
		{"nobody to force anywhere", func(g *goodMachine) {
			g.tools = func() string { return "3.5.3" }
			g.write("ksmbd.conf", "[global]\nforce user = bob\n[Docs]\npath = /dev/shm\nforce user = anne\n")
		}, "FAIL  shares    reading ROOT/ksmbd.conf: there is no user bob for force user: ksmbd.mountd does not start with it\n", false},
		{"a comment of another encoding", func(g *goodMachine) {
			g.tools = func() string { return "3.5.3" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\ncomment = \xc4rger\n")
		}, "FAIL  share     Docs: ksmbd-tools 3.5.3 leave it out: the comment \"\\xc4rger\" is not UTF-8\n", false},
		{"settings that a terminal would heed", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[a\u009b2J]\nchange notify = perhaps\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [a\\u009b2J] change notify = perhaps: it is yes or no: a daemon that starts with them ends\n", false},
		{"comment behind a path, old ksmbd-tools", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /dev/shm ; mine\n") },
			"FAIL  share     Docs: /dev/shm ; mine: no such file or directory: ", false},
		{"no end of the last line", func(g *goodMachine) { g.write("ksmbd.conf", "[Docs]\npath = /dev/shm/") },
			"note  shares    the last line of ROOT/ksmbd.conf has no end, and ksmbd-tools 3.4.9 ignore its last character: end it\n", true},
		{"a share that cannot be tried", func(g *goodMachine) {
			g.try = func(path, tools string) tried { return tryElsewhere(time.Minute, path, tools) }
			g.t.Setenv("KSMBD_NOTIFYD_TEST_FILES", "4")
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\n")
		}, "FAIL  share     Docs: /dev/shm: trying it failed: the process for that has ended\n", false},
		{"settings for a client that the daemon does not have", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmax queued per client = 7\n") },
			"note  settings  ROOT/ksmbd-notifyd.conf has changed since the daemon read it: systemctl reload ksmbd-notifyd\n", true},
		{"settings that are no number", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmax watches per user = many\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [global] max watches per user = many: it is a number from 0 to 1073741824: a daemon that starts with them ends\n", false},
		{"settings that are no size", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmax queued per client = 1M\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [global] max queued per client = 1M: it is a number from 0 to 1048576: a daemon that starts with them ends\n", false},
		{"settings that are no address", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[global]\nmetrics = here\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [global] metrics = here: it is a port of 127.0.0.1, or ADDRESS:PORT: a daemon that starts with them ends\n", false},
		{"a configuration that is none", func(g *goodMachine) {
			g.write("ksmbd.conf", "")
			if err := os.Truncate(g.config, 1<<30); err != nil {
				g.t.Fatal(err)
			}
		}, "FAIL  shares    reading ROOT/ksmbd.conf: it has more than 16 MiB, and is no configuration: ksmbd.mountd does not start with it\n", false},
		{"settings that are twice there", func(g *goodMachine) {
			g.write("ksmbd-notifyd.conf", "[Docs]\nchange notify = yes\n[docs]\nChange Notify = no\n")
		}, "FAIL  settings  reading ROOT/ksmbd-notifyd.conf: line 4: Change Notify = no: [Docs] has that key already: a daemon that starts with them ends\n", false},
		{"settings without a value", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[Docs]\nchange notify = ; no\n") },
			"FAIL  settings  reading ROOT/ksmbd-notifyd.conf: line 2: change notify = ; no: the key has no value: a daemon that starts with them ends\n", false},
		{"settings of all for a share", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "[Docs]\nverbose = 1\n") },
			"FAIL  settings  ROOT/ksmbd-notifyd.conf, [Docs] verbose = 1: it is for all shares, and stands in [global]: a daemon that starts with them ends\n", false},
		{"settings of the share for names", func(g *goodMachine) {
			g.write("ksmbd.conf", "[Docs]\npath = /dev/shm\n[IPC$]\ncomment = x\n")
			g.write("ksmbd-notifyd.conf", "[ipc$]\nchange notify = no\n")
		}, "note  settings  there is no share ipc$ in ROOT/ksmbd.conf to which settings could apply\n", true},
		{"settings of no section", func(g *goodMachine) { g.write("ksmbd-notifyd.conf", "verbose = 1\n") },
			"FAIL  settings  reading ROOT/ksmbd-notifyd.conf: line 1: verbose = 1: it is in no section: a daemon that starts with them ends\n", false},
		{"a configuration of Windows", func(g *goodMachine) {
			g.tools = func() string { return "3.5.6" }
			g.write("ksmbd.conf", "[Docs]\r\npath = /dev/shm\r\n")
		}, "FAIL  shares    reading ROOT/ksmbd.conf: line 1: ", false},
		{"a configuration with a byte order mark", func(g *goodMachine) {
			g.tools = func() string { return "3.5.6" }
			g.write("ksmbd.conf", "\ufeff[Docs]\npath = /dev/shm\n")
		}, "FAIL  shares    reading ROOT/ksmbd.conf: line 1: ", false},
		{"a key that is none", func(g *goodMachine) {
			g.tools = func() string { return "3.5.6" }
			g.write("ksmbd.conf", "[Docs]\npa\x01th = /dev/shm\n")
		}, "FAIL  shares    reading ROOT/ksmbd.conf: line 2: \"pa\\x01th = /dev/shm\": the key has a character that it may not have: ksmbd.mountd does not start with it\n", false},
		{"a value that is none", func(g *goodMachine) {
			g.tools = func() string { return "3.5.6" }
			g.write("ksmbd.conf", "[Docs]\npath = /dev\x01/shm\n")
		}, "FAIL  shares    reading ROOT/ksmbd.conf: line 2: \"path = /dev\\x01/shm\": the value has a character that it may not have: ksmbd.mountd does not start with it\n", false},
		{"overlay", func(g *goodMachine) {
			dir := g.mount("overlay", "overlay", "lowerdir=LOWER,upperdir=UPPER,workdir=WORK")
			g.write("ksmbd.conf", "[Docs]\npath = "+dir+"\n")
		}, "note  share     Docs: ROOT/overlay, overlay: only what goes through this mount is told, by ", true},
		{"overlay below", func(g *goodMachine) {
			g.mount("share", "tmpfs", "")
			g.mount("share/overlay", "overlay", "lowerdir=LOWER,upperdir=UPPER,workdir=WORK")
			g.write("ksmbd.conf", "[Docs]\npath = "+g.root+"/share\n")
		}, "note  share     Docs: ROOT/share, tmpfs: all changes are told, by a filesystem mark, but of ROOT/share/overlay, overlay, " +
			"only what goes through that mount\n", true},
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
			lines := slices.Collect(strings.Lines(strings.ReplaceAll(got, g.root, "ROOT")))
			n := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, test.want) })
			if n < 0 || ok != test.ok {
				t.Errorf("%v, got\n%swant %s", ok, got, test.want)
			}
		})
	}
}

// Names are asked for as long as that is answered.
func TestAskNames(t *testing.T) {
	known := askNames(time.Minute)
	for name, want := range map[string]bool{"root": true, "nobody-there": false, "0": false, "--help": false} {
		if known("passwd", name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "getent"), []byte("#!/bin/sh\n[ $3 = slow ] && exec /bin/sleep 60\nexit 2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	began := time.Now()
	known = askNames(time.Second)
	for range 100 {
		if !known("passwd", "slow") || !known("passwd", "nobody-there") {
			t.Error("it is not known that nobody answers")
		}
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	t.Setenv("PATH", t.TempDir())
	if known := askNames(time.Minute); !known("passwd", "nobody-there") {
		t.Error("it is known without getent")
	}
}

// stuckAt mounts a FUSE filesystem, whose program does not answer from now on.
func stuckAt(t *testing.T, dir string) {
	t.Helper()
	if err := mountFUSE(t, tmpfs(t), dir).Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// mountFUSE mounts a FUSE filesystem that shows what is in another directory.
func mountFUSE(t *testing.T, from, dir string) (server *exec.Cmd) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	server = exec.Command("bindfs", "-f", from, dir)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGCONT)
		unix.Unmount(dir, unix.MNT_DETACH)
		server.Process.Kill()
		server.Wait()
	})
	for !isMountPoint(dir) {
		if t.Context().Err() != nil || server.Process.Signal(syscall.Signal(0)) != nil {
			t.Fatal("bindfs does not mount")
		}
		time.Sleep(time.Millisecond)
	}
	return server
}

// A share that hangs costs its own line, and check ends. What hangs below a share
// costs what is told of that.
func testCheckStuckShare(t *testing.T) {
	g := newMachine(t)
	dir := filepath.Join(g.root, "stuck")
	share := g.mount("share", "tmpfs", "")
	stuckAt(t, dir)
	stuckAt(t, share+"/a/b\nc")
	stuckAt(t, share+"/d")
	g.try = func(path, tools string) tried {
		limit := time.Minute
		if path == dir {
			limit = time.Second
		}
		return tryElsewhere(limit, path, tools)
	}
	g.write("ksmbd.conf", "[Stuck]\npath = "+dir+"\n[Docs]\npath = /dev/shm\n[None]\npath = /nowhere\n[Below]\npath = "+share+"\n")
	got, ok := g.checked()
	silent := ", fuse, which has not answered in 5s: " + whyStuck
	for _, want := range []string{
		"FAIL  share     Stuck: " + dir + ": it has not answered in 1s: a FUSE program, a server or a disk is stuck\n",
		"ok    share     Docs: /dev/shm, ", "FAIL  share     None: /nowhere: no such file or directory",
		"note  share     Below: " + share + ", tmpfs: all changes are told, by a filesystem mark, but of \"" + share + "/a/b\\nc\", fuse, only what goes through that mount; " +
			"nothing of \"" + share + "/a/b\\nc\"" + silent + "; nothing of " + share + "/d" + silent + "\n",
	} {
		if ok || !strings.Contains(got, want) {
			t.Errorf("%v, got\n%swant %s", ok, got, want)
		}
	}
}

// mount mounts a filesystem in the machine's root; LOWER, UPPER and WORK are
// directories of a tmpfs.
func (g *goodMachine) mount(name, kind, options string) (dir string) {
	g.t.Helper()
	under := tmpfs(g.t)
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(under, d), 0o700); err != nil {
			g.t.Fatal(err)
		}
		options = strings.ReplaceAll(options, strings.ToUpper(d), filepath.Join(under, d))
	}
	dir = filepath.Join(g.root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		g.t.Fatal(err)
	}
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		g.t.Fatalf("mounting %s: %v", kind, err)
	}
	g.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// printed returns a pattern for each line that check has words for, and for each
// reason of its own that it has.
func printed(t *testing.T) (lines []*regexp.Regexp) {
	t.Helper()
	var text func(e ast.Expr) (string, bool)
	text = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			s, err := strconv.Unquote(e.Value)
			return s, err == nil && e.Kind == token.STRING
		case *ast.BinaryExpr:
			x, xok := text(e.X)
			y, yok := text(e.Y)
			return x + y, xok && yok
		}
		return "", false
	}
	verdicts := map[string]string{"ok": "ok", "note": "note", "fail": "FAIL"}
	for _, name := range []string{"check.go", "nextkernel.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			verdict, isLine := verdicts[f.Sel.Name]
			format, subject := call.Args[0], ""
			if isLine && len(call.Args) > 1 {
				subject, _ = text(call.Args[0])
				format = call.Args[1]
			}
			words, ok := text(format)
			if !ok || !isLine && f.Sel.Name != "Errorf" || strings.HasPrefix(words, "unexpected argument") || strings.HasPrefix(words, "writing:") {
				return true
			}
			pattern := regexp.MustCompile(`%[a-z]`).ReplaceAllString(regexp.QuoteMeta(words), ".*")
			if isLine {
				pattern = fmt.Sprintf("^%-4s  %-8s  %s", verdict, subject, pattern)
			}
			lines = append(lines, regexp.MustCompile(pattern))
			return true
		})
	}
	if len(lines) < 40 {
		t.Errorf("only %d lines were found", len(lines))
	}
	return lines
}

// unsaid is what does not come out: of another's text, of the configuration, and what is
// told in other words.
var unsaid = []string{"which tells no changes:", "IPC share", "root directory", errNoAnswer.Error()}

// wordsOfCheck returns what stands in the source of whatever check may print: each
// string of several words, in parts where something is put into it.
func wordsOfCheck(t *testing.T) (words []string) {
	t.Helper()
	for name, not := range map[string]string{
		// Of the functions that say something else.
		"check.go": "runCheck encode", "nextkernel.go": "imagesWithoutHeaders", "look.go": "answers", "settings.go": "noSettings", "ksmbdconf.go": "",
	} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && slices.Contains(strings.Fields(not), f.Name.Name) {
				continue
			}
			ast.Inspect(d, func(n ast.Node) bool {
				if v, ok := n.(*ast.ValueSpec); ok && strings.HasSuffix(v.Names[0].Name, "Usage") {
					return false
				}
				l, ok := n.(*ast.BasicLit)
				if !ok || l.Kind != token.STRING {
					return true
				}
				text, err := strconv.Unquote(l.Value)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(strings.Trim(text, " "), " ") {
					for _, part := range regexp.MustCompile(`%-?[0-9]*[a-zA-Z]`).Split(text, -1) {
						if part = strings.TrimSpace(part); len(part) > 2 && !slices.Contains(unsaid, part) {
							words = append(words, part)
						}
					}
				}
				return true
			})
		}
	}
	if len(words) < 100 {
		t.Errorf("only %d were found", len(words))
	}
	return words
}

// ksmbd.mountd may have been started with another configuration.
func TestMountdConfig(t *testing.T) {
	for args, want := range map[string]string{
		"ksmbd.mountd": "", "/usr/sbin/ksmbd.mountd -n": "", "ksmbd.mountd -n -C /x -P /y": "/x", "ksmbd.mountd -c /x -u /y": "/x",
		"ksmbd.mountd --pwddb=/y --config=/x": "/x", "ksmbd.mountd -p 445 -C/x": "/x", "bash -C /x": "",
		"ksmbd.mountd -C x/../y": "/dir/y", "ksmbd.mountd -c ./x": "/dir/x",
	} {
		g := newMachine(t)
		g.link("/dir", "proc/123/cwd")
		g.write("proc/123/cmdline", strings.ReplaceAll(args, " ", "\x00")+"\x00")
		if got := g.mountdConfig(); got != want {
			t.Errorf("%s: %q", args, got)
		}
	}
}

func TestCheckOutput(t *testing.T) {
	var c checker
	c.ok("kernel", "6.12")
	c.note("queue", "short & <small>")
	var quiet, object strings.Builder
	if err := c.print(&quiet, true); err != nil || quiet.String() != "note  queue     short & <small>\n" {
		t.Errorf("quiet: %v, %q", err, &quiet)
	}
	c.fail("share", "Docs: gone")
	err := c.encode(&object, false)
	var got any
	err = errors.Join(err, json.Unmarshal([]byte(object.String()), &got))
	line := func(verdict, subject, text string) any {
		return map[string]any{"verdict": verdict, "subject": subject, "text": text}
	}
	lines := []any{line("ok", "kernel", "6.12"), line("note", "queue", "short & <small>"), line("FAIL", "share", "Docs: gone")}
	if want := map[string]any{"ok": false, "lines": lines}; err != nil || !reflect.DeepEqual(got, want) || !strings.Contains(object.String(), "short & <small>") {
		t.Errorf("%v, %s", err, &object)
	}
	object.Reset()
	err = errors.Join(c.encode(&object, true), json.Unmarshal([]byte(object.String()), &got))
	if want := map[string]any{"ok": false, "lines": lines[1:]}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("quiet: %v, %s", err, &object)
	}
}

// Whoever is told how to change to another module is told the same.
func TestReloadModule(t *testing.T) {
	for name, word := range map[string]string{
		"../../README.md": reloadModule, "../../packaging/deb/dkms.postinst": reloadModule, "../../packaging/rpm/dkms.post": reloadModule,
	} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "modprobe -r ksmbd") && !strings.Contains(string(text), word) || strings.Contains(string(text), "rmmod ksmbd") {
			t.Errorf("%s tells otherwise than %s", name, word)
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
