// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

var fanotifyMark = unix.FanotifyMark // but in tests that have it fail

// A mark is one fanotify mark and what is asked of it. Its mask is the union
// of what its users need, counted bit by bit, so that it widens and narrows
// with them.
type mark struct {
	flags uint // FAN_MARK_FILESYSTEM or none
	need  [32]int32
}

// add makes the mark, or widens it, on what fd is open on.
func (m *mark) add(group, fd int, mask uint64) error {
	if wider := m.count(mask, 1); wider != 0 {
		if err := fanotifyMark(group, unix.FAN_MARK_ADD|m.flags, wider, fd, ""); err != nil {
			m.count(mask, -1)
			return err
		}
	}
	return nil
}

// remove takes back what add asked for. That the kernel has dropped the mark
// already, with its inode, is no error.
func (m *mark) remove(group, fd int, mask uint64) error {
	if unused := m.count(mask, -1); unused != 0 {
		err := fanotifyMark(group, unix.FAN_MARK_REMOVE|m.flags, unused, fd, "")
		if err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// count adds n users to each bit of mask and returns the bits whose first
// user came or whose last one went.
func (m *mark) count(mask uint64, n int32) (changed uint64) {
	for rest := mask; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		before := m.need[bit]
		m.need[bit] += n
		if before == 0 || m.need[bit] == 0 {
			changed |= 1 << bit
		}
	}
	return changed
}

// mask returns what is asked for.
func (m *mark) mask() (mask uint64) {
	for bit, n := range m.need {
		if n > 0 {
			mask |= 1 << bit
		}
	}
	return mask
}

// A site is a directory that is held open: one that is watched, or the one
// above. It has an inode mark, unless a filesystem mark tells enough.
type site struct {
	mark
	users   int
	dir     *os.File // the site owns it
	view    *view    // the mount that dir is in
	watches []*Watch // in no order; each knows its index
	guard   *node    // the directory above, whose mark tells of this one's removal
}

// want adds mask to the inode mark of n. It takes ownership of dir, n's
// directory; one that has a site already needs none.
func (fs *filesystem) want(n *node, dir *os.File, mountID int, mask uint64) error {
	if n.site != nil {
		dir.Close()
	} else {
		v, err := fs.see(dir, mountID)
		if err != nil {
			dir.Close()
			return err
		}
		n.site = &site{dir: dir, view: v}
		fs.changes++
		fs.pin(n)
	}
	n.users++
	if err := n.add(fs.queue.fd, int(n.dir.Fd()), mask); err != nil {
		fs.release(n)
		return fmt.Errorf("marking directory: %w", err)
	}
	return nil
}

// unwant takes mask back.
func (fs *filesystem) unwant(n *node, mask uint64) error {
	fs.g.narrow()
	var err error
	if n.marked { // for watch trees above too, which take that mark along when they go
		n.count(mask, -1)
	} else {
		err = n.remove(fs.queue.fd, int(n.dir.Fd()), mask)
	}
	fs.release(n)
	return err
}

// release closes the site of n if nobody needs it.
func (fs *filesystem) release(n *node) {
	if n.users--; n.users > 0 {
		return
	}
	n.dir.Close()
	fs.unsee(n.view)
	n.site = nil
	fs.changes++
	fs.unpin(n)
}
