// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
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
	errGone    = errors.New("directory was removed")
	errMoving  = errors.New("directory does not stay in its place")
	errOutside = errors.New("directory is not below this mount's root")
	errTooDeep = errors.New("path too long")
	errOpaque  = errors.New("directories cannot be opened by their handles here")
)

// A node is a directory.
type node struct {
	handle string
	parent *node // nil: not known
	name   string
	kids   int  // nodes whose parent it is
	marked bool // it has a mark by walk.go

	prev, next *node // in the lru ring; nil for nodes with kids, a site or a mark
	*site            // nil for directories without a mark
}

// get returns the node of h, made if need be.
func (fs *filesystem) get(h handle) *node {
	n := fs.nodes[string(h)]
	switch {
	case n == nil:
		n = &node{handle: string(h)}
		fs.nodes[n.handle] = n
		fs.unpin(n)
	case n.next != nil:
		fs.pin(n)
		fs.unpin(n) // to the front
	}
	return n
}

// pin keeps n from being evicted.
func (fs *filesystem) pin(n *node) {
	if n.next != nil {
		n.prev.next, n.next.prev = n.next, n.prev
		n.prev, n.next = nil, nil
	}
}

// unpin lets n be evicted, unless something else still needs it.
func (fs *filesystem) unpin(n *node) {
	if n.kids == 0 && n.site == nil && !n.marked && n.next == nil && n != fs.top {
		n.prev, n.next = &fs.lru, fs.lru.next
		n.prev.next, n.next.prev = n, n
	}
}

// move puts n where it is now. A nil parent means that this is not known.
func (fs *filesystem) move(n, parent *node, name string) {
	if old := n.parent; old != nil {
		if old.kids--; old.kids == 0 {
			fs.unpin(old)
		}
	}
	if n.parent, n.name = parent, name; parent != nil {
		parent.kids++
		fs.pin(parent)
		fs.stale = fs.stale || fs.trees == 0
	}
}

// trim evicts at the end of a batch what is too much to keep, and forgets a
// tree that nothing keeps right.
func (fs *filesystem) trim() {
	if fs.stale || fs.trees == 0 && fs.lru.next != &fs.lru || !fs.retry.IsZero() && !time.Now().Before(fs.retry) {
		fs.forget()
	}
	for len(fs.nodes) > fs.g.maxNodes && fs.lru.prev != &fs.lru {
		fs.evict(fs.lru.prev)
	}
}

// evict forgets where n is, and n itself if nothing else needs it.
func (fs *filesystem) evict(n *node) {
	fs.move(n, nil, "")
	if n.marked {
		n.marked = false
		fs.marked--
		fs.unpin(n)
	}
	if n.next != nil {
		fs.pin(n)
		delete(fs.nodes, n.handle)
	}
}

// forget drops the tree, to have it looked up as it is.
func (fs *filesystem) forget() {
	if fs.walked {
		fs.rebuild()
	} else {
		fs.forgetNodes()
	}
}

// forgetNodes drops the tree but for the directories that have a site.
func (fs *filesystem) forgetNodes() {
	fs.stale = false
	fs.marked = 0
	fs.lru.prev, fs.lru.next = &fs.lru, &fs.lru
	for h, n := range fs.nodes {
		if n.site == nil {
			delete(fs.nodes, h)
		}
		n.parent, n.name, n.kids, n.marked = nil, "", 0, false
	}
	fs.top.kids = 0
}

// place looks up where n is, if that is not known. If it is not known then,
// without an error, n is out of sight.
func (fs *filesystem) place(n *node) error {
	if n.parent != nil {
		return nil
	}
	if fs.walked {
		return nil // it was found on a walk, or is out of sight
	}
	if fs.opaque {
		return errOpaque
	}
	parent, name, err := fs.find(n)
	for tries := 0; err == errGone && tries < 8 && fs.g.more(); tries++ {
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

// find looks up where n is now, through the first mount that shows it.
func (fs *filesystem) find(n *node) (parent *node, name string, err error) {
	for _, m := range fs.mounts {
		h, name, err := m.above(n.handle)
		switch {
		case err == errOutside:
			continue
		case err != nil:
			return nil, "", err
		}
		return fs.get(h), name, nil
	}
	return fs.top, "", nil
}

// above returns the handle of the directory that the directory h is in, and
// h's name there. Errors: errGone, errMoving, and errOutside where the mount
// does not show what is above h.
func (m *mount) above(h string) (handle, string, error) {
	fd, err := m.open(h)
	if err != nil {
		return nil, "", err
	}
	defer unix.Close(fd)
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	for range 8 { // renames beyond that are not met by chance
		before, err := os.Readlink(link)
		if err != nil {
			return nil, "", fmt.Errorf("naming directory: %w", err)
		}
		parent, mountID, err := handleAt(fd, "..")
		if err == unix.ENOENT { // h is not below the mount's root, and its path is a mere "/"
			return nil, "", errOutside
		}
		if err != nil {
			return nil, "", fmt.Errorf("taking handle of the directory above: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, "", fmt.Errorf("looking at directory: %w", err)
		}
		if st.Nlink == 0 {
			return nil, "", errGone
		}
		if mountID != m.id || string(parent) == h { // the mount's root
			return nil, "", errOutside
		}
		if after, err := os.Readlink(link); err == nil && after == before {
			return parent, path.Base(before), nil
		}
	}
	return nil, "", errMoving
}

// open opens a directory with O_PATH and returns the id of its mount.
func (fs *filesystem) open(n *node) (fd, mountID int, err error) {
	if fs.walked {
		return fs.openBelow(n)
	}
	fd, err = fs.mounts[0].open(n.handle)
	return fd, fs.mounts[0].id, err
}

// open opens a directory by its handle, with O_PATH.
func (m *mount) open(h string) (int, error) {
	kind := int32(binary.NativeEndian.Uint32([]byte(h[4:])))
	fd, err := unix.OpenByHandleAt(m.fd, unix.NewFileHandle(kind, []byte(h[handleHeaderLen:])),
		unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	switch {
	case err == unix.ESTALE:
		return -1, errGone
	case err != nil:
		return -1, fmt.Errorf("opening directory by its handle: %w", err)
	}
	return fd, nil
}

// gone says whether the file or directory with the handle is no more.
func (m *mount) gone(h string) bool {
	fd, err := m.open(h)
	if err == nil {
		unix.Close(fd)
	}
	return err == errGone
}

// handleAt returns the handle of what name is below dirfd, or of dirfd itself
// when name is empty, as events carry it, and the id of its mount.
func handleAt(dirfd int, name string) (handle, int, error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	fh, mountID, err := unix.NameToHandleAt(dirfd, name, flags)
	if err == unix.EOPNOTSUPP { // handles to compare, not to open
		fh, mountID, err = unix.NameToHandleAt(dirfd, name, flags|atHandleFID)
	}
	if err != nil {
		return nil, 0, err
	}
	h := make(handle, handleHeaderLen, handleHeaderLen+fh.Size())
	binary.NativeEndian.PutUint32(h, uint32(fh.Size()))
	binary.NativeEndian.PutUint32(h[4:], uint32(fh.Type()))
	return append(h, fh.Bytes()...), mountID, nil
}

// A scope lists the watched directories at and above a name's directory, the
// nearest first.
type scope struct {
	hits []hit
	buf  [maxPath]byte // filled from its end
}

type hit struct {
	node   *node
	name   []byte // relative to node
	direct bool   // there is nothing between
}

// find fills s for name in dir. When it fails, the hits are right as far as
// they go.
func (s *scope) find(fs *filesystem, dir *node, name []byte) error {
	s.hits = s.hits[:0]
	if dir == nil {
		return nil
	}
	at := len(s.buf) - len(name)
	copy(s.buf[at:], name)
	for n := dir; n != fs.top && n != nil; n = n.parent {
		if n.site != nil && len(n.watches) > 0 {
			s.hits = append(s.hits, hit{n, s.buf[at:], n == dir})
		}
		if fs.trees == 0 {
			return nil
		}
		if err := fs.place(n); err != nil {
			return err
		}
		if n.parent == nil {
			return nil
		}
		if at < len(n.name)+1 {
			fs.misnamed() // a loop of outdated positions has no end
			return errTooDeep
		}
		at--
		s.buf[at] = '/'
		at -= len(n.name)
		copy(s.buf[at:], n.name)
	}
	return nil
}

// nameFor returns what w, a watch of h's directory, calls the name, or nil when
// it does not reach that far down.
func (h *hit) nameFor(w *Watch) []byte {
	if w.tree || h.direct {
		return h.name
	}
	return nil
}
