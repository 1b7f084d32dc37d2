// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A watch tree does not end at a mount below it. What is mounted there has a
// watch tree of its own, whose changes are told under the names that they have
// in the one above.

// A mountInfo is a line of proc_pid_mountinfo(5).
type mountInfo struct {
	id, parent int
	point      string // where it is mounted
	kind       string // the filesystem's
}

// A mountTable has the mounts of this process's namespace and that of process
// 1, whence directories may come that are handed over.
type mountTable struct {
	tables  []*mountFile
	changed atomic.Bool // since remount last looked
	stale   atomic.Bool // the lists are of before
}

type mountFile struct {
	name  string
	poll  int // asked what is new
	wake  int // for Wait's epoll, which asks it and thereby makes it forget
	list  []mountInfo
	known bool // list is as the file was when last asked
}

// open opens what there is; process 1 may be out of sight.
func (t *mountTable) open(g *Group) error {
	for _, name := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		poll, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil && len(t.tables) > 0 {
			break
		}
		if err != nil {
			return fmt.Errorf("opening %s: %w", name, err)
		}
		wake, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			unix.Close(poll)
			return fmt.Errorf("opening %s: %w", name, err)
		}
		t.tables = append(t.tables, &mountFile{name: name, poll: poll, wake: wake})
		if err := g.poll(wake, unix.EPOLLPRI); err != nil {
			return err
		}
	}
	return nil
}

func (t *mountTable) close() {
	for _, f := range t.tables {
		unix.Close(f.poll)
		unix.Close(f.wake)
	}
}

// poll says whether mounts may have changed since remount last looked. Wait
// asks too.
func (t *mountTable) poll() bool {
	var p [2]unix.PollFd
	for i, f := range t.tables {
		p[i] = unix.PollFd{Fd: int32(f.poll), Events: unix.POLLPRI}
	}
	if n, err := unix.Poll(p[:len(t.tables)], 0); n > 0 || err != nil {
		t.stale.Store(true)
		t.changed.Store(true)
	}
	return t.changed.Load()
}

// of returns the mounts of the namespace that has the mount id.
func (t *mountTable) of(id int) []mountInfo {
	if t.poll(); t.stale.Swap(false) {
		for _, f := range t.tables {
			f.known = false
		}
	}
	for _, f := range t.tables {
		if !f.known {
			text, err := os.ReadFile(f.name)
			f.list, f.known = parseMounts(text), err == nil
		}
		for i := range f.list {
			if f.list[i].id == id {
				return f.list
			}
		}
	}
	return nil
}

func (t *mountTable) lookup(id int) *mountInfo {
	list := t.of(id)
	for i := range list {
		if list[i].id == id {
			return &list[i]
		}
	}
	return nil
}

// kind returns the type of the filesystem that the mount id has.
func (t *mountTable) kind(id int) string {
	if info := t.lookup(id); info != nil {
		return info.kind
	}
	return "unknown"
}

// unescape undoes what the kernel does to blanks and backslashes in a path.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)

// parseMounts reads lines like
// 36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda rw,errors=continue
func parseMounts(text []byte) (list []mountInfo) {
	for line := range bytes.Lines(text) {
		mount, super, _ := strings.Cut(string(line), " - ")
		m, s := strings.Fields(mount), strings.Fields(super)
		if len(m) < 6 || len(s) < 1 {
			continue
		}
		info := mountInfo{point: unescape.Replace(m[4]), kind: s[0]}
		info.id, _ = strconv.Atoi(m[0])
		info.parent, _ = strconv.Atoi(m[1])
		list = append(list, info)
	}
	return list
}

// A nested watch is one of a mount below a watch tree.
type nested struct {
	above *Watch // the watch of the mount that it is mounted in
	mount int    // its id in the namespace, though not that of the clone by which it is watched
	dir   handle // the directory there that has the mount point
	name  []byte // of the mount point
	point string
	buf   []byte // names as above has them
}

// remount brings the mounts below all watch trees up to date.
func (g *Group) remount() {
	g.mounts.changed.Store(false) // what changes from here on is for the next Drain
	g.batch++
	var trees []*Watch
	for _, q := range g.queues {
		for _, fs := range q.filesystems {
			for _, w := range fs.watches {
				if w.tree && w.nested == nil {
					trees = append(trees, w)
				}
			}
		}
	}
	for _, w := range trees {
		if w.nest() {
			w.lose()
		}
	}
}

// nest watches the mounts below a watch tree, and no others. It says whether
// there was anything to do.
func (w *Watch) nest() (changed bool) {
	list := w.fs.g.mounts.of(w.mountID)
	if len(list) <= 1 {
		return false
	}
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.dir.Fd()))
	if err != nil {
		return false
	}
	if top != "/" {
		top += "/"
	}
	below := make(map[int]bool)
	for again := true; again; { // a mount may be listed before the one that it is in
		again = false
		for i := range list {
			m := &list[i]
			above := w.at(m.parent)
			if below[m.id] || above == nil || m.kind == "autofs" || !strings.HasPrefix(m.point, top) || len(m.point) == len(top) {
				continue
			}
			below[m.id], again = true, true
			if w.at(m.id) != nil {
				continue
			}
			had := len(w.below)
			if err := w.addNested(above, m, m.point[len(top):]); err != nil && !errors.Is(err, unix.ENOTDIR) {
				w.fs.g.refuse(m.kind, m.point, err)
			}
			changed = changed || len(w.below) > had
		}
	}
	for i := len(w.below) - 1; i >= 0; i-- {
		if n := w.below[i]; !below[n.nested.mount] {
			w.below = append(w.below[:i], w.below[i+1:]...)
			n.Close()
			changed = true
			w.fs.stale = w.fs.stale || w.fs.walked // what it was mounted on is to be marked
		}
	}
	return changed
}

// at returns the watch of the mount id, of w itself or of one below.
func (w *Watch) at(id int) *Watch {
	if id == w.mountID {
		return w
	}
	for _, n := range w.below {
		if n.nested.mount == id {
			return n
		}
	}
	return nil
}

// addNested watches the mount m at rel below w.
func (w *Watch) addNested(above *Watch, m *mountInfo, rel string) error {
	g := w.fs.g
	dir, err := unix.Openat(int(w.dir.Fd()), path.Dir(rel), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the directory of the mount point: %w", err)
	}
	defer unix.Close(dir)
	n := &nested{above: above, mount: m.id, name: []byte(path.Base(rel)), point: m.point}
	if n.dir, _, err = handleAt(dir, ""); err != nil {
		return fmt.Errorf("taking handle of the directory of the mount point: %w", err)
	}
	_, id, err := handleAt(dir, path.Base(rel))
	if err != nil {
		return fmt.Errorf("taking handle of the mount: %w", err)
	}
	if id != m.id {
		return nil // something is mounted over it
	}
	fd, err := cloneMount(dir, path.Base(rel), m.point)
	if err != nil {
		return fmt.Errorf("cloning the mount: %w", err)
	}
	sub := &Watch{tree: true, ops: w.ops, nested: n}
	sub.fn = sub.relay
	if err := g.start(sub, os.NewFile(uintptr(fd), m.point)); err != nil {
		return err
	}
	w.below = append(w.below, sub)
	return nil
}

// cloneMount opens the root of a clone of a mount that is in no namespace:
// while we have it open, the mount itself can be unmounted. A mount of
// another namespace cannot be cloned, but may be here as well.
func cloneMount(dir int, name, point string) (int, error) {
	const how = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_NO_AUTOMOUNT
	tree, err := unix.OpenTree(dir, name, how)
	if err == unix.EINVAL {
		tree, err = unix.OpenTree(unix.AT_FDCWD, point, how)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(tree)
	// The directory keeps the clone.
	return unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// relay tells the watch above what happened in a nested mount.
func (w *Watch) relay(c Change) {
	n := w.nested
	switch c.Op {
	case Gone: // it goes with its mount
		return
	case Overflow:
		n.above.lose()
		return
	}
	fs, s := n.above.fs, &w.fs.g.nesting
	if err := s.find(fs, fs.get(n.dir), n.name); err != nil {
		n.above.lose()
		return
	}
	h := s.at(n.above.node)
	if h == nil {
		return // moved out of sight, with all that is mounted there
	}
	n.buf = n.buf[:0]
	join := func(name []byte) []byte {
		if name == nil {
			return nil
		}
		start := len(n.buf)
		n.buf = append(append(append(n.buf, h.name...), '/'), name...)
		return n.buf[start:len(n.buf):len(n.buf)]
	}
	c.OldName, c.Name = join(c.OldName), join(c.Name)
	// Nothing of it can be opened through the watch's own mount.
	c.OldParent, c.Parent = elsewhere, elsewhere
	n.above.tell(c)
}

// elsewhere is the handle of no directory, of type FILEID_INVALID (linux/exportfs.h).
var elsewhere = string(binary.NativeEndian.AppendUint32(make([]byte, 4), 0xff))

// refuse logs what cannot be watched, once for each kind of filesystem.
func (g *Group) refuse(kind, where string, err error) {
	if g.refused[kind] {
		g.log.Debug("cannot be watched", "path", where, "err", err)
		return
	}
	g.refused[kind] = true
	g.log.Warn("cannot be watched, nor others of this kind", "filesystem", kind, "path", where, "err", err)
}
