// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"time"
)

const (
	// maxNodes bounds the directories that a filesystem's handle tree keeps
	// between two batches, at about 200 bytes each.
	maxNodes = 128 << 10
	// maxPath bounds a name below a watched directory. The kernel's own
	// PATH_MAX is 4096, but directories can nest deeper.
	maxPath = 32 << 10
	// atHandleFID is AT_HANDLE_FID (linux/fcntl.h), since Linux 6.5.
	atHandleFID = 0x200
)

var (
	errGone     = errors.New("directory was removed")
	errMoving   = errors.New("directory does not stay in its place")
	errOutside  = errors.New("directory is not below this mount's root")
	errLoop     = errors.New("outdated positions are a loop")
	errCovered  = errors.New("something is mounted over a directory above")
	errUnlisted = errors.New("directory is in none that is watched")
)

// A node is a directory.
type node struct {
	handle string
	former string // its handle before, by which events may still call it, see rehandle
	parent *node  // nil: not known
	name   string // "" with a parent: not known
	kids   int    // nodes whose parent it is
	doubts int    // where in filesystem.doubts the last one of a name in it is, from 1; 0 is none

	marked  bool   // it is marked as part of a watch tree, see directoryMarks
	pending bool   // a walk marked it, and the event that it came into another watch's tree is yet to be told
	listed  uint64 // the batch in which the directories in it were listed, see singleMarks; else 0

	prev, next *node    // in the lru ring; nil for nodes that are needed
	*site               // nil for directories that are not held open
	mounts     *mounted // nil where nothing is mounted that a watch tree sees
}

// get returns the node of h, made if need be.
func (fs *filesystem) get(h handle) *node {
	if fs.got != nil && fs.got.handle == string(h) {
		return fs.got // as most are that follow one another
	}
	n := fs.nodes[string(h)]
	switch {
	case n == nil:
		n = &node{handle: string(h)}
		fs.nodes[n.handle] = n
		fs.unpin(n)
	case n.next != nil && n.prev != &fs.lru:
		fs.pin(n)
		fs.unpin(n) // to the front
	}
	fs.got = n
	return n
}

// rehandle gives n another handle, of which nothing is known but perhaps what is in it: then
// that node is returned, which stands for n from now on.
func (fs *filesystem) rehandle(n *node, h handle) *node {
	o := fs.nodes[string(h)]
	if o != nil && o.kids > 0 {
		return o
	}
	if o != nil {
		fs.pin(o) // it is dropped
	}
	fs.changes++
	fs.got = nil
	n.former, n.handle = n.handle, string(h)
	fs.nodes[n.handle] = n
	return n
}

// mistaken is called when the directory h was removed. If a node has that as its former handle,
// rehandle was wrong: what was found in the place of h is another directory, made there since. The
// node stands for that one, and the event that it was made is yet to be told.
func (fs *filesystem) mistaken(h handle) {
	n := fs.nodes[string(h)]
	if n == nil || n.former != string(h) {
		return
	}
	delete(fs.nodes, n.former)
	fs.got = nil
	n.former, n.pending = "", true
	for i := n.doubts; i > 0; i = fs.doubts[i-1].next {
		if fs.doubts[i-1].present { // and was told as being in the one removed
			fs.misnamed()
			return
		}
	}
}

// place returns where n is. Without a directory that is not known.
func (n *node) place() place { return place{n.parent, n.name} }

// pin keeps n from being evicted.
func (fs *filesystem) pin(n *node) {
	if n.next != nil {
		n.prev.next, n.next.prev = n.next, n.prev
		n.prev, n.next = nil, nil
	}
}

// unpin lets n be evicted, unless something else still needs it.
func (fs *filesystem) unpin(n *node) {
	if n.kids == 0 && n.site == nil && n.mounts == nil && !n.marked && n.next == nil && n != fs.top {
		n.prev, n.next = &fs.lru, fs.lru.next
		n.prev.next, n.next.prev = n, n
	}
}

// move puts n where it is now. A nil parent means that this is not known.
func (fs *filesystem) move(n, parent *node, name string) {
	fs.changes++
	if old := n.parent; old != nil {
		if old.kids--; old.kids == 0 {
			fs.unpin(old)
		}
	}
	if n.parent, n.name = parent, name; parent != nil {
		parent.kids++
		fs.pin(parent)
		if !fs.tracked() {
			fs.loose = append(fs.loose, n)
		}
	}
}

// trim evicts at the end of a batch what is too much to keep, and forgets a
// tree that nothing keeps right.
func (fs *filesystem) trim() {
	if fs.stale || !fs.retry.IsZero() && !time.Now().Before(fs.retry) {
		fs.forgetTold()
		fs.how.forget()
	}
	if !fs.unguarded.IsZero() && !time.Now().Before(fs.unguarded) {
		fs.guardAll()
	}
	keep := fs.g.maxNodes
	if !fs.tracked() {
		keep = 0
		for _, n := range fs.loose {
			fs.move(n, nil, "")
		}
	}
	fs.loose = fs.loose[:0]
	for len(fs.nodes) > keep && fs.lru.prev != &fs.lru {
		n := fs.lru.prev
		if n.parent != nil {
			n.parent.listed = 0
		}
		fs.evict(n)
	}
}

// evict forgets where n is, and n itself if nothing else needs it.
func (fs *filesystem) evict(n *node) {
	fs.got = nil
	fs.move(n, nil, "")
	fs.unmark(n)
	if n.next != nil {
		fs.pin(n)
		delete(fs.nodes, n.handle)
		if fs.nodes[n.former] == n {
			delete(fs.nodes, n.former)
		}
	}
}

// unmark notes that n does not count as marked any more. The mark that the kernel has may stay.
func (fs *filesystem) unmark(n *node) {
	if n.marked {
		n.marked, n.pending = false, false
		fs.marked--
		fs.unpin(n)
	}
}

// forgetNodes drops the tree but for the directories that are needed.
func (fs *filesystem) forgetNodes() {
	fs.changes++
	fs.got = nil
	fs.stale, fs.hidden = false, false
	fs.marked = 0
	fs.lru.prev, fs.lru.next = &fs.lru, &fs.lru
	for h, n := range fs.nodes {
		if n.site == nil && n.mounts == nil {
			delete(fs.nodes, h)
		}
		n.parent, n.name, n.kids, n.marked, n.pending = nil, "", 0, false, false
	}
	fs.top.kids = 0
}

// place looks up where n is, if that is not known. If it is not known then,
// without an error, n is out of sight.
func (fs *filesystem) place(n *node) error {
	if n.parent != nil {
		return nil
	}
	return fs.how.locate(n)
}

// lookUp finds out by its handle where n is now, through the first mount that shows it.
func (fs *filesystem) lookUp(n *node) error {
	if n.mounts != nil && len(n.mounts.of) == len(fs.views) { // the root wherever the filesystem is seen
		fs.move(n, fs.top, "")
		return nil
	}
	parent, name, err := fs.find(n)
	for err == errGone && fs.g.wait() {
		if n.parent != nil {
			return nil // the event of its removal came meanwhile
		}
	}
	if err != nil {
		return err
	}
	fs.move(n, parent, name)
	fs.g.ahead = true
	return nil
}

func (fs *filesystem) find(n *node) (parent *node, name string, err error) {
	var moving error
	for _, v := range fs.views {
		h, name, err := v.above(n.handle)
		switch {
		case err == errCovered:
			if w := fs.under(v, n, name); w != nil {
				return w, name, nil
			}
			fs.hidden = true
		case err == errOutside:
		case err == errMoving || err == errUnmounted: // or was for a moment
			moving = err
		case err != nil:
			return nil, "", err
		default:
			return fs.get(h), name, nil
		}
	}
	return fs.top, "", moving
}

// under returns the watched directory that n is in as name, if something is mounted
// over that: of all others nobody sees what is below.
func (fs *filesystem) under(v *view, n *node, name string) *node {
	for _, w := range fs.watches {
		if w.node.leftAt(name) {
			continue
		}
		if h, id, err := handleAt(int(w.dir.Fd()), name); err == nil && id == v.id && string(h) == n.handle {
			return w.node
		}
	}
	return nil
}
