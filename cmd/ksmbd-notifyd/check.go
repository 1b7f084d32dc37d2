// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/ipc"
)

const checkUsage = `Usage: ksmbd-notifyd check [OPTION]...

Say whether the changes in the shares of this machine will be told to clients, and
how; and if not, what to do. The exit status is 1 if something will not work.

  -C, --config=CONF     ksmbd's configuration, instead of that of the ksmbd.mountd
                        that runs, or else /etc/ksmbd/ksmbd.conf
      --settings=CONF   the daemon's, instead of /etc/ksmbd/ksmbd-notifyd.conf
  -q, --quiet           leave out what is as it should be
  -j, --json            one JSON object
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

const (
	// series are those of Linux that kernel/ has hooks for.
	series = "6.12 or 7.2 or 7.3"
	// enoughEvents is a queue of fanotify that holds what a copy of a large
	// tree makes in the time of a few reads. It takes 16 MiB when full.
	enoughEvents = 128 << 10
	// reloadModule changes from one ksmbd.ko to another, in these words wherever we
	// tell of it.
	reloadModule = "systemctl stop ksmbd && modprobe -r ksmbd && systemctl start ksmbd"
	installDKMS  = "install ksmbd-notify-dkms"
)

// machine is what check looks at.
type machine struct {
	release string // of the kernel
	root    string // where /proc, /sys, /run, /lib/modules and /var/lib/dpkg are
	family  func() error
	modinfo func(args ...string) (string, error)
	tools   func() string                    // the version of ksmbd-tools
	known   func(database, name string) bool // to getent(1)
	open    func(*slog.Logger) (*fanotify.Group, error)
	try     func(path, tools string) tried
	status  func() ([]byte, error)
}

// runCheck is the command "check".
func runCheck(args []string, stdout, stderr io.Writer) int {
	var o struct {
		config, settings  string
		quiet, json, help bool
	}
	flags := pflag.NewFlagSet("check", pflag.ContinueOnError)
	flags.StringVarP(&o.config, "config", "C", "", "")
	flags.StringVar(&o.settings, "settings", settingsFile, "")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "")
	flags.BoolVarP(&o.json, "json", "j", false, "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && o.help:
		return say(stdout, stderr, checkUsage)
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err == nil && flags.Changed("config") && o.config == "":
		err = errors.New("--config needs the name of a file")
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd check")
	}
	if err := needs(unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return finish(stderr, err)
	}
	m := machine{
		release: kernelRelease(),
		root:    "/",
		family:  ipc.FindFamily,
		modinfo: modinfo,
		tools:   toolsVersion,
		known:   askNames(answerWithin),
		open:    fanotify.Open,
		try:     func(path, tools string) tried { return tryElsewhere(answerWithin, path, tools) },
		status:  func() ([]byte, error) { return get(runtimeDir(), "/status") },
	}
	var c checker
	ok := m.check(&c, cmp.Or(o.config, m.mountdConfig(), "/etc/ksmbd/ksmbd.conf"), o.settings)
	if o.json {
		err = c.encode(stdout, o.quiet)
	} else {
		err = c.print(stdout, o.quiet)
	}
	if err != nil {
		return finish(stderr, unwritten(err))
	}
	if !ok {
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
	words := strings.Fields(string(out)) // ... ksmbd-tools version : 3.5.3
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

// askNames returns what asks getent(1), which asks as ksmbd.mountd does, whether there is a name. Where that cannot be
// asked all names are, and so from when it has not answered in that time once, as when a directory server is down.
func askNames(limit time.Duration) func(database, name string) bool {
	silent := false
	return func(database, name string) bool {
		if silent {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, "getent", "--", database, name)
		cmd.WaitDelay = time.Second // for what it has begun itself
		out, err := cmd.Output()
		silent = ctx.Err() != nil
		if _, number := strconv.Atoi(name); err == nil && number == nil { // getent looks for an id then
			return strings.HasPrefix(string(out), name+":")
		}
		exit := (*exec.ExitError)(nil)
		return !errors.As(err, &exit) || exit.ExitCode() != 2
	}
}

// Verdicts of a line. A note tells what works, but could better.
const (
	verdictOK   = "ok"
	verdictNote = "note"
	verdictFail = "FAIL"
)

// line is what check finds of one subject.
type line struct {
	Verdict string `json:"verdict"`
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

// checker has what check finds.
type checker struct{ lines []line }

func (c *checker) bad() bool {
	return slices.ContainsFunc(c.lines, func(l line) bool { return l.Verdict == verdictFail })
}

// shown returns the lines that are not left out.
func (c *checker) shown(quiet bool) []line {
	lines := slices.Clone(c.lines)
	return slices.DeleteFunc(lines, func(l line) bool { return quiet && l.Verdict == verdictOK })
}

// print writes a line each, for people.
func (c *checker) print(w io.Writer, quiet bool) error {
	for _, l := range c.shown(quiet) {
		if _, err := fmt.Fprintf(w, "%-4s  %-8s  %s\n", l.Verdict, l.Subject, l.Text); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) encode(w io.Writer, quiet bool) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	e.Encode(struct {
		OK    bool   `json:"ok"`
		Lines []line `json:"lines"`
	}{!c.bad(), c.shown(quiet)}) // neither a Buffer nor a string can fail
	_, err := w.Write(visibleJSON(b.Bytes()))
	return err
}

func (c *checker) line(verdict, subject, format string, args ...any) {
	c.lines = append(c.lines, line{verdict, subject, visible(fmt.Sprintf(format, args...))})
}

func (c *checker) ok(subject, format string, args ...any) {
	c.line(verdictOK, subject, format, args...)
}
func (c *checker) note(subject, format string, args ...any) {
	c.line(verdictNote, subject, format, args...)
}
func (c *checker) fail(subject, format string, args ...any) {
	c.line(verdictFail, subject, format, args...)
}

// check says whether everything will work.
func (m *machine) check(c *checker, config, settings string) bool {
	family := m.family()
	m.checkKernel(c, family)
	m.checkModule(c, family)
	m.checkNextKernel(c)
	m.checkServer(c)
	r := m.checkDaemon(c)
	policy := m.checkSettings(c, r, settings)
	group, err := m.open(slog.New(slog.DiscardHandler))
	if err != nil {
		c.fail("fanotify", "%v", err)
		return false
	}
	group.Close()
	c.ok("fanotify", "tells the names of what changes")
	m.checkQueue(c)
	m.checkShares(c, config, policy)
	return !c.bad()
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
	loaded := m.exists("sys/module/ksmbd")
	loadedRelease, _ := os.ReadFile(filepath.Join(m.root, "sys/module/ksmbd/version")) // which a stock one has not
	switch now := strings.TrimSpace(string(loadedRelease)); {
	case family == nil && !found:
		c.note("module", "loaded and notifies, but modinfo finds none for the next boot: %s, or run depmod", installDKMS)
	case family == nil && release == "":
		c.note("module", "loaded and notifies, but the next boot takes the stock one, %s: %s, or run depmod", file, installDKMS)
	case family == nil && now != "" && now != release:
		c.note("module", "loaded and notifies, but of release %s, and %s is of %s: %s", now, file, release, reloadModule)
	case family == nil:
		c.ok("module", "loaded and notifies, release %s in %s", release, file)
	case !errors.Is(family, ipc.ErrNoFamily):
		c.fail("module", "%v", family)
	case m.ownNetwork():
		c.fail("module", "out of sight: this is a network namespace of its own, as of a container, and ksmbd's family is in the host's alone: "+
			"run ksmbd-notifyd on the host")
	case !found:
		c.fail("module", "there is no ksmbd in /lib/modules/%s: %s", m.release, m.howToGet())
	case release == "":
		c.fail("module", "%s is the stock one and cannot notify: %s", file, m.howToGet())
	case loaded:
		c.fail("module", "the one that is loaded cannot notify, %s can: %s", file, reloadModule)
	default:
		hint := ""
		if m.secureBoot() {
			hint = "; with Secure Boot DKMS's key must be enrolled before: mokutil --import /var/lib/dkms/mok.pub, then reboot"
		}
		c.fail("module", "%s can notify and is not loaded: systemctl start ksmbd%s", file, hint)
	}
}

func (m *machine) exists(name string) bool {
	_, err := os.Stat(filepath.Join(m.root, name))
	return err == nil
}

// ownNetwork says whether this is another network namespace than the one where
// ksmbd's family would be.
func (m *machine) ownNetwork() bool {
	mine, err := os.Readlink(filepath.Join(m.root, "proc/self/ns/net"))
	first, firstErr := os.Readlink(filepath.Join(m.root, "proc/1/ns/net"))
	// Process 1 may be the container's. Only a ksmbd of ours says its version.
	return err == nil && firstErr == nil && mine != first || m.exists("sys/module/ksmbd/version")
}

// secureBoot says whether the kernel takes signed modules only.
func (m *machine) secureBoot() bool {
	files, _ := filepath.Glob(filepath.Join(m.root, "sys/firmware/efi/efivars/SecureBoot-*"))
	for _, file := range files {
		if state, err := os.ReadFile(file); err == nil && len(state) == 5 { // attributes, and a byte
			return state[4] == 1
		}
	}
	return false
}

// howToGet says what to do when this kernel has no module that notifies. There may
// be one for another.
func (m *machine) howToGet() string {
	var built []string
	for _, k := range m.kernels() {
		if k != m.release && m.moduleOf(k) {
			built = append(built, k)
		}
	}
	switch {
	case m.dkmsVersion() == "" && !supported(m.release):
		return "boot Linux " + series + " and " + installDKMS
	case m.dkmsVersion() == "":
		return installDKMS
	case built == nil && supported(m.release):
		return "ksmbd-notify-dkms is installed and has not built it: " + m.howToBuild(m.release)
	case built == nil:
		return "boot Linux " + series
	case !supported(m.release):
		return fmt.Sprintf("there is one that can for Linux %s: boot that", strings.Join(built, ", "))
	}
	return fmt.Sprintf("there is one that can for Linux %s, not for this: boot that, or %s", strings.Join(built, ", "), m.howToBuild(m.release))
}

// checkServer asks whether ksmbd.mountd has started the server, and is there.
func (m *machine) checkServer(c *checker) {
	args, _ := m.mountd()
	switch {
	case serverState(m.root) != serverRuns && m.tools() == "":
		c.fail("ksmbd", "does not run, and there are no ksmbd-tools to run it: install ksmbd-tools")
	case serverState(m.root) != serverRuns:
		c.fail("ksmbd", "does not run: systemctl start ksmbd")
	case args == nil:
		c.fail("ksmbd", "answers, but ksmbd.mountd has died, and nobody can log in any more: systemctl restart ksmbd")
	default:
		c.ok("ksmbd", "runs")
	}
}

// lockDirs are where ksmbd-tools may be built to have their lock file: by a
// distribution, on a router, by somebody who chose nothing.
var lockDirs = []string{"run", "var/run", "usr/local/var/run"}

// mountd returns the command line and the directory of the process of which
// ksmbd.mountd's lock file has the id, nil if it does not live.
func (m *machine) mountd() (args []string, dir string) {
	var lock []byte
	err := fs.ErrNotExist
	for i := 0; err != nil && i < len(lockDirs); i++ {
		lock, err = os.ReadFile(filepath.Join(m.root, lockDirs[i], "ksmbd.lock"))
	}
	pid, idErr := strconv.Atoi(strings.TrimSpace(string(lock)))
	if err != nil || idErr != nil {
		return nil, ""
	}
	proc := filepath.Join(m.root, "proc", strconv.Itoa(pid))
	text, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	args = strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	if err != nil || !strings.Contains(args[0], "ksmbd") {
		return nil, ""
	}
	dir, _ = os.Readlink(filepath.Join(proc, "cwd"))
	return args, dir
}

// mountdConfig returns the configuration that a ksmbd.mountd was started with, ""
// for its own or if there is none.
func (m *machine) mountdConfig() (config string) {
	flags := pflag.NewFlagSet("ksmbd.mountd", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.StringVarP(&config, "config", "C", "", "") // of 3.5
	old := flags.StringP("old-config", "c", "", "")
	args, dir := m.mountd()
	if args != nil {
		flags.Parse(args[1:]) // as far as it goes
	}
	config = cmp.Or(config, *old)
	if config != "" && !filepath.IsAbs(config) {
		config = filepath.Join(dir, config)
	}
	return config
}

// checkDaemon returns what the daemon says of itself, nil if it says nothing.
func (m *machine) checkDaemon(c *checker) *report {
	var r *report
	answer, err := m.status()
	if err == nil {
		r, err = readReport(answer)
	}
	switch {
	case err != nil:
		c.fail("daemon", "%v", err)
		return nil
	case r.Version != version:
		c.note("daemon", "the one that runs is of release %s, this is %s: systemctl restart ksmbd-notifyd", r.Version, version)
	}
	switch {
	case !r.Serving:
		c.fail("daemon", "waits, see module: %s", r.Waiting)
	case r.Server != serverRuns:
		c.ok("daemon", "is ready to serve ksmbd")
	default:
		c.ok("daemon", "serves ksmbd, %d watches are open", r.Open.Watches)
	}
	return r
}

// checkSettings reads the daemon's settings as it does when it is reloaded.
func (m *machine) checkSettings(c *checker, r *report, file string) ipc.Policy {
	s, err := readSettings(file)
	switch words := s.policy.String(); {
	case err != nil:
		c.fail("settings", "%v: a daemon that starts with them ends", err)
	case r != nil && (r.Policy.Off != s.policy.Off || r.Policy.UserWatches != s.policy.UserWatches || r.Policy.ClientKiB != s.policy.ClientKiB || !maps.Equal(r.Policy.Shares, s.policy.Shares)):
		c.note("settings", "%s has changed since the daemon read it: systemctl reload ksmbd-notifyd", file)
	case words != "":
		c.ok("settings", "%s: %s", file, words)
	}
	return s.policy
}

// checkQueue: a queue that is too short loses nothing in silence, but clients
// list directories instead. Marks are not limited for root.
func (m *machine) checkQueue(c *checker) {
	const name = "fs.fanotify.max_queued_events"
	text, err := os.ReadFile(filepath.Join(m.root, limitFile))
	limit, _ := strconv.Atoi(strings.TrimSpace(string(text))) // the kernel writes a number
	switch {
	case err != nil:
		c.note("queue", "%s cannot be read, whether that is enough is not known: %v", name, withoutCall(err))
	case limit < enoughEvents:
		c.note("queue", "%s is %d, and clients list directories anew after more changes at once: sysctl -w %s=%d",
			name, limit, name, enoughEvents)
	default:
		c.ok("queue", "%s is %d", name, limit)
	}
}

// checkShares tries to watch each share as the daemon would.
func (m *machine) checkShares(c *checker, config string, policy ipc.Policy) {
	tools := m.tools()
	file, err := readConf(config, parseTools(tools))
	if errors.Is(err, fs.ErrNotExist) {
		c.fail("shares", "%v: ksmbd.addshare makes it, with a share", err)
		return
	}
	if err != nil {
		c.fail("shares", "%v: ksmbd.mountd does not start with it", err)
		return
	}
	if err := file.misfit(ipcShare, m.known); err != nil {
		c.fail("shares", "reading %s: %v: ksmbd.mountd does not start with it", config, err)
		return
	}
	if file.cut {
		c.note("shares", "the last line of %s has no end, and ksmbd-tools %s ignore its last character: end it", config, tools)
	}
	shares := readShares(file)
	if len(shares) == 0 {
		c.note("shares", "%s has none: ksmbd.addshare", config)
	}
	var trying errgroup.Group
	trying.SetLimit(4)
	found := make([]tried, len(shares))
	for i, s := range shares {
		if s.path != "" && s.path[0] == '/' && len(s.others) == 0 {
			trying.Go(func() error { found[i] = m.try(s.path, tools); return nil })
		}
	}
	trying.Wait()
	for i, s := range shares {
		err := fmt.Errorf("has no path in %s", config)
		switch {
		case s.path == "":
		case len(s.others) > 0:
			err = fmt.Errorf("has several paths, %s and %s, and ksmbd-tools %s take any of them: leave one", printable(s.path), printable(s.others[0]), tools)
		case s.path[0] != '/':
			err = fmt.Errorf("%s does not begin with /, and ksmbd finds it nowhere: give the whole path", printable(s.path))
		case found[i].Why != "":
			err = errors.New(found[i].Why)
		default:
			err = nil
		}
		if why := file.misfit(s.name, m.known); err == nil && why != nil {
			err = fmt.Errorf("%s leave it out: %w", strings.TrimSpace("ksmbd-tools "+tools), why)
		}
		switch {
		case err != nil:
			c.fail("share", "%s: %v", printable(s.name), err)
		case !policy.Tells(s.name):
			c.note("share", "%s: %s: change notify is off, and no changes are told", printable(s.name), printable(s.path))
		case found[i].Note:
			c.note("share", "%s: %s", printable(s.name), found[i].How)
		default:
			c.ok("share", "%s: %s", printable(s.name), found[i].How)
		}
	}
	for name := range policy.Shares {
		if s := file.byName[name]; s == nil || s == file.section("global") || strings.EqualFold(s.name, ipcShare) {
			c.note("settings", "there is no share %s in %s to which settings could apply", printable(name), config)
		}
	}
}

// symlinkIn returns the first symbolic link on the way that a path leads, "" for
// none. ksmbd looks the path up with LOOKUP_NO_SYMLINKS.
func symlinkIn(path string) string {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		if st, err := os.Lstat(path[:i]); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return path[:i]
		}
	}
	return ""
}

// mountsHidden says whether ksmbd-tools of that version have ksmbd stay on the
// filesystem that a share's path leads to, without what is mounted on it:
// before 3.4.9 all shares were so.
func mountsHidden(version string) bool { return parseTools(version).before(3, 4, 9) }

func isMountPoint(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// tried is how a share's directory can be watched, or why it cannot. Not all that
// changes may be told, which is worth a note.
type tried struct {
	How  string
	Note bool
	Why  string // not
}

// tryOne is the command by which check tries a share in a process of its own. It is
// not for people.
const tryOne = "try-share"

// tryElsewhere tries a share in such a process, and what is mounted below it after that.
func tryElsewhere(limit time.Duration, path, tools string) tried {
	t, err := elsewhere[tried](context.Background(), limit, tryOne, path, tools)
	var silent []place
	if err == nil && t.Why == "" && len(placesBelow(path)) > 0 {
		silent, err = elsewhere[[]place](context.Background(), answerWithin+time.Second, lookBelow, path)
	}
	switch {
	case errors.Is(err, errNoAnswer):
		return tried{Why: fmt.Sprintf("%s: it has not answered in %v: %s", printable(path), limit, whyStuck)}
	case err != nil:
		return tried{Why: fmt.Sprintf("%s: trying it failed: %v", printable(path), err)}
	}
	for _, p := range silent {
		t.How += fmt.Sprintf("; nothing of %s, %s, which has not answered in %v: %s", printable(p.Path), p.Kind, answerWithin, whyStuck)
		t.Note = true
	}
	return t
}

// runTry is the command tryOne.
func runTry(path, tools string, stdout, stderr io.Writer) int {
	var t tried
	if group, err := fanotify.Open(slog.New(slog.DiscardHandler)); err != nil {
		t.Why = err.Error()
	} else {
		t = tryPath(group, path, tools)
		group.Close()
	}
	return finish(stderr, json.NewEncoder(stdout).Encode(t))
}

// tryPath tries a path that a share has.
func tryPath(group *fanotify.Group, path, tools string) (t tried) {
	var err error
	if link := symlinkIn(path); link != "" {
		err = fmt.Errorf("%s is a symbolic link, which ksmbd does not follow: give the share the path that it leads to", printable(link))
	} else {
		t.How, t.Note, err = tryShare(group, path)
	}
	if err == nil && mountsHidden(tools) && isMountPoint(path) {
		err = fmt.Errorf("%s is a mount point, and ksmbd-tools %s serve the directory under it: share a directory in it", printable(path), tools)
	}
	if err != nil {
		t.Why = err.Error()
	}
	return t
}

// tryShare says how a directory can be watched, or why what changes in and
// below it cannot be told. Not all of it may be, which is worth a note.
func tryShare(group *fanotify.Group, path string) (how string, note bool, err error) {
	watch := func(tree bool) (w *fanotify.Watch, kind string, err error) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, "", err
		}
		dir := os.NewFile(uintptr(fd), path)
		kind, _ = ipc.FilesystemOf(dir)
		if !ipc.MayHang(kind) { // what may below it is watched by another process, as by the daemon
			group.Leave(ipc.MayHang, func(dir *os.File, _ mounts.Mount) fanotify.Apart { dir.Close(); return nobody{} })
		}
		w, err = group.Watch(dir, tree, ipc.All.Ops(), func(fanotify.Change) {})
		return w, kind, err
	}
	where := printable(path)
	w, kind, err := watch(true)
	if err == nil {
		defer w.Close()
		if ipc.MountOnly(kind) {
			return fmt.Sprintf("%s, %s: only what goes through this mount is told, by %s; what changes otherwise in what it shows is not", where, kind, article(w.Strategy())), true, nil
		}
		if below := mountOnlyBelow(path); below != "" {
			return fmt.Sprintf("%s, %s: all changes are told, by %s, but of %s only what goes through that mount", where, kind, article(w.Strategy()), below), true, nil
		}
		return fmt.Sprintf("%s, %s: all changes are told, by %s", where, kind, article(w.Strategy())), false, nil
	}
	if kind == "" {
		return "", false, fmt.Errorf("%s: %w: make the directory, or correct the share's path", where, err)
	}
	told := "changes right in a watched directory are told, but not below it"
	if w, _, err := watch(false); err == nil {
		w.Close()
	} else {
		told = "no changes are told"
	}
	return "", false, fmt.Errorf("%s, %s: %s: %w: move the share to ext4, xfs or btrfs", where, kind, told, err)
}

// nobody watches a mount that a Group leaves alone.
type nobody struct{}

func (nobody) Take(func(fanotify.Change)) {}
func (nobody) Close() error               { return nil }

// article puts one before the name of a strategy, unless it is of many.
func article(strategy string) string {
	if strings.HasSuffix(strategy, "s") {
		return strategy
	}
	return "a " + strategy
}

// mountOnlyBelow names a mount below a directory that may change otherwise than
// through itself, with its type.
func mountOnlyBelow(dir string) string {
	for _, m := range ipc.Mounts() {
		if ipc.MountOnly(m.Kind) && within(m.Point, dir) && m.Point != dir {
			return fmt.Sprintf("%s, %s,", printable(m.Point), m.Kind)
		}
	}
	return ""
}
