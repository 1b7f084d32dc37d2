// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

var (
	convergeFor  = flag.Duration("converge", 300*time.Millisecond, "time to look for a divergence, for each filesystem and mode")
	convergeSeed = flag.Uint64("seed", 0, "seed of the convergence test, 0 for a random one")
)

// A model is a client that knows the names below a directory from the records
// alone, and lists the directory when told to. It looks at what is told as changed, too.
type model struct {
	t     *testing.T
	watch *Watch
	dir   string
	tree  bool
	prune bool             // what is below a deleted directory goes with it
	names map[string]bool  // name: is a directory
	seen  map[string]shown // what it has last looked at and not been told of since
	moved map[string]bool  // what was renamed since then
	looks bool             // it looks, for it asks for all changes
	dirty bool             // it must list the directory
	race  bool             // not at once: while things happen, a listing is ahead of the records
	lists int
	log   []string
	odd   []string // what a client must not be told: a name that it has been told of already, or has not
	dead  bool     // the filesystem's server is: libfuse 2.9 crashes under threads, once in some 50,000 operations
}

// A shown is what a client sees of a file or directory.
type shown struct {
	ino  uint64
	size uint64 // of a file
	mode uint16
}

// list returns the names, and what is seen of them but for files with several names or mounted on others: a change is told
// under the name that was used, and where the file is.
func (m *model) list() (map[string]bool, map[string]shown) {
	names, looks := make(map[string]bool), make(map[string]shown)
	filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, unix.ENOTCONN):
			m.dead = true
			return fs.SkipAll
		case errors.Is(err, unix.ENOENT): // a directory was removed and is mounted elsewhere
			return nil
		case err != nil:
			m.t.Fatalf("listing: %v", err)
		}
		if path == m.dir {
			return nil
		}
		rel, _ := filepath.Rel(m.dir, path)
		names[rel] = d.IsDir()
		var st unix.Statx_t
		switch {
		case !m.looks || unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st) != nil:
		case d.IsDir() && st.Nlink > 0:
			looks[rel] = shown{st.Ino, 0, st.Mode}
		case !d.IsDir() && st.Nlink == 1 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
			looks[rel] = shown{st.Ino, st.Size, st.Mode}
		}
		if d.IsDir() && !m.tree {
			return fs.SkipDir
		}
		return nil
	})
	return names, looks
}

func (m *model) apply(c Change) {
	m.log = append(m.log, c.String())
	name, old := string(c.Name), string(c.OldName)
	_, had := m.names[name]
	_, hadOld := m.names[old]
	if !m.dirty && (c.Op == Create && had || (c.Op == Delete || c.Op&data != 0) && !had || c.Op == Rename && c.OldName != nil && !hadOld) {
		m.odd = append(m.odd, c.String())
	}
	// An exchange is told as renames to and fro, after which each has become the other.
	if was, ok := m.seen[old]; c.Op == Rename && c.Name != nil && ok && !had && !m.moved[old] {
		m.seen[name] = was
	} else {
		delete(m.seen, name)
	}
	if c.Op == Rename {
		m.moved[name] = true
	}
	delete(m.seen, old)
	switch c.Op {
	case Create:
		m.names[name] = c.Dir
	case Delete:
		delete(m.names, name)
		if c.Dir && m.prune {
			for n := range m.names {
				if strings.HasPrefix(n, name+"/") {
					delete(m.names, n)
				}
			}
		}
	case Overflow:
		if m.dirty = m.race; !m.race { // list at once
			m.names, m.seen = m.list()
			m.lists++
		}
	case Rename:
		below := make(map[string]bool)
		if c.Dir && c.OldName != nil {
			for n, dir := range m.names {
				if rest, ok := strings.CutPrefix(n, old+"/"); ok {
					delete(m.names, n)
					below[rest] = dir
					if was, ok := m.seen[n]; ok && c.Name != nil && !m.moved[old] {
						m.seen[name+"/"+rest] = was
					}
					delete(m.seen, n)
				}
			}
		}
		if c.OldName != nil {
			delete(m.names, old)
		}
		if c.Name != nil {
			m.names[name] = c.Dir
			if c.Dir && c.OldName == nil && m.tree {
				m.dirty = true // whatever is in it came with it
			}
			for rest, dir := range below {
				m.names[name+"/"+rest] = dir
			}
		}
	}
}

// settle lists the directory if it must, and otherwise returns how the names
// differ from those on disk.
func (m *model) settle(exempt map[uint64]bool) (listed bool, diff string) {
	truth, looks := m.list()
	seen := m.seen
	m.seen, m.moved = looks, make(map[string]bool)
	if m.dirty {
		m.names, m.dirty = truth, false
		return true, ""
	}
	for n, was := range seen {
		if is, ok := looks[n]; ok && is != was && !exempt[is.ino] && !exempt[was.ino] {
			diff += fmt.Sprintf("\n\tuntold %s: %v, was %v", n, is, was)
		}
	}
	for n, dir := range truth {
		if is, ok := m.names[n]; !ok || is != dir {
			diff += fmt.Sprintf("\n\tmissing %s", n)
		}
	}
	for n := range m.names {
		if _, ok := truth[n]; !ok {
			diff += fmt.Sprintf("\n\tghost %s", n)
		}
	}
	return false, diff
}

// A mixer does random things to few names, so that they meet.
type mixer struct {
	*rand.Rand
	root   string
	calm   bool // nothing moves in with contents, which would have to be listed at once
	flat   bool // the names are those of one directory, so that they meet more often
	mounts bool // what is outside may be mounted inside
	log    []string
	count  int
	cause  bool            // something was done for which all may have to be listed
	exempt map[uint64]bool // inodes of files whose changes are told under another name, or not at all
	whole  bool            // that a file was written to by a name that it has lost is told
	held   *os.File        // open over several batches, whatever becomes of its name
}

// hold opens the file a, or writes to the one that is open.
func (x *mixer) hold(a string) (op string, err error) {
	if x.held == nil {
		fd, err := unix.Open(a, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return "hold", err
		}
		x.held = os.NewFile(uintptr(fd), a)
		return "hold", nil
	}
	_, err = x.held.WriteString("x")
	x.blind(int(x.held.Fd()))
	x.cause = true // it may have another name now
	err = errors.Join(err, x.release())
	return "write to what is held, not", err
}

func (x *mixer) release() error {
	f := x.held
	x.held = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// temporary makes a file without a name, gives it the name a, and writes to it.
func (x *mixer) temporary(a string) error {
	fd, err := unix.Open(filepath.Dir(a), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, a, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	x.cause = true // as docs/guarantees.md has it
	_, err = unix.Write(fd, []byte("x"))
	x.blind(fd)
	return err
}

// blind notes that a file was written to by a name that it may have lost, which is not told on overlayfs and FUSE, nor if
// the event that says so was lost, or read by another group.
func (x *mixer) blind(fd int) {
	var st unix.Stat_t
	if !x.whole && unix.Fstat(fd, &st) == nil {
		x.exempt[st.Ino] = true
	}
}

func (x *mixer) path(top string) string {
	p, depth := []string{x.root, top}, 1
	if !x.flat {
		depth += x.IntN(3)
	}
	for range depth {
		p = append(p, string(rune('a'+x.IntN(3))))
	}
	return filepath.Join(p...)
}

// step does one thing and says whether it moved something into the watch.
func (x *mixer) step() (movedIn bool) {
	a, b := x.path("w"), x.path("w")
	if x.IntN(8) == 0 {
		b = x.path("out")
	}
	if !x.calm && x.IntN(8) == 0 {
		a = x.path("out")
	}
	var err error
	op := ""
	isDir := func(p string) bool { st, err := os.Lstat(p); return err == nil && st.IsDir() }
	dirs := isDir(a) || isDir(b)
	switch k := x.IntN(23); {
	case k < 4:
		op = "touch"
		err = os.WriteFile(a, nil, 0o600)
	case k < 7:
		op = "mkdir"
		err = os.Mkdir(a, 0o700)
	case k < 9:
		op = "rm"
		err = syscall.Unlink(a)
	case k < 10:
		op = "rmdir"
		err = syscall.Rmdir(a)
	case k < 11:
		op = "rm-rf"
		err = os.RemoveAll(a)
	case k < 12:
		op = "ln"
		var st unix.Stat_t
		if err = os.Link(a, b); err == nil && unix.Lstat(b, &st) == nil {
			x.exempt[st.Ino] = true
		}
	case k < 13:
		op = "exchange"
		err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case k < 14:
		op = "chmod"
		err = os.Chmod(a, 0o700+os.FileMode(x.IntN(8)))
	case k < 15:
		op = "write"
		err = os.WriteFile(a, make([]byte, 1+x.IntN(8)), 0o600)
	case k < 16:
		op = "tmpfile"
		err = x.temporary(a)
	case k < 18:
		op, err = x.hold(a)
	default:
		op = "mv"
		err = syscall.Rename(a, b)
	}
	if err != nil && op == "rm-rf" {
		x.log = append(x.log, fmt.Sprintf("%s %s failed: %v", op, a[len(x.root)+1:], err))
	}
	in := func(p string) bool { return strings.HasPrefix(p, x.root+"/w/") }
	if err == nil {
		// The kernel merges renames of directories, and an exchange mixes what a client knows; on overlayfs and FUSE wherever it is.
		x.cause = x.cause || dirs && (op == "exchange" || op == "mv") && (in(a) || in(b) || x.mounts || !x.whole)
		x.count++
		x.log = append(x.log, fmt.Sprintf("%s %s %s", op, a[len(x.root)+1:], b[len(x.root)+1:]))
	}
	return err == nil && (op == "mv" || op == "exchange" && !x.calm || op == "ln") && in(a) != in(b)
}

// mounter mounts things below the watch, moves them and takes them away.
type mounter struct {
	*mixer
	at []string
}

func (m *mounter) step() {
	defer m.bare()
	point := m.path("w")
	var err error
	op := ""
	i := 0
	if len(m.at) > 0 {
		i = m.IntN(len(m.at))
	}
	switch k := m.IntN(7); {
	case k == 6: // as an automounter does, which this process is taken for
		if op, err = "automount", m.autofs(point); err == nil {
			err = unix.Mount("none", point, "tmpfs", 0, "size=1m")
		}
	case k < 2: // over whatever is there, other mounts too
		op = "mount"
		err = unix.Mount("none", point, "tmpfs", 0, "size=1m")
	case k == 2:
		from := m.root + "/out"
		if m.IntN(2) == 0 {
			from = m.root + "/w"
		}
		if m.IntN(2) == 0 {
			from = m.path("w")
		}
		op = "bind " + from[len(m.root)+1:]
		err = unix.Mount(from, point, "", unix.MS_BIND, "")
	case len(m.at) == 0:
		return
	case k == 3:
		op = "move"
		if err = unix.Mount(m.at[i], point, "", unix.MS_MOVE, ""); err == nil {
			m.at = append(m.at[:i], m.at[i+1:]...)
		}
	default:
		op, point = "umount", m.at[i]
		if err = unix.Unmount(point, 0); err == nil {
			m.at = append(m.at[:i], m.at[i+1:]...)
		}
	}
	if err != nil {
		return
	}
	if op != "umount" {
		m.at = append(m.at, point)
		unix.Mount("", point, "", unix.MS_PRIVATE, "")
	}
	m.cause = true
	m.log = append(m.log, fmt.Sprintf("%s %s", op, point[len(m.root)+1:]))
}

// autofs makes dir an automount point.
func (m *mounter) autofs(dir string) error {
	asked, answers, err := os.Pipe()
	if err != nil {
		return err
	}
	defer asked.Close()
	defer answers.Close()
	opts := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", answers.Fd(), unix.Getpgrp())
	return errJoin(unix.Mount("none", dir, "autofs", 0, opts), unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
}

// bare unmounts the automount points on which nothing is mounted: this process is taken for
// the automounter, and can make directories in them, which is nobody's business.
func (m *mounter) bare() {
	for done := false; !done; {
		done = true
		text, _ := os.ReadFile("/proc/self/mountinfo")
		for _, p := range mounts.Parse(text).All() {
			var st unix.Statfs_t
			if p.Kind == "autofs" && p.Below(m.root) && unix.Statfs(p.Point, &st) == nil && st.Type == unix.AUTOFS_SUPER_MAGIC {
				done = unix.Unmount(p.Point, 0) != nil && done
			}
		}
	}
}

// end takes away what is still mounted.
func (m *mounter) end() {
	for range 20 { // one may hide another
		text, _ := os.ReadFile("/proc/self/mountinfo")
		for _, p := range slices.Backward(mounts.Parse(text).All()) {
			if p.Below(m.root) {
				unix.Unmount(p.Point, unix.MNT_DETACH)
			}
		}
	}
}

type convergence struct {
	ops                                      Op
	t                                        *testing.T
	g                                        *Group
	mix                                      *mixer
	models                                   []*model
	rounds, listed, overflows, odd, needless int
	dead                                     bool
}

// newConvergence has three models watch, with a queue for so many events or, if that is 0, for as many as usual.
func newConvergence(t *testing.T, kind string, ops Op, queue int) *convergence {
	root := mountTest(t, kind)
	for _, d := range []string{"w", "out"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	seed := *convergeSeed
	if text := os.Getenv("SEED"); seed == 0 && text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("SEED=%d", seed)
	whole := kind != "overlay" && kind != "overlay-lower" && kind != "fuse" && queue == 0
	c := &convergence{ops: ops, t: t, mix: &mixer{Rand: rand.New(rand.NewPCG(seed, 0)), root: root, exempt: make(map[uint64]bool), whole: whole}}
	if c.g = openTest(t); queue > 0 {
		c.g = openQueued(t, queue)
	}
	for i, tree := range []bool{true, true, false} {
		m := &model{t: t, dir: filepath.Join(root, "w"), tree: tree, prune: i == 1, names: make(map[string]bool), moved: make(map[string]bool), looks: ops&data == data}
		m.names, m.seen = m.list()
		m.watch = c.watch(m)
		c.models = append(c.models, m)
	}
	return c
}

func (c *convergence) watch(m *model) *Watch {
	dir, err := os.Open(m.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	w, err := c.g.Watch(dir, m.tree, c.ops, m.apply)
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

// handOver has another group go on with the queue and the models. Meanwhile, when
// nobody is there, something is done.
func (c *convergence) handOver(meanwhile func()) {
	old := c.g
	for c.drain(); !old.Settled(); {
		c.drain()
	}
	told := make([]bool, len(c.models))
	for i, m := range c.models {
		_, told[i] = m.watch.Handover()
	}
	queue, err := old.Detach()
	if err != nil {
		c.t.Fatal(err)
	}
	old.Close()
	meanwhile()
	c.g = openTest(c.t)
	if err := c.g.Inherit(queue); err != nil {
		c.t.Fatal(err)
	}
	queue.Close()
	for i, m := range c.models {
		if m.watch = c.watch(m); !told[i] {
			c.mix.cause = true
			m.apply(Change{Op: Overflow})
		}
	}
	if err := c.g.Confirm(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *convergence) drain() {
	if err := c.g.Drain(); err != nil {
		c.t.Fatal(err)
	}
}

// scarce drains while few files can be opened, or little can be marked, and then until nothing is to
// be tried again.
func (c *convergence) scarce() {
	c.mix.cause = true
	files, undo := c.mix.IntN(6), func() {}
	if c.mix.IntN(2) == 0 {
		files, undo = 100, failMarks(few(c.mix.IntN(4)))
	}
	forget := c.mix.IntN(2) == 0 // as after an overflow
	for _, fs := range c.g.filesystems {
		if forget && fs.how.whole() {
			fs.how.forget()
		}
	}
	withFiles(c.t, files, func() {
		for _, fs := range c.g.filesystems {
			fs.stale = fs.stale || forget && !fs.how.whole()
		}
		c.drain()
	})
	undo()
	recovers(c.t, c.g)
}

func (c *convergence) check() {
	c.t.Helper()
	c.rounds++
	for _, m := range c.models {
		listed, diff := m.settle(c.mix.exempt)
		if m.dead {
			c.t.Log("the FUSE server crashed; until then nothing diverged")
			c.dead = true
			return
		}
		if listed {
			c.listed++
		}
		if m.lists == 0 && !listed && len(m.odd) > 0 && diff == "" {
			c.odd++
		}
		m.odd = nil
		if m.lists > 0 && !c.mix.cause {
			c.needless++
			if c.needless < 3 {
				c.t.Logf("needless listing, tree %v:\ndone:\n\t%s\ntold:\n\t%s", m.tree, strings.Join(c.mix.log, "\n\t"), strings.Join(m.log, "\n\t"))
			}
		}
		c.overflows, m.lists = c.overflows+m.lists, 0
		if diff != "" {
			c.t.Fatalf("tree %v diverged:%s\ndone:\n\t%s\ntold:\n\t%s", m.tree, diff,
				strings.Join(c.mix.log, "\n\t"), strings.Join(m.log, "\n\t"))
		}
		m.log = nil
	}
	c.mix.log, c.mix.cause = nil, false
	if c.mix.whole { // else links may be counted wrong for a while
		clear(c.mix.exempt)
	}
}

// TestConverge does random things, drains at random and compares.
func TestConverge(t *testing.T) {
	for _, f := range slices.Concat(testFilesystems, lowerFilesystems) {
		for _, mode := range []string{"warm", "cold", "small", "threads", "hops", "heirs", "mounts", "scarce", "overflow"} {
			t.Run(f.name+"/"+mode, func(t *testing.T) {
				queue := 0
				if mode == "overflow" {
					queue = 8
				}
				c := newConvergence(t, f.name, allOps, queue)
				defer c.mix.release()
				turns := []func(func()){func(do func()) { do() }}
				if mode == "threads" || mode == "hops" {
					c.mix.flat = mode == "threads"
					turns = append(turns, newThread(t), newThread(t), func(do func()) {
						if err := eachThread(1, func(int) error { do(); return nil }); err != nil {
							t.Error(err)
						}
					})
				}
				mounter := &mounter{mixer: c.mix}
				if mode == "scarce" {
					c.g.retryAfter = time.Millisecond
				}
				if mode == "mounts" || mode == "scarce" || mode == "overflow" {
					c.mix.mounts = true
					c.models[2].looks = false // another directory that is mounted in one is not told to who watches that by itself
					t.Cleanup(mounter.end)
					for _, m := range c.models {
						m.race = true // what is mounted has names at once that no record has
					}
				}
				if mode == "heirs" || mode == "hops" {
					c.mix.whole = false // the next group does not know which names were lost
				}
				if mode == "small" {
					c.g.maxNodes = 3
				}
				for end := time.Now().Add(*convergeFor); time.Now().Before(end) && !c.dead; {
					movedIn := false
					if c.mix.mounts && c.mix.IntN(8) == 0 {
						mounter.step()
					}
					for range 1 << c.mix.IntN(7) {
						turns[c.mix.IntN(len(turns))](func() { movedIn = c.mix.step() })
						if movedIn {
							break
						}
					}
					if mode == "scarce" && c.mix.IntN(2) == 0 {
						c.scarce()
					}
					if mode == "cold" && c.mix.IntN(2) == 0 {
						for _, fs := range c.g.filesystems {
							fs.how.forget()
							c.mix.cause = c.mix.cause || !fs.how.whole()
						}
					}
					if (mode == "heirs" || mode == "hops") && c.mix.IntN(8) == 0 {
						c.handOver(func() {
							for range c.mix.IntN(8) {
								c.mix.step()
							}
						})
					}
					before := c.g.Overflows()
					c.drain()
					c.mix.cause = c.mix.cause || c.g.Overflows() > before
					c.check()
				}
				t.Logf("%d operations, %d rounds, %d overflows, %d listings, %d times odd, %d needless", c.mix.count, c.rounds, c.overflows, c.listed, c.odd, c.needless)
				if c.needless > 0 && f.name != "overlay-export-lower" { // there no event says which directory was removed
					t.Errorf("all had to be listed %d times without a cause", c.needless)
				}
				if mode != "threads" && mode != "hops" && c.odd > 10+c.rounds/20 { // the kernel merges events, so that some order is lost
					t.Errorf("a client was told what it must take for odd %d times of %d", c.odd, c.rounds)
				}
			})
		}
	}
}

// passers are watches that come and go, and have marks widened and narrowed, while
// others stay.
type passers struct {
	c    *convergence
	open []*Watch
}

// pass opens a watch, of anything anywhere, or closes one.
func (p *passers) pass() {
	x := p.c.mix
	if len(p.open) > 2 || len(p.open) > 0 && x.IntN(2) == 0 {
		i := x.IntN(len(p.open))
		if err := p.open[i].Close(); err != nil {
			p.c.t.Fatal(err)
		}
		p.open = append(p.open[:i], p.open[i+1:]...)
		return
	}
	path := filepath.Join(x.root, "w")
	for range x.IntN(3) {
		path = filepath.Join(path, string(rune('a'+x.IntN(3))))
	}
	dir, err := os.OpenFile(path, syscall.O_DIRECTORY, 0)
	if err != nil {
		return // there is none now
	}
	w, err := p.c.g.Watch(dir, x.IntN(4) > 0, Op(1+x.IntN(1<<opCount-1)), func(Change) {})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE) {
		p.c.t.Fatal(err)
	}
	if err == nil {
		p.open = append(p.open, w)
	}
}

// TestConvergeRace drains while several threads do things, and hands over now
// and then.
func TestConvergeRace(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			c := newConvergence(t, f.name, Create|Delete|Rename, 0) // which others widen
			passers := passers{c: c}
			mixers := []*mixer{{Rand: rand.New(rand.NewPCG(c.mix.Uint64(), 2)), root: c.mix.root, exempt: make(map[uint64]bool)}}
			for i := range 2 {
				mixers = append(mixers, &mixer{Rand: rand.New(rand.NewPCG(c.mix.Uint64(), uint64(i))), root: c.mix.root, exempt: make(map[uint64]bool)})
			}
			for _, x := range mixers {
				x.calm = true
			}
			for _, m := range c.models {
				m.race = true
			}
			for end := time.Now().Add(*convergeFor); time.Now().Before(end) && !c.dead; {
				ctx, done := context.WithCancel(context.Background())
				var threads sync.WaitGroup
				for _, x := range mixers {
					threads.Go(func() {
						runtime.LockOSThread()
						defer x.release()
						for range 1 << x.IntN(9) {
							x.step()
						}
					})
				}
				go func() {
					threads.Wait()
					done()
				}()
				for c.g.Wait(ctx) == nil {
					switch c.mix.IntN(16) {
					case 0:
						for _, w := range passers.open {
							w.Close()
						}
						passers.open = nil
						c.handOver(func() {})
					case 1, 2, 3, 4:
						passers.pass()
					}
					c.drain()
				}
				<-ctx.Done()
				c.drain()
				c.check()
			}
			for _, x := range mixers {
				c.mix.count += x.count
			}
			t.Logf("%d operations, %d rounds, %d overflows, %d listings", c.mix.count, c.rounds, c.overflows, c.listed)
		})
	}
}

// TestWiden: while directories are made with others in them, a second client comes with a
// wider filter, and goes. The first is told of every name, each once and after that
// of its directory, and the second of no name without its directory.
func TestWiden(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			g := openTest(t)
			defer g.Close()
			names, lists := make(map[string]int), 0
			open := func(tree bool, ops Op, fn func(Change)) *Watch {
				dir, err := os.Open(mnt)
				if err != nil {
					t.Fatal(err)
				}
				w, err := g.Watch(dir, tree, ops, fn)
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			check := func(names map[string]int, c Change, strict bool) {
				if c.Op == Overflow {
					lists++
					return
				}
				name := string(c.Name)
				if names[name]++; names[name] > 1 {
					t.Errorf("%s was told twice", name)
				}
				if above := filepath.Dir(name); strict && lists == 0 && above != "." && names[above] == 0 {
					t.Errorf("%s was told without %s", name, above)
				}
			}
			open(true, Create, func(c Change) { check(names, c, true) })
			ctx, done := context.WithCancel(context.Background())
			made := 0
			go func() {
				defer done()
				for end := time.Now().Add(*convergeFor); time.Now().Before(end); made++ {
					d := fmt.Sprintf("%s/%d", mnt, made)
					if err := errJoin(os.MkdirAll(d+"/x/y", 0o755), os.WriteFile(d+"/f", nil, 0o600), os.WriteFile(d+"/x/y/g", nil, 0o600)); err != nil {
						if !errors.Is(err, unix.ENOSPC) { // else it was for long enough
							t.Error(err)
						}
						return
					}
				}
			}()
			for ctx.Err() == nil {
				second := make(map[string]int)
				w := open(true, Create|Attrib|Modify, func(c Change) {
					if c.Op == Create && c.Dir {
						second[string(c.Name)] = 1
					}
				})
				if err := g.Wait(ctx); err == nil {
					drain(t, g)
				}
				w.Close()
			}
			drain(t, g)
			if g.Overflows() > 0 {
				t.Logf("%d directories, too many for the queue", made)
				return
			}
			for i := range made {
				for _, n := range []string{"", "/x", "/x/y", "/f", "/x/y/g"} {
					if n = fmt.Sprint(i, n); names[n] == 0 {
						t.Errorf("%s was not told", n)
					}
				}
			}
			if lists > 0 {
				t.Errorf("%d needless listings", lists)
			}
			t.Logf("%d directories", made)
		})
	}
}
