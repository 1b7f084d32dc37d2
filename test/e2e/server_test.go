// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mount    = "/srv/fs"        // where the file system is mounted
	share    = mount + "/share" // what [TEST] serves; below the mount, see ksmbdConf
	confFile = "/etc/ksmbd/ksmbd.conf"
	passwdDB = "/etc/ksmbd/ksmbdpwd.db"

	settingsFile = "/etc/ksmbd/ksmbd-notifyd.conf"

	user1 = "user%pass"
	user2 = "user2%pass2"
)

// shares are what ksmbd serves, each from a directory of its own below the mount, with options beyond the usual. Its path
// must not be a mount point: before ksmbd-tools 3.4.9 ksmbd served the directory under the mount.
var shares = []struct{ name, dir, options string }{
	{"TEST", "share", "veto files = /vetoed-*/\n\tvfs objects = streams_xattr"},
	{"ACL", "acl", "vfs objects = streams_xattr acl_xattr"},
	{"DOTS", "dots", "hide dot files = no"},
	{offShare, "off", ""},
	{offToo, "off-too", ""},
	{"INNER", "outer/inner", ""},
	{"BESIDE", "outer/beside", ""},
	{"OUTER", "outer", ""},
	{"HANGS", "../hangs/share", ""}, // see TestHangingShare
	{"NFS", "../nfs/share", ""},     // see TestHangingNFS
	{"HANGSACL", "../hangs/share", "vfs objects = acl_xattr"},
	{"SRV", "..", ""},             // what is mounted is below it
	{"EXT4", "../ext4/share", ""}, // see TestSoak
	{"BTRFS", "../btrfs/share", ""},
	{"OVERLAY", "../overlay/share", ""},
	{lanes[0], "lane0", laneOptions},
	{lanes[1], "lane1", laneOptions},
	{lanes[2], "lane2", laneOptions},
	{lanes[3], "lane3", laneOptions},
	{lanes[4], "lane4", laneOptions},
}

// offShare and offToo are those of which the settings say that no changes are told. ksmbd has the name of the latter in
// lower case, and its first letter in two parts.
const (
	offShare = "OFF"
	offToo   = "Ärger"
)

// settings are the daemon's.
const settings = "[" + offShare + "]\n\tchange notify = no\n[" + offToo + "]\n\tchange notify = no\n"

// lanes are shares for tests that run side by side.
var lanes = []string{"LANE0", "LANE1", "LANE2", "LANE3", "LANE4"}

const laneOptions = "vfs objects = streams_xattr"

func ksmbdConf() string {
	conf := `[global]
	netbios name = KSMBD
	workgroup = WORKGROUP
	bind interfaces only = no
	server min protocol = SMB2_10
	server max protocol = SMB3_11
	server multi channel support = yes
	map to guest = never
	max connections = 65535
	max active sessions = 65535
	max open files = 65535
` + leaseOptions(*leases)
	for _, s := range shares {
		conf += fmt.Sprintf("[%s]\n\tpath = %s\n\tread only = no\n\tmax connections = 65535\n\tcreate mask = 0777\n\tdirectory mask = 0777\n\t%s\n",
			s.name, sharePath(s.name), s.options)
	}
	return conf
}

// leaseOptions says in the words of ksmbd.conf whether clients get leases, and with these durable handles where ksmbd-tools
// can turn them on.
func leaseOptions(on bool) string {
	if !on {
		return "\tsmb2 leases = no\n"
	}
	// smbtorture's tests of leases want new files to be ARCHIVE and nothing else, and ksmbd says that all can be SPARSE.
	options := "\tsmb2 leases = yes\n\tshare:fake_fscaps = 0\n"
	if tools, err := os.ReadFile("/usr/libexec/ksmbd.tools"); err == nil && bytes.Contains(tools, []byte("durable handles")) {
		options += "\tdurable handles = yes\n"
	}
	return options
}

// sharePath is the directory that a share serves.
func sharePath(name string) string {
	for _, s := range shares {
		if s.name == name {
			return filepath.Join(mount, s.dir)
		}
	}
	panic("no share " + name)
}

// long bounds every wait for something that takes a second under emulation.
const long = 30 * time.Second

// server is what setUp started.
var server struct {
	mountd   *process
	mountdBy []string // what starts it, see kerberos
	notifyd  *process
	quiet    bool // the next daemon does not log what it does
}

func setUp() error {
	for _, do := range []func() error{allowFiles, makeShare, configure, loadModule, startMountd, func() error { return startNotifyd() }} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// allowFiles lets what is started have as many open files as systemd does.
func allowFiles() error {
	const many = 524288
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: many, Max: many})
}

// tearDown stops everything and unloads the module, each within a bounded time. Nothing that it had is left then.
func tearDown() error {
	return errors.Join(stopNotifyd(), stopMountd(), unloadModule(), leaks())
}

func makeShare() error {
	if err := os.MkdirAll(mount, 0o755); err != nil {
		return err
	}
	var err error
	switch *fsType {
	case "tmpfs":
		err = command("mount", "-t", "tmpfs", "-o", "size=600m,mode=755", "none", mount)
	case "overlay":
		err = mountOverlay()
	default:
		err = mountImage()
	}
	if err != nil {
		return err
	}
	for _, s := range shares {
		dir := sharePath(s.name)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			return err
		}
	}
	return nil
}

// mountOverlay mounts an overlayfs whose file handles cannot be opened.
func mountOverlay() error {
	const under = "/tmp/under"
	dirs := []string{under + "/lower", under + "/upper", under + "/work"}
	if err := os.Mkdir(under, 0o755); err != nil {
		return err
	}
	if err := command("mount", "-t", "tmpfs", "-o", "size=600m,mode=755", "none", under); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dirs[0], dirs[1], dirs[2])
	return command("mount", "-t", "overlay", "-o", options, "none", mount)
}

// mountImage makes a file system of type fsType in a file and mounts it.
func mountImage() error {
	const image = "/tmp/share.img"
	if err := makeImage(*fsType, image); err != nil {
		return err
	}
	options := "loop"
	if *fsType == "vfat" { // it has no owners
		options += ",umask=0,utf8,quiet"
	}
	return command("mount", "-t", *fsType, "-o", options, image, mount)
}

// makeImage makes a file system in a file.
func makeImage(kind, image string) error {
	mkfs := map[string][]string{
		"ext4":  {"mke2fs", "-q", "-t", "ext4"},
		"xfs":   {"mkfs.xfs", "-q"},
		"btrfs": {"mkfs.btrfs", "-q"},
		"vfat":  {"mkfs.vfat"},
	}[kind]
	if mkfs == nil {
		return fmt.Errorf("unknown file system %q", kind)
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(400<<20), f.Close()); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/module/loop"); err != nil { // not built in
		if err := command("modprobe", "loop"); err != nil {
			return err
		}
	}
	return command(append(mkfs, image)...)
}

// loadModule loads the module named by the flag, with what the stock one depends on: ours depends on no more.
func loadModule() error {
	if *module == "stock" {
		return command("modprobe", "ksmbd")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]))
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // user-mode Linux has everything else built in
		return err
	}
	for line := range strings.Lines(string(deps)) {
		mod, needs, _ := strings.Cut(line, ":")
		if filepath.Base(mod) != "ksmbd.ko" {
			continue
		}
		paths := strings.Fields(needs)
		slices.Reverse(paths) // a module stands before what it depends on
		for _, path := range paths {
			if err := insertModule(filepath.Join(dir, path)); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
	}
	return insertModule(*module)
}

func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("loading %s: %w", path, err)
	}
	return nil
}

// unloadModule waits for ksmbd to have let go of its last connection.
func unloadModule() error {
	err := until(long, func() error {
		err := unix.DeleteModule("ksmbd", unix.O_NONBLOCK)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("unloading ksmbd: %w", err)
	}
	return nil
}

// toolOptions are the options of ksmbd-tools for the configuration and the users; 3.5 renamed those of 3.4.
func toolOptions() (conf, db, addDB string) {
	if help, _ := exec.Command("ksmbd.mountd", "--help").CombinedOutput(); bytes.Contains(help, []byte("pwddb")) {
		return "-C", "-P", "-P"
	}
	return "-c", "-u", "-i"
}

func configure() error {
	if err := os.MkdirAll(filepath.Dir(confFile), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(confFile, []byte(ksmbdConf()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(settingsFile, []byte(settings), 0o644); err != nil {
		return err
	}
	_, _, db := toolOptions()
	for _, u := range []string{user1, user2} {
		name, password, _ := strings.Cut(u, "%")
		if err := command("ksmbd.adduser", db, passwdDB, "-p", password, "-a", name); err != nil {
			return err
		}
	}
	return nil
}

func startMountd() error {
	conf, db, _ := toolOptions()
	var err error
	if server.mountd, err = start("mountd", append(server.mountdBy, "ksmbd.mountd", "-n", conf, confFile, db, passwdDB)...); err != nil {
		return err
	}
	if err := until(long, listening); err != nil {
		return fmt.Errorf("waiting for ksmbd to listen: %w", err)
	}
	return nil
}

// listening says whether something listens on port 445.
func listening() error {
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line) // sl local_address rem_address st ...
			if len(f) > 3 && strings.HasSuffix(f[1], ":01BD") && f[3] == "0A" {
				return nil
			}
		}
	}
	return errors.New("nothing listens on port 445")
}

// stopMountd ends ksmbd.mountd, the connections and the listener; these hold the module.
func stopMountd() error {
	if server.mountd == nil {
		return nil
	}
	err := command("ksmbd.control", "-s")
	server.mountd.wait() // it ends itself by a signal: how it ended says nothing
	server.mountd = nil
	// It may have started a worker when that had ended ksmbd, and ksmbd with it, before it was ended itself.
	return errors.Join(err, until(long, func() error {
		if listening() != nil {
			return nil
		}
		return errors.Join(command("ksmbd.control", "-s"), errors.New("ksmbd still listens"))
	}))
}

// daemonUser and daemonCaps are what the unit has systemd give the daemon.
const (
	daemonUser = 60999
	daemonCaps = "-all,+sys_admin,+net_admin,+dac_read_search"
)

// listenAsSystemd opens the socket on which the daemon tells systemd what it does.
func listenAsSystemd() (*net.UnixConn, error) {
	if err := os.RemoveAll(systemdSocket); err != nil {
		return nil, err
	}
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: systemdSocket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(systemdSocket, 0o777), systemd.SetReadDeadline(time.Now().Add(long))); err != nil {
		systemd.Close()
		return nil, err
	}
	return systemd, nil
}

const systemdSocket = "/tmp/systemd"

// startNotifyd starts the daemon as the unit does, with the files that the last one had systemd store, and returns when
// it serves.
func startNotifyd(stored ...*os.File) error {
	if *daemon == "" || server.notifyd != nil {
		return nil
	}
	const runtimeDir = "/run/ksmbd-notifyd"
	if err := os.RemoveAll(runtimeDir); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(runtimeDir, 0o700), os.Chown(runtimeDir, daemonUser, daemonUser)); err != nil {
		return err
	}
	systemd, err := listenAsSystemd()
	if err != nil {
		return err
	}
	defer systemd.Close()
	argv := []string{"nice", "-n", "-10",
		"setpriv", fmt.Sprintf("--reuid=%d", daemonUser), fmt.Sprintf("--regid=%d", daemonUser), "--clear-groups", "--no-new-privs",
		"--inh-caps=" + daemonCaps, "--ambient-caps=" + daemonCaps, "--bounding-set=" + daemonCaps, *daemon, "-n"}
	if !server.quiet && !*quiet {
		argv = append(argv, "-vv")
	}
	variables := []string{"NOTIFY_SOCKET=" + systemdSocket}
	if len(stored) > 0 {
		var names []string
		for _, f := range stored {
			names = append(names, f.Name())
		}
		variables = append(variables, fmt.Sprintf("LISTEN_FDS=%d", len(stored)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		argv = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, argv...)
	}
	server.notifyd, err = startWith(stored, "notifyd", append(append([]string{"env"}, variables...), argv...)...)
	if err != nil {
		return err
	}
	for said := make([]byte, 1024); ; {
		n, err := systemd.Read(said)
		if err != nil {
			return fmt.Errorf("waiting for ksmbd-notifyd to serve: %w", err)
		}
		if bytes.Contains(said[:n], []byte("READY=1")) {
			return nil
		}
	}
}

// restartNotifyd restarts the daemon as systemd does, which keeps for it what it stores. Meanwhile, when there is none,
// something is done.
func restartNotifyd(meanwhile func() error) error {
	systemd, err := listenAsSystemd()
	if err != nil {
		return err
	}
	defer systemd.Close()
	if err := stopNotifyd(); err != nil {
		return err
	}
	stored, err := storedFiles(systemd)
	for _, f := range stored {
		defer f.Close()
	}
	if err != nil {
		return err
	}
	if err := meanwhile(); err != nil {
		return err
	}
	return startNotifyd(stored...)
}

// storedFiles returns what the daemon has had systemd store before it ended, see FDSTORE in sd_notify(3).
func storedFiles(systemd *net.UnixConn) (files []*os.File, err error) {
	if err := systemd.SetReadDeadline(time.Now().Add(time.Second)); err != nil { // all of it has been sent
		return nil, err
	}
	said, rights := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	for {
		n, nrights, _, _, err := systemd.ReadMsgUnix(said, rights)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		name, ok := strings.CutPrefix(string(said[:n]), "FDSTORE=1\nFDNAME=")
		if !ok {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(rights[:nrights])
		if err != nil || len(messages) != 1 {
			return files, fmt.Errorf("%s is stored with %d messages: %w", name, len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), name))
		}
		if strings.HasPrefix(name, "watches.") { // the last
			return files, nil
		}
	}
}

func stopNotifyd() error {
	if server.notifyd == nil {
		return nil
	}
	err := server.notifyd.stop()
	server.notifyd = nil
	return err
}

// process is a program of the server that runs beside the tests, its output kept in results.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended, once done is closed
}

func start(name string, argv ...string) (*process, error) { return startWith(nil, name, argv...) }

// startWith starts a program that has files from descriptor 3 on.
func startWith(files []*os.File, name string, argv ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(results, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = log, log, files
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the program with SIGTERM and says whether it ended cleanly and in time.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		<-p.done
		return fmt.Errorf("%s ended by itself: %w", p.name, errors.Join(err, p.err))
	}
	if err := p.wait(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// wait returns how the program ended; one that does not end in time is killed.
func (p *process) wait() error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(long):
		p.cmd.Process.Kill()
		<-p.done
		return errors.New("killed, it did not end")
	}
}

// command runs a short program; its output is in the error.
func command(argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = share
	if _, err := os.Stat(share); err != nil {
		cmd.Dir = "/"
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	timer := time.AfterFunc(long, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// until tries again until try succeeds; after the time given it returns try's last error.
func until(limit time.Duration, try func() error) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// mark writes a line into the kernel's log, so that a complaint there can be told to belong to a test.
func mark(line string) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		fmt.Fprintf(f, "<6>e2e: %s\n", line)
		f.Close()
	}
}

// clean empties the directory of a share. What was there is moved aside and not removed: a client that died may still
// have it open, and the stock module's own removal of what is gone already, on the last close, crashes the kernel.
func clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	aside, err := os.MkdirTemp(mount, "aside-")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
