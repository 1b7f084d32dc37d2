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
	how     strategy
	watches []*Watch // in no order; each knows its index
	views   []*view
	mark    mark         // of the filesystem, or of each directory of its watch trees
	asked   [opCount]int // watches that ask for an op
	trees   int          // watch trees
	points  []*point     // where it is mounted below watch trees
	held    int          // not to be closed yet
	nested  uint64       // what its mark has for the sake of these

	nodes   map[string]*node // by handle
	got     *node            // that get returned last
	top     *node            // parent of what is above every mount
	changes uint64           // how often anything of the tree has changed by which a scope is found
	lru     node             // ring of the nodes that may be evicted, next is the most recently used
	marked  int              // nodes that are marked as part of a watch tree
	loose   []*node          // nodes whose position nothing keeps right
	stale   bool             // forget the tree at the end of the batch
	hidden  bool             // some are taken to be out of sight, since something is mounted over them
	retry   time.Time        // when to try again to mark what could not be; else zero
	again   time.Time        // when to try again to read directories that could not be; else zero

	unguarded time.Time // when to try again to mark what is above watched directories; else zero

	doubts    []doubt // see settle.go
	expecting bool    // some are of names that a walk found
	doubtful  map[doubtKey]int
	renames   renames
	exchanged half
	linked    recent[int]    // how many names a file was given; where handles cannot be opened, and has
	owners    recent[owner]  // of names that may have been other files'
	unlinked  recent[uint64] // names that files have lost, and where in the queue that was told
	taken     recent[taking] // of names that files lose or get by events yet to be told
	takenTo   uint64         // as far as that is known in the queue
	left      uint64         // where in the queue a directory was told last to have gone out of sight
	unplaced  unplaced
}

// A fsKey names a filesystem. One that cannot be marked as a whole is there twice, once for
// its watch trees: their queue is closed with the last of them, and all marks go with it.
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
	for _, key := range []fsKey{{uint64(st.Dev), false}, {uint64(st.Dev), tree}} {
		if fs := g.filesystems[key]; fs != nil && (fs.how.whole() || key.trees == tree) {
			return fs, nil
		}
	}
	c, err := g.choose(fd, uint64(st.Dev), tree)
	if err != nil {
		return nil, err
	}
	key := fsKey{c.dev, tree && !c.how.whole()}
	if fs := g.filesystems[key]; fs != nil { // found in a subvolume of it
		return fs, nil
	}
	q := g.queues[0]
	if !c.how.whole() || q.filesystems[c.id] != nil { // another may have the same id: a snapshot of its device, what overlayfs is laid over
		if q, err = g.openQueue(); err != nil {
			return nil, err
		}
	}
	return g.add(q, key, c.id, c.how), nil
}

// add adds a filesystem to the group.
func (g *Group) add(q *queue, key fsKey, id uint64, how strategy) *filesystem {
	fs := &filesystem{
		g: g, queue: q, id: id, how: how,
		mark:  mark{flags: unix.FAN_MARK_FILESYSTEM},
		nodes: make(map[string]*node), top: new(node), doubtful: make(map[doubtKey]int),
	}
	fs.lru.prev, fs.lru.next = &fs.lru, &fs.lru
	how.of(fs)
	q.filesystems[id] = fs
	g.filesystems[key] = fs
	return fs
}

// tracked says whether anything keeps the handle tree right: that is what marks of
// watch trees are for.
func (fs *filesystem) tracked() bool { return fs.trees > 0 || len(fs.points) > 0 || fs.how.follows() }

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
	if len(fs.watches) > 0 || len(fs.points) > 0 || fs.held > 0 {
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
		if ops&(1<<i) != 0 && (fs.asked[i] > 0 || len(fs.points) > 0 && fs.g.asked[i] > 0) {
			return true
		}
	}
	return false
}
