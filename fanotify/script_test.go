// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The scripts in testdata/script say what a filesystem's changes are told as.
// One command a line:
//
//	watch [-r] [-o op,op] DIR   all ops unless -o says otherwise
//	unwatch DIR                 the last watch of DIR
//	queue N                     the queue limit of the group; before any watch
//	mount DIR                   an empty tmpfs; all are unmounted in the end
//	hold, drain                 changes pile up between them; else each is drained
//	resolve-cold                forget the handle tree
//	the rest does what its name says
//
// After "Output:", what the watches were told: "DIR: op name", a directory's
// name with a '/' at its end; a rename has "old -> new", with "." for a side
// out of sight. "-- tmpfs" and so on begins an output that holds there only; one that
// is "not run" is not.

var update = flag.Bool("update", false, "write what the tests saw into testdata")

type testFilesystem struct {
	name, mkfs string
	size       int64
	over, lay  string
}

// filesystems to test on: how to make one at an image file and its size, or
// how to lay one over the directories lower, upper and work of another, $1, at
// $2.
var testFilesystems = []testFilesystem{
	{name: "tmpfs"},
	{name: "ext4", mkfs: "mkfs.ext4 -q -F -N 16384", size: 32 << 20},
	{name: "xfs", mkfs: "mkfs.xfs -q -f", size: 320 << 20},
	{name: "btrfs", mkfs: "mkfs.btrfs -q -f", size: 128 << 20},
	{name: "subvolume", over: "btrfs", lay: `btrfs -q subvolume create $1/s && mount --bind $1/s $2`},
	{name: "overlay", over: "tmpfs", lay: `mount -t overlay -o lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work overlay $2`},
	{name: "overlay-export", over: "ext4", lay: `mount -t overlay -o index=on,nfs_export=on,lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work overlay $2`},
	// Without hard_remove FUSE renames a removed file that is open, and nobody hears of it.
	{name: "fuse", over: "tmpfs", lay: `bindfs -o hard_remove $1/lower $2`},
}

// lowerFilesystems have names in their lower layer, those that TestConverge uses. Directories that are there too are not
// removed as others are: their inodes count one link as before.
var lowerFilesystems = []testFilesystem{
	{name: "overlay-lower", over: "tmpfs", lay: fillLower + ` && mount -t overlay -o lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work overlay $2`},
	{name: "overlay-export-lower", over: "ext4", lay: fillLower + ` && mount -t overlay -o index=on,nfs_export=on,lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work overlay $2`},
}

const fillLower = `for d in w out; do for a in a b c; do
		mkdir -p $1/lower/$d/$a/a $1/lower/$d/$a/b && for f in a/a a/b b/c c; do echo x > $1/lower/$d/$a/$f; done
	done; done`

// mountTest mounts an empty filesystem for the test, or skips it.
func mountTest(t testing.TB, kind string) string {
	t.Helper()
	give := t.Skipf
	if os.Getenv("CI") != "" {
		give = t.Fatalf
	}
	for _, f := range slices.Concat(testFilesystems, lowerFilesystems) {
		if f.name != kind {
			continue
		}
		dir := filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		mount := []string{"mount", "-t", kind, kind, dir}
		if f.lay != "" {
			if f.over != "btrfs" {
				needHandles(t)
			}
			base := mountTest(t, f.over)
			for _, d := range []string{"lower", "upper", "work"} {
				if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			mount = []string{"sh", "-c", f.lay, "sh", base, dir}
		}
		if f.mkfs != "" {
			img := dir + ".img"
			if err := errJoin(os.WriteFile(img, nil, 0o600), os.Truncate(img, f.size)); err != nil {
				t.Fatal(err)
			}
			mkfs := strings.Fields(f.mkfs)
			if _, err := os.Stat("/sys/fs/ext4/features/casefold"); err == nil && kind == "ext4" {
				mkfs = append(mkfs, "-O", "casefold")
			}
			if _, err := exec.LookPath(mkfs[0]); err != nil {
				give("cannot test on %s: %v", kind, err)
			}
			if out, err := exec.Command(mkfs[0], append(mkfs[1:], img)...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", f.mkfs, err, out)
			}
			mount = []string{"mount", "-t", kind, "-o", "loop", img, dir}
		}
		if out, err := exec.Command(mount[0], mount[1:]...).CombinedOutput(); err != nil {
			give("cannot test on %s: %v: %s", kind, err, out)
		}
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil { // else nothing can be moved in it
			t.Fatal(err)
		}
		t.Cleanup(func() {
			err := unix.Unmount(dir, 0)
			for tries := 0; err == unix.EBUSY && tries < 1000; tries++ { // a fuse server ends late
				time.Sleep(10 * time.Millisecond)
				err = unix.Unmount(dir, 0)
			}
			if err != nil {
				t.Errorf("unmounting, something is still open: %v", err)
				unix.Unmount(dir, unix.MNT_DETACH)
			}
		})
		return dir
	}
	t.Fatalf("unknown filesystem %s", kind)
	return ""
}

// needHandles skips the test where fanotify takes no directory of overlayfs and
// FUSE, as on the kernel of Debian 12: these have handles since Linux 6.5, and
// an id that will do since 6.8.
func needHandles(t testing.TB) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	release := unix.ByteSliceToString(uts.Release[:])
	if n, err := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		t.Fatalf("kernel %s: %v", release, err)
	}
	if major < 6 || major == 6 && minor < 8 {
		t.Skipf("kernel %s: overlayfs and FUSE can be watched since 6.8", release)
	}
}

func errJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// openTest opens a group that logs to the test under -v.
func openTest(t testing.TB) *Group {
	t.Helper()
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	g, err := Open(slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: level})))
	if err != nil {
		if os.Getenv("CI") == "" && os.Getuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	g.spare = 0 // all is told at once
	t.Cleanup(func() { g.Close() })
	return g
}

// openQueued does that with a queue for n events.
func openQueued(t *testing.T, n int) *Group {
	t.Helper()
	const limit = "/proc/sys/fs/fanotify/max_queued_events"
	old, err := os.ReadFile(limit)
	if err := errJoin(err, os.WriteFile(limit, []byte(strconv.Itoa(n)), 0)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(limit, old, 0); err != nil {
			t.Error(err)
		}
	}()
	return openTest(t)
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (o Op) String() string {
	for i, s := range []string{"create", "delete", "rename", "modify", "attrib", "gone", "overflow"} {
		if o == 1<<i {
			return s
		}
	}
	return fmt.Sprintf("Op(%#x)", uint32(o))
}

func (c Change) String() string {
	side := func(name []byte) string {
		if name == nil {
			return "."
		}
		if c.Dir {
			return string(name) + "/"
		}
		return string(name)
	}
	switch c.Op {
	case Gone, Overflow:
		return c.Op.String()
	case Rename:
		return fmt.Sprintf("rename %s -> %s", side(c.OldName), side(c.Name))
	}
	return fmt.Sprintf("%v %s", c.Op, side(c.Name))
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			for _, file := range files {
				name := strings.TrimSuffix(filepath.Base(file), ".txt")
				t.Run(name, func(t *testing.T) {
					dir := filepath.Join(mnt, name)
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
					runScript(t, file, dir, f.name)
				})
			}
		})
	}
}

func runScript(t *testing.T, file, dir, kind string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	commands, want, ok := strings.Cut(string(text), "Output:\n")
	if !ok {
		t.Fatal("no Output: in the script")
	}
	common, rest, _ := strings.Cut(want, "\n-- ")
	want = common
	for _, part := range strings.Split(rest, "\n-- ") {
		if kinds, lines, _ := strings.Cut(part, "\n"); strings.Contains(" "+kinds+" ", " "+kind+" ") {
			want = lines
		}
	}
	if strings.TrimSpace(want) == "not run" {
		return
	}
	runtime.LockOSThread() // what several threads did would not merge
	defer runtime.UnlockOSThread()
	before := openFiles(t)
	s := &script{t: t, dir: dir, threads: make(map[string]func(func()))}
	defer func() {
		for _, m := range slices.Backward(s.mounts) {
			for unix.Unmount(m, 0) == nil {
			}
		}
	}()
	for i, line := range strings.Split(commands, "\n") {
		line, _, _ = strings.Cut(line, " # ")
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := s.run(strings.Fields(line)); err != nil {
			t.Fatalf("%s:%d: %s: %v", file, i+1, line, err)
		}
		if !s.hold && s.g != nil {
			s.drain()
		}
	}
	if s.g != nil {
		if err := s.g.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, f := range s.files {
		f.Close()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open before, %d after", before, after)
	}
	got := s.out.String()
	if strings.HasPrefix(kind, "overlay") || kind == "fuse" { // trees and single directories have a queue each
		got, want = sortLines(got), sortLines(want)
	}
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s: told:\n%swant:\n%s", file, got, want)
		if *update {
			os.WriteFile(file, []byte(commands+"Output:\n"+got), 0o644)
		}
	}
}

func sortLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// newThread returns what has a thread of its own do something, and waits for it:
// the kernel merges what one thread did, past what another did in between.
func newThread(t *testing.T) (do func(func())) {
	turn, done := make(chan func()), make(chan struct{})
	t.Cleanup(func() { close(turn) })
	go func() {
		runtime.LockOSThread()
		for do := range turn {
			do()
			done <- struct{}{}
		}
	}()
	return func(do func()) {
		turn <- do
		<-done
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

type script struct {
	t       *testing.T
	g       *Group
	dir     string
	hold    bool
	out     bytes.Buffer
	watches []struct {
		name string
		*Watch
	}
	files   []io.Closer
	mounts  []string
	threads map[string]func(func())
}

func (s *script) drain() {
	if err := s.g.Drain(); err != nil {
		s.t.Fatal(err)
	}
}

// run runs one command.
func (s *script) run(args []string) error {
	cmd, args := args[0], args[1:]
	path := func(i int) string {
		if i >= len(args) {
			s.t.Fatalf("%s takes more arguments", cmd)
		}
		return filepath.Join(s.dir, args[i])
	}
	open := func(flags int) error {
		f, err := os.OpenFile(path(0), flags, 0o644)
		if err == nil {
			if flags&os.O_RDWR != 0 {
				_, err = f.WriteString("x")
			}
			f.Close()
		}
		return err
	}
	switch cmd {
	case "queue":
		n, err := strconv.Atoi(args[0])
		s.g = openQueued(s.t, n)
		return err
	case "watch":
		return s.watch(args)
	case "unwatch":
		for i := len(s.watches) - 1; i >= 0; i-- {
			if w := s.watches[i]; w.name == args[0] {
				s.watches = append(s.watches[:i], s.watches[i+1:]...)
				return w.Close()
			}
		}
		return os.ErrNotExist
	case "hold":
		s.hold = true
		return nil
	case "drain":
		s.hold = false
		return nil
	case "by": // THREAD COMMAND
		do := s.threads[args[0]]
		if do == nil {
			do = newThread(s.t)
			s.threads[args[0]] = do
		}
		var err error
		do(func() { err = s.run(args[1:]) })
		return err
	case "resolve-cold":
		for _, fs := range s.g.filesystems {
			fs.how.forget()
		}
		return nil
	case "mkdir":
		return os.MkdirAll(path(0), 0o755)
	case "touch":
		return open(os.O_WRONLY | os.O_CREATE | os.O_EXCL)
	case "write":
		return open(os.O_RDWR)
	case "truncate":
		return os.Truncate(path(0), 1)
	case "chmod":
		mode, _ := strconv.ParseUint(args[1], 8, 32)
		return os.Chmod(path(0), os.FileMode(mode))
	case "atime":
		ts := []unix.Timespec{{Sec: 1}, {Nsec: unix.UTIME_OMIT}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path(0), ts, 0)
	case "mtime":
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path(0), ts, 0)
	case "xattr":
		return unix.Setxattr(path(0), "trusted.x", []byte("x"), 0)
	case "read":
		_, err := os.ReadFile(path(0))
		return err
	case "list":
		_, err := os.ReadDir(path(0))
		return err
	case "ln":
		return os.Link(path(0), path(1))
	case "mv":
		return syscall.Rename(path(0), path(1))
	case "exchange":
		return unix.Renameat2(unix.AT_FDCWD, path(0), unix.AT_FDCWD, path(1), unix.RENAME_EXCHANGE)
	case "rm":
		return syscall.Unlink(path(0))
	case "rmdir":
		return syscall.Rmdir(path(0))
	case "rm-rf":
		return os.RemoveAll(path(0))
	case "fill": // DIR N: as many files
		n, _ := strconv.Atoi(args[1])
		for i := range n {
			if err := os.WriteFile(fmt.Sprintf("%s/%d", path(0), i), nil, 0o600); err != nil {
				return err
			}
		}
		return nil
	case "casefold": // an empty directory shall ignore case
		f, err := os.Open(path(0))
		if err != nil {
			return err
		}
		defer f.Close()
		const caseFold = 0x40000000 // FS_CASEFOLD_FL
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, caseFold)
		if err == unix.EOPNOTSUPP {
			s.t.Skip("directories cannot ignore case here")
		}
		return err
	case "open": // until the end
		f, err := os.Open(path(0))
		s.files = append(s.files, f)
		return err
	case "mount":
		s.mounts = append(s.mounts, path(0))
		return errJoin(unix.Mount("none", path(0), "tmpfs", 0, "size=1m"), unix.Mount("", path(0), "", unix.MS_PRIVATE, ""))
	case "bind":
		s.mounts = append(s.mounts, path(1))
		return errJoin(unix.Mount(path(0), path(1), "", unix.MS_BIND, ""), unix.Mount("", path(1), "", unix.MS_PRIVATE, ""))
	case "mount-move":
		s.mounts = append(s.mounts, path(1))
		return unix.Mount(path(0), path(1), "", unix.MS_MOVE, "")
	case "umount":
		return unix.Unmount(path(0), 0)
	case "tmpfile": // in a directory, written to until the end
		fd, err := unix.Open(path(0), unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("x"))
		return err
	}
	return fmt.Errorf("no such command")
}

func (s *script) watch(args []string) error {
	set := flag.NewFlagSet("watch", flag.ContinueOnError)
	tree := set.Bool("r", false, "")
	names := set.String("o", "create,delete,rename,modify,attrib", "")
	if err := set.Parse(args); err != nil {
		return err
	}
	var ops Op
	for _, name := range strings.Split(*names, ",") {
		for o := Create; o <= Attrib; o <<= 1 {
			if o.String() == name {
				ops |= o
			}
		}
	}
	if s.g == nil {
		s.g = openTest(s.t)
	}
	name := set.Arg(0)
	dir, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return err
	}
	w, err := s.g.Watch(dir, *tree, ops, func(c Change) { fmt.Fprintf(&s.out, "%s: %v\n", name, c) })
	s.watches = append(s.watches, struct {
		name string
		*Watch
	}{name, w})
	return err
}
