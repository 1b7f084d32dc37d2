// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sys/unix"
)

// A filesystem has the watches of one filesystem and its handle tree: for
// each directory its parent and name. Positions are learned from events and,
// for directories that no event told of, looked up.
//
// The tree says where a directory is as the watches have been told. It moves
// a node only together with telling of a rename, so that names stay true to
// what a client knows while events wait unread.
type filesystem struct {
	g       *Group
	queue   *queue
	id      uint64 // fsid, as events have it
	whole   bool   // it takes a filesystem mark
	walked  bool   // it has watch trees, and no filesystem mark: see walk.go
	opaque  bool   // its handles can be compared, and not opened
	watches []*Watch
	mounts  []*mount
	root    *mount // of source, a device: shows all of it, if the watches' own mounts do not
	source  string
	mark    mark         // the filesystem mark; if walked, that of every directory
	asked   [opCount]int // watches that ask for an op
	trees   int          // watch trees; without them nothing keeps the tree right

	nodes map[string]*node // by handle
	top   *node            // parent of what is above every mount
	lru   node             // ring of the nodes that may be evicted, next is the most recently used
	stale bool             // forget the tree at the end of the batch

	marked    int // nodes that walk.go has marked
	unentered []unentered

	doubts   []doubt // see settle.go
	doubtful map[doubtKey]int
	renames  []rename
}

// A fsKey names a filesystem. One without a filesystem mark stands twice: its
// watch trees have a queue of their own, which they leave with all its marks.
type fsKey struct {
	dev   uint64 // st_dev of directories
	trees bool
}

// filesystem returns what dir is in, made if need be. A filesystem that can be
// marked as a whole shares the first queue. Any other has one of its own: some
// can share with none other (EXDEV), see fanotify_mark(2).
func (g *Group) filesystem(dir *os.File, mountID int, tree bool) (*filesystem, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("looking at directory: %w", err)
	}
	for _, trees := range []bool{false, tree} {
		if fs := g.filesystems[fsKey{st.Dev, trees}]; fs != nil && (fs.whole || trees == tree) {
			return fs, nil
		}
	}
	id, kind, err := fsid(int(dir.Fd()))
	if err != nil {
		return nil, err
	}
	key := fsKey{dev: st.Dev}
	err = canMark(g.queues[0], int(dir.Fd()))
	if err == unix.EXDEV && kind == unix.BTRFS_SUPER_MAGIC {
		fs, rootErr := g.btrfs(mountID)
		if rootErr == nil {
			return fs, nil
		}
		g.log.Warn("watching a btrfs subvolume directory by directory", "err", rootErr)
	}
	whole := err == nil
	switch {
	case whole:
	case err == unix.EXDEV || err == unix.EOPNOTSUPP || err == unix.ENODEV || err == unix.EINVAL:
		key.trees = tree
	default:
		return nil, fmt.Errorf("marking filesystem: %w", err)
	}
	q := g.queues[0]
	if !whole || q.filesystems[id] != nil { // another may have the same id: a snapshot of its device, what overlayfs is laid over
		if q, err = g.openQueue(); err != nil {
			return nil, err
		}
	}
	fs := g.add(q, key, id)
	fs.whole, fs.walked = whole, !whole && tree
	if !whole {
		fs.opaque = !canOpen(int(dir.Fd()))
	}
	return fs, nil
}

// add adds a filesystem to the group.
func (g *Group) add(q *queue, key fsKey, id uint64) *filesystem {
	fs := &filesystem{
		g: g, queue: q, id: id,
		mark:  mark{flags: unix.FAN_MARK_FILESYSTEM},
		nodes: make(map[string]*node), top: new(node), doubtful: make(map[doubtKey]int),
	}
	fs.lru.prev, fs.lru.next = &fs.lru, &fs.lru
	q.filesystems[id] = fs
	g.filesystems[key] = fs
	return fs
}

// btrfs returns the filesystem of a mounted btrfs subvolume. A mark takes its
// top level only, which need not be mounted anywhere: it is watched through a
// mount that no namespace has.
func (g *Group) btrfs(mountID int) (*filesystem, error) {
	info := g.mounts.lookup(mountID)
	if info == nil {
		return nil, fmt.Errorf("mounting the top level: mount %d is in neither this namespace nor that of process 1", mountID)
	}
	for _, fs := range g.filesystems {
		if fs.root != nil && fs.source == info.source {
			return fs, nil
		}
	}
	fd, err := g.mounts.topLevel(mountID, info)
	if err != nil {
		fd, err = mountTopLevel(info)
	}
	if err != nil {
		return nil, fmt.Errorf("mounting the top level of %s: %w", info.source, err)
	}
	root, err := newMount(fd)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = canMark(g.queues[0], fd)
	}
	id, _, idErr := fsid(fd)
	if err = errors.Join(err, idErr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("marking the top level: %w", err)
	}
	fs := g.filesystems[fsKey{dev: st.Dev}]
	if fs == nil {
		fs = g.add(g.queues[0], fsKey{dev: st.Dev}, id)
		fs.whole = true
	}
	if fs.root != nil {
		unix.Close(fd)
		return fs, nil
	}
	fs.root, fs.source = root, info.source
	fs.mounts = append([]*mount{root}, fs.mounts...)
	fs.stale = true
	return fs, nil
}

// topLevel opens the top level of the btrfs that info is a subvolume of, in a
// clone of where it is mounted.
func (t *mountTable) topLevel(mountID int, info *mountInfo) (int, error) {
	for _, m := range t.of(mountID) {
		if m.kind != info.kind || m.source != info.source || m.root != "/" {
			continue
		}
		if fd, err := cloneMount(unix.AT_FDCWD, m.point, m.point); err == nil {
			return fd, nil
		}
	}
	return -1, unix.ENOENT
}

// mountTopLevel mounts the top level of the btrfs that info is a subvolume of,
// nowhere.
func mountTopLevel(info *mountInfo) (int, error) {
	ctx, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "source", info.source); err != nil {
		return -1, err
	}
	if err := unix.FsconfigSetString(ctx, "subvolid", "5"); err != nil { // BTRFS_FS_TREE_OBJECTID
		return -1, err
	}
	if info.readOnly { // else btrfs would make it writable
		if err := unix.FsconfigSetFlag(ctx, "ro"); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, err
	}
	tree, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, err
	}
	defer unix.Close(tree)
	return openRoot(tree)
}

// openRoot opens the directory of a detached mount, which thereby stays.
func openRoot(tree int) (int, error) {
	return unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// canMark tries to mark the filesystem that fd is in.
func canMark(q *queue, fd int) error {
	const mask, how = unix.FAN_DELETE_SELF, unix.FAN_MARK_FILESYSTEM // nothing else asks for it
	if err := unix.FanotifyMark(q.fd, unix.FAN_MARK_ADD|how, mask, fd, ""); err != nil {
		return err
	}
	return unix.FanotifyMark(q.fd, unix.FAN_MARK_REMOVE|how, mask, fd, "")
}

// canOpen says whether the directory that fd is open on can be opened by its
// handle.
func canOpen(fd int) bool {
	h, id, err := handleAt(fd, "")
	if err != nil {
		return false
	}
	m := mount{id: id, fd: fd}
	opened, err := m.open(string(h))
	if err == nil {
		unix.Close(opened)
	}
	return err == nil
}

// fsid returns the id and the type of the filesystem that fd is in.
func fsid(fd int) (id uint64, kind int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return 0, 0, fmt.Errorf("taking filesystem's id: %w", err)
	}
	var b [8]byte
	binary.NativeEndian.PutUint32(b[:], uint32(st.Fsid.Val[0]))
	binary.NativeEndian.PutUint32(b[4:], uint32(st.Fsid.Val[1]))
	return binary.NativeEndian.Uint64(b[:]), int64(st.Type), nil // as decode reads it
}

// close drops the filesystem after its last watch.
func (fs *filesystem) close() {
	if len(fs.watches) > 0 {
		return
	}
	if fs.root != nil {
		unix.Close(fs.root.fd)
	}
	maps.DeleteFunc(fs.g.filesystems, func(_ fsKey, other *filesystem) bool { return other == fs })
	delete(fs.queue.filesystems, fs.id)
	if fs.queue != fs.g.queues[0] {
		fs.g.closeQueue(fs.queue)
	}
}

// asks says whether any watch asks for any of ops.
func (fs *filesystem) asks(ops Op) bool {
	for i := range fs.asked {
		if fs.asked[i] > 0 && ops&(1<<i) != 0 {
			return true
		}
	}
	return false
}

// fd returns a directory by which the filesystem is marked; n has a site.
func (fs *filesystem) fd(n *node) int {
	if fs.root != nil {
		return fs.root.fd
	}
	return n.mount.fd
}
