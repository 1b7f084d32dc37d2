// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Where there is no filesystem mark, each directory of a watch tree gets a
// mark. A directory is marked first and read then: of what was made in it
// before, no event tells, and of what was made since, one does. The handle
// tree has all these directories, and nothing else is in sight.
//
// Marks of directories that left the tree stay until the filesystem has no
// watch tree any more, and so do bits that no watch asks for any more: it has
// a queue of its own, which takes them all along.

// maxMarks bounds the directories that are marked, at about 2 KiB of the
// kernel's memory each.
const maxMarks = 256 << 10

// A tree that cannot be marked as a whole is tried again after retryAfter, or
// retryShare times as long as trying took. Each time it is told as an Overflow,
// since what is changed in the rest of it is not told at all.
const (
	retryAfter = 10 * time.Second
	retryShare = 10
)

var errTooMany = fmt.Errorf("more than %d directories, and no filesystem mark: %w", maxMarks, unix.EOPNOTSUPP)

// cover marks the tree of w, whose directories' marks must have mask.
func (fs *filesystem) cover(w *Watch, mask uint64) error {
	roots := []*node{w.node}
	if wider := fs.mark.count(mask, 1); wider != 0 {
		roots = fs.roots()
	} else if fs.covered(w.node) {
		return nil
	}
	for _, n := range roots {
		if err := fs.walkRoot(n); err != nil {
			fs.mark.count(mask, -1)
			return err
		}
	}
	return nil
}

// roots returns the directories that are watched.
func (fs *filesystem) roots() (roots []*node) {
	seen := make(map[*node]bool)
	for _, w := range fs.watches {
		if !seen[w.node] {
			seen[w.node] = true
			roots = append(roots, w.node)
		}
	}
	return roots
}

// covered says whether the directory of a new watch is in another's tree.
func (fs *filesystem) covered(n *node) bool {
	if !n.marked || len(n.watches) > 1 {
		return n.marked
	}
	for p := n.parent; p != nil; p = p.parent {
		if p.site != nil && len(p.watches) > 0 {
			return true
		}
	}
	return false
}

func (fs *filesystem) walkRoot(n *node) error {
	fd, err := unix.Openat(int(n.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	return fs.walk(n, fd, n.mount.id, false)
}

// walk marks the directory n, which it has open as fd and closes, and all
// below on the same mount. With tell, what it finds must have been told.
func (fs *filesystem) walk(n *node, fd, mountID int, tell bool) error {
	// By that name ReadDir looks at entries whose type the filesystem does not say.
	dir := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer dir.Close()
	if !n.marked && fs.marked >= fs.g.maxMarks {
		return errTooMany
	}
	switch err := unix.FanotifyMark(fs.queue.fd, unix.FAN_MARK_ADD, fs.mark.mask(), fd, ""); {
	case isRemoved(err):
		fs.unentered = append(fs.unentered, unentered{n, tell}) // an event should say so
		return nil
	case err != nil:
		return fmt.Errorf("marking directory: %w", err)
	}
	if !n.marked {
		n.marked = true
		fs.marked++
		fs.pin(n)
	}
	for {
		entries, err := dir.ReadDir(512)
		for _, e := range entries {
			if tell {
				fs.expect(n, e.Name(), e.IsDir())
			}
			if e.IsDir() {
				if err := fs.walkEntry(n, fd, e.Name(), mountID, tell); err != nil {
					return err
				}
			}
		}
		switch {
		case err == io.EOF || isRemoved(err):
			return nil
		case err != nil:
			return fmt.Errorf("reading directory: %w", err)
		}
	}
}

// isRemoved says whether err is what FUSE, and others without an inode of their
// own, answer for a directory that is held open and was removed.
func isRemoved(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE)
}

// isOther says whether err is that of opening a directory by a name that is
// nobody's any more, or something else's.
func isOther(err error) bool {
	return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP
}

// walkEntry walks what name is in the directory n. If that has gone, an event
// tells of it.
func (fs *filesystem) walkEntry(n *node, dirfd int, name string, mountID int, tell bool) error {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if isOther(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	h, id, err := handleAt(fd, "")
	if err != nil || id != mountID { // a mount has a watch of its own
		unix.Close(fd)
		return err
	}
	child := fs.get(h)
	if child.parent != n || child.name != name {
		fs.move(child, n, name)
	}
	return fs.walk(child, fd, mountID, tell)
}

// expect has settle tell that a name was made, unless an event yet to be told
// does. What was told of it before was told of the directory when it was in
// sight last.
func (fs *filesystem) expect(dir *node, name string, isDir bool) {
	fs.believe(dir, doubt{name: []byte(name), isDir: isDir, merged: true}, true)
}

// enter covers the directory n, which came into sight as name in dir. With
// tell, what is in it must have been told.
func (fs *filesystem) enter(n, dir *node, name string, tell bool) {
	if err := fs.tryEnter(n, dir, name, tell); err != nil {
		fs.unentered = append(fs.unentered, unentered{n, tell})
	}
}

// An unentered directory was not where it should have been.
type unentered struct {
	node *node
	tell bool
}

func (fs *filesystem) tryEnter(n, dir *node, name string, tell bool) error {
	above, mount, err := fs.open(dir)
	if err != nil {
		return err
	}
	defer unix.Close(above)
	fd, err := unix.Openat(above, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if isOther(err) && dir.marked {
		return nil // it was removed or renamed, of which an event tells
	}
	if err != nil {
		return err
	}
	if h, _, err := handleAt(fd, ""); err != nil || string(h) != n.handle {
		unix.Close(fd)
		return errMoving
	}
	return fs.walk(n, fd, mount, tell)
}

// enterRest tries again, when the batch has been told, to cover what enter
// could not.
func (fs *filesystem) enterRest() {
	rest := fs.unentered
	fs.unentered = nil
	for _, u := range rest {
		n := u.node
		if n.parent == nil {
			continue // it has gone again
		}
		if err := fs.tryEnter(n, n.parent, n.name, u.tell); err != nil && fs.g.putOff < maxPutOff && fs.g.more() {
			fs.g.putOff++
			fs.unentered = append(fs.unentered, u) // what came may say where it is
		} else if err != nil {
			fs.g.log.Debug("cannot mark a directory", "name", n.name, "err", err)
			fs.misnamed()
		}
	}
}

// openBelow opens a directory by its name below the nearest one that is held
// open, with O_PATH, and returns the id of the mount.
func (fs *filesystem) openBelow(n *node) (fd, mountID int, err error) {
	name := "."
	top := n
	for ; top.site == nil; top = top.parent {
		if name = path.Join(top.name, name); top.parent == nil || len(name) > maxPath {
			return -1, 0, errGone // as has been told, or out of sight
		}
	}
	fd, err = unix.Openat(int(top.dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if isOther(err) {
		return -1, 0, errMoving
	}
	if err != nil {
		return -1, 0, fmt.Errorf("opening directory: %w", err)
	}
	if h, _, err := handleAt(fd, ""); err != nil || string(h) != n.handle {
		unix.Close(fd)
		return -1, 0, errMoving
	}
	return fd, top.mount.id, nil
}

// rebuild begins anew: another queue, all marks, and the handle tree as it is
// found. All that happened meanwhile is under an Overflow.
func (fs *filesystem) rebuild() {
	began := time.Now()
	fs.retry = began.Add(fs.g.retryAfter)
	if err := fs.g.reopen(fs.queue); err != nil {
		fs.g.log.Error("cannot begin anew, will try again", "err", err)
		return
	}
	var sites []*node
	for _, n := range fs.nodes {
		if n.site != nil {
			sites = append(sites, n)
		}
	}
	fs.forgetNodes()
	fs.retry = time.Time{}
	for _, n := range sites {
		if mask := n.mask(); mask != 0 {
			if err := unix.FanotifyMark(fs.queue.fd, unix.FAN_MARK_ADD, mask, int(n.dir.Fd()), ""); err != nil {
				fs.g.log.Warn("cannot mark a directory", "err", err)
			}
		}
	}
	for _, n := range fs.roots() {
		err := cmp.Or(fs.walkRoot(n), fs.follow(n))
		switch {
		case n.removed():
			fs.gone(n)
		case err != nil:
			took := time.Since(began)
			fs.retry = began.Add(took + max(fs.g.retryAfter, retryShare*took))
			fs.g.log.Warn("cannot mark a watch tree, clients list it anew until it can be", "err", err)
		}
	}
	fs.g.batch++
	fs.lost(^Op(0), true)
}
