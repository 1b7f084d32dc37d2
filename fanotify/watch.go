// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A Watch is a directory being watched, or a tree of directories.
type Watch struct {
	fs       *filesystem
	node     *node
	dir      *os.File // the node's, or its own if that is in another mount
	mountID  int
	inode    bool // it has its directory marked
	tree     bool
	ops      Op
	fn       func(Change)
	closed   bool
	gone     bool
	overflow uint64   // the last batch in which it was told of an Overflow
	below    []*Watch // of the mounts below a watch tree
	nested   *nested  // if it is one of these
}

// What marks ask for besides the watches' own ops.
const (
	// victimMask, on a filesystem whose watches tell of names: see victim.
	victimMask = unix.FAN_ATTRIB | unix.FAN_MOVE_SELF | unix.FAN_ONDIR
	// selfMask, on a watched directory: ATTRIB shows that another directory was
	// renamed over it, MOVE_SELF that its guard must follow.
	selfMask = unix.FAN_ATTRIB | unix.FAN_MOVE_SELF | unix.FAN_ONDIR
	// guardMask, on the directory above: DELETE tells of a removal at once.
	// DELETE_SELF would wait until nobody has the directory open, and its
	// watch has.
	guardMask = unix.FAN_DELETE | unix.FAN_ONDIR
	// treeMask, on the filesystem of a watch tree: what keeps the handle tree
	// right and shows that a watched directory was removed.
	treeMask = unix.FAN_DELETE | unix.FAN_RENAME | unix.FAN_ATTRIB | unix.FAN_ONDIR
	// walkMask, on each directory of a watch tree where there is no filesystem mark.
	walkMask = unix.FAN_CREATE | unix.FAN_EVENT_ON_CHILD
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

const opCount = 6 // Create to Access

// masks returns what w needs of its directory's mark and of its filesystem's.
func (w *Watch) masks() (inode, filesystem uint64) {
	var mask uint64
	for _, b := range opBits {
		if w.ops&b.op != 0 {
			mask |= b.bit
		}
	}
	if w.ops&Delete != 0 && w.fs.whole {
		filesystem = victimMask
	}
	switch {
	case w.fs.walked:
		return selfMask, mask | treeMask | selfMask | walkMask
	case w.tree || !w.inode:
		return 0, mask | treeMask | filesystem
	case w.ops&(Modify|Attrib|Access) != 0:
		mask |= unix.FAN_EVENT_ON_CHILD
	}
	return mask | selfMask, filesystem
}

// Watch calls fn, from Drain, for each change of the kinds in ops in the
// directory that dir is open on, also with O_PATH, or with tree in and below
// it, mounts included. It takes ownership of dir, also when it fails. Once it
// has returned no change is missed.
//
// A filesystem that cannot be watched is EOPNOTSUPP; the log says why, once. A
// directory that was removed already is ENOENT.
func (g *Group) Watch(dir *os.File, tree bool, ops Op, fn func(Change)) (*Watch, error) {
	name := dir.Name()
	w := &Watch{tree: tree, ops: ops, fn: fn}
	dir, err := reopen(dir)
	if err == nil {
		err = g.start(w, dir)
	}
	switch {
	case err == nil && tree:
		w.nest()
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
		g.refuse(g.mounts.kind(w.mountID), name, err)
		err = fmt.Errorf("%v: %w", err, unix.EOPNOTSUPP)
	}
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", name, err)
	}
	return w, nil
}

// reopen returns dir, or the same directory open for reading if dir is open with
// O_PATH: through that, handles cannot be opened. It takes ownership of dir.
func reopen(dir *os.File) (*os.File, error) {
	how, err := unix.FcntlInt(dir.Fd(), unix.F_GETFL, 0)
	if err == nil && how&unix.O_PATH == 0 {
		return dir, nil
	}
	defer dir.Close()
	if err != nil {
		return nil, fmt.Errorf("looking at directory: %w", err)
	}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

func (g *Group) start(w *Watch, dir *os.File) error {
	h, mountID, err := handleAt(int(dir.Fd()), "")
	if err != nil {
		dir.Close()
		return fmt.Errorf("taking directory's handle: %w", err)
	}
	w.mountID = mountID
	fs, err := g.filesystem(int(dir.Fd()), w.tree)
	if err != nil {
		dir.Close()
		return err
	}
	w.fs = fs
	w.node = fs.get(h)
	id, _, err := fsid(int(dir.Fd()))
	if err != nil {
		dir.Close()
		fs.close()
		return err
	}
	w.inode = !fs.whole || id == fs.id && !w.tree
	inode, filesystem := w.masks()
	if w.node.site != nil && w.node.mount.id != mountID {
		w.dir, dir = dir, nil // other mounts may be below it there
	}
	if err := fs.want(w.node, dir, mountID, inode); err != nil {
		w.dir.Close()
		fs.close()
		return err
	}
	if w.dir == nil {
		w.dir = w.node.dir
	}
	w.node.watches = append(w.node.watches, w)
	fs.watches = append(fs.watches, w)
	fs.ask(w, 1)
	if w.tree {
		fs.trees++
	}
	if fs.stale {
		fs.forget() // before another event is told by it
	}
	if fs.walked {
		err = fs.cover(w, filesystem)
	} else if err = fs.mark.add(fs.queue.fd, w.node.mount.fd, filesystem); err != nil {
		err = fmt.Errorf("marking filesystem: %w", err)
	}
	if err != nil {
		w.stop()
		return err
	}
	if w.inode {
		err = fs.follow(w.node)
	}
	if err == nil && w.node.removed() {
		err = unix.ENOENT
	}
	if err != nil {
		w.Close()
	}
	return err
}

// ask counts the ops that w asks for.
func (fs *filesystem) ask(w *Watch, n int) {
	for i := range fs.asked {
		if w.ops&(1<<i) != 0 {
			fs.asked[i] += n
		}
	}
}

// Strategy says how the watch hears of changes: by a "directory mark", a
// "filesystem mark", or "directory marks", one on each directory of a tree.
func (w *Watch) Strategy() string {
	switch {
	case w.fs.walked:
		return "directory marks"
	case w.inode:
		return "directory mark"
	}
	return "filesystem mark"
}

// Close ends the watch. A second Close is os.ErrClosed.
func (w *Watch) Close() error {
	if w.closed {
		return os.ErrClosed
	}
	for _, n := range w.below {
		n.Close()
	}
	w.fs.g.narrow()
	var err error
	_, filesystem := w.masks()
	if w.fs.walked {
		w.fs.mark.count(filesystem, -1)
	} else {
		err = w.fs.mark.remove(w.fs.queue.fd, w.node.mount.fd, filesystem)
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
	fs.ask(w, -1)
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
	if w.dir != n.dir {
		w.dir.Close()
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
	err := unix.Fstat(int(n.dir.Fd()), &st)
	return isRemoved(err) || err == nil && st.Nlink == 0
}
