// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"gopkg.in/ini.v1"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/ipc"
)

const checkUsage = `Usage: ksmbd-notifyd check [OPTION]...

Say whether the changes in the shares of this machine will be told to clients, and
how; and if not, what to do. The exit status is 1 if something will not work.

  -C, --config=CONF     ksmbd's configuration, instead of /etc/ksmbd/ksmbd.conf
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

const (
	// series are those of Linux that kernel/ has hooks for.
	series = "6.12 or 7.3"
	// enoughEvents is a queue of fanotify that holds what a copy of a large
	// tree makes in the time of a few reads. It takes 16 MiB when full.
	enoughEvents = 128 << 10
)

// machine is what check looks at.
type machine struct {
	release string // of the kernel
	root    string // where /proc and /sys are
	family  func() error
	modinfo func(args ...string) (string, error)
	tools   func() string // the version of ksmbd-tools
	open    func(*slog.Logger) (*fanotify.Group, error)
	status  func() ([]byte, error)
}

// runCheck is the command "check".
func runCheck(args []string, stdout, stderr io.Writer) int {
	var o struct {
		config string
		help   bool
	}
	flags := pflag.NewFlagSet("check", pflag.ContinueOnError)
	flags.StringVarP(&o.config, "config", "C", "/etc/ksmbd/ksmbd.conf", "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && o.help:
		fmt.Fprint(stdout, checkUsage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd check")
	}
	if err := needCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return finish(stderr, err)
	}
	m := machine{
		release: kernelRelease(),
		root:    "/",
		family:  ipc.FindFamily,
		modinfo: modinfo,
		tools:   toolsVersion,
		open:    fanotify.Open,
		status:  func() ([]byte, error) { return get(runtimeDir(), "/status") },
	}
	if c := (checker{out: stdout}); !m.check(&c, o.config) {
		return 1
	}
	return 0
}

// modinfo runs modinfo(8), which need not be in the PATH of root.
func modinfo(args ...string) (string, error) {
	path, err := exec.LookPath("modinfo")
	if err != nil {
		path = "/sbin/modinfo"
	}
	out, err := exec.Command(path, args...).Output()
	return strings.TrimSpace(string(out)), err
}

// toolsVersion returns what ksmbd.mountd(8) says of itself, "" if it is not there.
func toolsVersion() string {
	path, err := exec.LookPath("ksmbd.mountd")
	if err != nil {
		path = "/usr/sbin/ksmbd.mountd"
	}
	out, _ := exec.Command(path, "--version").CombinedOutput()
	_, version, _ := strings.Cut(string(out), ": ")
	return strings.TrimSpace(version)
}

// checker prints what check finds, a line each.
type checker struct {
	out io.Writer
	bad bool
}

func (c *checker) line(verdict, what, text string) {
	fmt.Fprintf(c.out, "%-4s  %-8s  %s\n", verdict, what, text)
}

func (c *checker) ok(what, format string, args ...any) {
	c.line("ok", what, fmt.Sprintf(format, args...))
}

// note tells what works, but could better.
func (c *checker) note(what, format string, args ...any) {
	c.line("note", what, fmt.Sprintf(format, args...))
}

func (c *checker) fail(what, format string, args ...any) {
	c.bad = true
	c.line("FAIL", what, fmt.Sprintf(format, args...))
}

// check says whether everything will work.
func (m *machine) check(c *checker, config string) bool {
	family := m.family()
	m.checkKernel(c, family)
	m.checkModule(c, family)
	m.checkServer(c)
	m.checkDaemon(c)
	group, err := m.open(slog.New(slog.DiscardHandler))
	if err != nil {
		c.fail("fanotify", "%v", err)
		return false
	}
	defer group.Close()
	c.ok("fanotify", "tells the names of what changes")
	m.checkQueue(c)
	m.checkShares(c, group, config)
	return !c.bad
}

// checkKernel: what is loaded and can notify needs no look at the version.
func (m *machine) checkKernel(c *checker, family error) {
	version := strings.FieldsFunc(m.release, func(r rune) bool { return r < '0' || r > '9' })
	this := strings.Join(version[:min(2, len(version))], ".")
	switch {
	case family == nil || slices.Contains(strings.Fields(series), this):
		c.ok("kernel", "%s", m.release)
	case this == "6.1":
		c.fail("kernel", "%s: ksmbd of Linux 6.1 crashes by itself, with or without notifications: boot Linux %s", m.release, series)
	default:
		c.fail("kernel", "%s: there is no module for Linux %s: boot Linux %s", m.release, this, series)
	}
}

// checkModule looks at the module that is loaded and at the one that would be.
func (m *machine) checkModule(c *checker, family error) {
	file, err := m.modinfo("-n", "ksmbd")
	found := err == nil
	release, _ := m.modinfo("-F", "notify", "ksmbd")
	_, err = os.Stat(filepath.Join(m.root, "sys/module/ksmbd"))
	loaded := err == nil
	const install = "install ksmbd-notify-dkms"
	switch {
	case family == nil && release == "":
		c.note("module", "loaded and notifies, but the next boot takes the stock one, %s: %s, or run depmod", cmp.Or(file, "if any"), install)
	case family == nil:
		c.ok("module", "loaded and notifies, release %s in %s", release, file)
	case !errors.Is(family, ipc.ErrNoFamily):
		c.fail("module", "%v", family)
	case !found:
		c.fail("module", "there is no ksmbd in /lib/modules/%s: %s", m.release, install)
	case release == "":
		c.fail("module", "%s is the stock one and cannot notify: %s", file, install)
	case loaded:
		c.fail("module", "the one that is loaded cannot notify, %s can: systemctl stop ksmbd; rmmod ksmbd; systemctl start ksmbd", file)
	default:
		c.fail("module", "%s can notify and is not loaded: systemctl start ksmbd", file)
	}
}

// checkServer asks whether ksmbd.mountd has started the server.
func (m *machine) checkServer(c *checker) {
	// The format's version, the state, the port, ...
	stats, _ := os.ReadFile(filepath.Join(m.root, "sys/class/ksmbd-control/stats"))
	if f := bytes.Fields(stats); len(f) > 1 && string(f[1]) == "running" {
		c.ok("ksmbd", "runs")
	} else {
		c.fail("ksmbd", "does not run: systemctl start ksmbd")
	}
}

func (m *machine) checkDaemon(c *checker) {
	var r report
	answer, err := m.status()
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	switch {
	case err != nil:
		c.fail("daemon", "%v", err)
	case !r.Serving:
		c.fail("daemon", "waits, see module: %s", r.Waiting)
	default:
		c.ok("daemon", "serves ksmbd, %d watches are open", r.Open.Watches)
	}
}

// checkQueue: a queue that is too short loses nothing in silence, but clients
// list directories instead. Marks are not limited for root.
func (m *machine) checkQueue(c *checker) {
	const name = "fs.fanotify.max_queued_events"
	text, err := os.ReadFile(filepath.Join(m.root, limitFile))
	limit, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
	switch err = cmp.Or(err, parseErr); {
	case err != nil:
		c.fail("queue", "reading %s: %v", name, err)
	case limit < enoughEvents:
		c.note("queue", "%s is %d, and clients list directories anew after more changes at once: sysctl -w %s=%d",
			name, limit, name, enoughEvents)
	default:
		c.ok("queue", "%s is %d", name, limit)
	}
}

// checkShares tries to watch each share as the daemon would.
func (m *machine) checkShares(c *checker, group *fanotify.Group, config string) {
	shares, err := readShares(config)
	if err != nil {
		c.fail("shares", "%v", err)
	} else if len(shares) == 0 {
		c.note("shares", "%s has none: ksmbd.addshare", config)
	}
	for _, s := range shares {
		how, err := "", fmt.Errorf("has no path in %s", config)
		if s.path != "" {
			how, err = tryShare(group, s.path)
		}
		if err == nil && mountsHidden(m.tools()) && isMountPoint(s.path) {
			err = fmt.Errorf("%s is a mount point, and ksmbd-tools %s serve the directory under it: share a directory in it",
				printable(s.path), m.tools())
		}
		if err != nil {
			c.fail("share", "%s: %v", printable(s.name), err)
		} else {
			c.ok("share", "%s: %s", printable(s.name), how)
		}
	}
}

// mountsHidden says whether ksmbd-tools of that version have ksmbd stay on the
// filesystem that a share's path leads to, without what is mounted on it:
// before 3.4.9 all shares were so.
func mountsHidden(version string) bool {
	var n [3]int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &n[0], &n[1], &n[2]); err != nil {
		return false // 3.5 and such, or unknown
	}
	return slices.Compare(n[:], []int{3, 4, 9}) < 0
}

func isMountPoint(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// tryShare says how a directory can be watched, or why what changes in and
// below it cannot be told.
func tryShare(group *fanotify.Group, path string) (how string, err error) {
	watch := func(tree bool) (w *fanotify.Watch, kind string, err error) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, "", err
		}
		dir := os.NewFile(uintptr(fd), path)
		kind, _ = ipc.FilesystemOf(dir)
		w, err = group.Watch(dir, tree, ipc.All.Ops(), func(fanotify.Change) {})
		return w, kind, err
	}
	where := printable(path)
	w, kind, err := watch(true)
	if err == nil {
		defer w.Close()
		return fmt.Sprintf("%s, %s: all changes are told, by a %s", where, kind, w.Strategy()), nil
	}
	if kind == "" {
		return "", fmt.Errorf("%s: %w: make the directory, or correct the share's path", where, err)
	}
	told := "changes right in a watched directory are told, but not below it"
	if w, _, err := watch(false); err == nil {
		w.Close()
	} else {
		told = "no changes are told"
	}
	return "", fmt.Errorf("%s, %s: %s: %w: move the share to ext4, xfs or btrfs", where, kind, told, err)
}

// share is a section of ksmbd.conf(5).
type share struct{ name, path string }

// readShares reads them as ksmbd.mountd does: the first value counts, and what
// a share does not say, [global] does.
func readShares(config string) ([]share, error) {
	file, err := ini.LoadSources(ini.LoadOptions{
		InsensitiveKeys: true, AllowShadows: true, IgnoreContinuation: true, AllowBooleanKeys: true,
		PreserveSurroundedQuote: true, KeyValueDelimiters: "=",
	}, config)
	if err != nil {
		if path := (*fs.PathError)(nil); errors.As(err, &path) {
			err = path.Err
		}
		return nil, fmt.Errorf("reading %s: %w", config, err)
	}
	value := func(s *ini.Section, key string) string {
		if s == nil || !s.HasKey(key) {
			return ""
		}
		return append(s.Key(key).ValueWithShadows(), "")[0] // without empty ones
	}
	var global *ini.Section
	for _, s := range file.Sections() {
		if strings.EqualFold(s.Name(), "global") {
			global = s
		}
	}
	var shares []share
	for _, s := range file.Sections() {
		switch strings.ToLower(s.Name()) {
		case "global", "ipc$", strings.ToLower(ini.DefaultSection):
			continue
		}
		path := cmp.Or(value(s, "path"), value(global, "path"))
		if path != "" {
			path = filepath.Join("/", value(global, "root directory"), path)
		}
		shares = append(shares, share{s.Name(), path})
	}
	return shares, nil
}
