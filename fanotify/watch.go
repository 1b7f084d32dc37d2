// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"cmp"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Watch is a directory being watched, or a tree of directories.
type Watch struct {
	fs       *filesystem
	node     *node
	dir      *os.File // the node's, or its own if that is in another mount
	view     *view    // of a watch tree: the mount that it begins in
	mountID  int
	inode    bool // it has its directory marked
	tree     bool
	device   uint64 // if not 0, it sees what is mounted from that alone, see WatchMount
	ops      Op
	fn       func(Change)
	closed   bool
	gone     bool
	owed     bool   // it is to be told of an Overflow
	since    uint64 // where in its queue it began
	overflow uint64 // the last batch in which it was told of an Overflow

	inFS, inNode, inView int // its index in their watches
}

// What marks ask for besides the watches' own ops.
const (
	// victimMask, on a filesystem with watches that ask for Delete, tells which renames
	// replaced something, see replace.go.
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
const data = Modify | Attrib

// opBits has the mask bit of each op.
var opBits = [...]struct {
	bit uint64
	op  Op
}{
	{unix.FAN_CREATE, Create},
	{unix.FAN_RENAME, Rename},
	{unix.FAN_MODIFY, Modify},
	{unix.FAN_ATTRIB, Attrib},
	{unix.FAN_DELETE, Delete},
}

const opCount = 5 // Create to Attrib

// bitsOf returns the mask that tells of ops.
func bitsOf(ops Op) (mask uint64) {
	for _, b := range opBits {
		if ops&b.op != 0 {
			mask |= b.bit
		}
	}
	return mask
}

// opsOf returns the ops that a mask tells of.
func opsOf(mask uint64) (ops Op) {
	for _, b := range opBits {
		if mask&b.bit != 0 {
			ops |= b.op
		}
	}
	return ops
}

// Watch calls fn, from Drain, for each change of the kinds in ops in the
// directory that dir is open on, also with O_PATH, or with tree in and below
// it, mounts included. It takes ownership of dir, also when it fails. Once it
// has returned no change is missed, and nothing is told that happened before it
// was called.
//
// A filesystem that cannot be watched is EOPNOTSUPP; the error says why. A
// directory that was removed already is ENOENT.
func (g *Group) Watch(dir *os.File, tree bool, ops Op, fn func(Change)) (*Watch, error) {
	return g.watch(&Watch{tree: tree, ops: ops, fn: fn}, dir)
}

func (g *Group) watch(w *Watch, dir *os.File) (*Watch, error) {
	defer g.leave()
	name := dir.Name()
	dir, err := reopen(dir)
	if err == nil {
		err = g.start(w, dir)
		g.schedule() // it may have read on
	}
	if isRefused(err) {
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

// start has w told of what happens from now on.
func (g *Group) start(w *Watch, dir *os.File) error {
	if g.mounts.poll() {
		g.refresh() // a filesystem that was unmounted may have left its device to this one
	}
	if err := g.enlist(w, dir); err != nil {
		return err
	}
	err := w.arm()
	if err != nil {
		w.stop()
		return err
	}
	if w.inode && w.node.guard == nil { // else the events of other watches of it keep it right
		err = w.fs.follow(w.node)
	}
	if err == nil && w.node.wasRemoved() {
		err = unix.ENOENT
	}
	if err != nil {
		w.Close()
		return err
	}
	if w.tree {
		g.nest(w)
	}
	if !g.inheriting { // what an inherited queue has is for all who are watched again
		w.since = g.readOn(w.fs.queue)
	}
	return nil
}

// enlist makes w one of the watches of its filesystem and of its directory's node. It takes
// ownership of dir.
func (g *Group) enlist(w *Watch, dir *os.File) error {
	if err := g.locateWatch(w, dir); err != nil {
		dir.Close()
		return err
	}
	fs := w.fs
	if err := w.hold(dir); err != nil {
		if w.tree {
			fs.unsee(w.view)
		}
		fs.close()
		return err
	}
	fs.changes++
	w.inFS, fs.watches = len(fs.watches), append(fs.watches, w)
	w.inNode, w.node.watches = len(w.node.watches), append(w.node.watches, w)
	if w.tree {
		w.inView, w.view.trees = len(w.view.trees), append(w.view.trees, w)
		fs.trees++
	}
	fs.ask(w, 1)
	if fs.stale || fs.hidden {
		fs.how.forget() // before another event is told by it
	}
	return nil
}

// locateWatch finds the filesystem, the node and the mount of w.
func (g *Group) locateWatch(w *Watch, dir *os.File) error {
	h, mountID, err := handleAt(int(dir.Fd()), "")
	if err != nil {
		return fmt.Errorf("taking directory's handle: %w", err)
	}
	fs, err := g.filesystem(int(dir.Fd()), w.tree)
	if err != nil {
		return err
	}
	w.mountID, w.fs, w.dir = mountID, fs, dir
	w.node = fs.get(h)
	w.inode = w.device == 0 && fs.how.alone(w)
	if w.tree {
		if w.view, err = fs.see(dir, mountID); err != nil {
			fs.close()
		}
	}
	return err
}

// hold has the directory of w held open and marked as far as w needs that. It takes
// ownership of dir.
func (w *Watch) hold(dir *os.File) error {
	mask, _ := w.masks()
	given := dir
	if w.node.site != nil && w.node.view.id != w.mountID {
		given = nil // w keeps its own: other mounts may be below it there
	}
	err := w.fs.want(w.node, given, w.mountID, mask)
	switch {
	case err != nil && given == nil:
		dir.Close()
	case err == nil && given != nil:
		w.dir = w.node.dir
	}
	return err
}

// arm has marked what w needs besides its directory.
func (w *Watch) arm() error {
	if w.device != 0 {
		return nil
	}
	_, wide := w.masks()
	return w.fs.how.arm(w.node, w.anyView(), wide)
}

func (w *Watch) disarm() error {
	if w.device != 0 {
		return nil
	}
	_, wide := w.masks()
	return w.fs.how.disarm(w.anyView(), wide)
}

func (w *Watch) masks() (directory, wide uint64) {
	if w.device != 0 {
		return 0, 0
	}
	return w.fs.how.masks(w)
}

func (w *Watch) anyView() *view {
	if w.view != nil {
		return w.view
	}
	return w.node.view
}

// ask counts the ops that w asks for.
func (fs *filesystem) ask(w *Watch, n int) {
	wider := false
	for i := range fs.asked {
		if w.ops&(1<<i) == 0 {
			continue
		}
		fs.asked[i] += n
		if w.tree {
			before := fs.g.asked[i]
			fs.g.asked[i] += n
			wider = wider || before == 0 || fs.g.asked[i] == 0
		}
	}
	if wider && len(fs.g.points) > 0 {
		fs.g.widenNested()
	}
}

// nest has watched what is mounted below the new watch tree w.
func (g *Group) nest(w *Watch) {
	top := w.base(w.view)
	if top.path == "" {
		return
	}
	for _, n := range g.mounts.namespaces {
		table, err := n.Table()
		if err == nil && table.Lookup(w.mountID) == nil {
			continue
		}
		if table.Holds(w.mountID) {
			n.Forget() // a directory may have been renamed that is above a mount
		}
		alone := &bases{g, map[int]base{w.mountID: top}, map[string][]base{top.path: {top}}}
		if g.extend(n, alone, top.path, func(p *point) { p.loseBut(w) }); err == nil { // others may have been told nothing of it
			return
		}
	}
}

// Strategy says how the watch hears of changes: by a "directory mark", a
// "filesystem mark", or "directory marks", one on each directory of a tree.
func (w *Watch) Strategy() string {
	switch {
	case w.tree && !w.fs.how.whole():
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
	defer w.fs.g.leave()
	w.fs.g.narrow()
	err := w.disarm()
	err = cmp.Or(err, w.stop())
	if !w.fs.g.retryMounts.IsZero() { // whether others see some mount could not be found out
		w.fs.g.schedule()
	}
	if err != nil {
		return fmt.Errorf("ending watch: %w", err)
	}
	return nil
}

// stop undoes enlist.
func (w *Watch) stop() error {
	fs, n := w.fs, w.node
	w.closed = true
	fs.held++
	fs.changes++
	drop(&fs.watches, w.inFS, func(o *Watch, i int) { o.inFS = i })
	drop(&n.watches, w.inNode, func(o *Watch, i int) { o.inNode = i })
	if w.tree {
		drop(&w.view.trees, w.inView, func(o *Watch, i int) { o.inView = i })
		fs.trees--
		fs.stale = fs.stale || !fs.tracked()
		fs.g.dropUnseen()
	}
	fs.ask(w, -1)
	var err error
	if len(n.watches) == 0 && n.guard != nil {
		err = fs.unwant(n.guard, guardMask)
		n.guard = nil
	}
	if w.dir != n.dir {
		w.dir.Close()
	}
	inode, _ := w.masks()
	err = cmp.Or(err, fs.unwant(n, inode))
	if w.tree {
		fs.unsee(w.view)
	}
	fs.held--
	fs.close()
	return err
}

// drop takes the i-th out of a list in no order; moved notes the index of the one
// that takes its place.
func drop(list *[]*Watch, i int, moved func(*Watch, int)) {
	l := *list
	last := len(l) - 1
	l[i] = l[last]
	moved(l[i], i)
	l[last] = nil
	*list = l[:last]
}

// dropUnseen drops the mounts that no watch tree sees any more.
func (g *Group) dropUnseen() {
	for id, p := range g.points {
		if !p.seen() {
			g.remove(id)
		}
	}
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
	if err != nil || mountID != n.view.id || string(h) == n.handle {
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

// wasRemoved says whether the directory of n, which has a site, was removed.
func (n *node) wasRemoved() bool {
	var st unix.Stat_t
	fd := int(n.dir.Fd())
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 1 {
		return isRemoved(err) || err == nil && st.Nlink == 0
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && isDeleted(fd, name, n.handle)
}
