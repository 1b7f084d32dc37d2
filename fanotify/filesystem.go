// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"fmt"
	"maps"
	"time"

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
	btrfs   bool         // its top level is marked, which stands for all its subvolumes
	mark    mark         // the filesystem mark; if walked, that of every directory
	asked   [opCount]int // watches that ask for an op
	trees   int          // watch trees; without them nothing keeps the tree right

	nodes map[string]*node // by handle
	top   *node            // parent of what is above every mount
	lru   node             // ring of the nodes that may be evicted, next is the most recently used
	stale bool             // forget the tree at the end of the batch

	marked    int // nodes that walk.go has marked
	unentered []unentered
	retry     time.Time // when to try again to mark what could not be; else zero

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

// filesystem returns what the directory that fd is open on is in, made if need
// be. A filesystem that can be marked as a whole shares the first queue. Any
// other has one of its own: some can share with none other (EXDEV), see
// fanotify_mark(2).
func (g *Group) filesystem(fd int, tree bool) (*filesystem, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("looking at directory: %w", err)
	}
	for _, trees := range []bool{false, tree} {
		if fs := g.filesystems[fsKey{uint64(st.Dev), trees}]; fs != nil && (fs.whole || trees == tree) {
			return fs, nil
		}
	}
	id, kind, err := fsid(fd)
	if err != nil {
		return nil, err
	}
	key := fsKey{dev: uint64(st.Dev)}
	err = canMark(g.queues[0], fd)
	if err == unix.EXDEV && kind == unix.BTRFS_SUPER_MAGIC {
		top, topErr := topLevel(fd)
		if topErr == nil {
			defer unix.Close(top)
			if topErr = canMark(g.queues[0], top); topErr == nil {
				return g.filesystem(top, tree)
			}
		}
		g.log.Warn("watching a btrfs subvolume directory by directory", "err", topErr)
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
	fs.btrfs = whole && kind == unix.BTRFS_SUPER_MAGIC
	if !whole {
		fs.opaque = !canOpen(fd)
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

// topLevel opens the top level of the btrfs that the directory fd is in: a mark
// takes nothing else of it. It need not be mounted: a handle leads to any
// subvolume, through each mount of one.
func topLevel(fd int) (int, error) {
	// struct btrfs_fid (fs/btrfs/export.h): an inode, its subvolume, and its
	// generation, of which 0 is any.
	const withoutParent = 0x4d // FILEID_BTRFS_WITHOUT_PARENT (linux/exportfs.h)
	var fid [20]byte
	binary.NativeEndian.PutUint64(fid[:], 256) // BTRFS_FIRST_FREE_OBJECTID, the directory of each
	binary.NativeEndian.PutUint64(fid[8:], 5)  // BTRFS_FS_TREE_OBJECTID
	top, err := unix.OpenByHandleAt(fd, unix.NewFileHandle(withoutParent, fid[:]), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening the top level: %w", err)
	}
	return top, nil
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
	// The id as decode reads it. The type is signed or not, of 32 bits or of 64, as the architecture has it.
	return binary.NativeEndian.Uint64(b[:]), int64(uint32(st.Type)), nil
}

// close drops the filesystem after its last watch.
func (fs *filesystem) close() {
	if len(fs.watches) > 0 {
		return
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
