// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A Watch is a directory being watched, or a tree of directories.
type Watch struct {
	fs       *filesystem
	node     *node
	tree     bool
	ops      Op
	fn       func(Change)
	closed   bool
	gone     bool
	overflow uint64 // the last batch in which it was told of an Overflow
}

// What marks ask for besides the watches' own ops.
const (
	// selfMask, on a watched directory: ATTRIB shows that another directory was
	// renamed over it, MOVE_SELF that its guard must follow.
	selfMask = unix.FAN_ATTRIB | unix.FAN_MOVE_SELF | unix.FAN_ONDIR
	// guardMask, on the directory above: DELETE tells of a removal at once.
	// DELETE_SELF would wait until nobody has the directory open, and its
	// watch has.
	guardMask = unix.FAN_DELETE | unix.FAN_ONDIR
	// treeMask, on the filesystem of a watch tree: what keeps the handle tree right.
	treeMask = unix.FAN_DELETE | unix.FAN_RENAME | unix.FAN_ONDIR
)

// data are the ops that leave the name as it is.
const data = Modify | Attrib | Access

// opBits has the mask bit of each op.
var opBits = [...]struct {
	bit uint64
	op  Op
}{
	{unix.FAN_CREATE, Create},
	{unix.FAN_RENAME, Rename},
	{unix.FAN_MODIFY, Modify},
	{unix.FAN_ATTRIB, Attrib},
	{unix.FAN_ACCESS, Access},
	{unix.FAN_DELETE, Delete},
}

// masks returns what w needs of its directory's mark and of its filesystem's.
func (w *Watch) masks() (inode, filesystem uint64) {
	var mask uint64
	for _, b := range opBits {
		if w.ops&b.op != 0 {
			mask |= b.bit
		}
	}
	if w.tree {
		return selfMask, mask | treeMask
	}
	if w.ops&(Modify|Attrib|Access) != 0 {
		mask |= unix.FAN_EVENT_ON_CHILD
	}
	return mask | selfMask, 0
}

// Watch calls fn, from Drain, for each change of the kinds in ops in the
// directory that dir is open on (O_RDONLY|O_DIRECTORY), or with tree in and
// below it on its filesystem. It takes ownership of dir, also when it fails.
// Once it has returned no change is missed.
//
// Filesystems that cannot be marked as a whole refuse a tree with EXDEV,
// EOPNOTSUPP or ENODEV, and some directories cannot share the group (EXDEV);
// see fanotify_mark(2). A directory that was removed already is ENOENT.
func (g *Group) Watch(dir *os.File, tree bool, ops Op, fn func(Change)) (*Watch, error) {
	name := dir.Name()
	w := &Watch{tree: tree, ops: ops, fn: fn}
	if err := g.start(w, dir); err != nil {
		return nil, fmt.Errorf("watching %s: %w", name, err)
	}
	return w, nil
}

func (g *Group) start(w *Watch, dir *os.File) error {
	h, mountID, err := handleAt(int(dir.Fd()), "")
	if err != nil {
		dir.Close()
		return fmt.Errorf("taking directory's handle: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		dir.Close()
		return fmt.Errorf("taking filesystem's id: %w", err)
	}
	w.fs = g.filesystem(st.Fsid)
	w.node = w.fs.get(h)
	inode, filesystem := w.masks()
	if err := w.fs.want(w.node, dir, mountID, inode); err != nil {
		w.fs.close()
		return err
	}
	w.node.watches = append(w.node.watches, w)
	w.fs.watches = append(w.fs.watches, w)
	if w.tree {
		w.fs.trees++
	}
	if w.fs.stale {
		w.fs.forget() // before another event is told by it
	}
	if w.tree {
		if err := w.fs.mark.add(g.fd, w.node.mount.fd, filesystem); err != nil {
			w.stop()
			return fmt.Errorf("marking filesystem: %w", err)
		}
	}
	err = w.fs.follow(w.node)
	if err == nil && w.node.removed() {
		err = unix.ENOENT
	}
	if err != nil {
		w.Close()
	}
	return err
}

// Strategy says how the watch hears of changes: "filesystem mark" or "directory
// mark".
func (w *Watch) Strategy() string {
	if w.tree {
		return "filesystem mark"
	}
	return "directory mark"
}

// Close ends the watch. A second Close is os.ErrClosed.
func (w *Watch) Close() error {
	if w.closed {
		return os.ErrClosed
	}
	var err error
	if _, filesystem := w.masks(); w.tree {
		err = w.fs.mark.remove(w.fs.g.fd, w.node.mount.fd, filesystem)
	}
	if err = cmp.Or(err, w.stop()); err != nil {
		return fmt.Errorf("ending watch: %w", err)
	}
	return nil
}

// stop undoes start but for the filesystem mark.
func (w *Watch) stop() error {
	fs, n := w.fs, w.node
	w.closed = true
	fs.watches = without(fs.watches, w)
	if w.tree {
		fs.trees--
		fs.stale = fs.stale || fs.trees == 0 // nothing keeps the handle tree right any more
	}
	var err error
	n.watches = without(n.watches, w)
	if len(n.watches) == 0 && n.guard != nil {
		err = fs.unwant(n.guard, guardMask)
		n.guard = nil
	}
	inode, _ := w.masks()
	err = cmp.Or(err, fs.unwant(n, inode))
	fs.close()
	return err
}

func without(list []*Watch, w *Watch) []*Watch {
	i := slices.Index(list, w)
	return slices.Delete(list, i, i+1)
}

// follow marks the directory that n is in now, as n's guard. The root of a
// mount has none: what removes it is out of sight.
func (fs *filesystem) follow(n *node) error {
	fd, err := unix.Openat(int(n.dir.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT { // moved out of its mount
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the directory above: %w", err)
	}
	above := os.NewFile(uintptr(fd), "..")
	h, mountID, err := handleAt(fd, "")
	if err != nil || mountID != n.mount.id || string(h) == n.handle {
		above.Close()
		return err
	}
	guard := fs.get(h)
	if guard == n.guard {
		return above.Close()
	}
	if err := fs.want(guard, above, mountID, guardMask); err != nil {
		return err
	}
	old := n.guard
	n.guard = guard
	if old != nil {
		return fs.unwant(old, guardMask)
	}
	return nil
}

// removed says whether the directory of n, which has a site, was removed.
func (n *node) removed() bool {
	var st unix.Stat_t
	return unix.Fstat(int(n.dir.Fd()), &st) == nil && st.Nlink == 0
}
