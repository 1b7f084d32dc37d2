// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

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
		if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD|m.flags, wider, fd, ""); err != nil {
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
		err := unix.FanotifyMark(group, unix.FAN_MARK_REMOVE|m.flags, unused, fd, "")
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

// used says whether anybody needs the mark.
func (m *mark) used() bool { return m.need != [32]int32{} }

// A site is a directory that has an inode mark.
type site struct {
	mark
	dir     *os.File // the site owns it
	mount   *mount
	watches []*Watch
	guard   *node // the directory above, whose mark tells of this one's removal
}

// A mount is where a filesystem can be seen from: handles are opened, and
// directories found, through it.
type mount struct {
	id    int
	fd    int // of a directory in it; the mount owns it
	sites int
}

// want adds mask to the inode mark of n. It takes ownership of dir, n's
// directory; a directory that has a mark already needs no second fd.
func (fs *filesystem) want(n *node, dir *os.File, mountID int, mask uint64) error {
	if n.site != nil {
		dir.Close()
	} else {
		m, err := fs.mountOf(dir, mountID)
		if err != nil {
			dir.Close()
			return err
		}
		n.site = &site{dir: dir, mount: m}
		fs.pin(n)
	}
	err := n.add(fs.g.fd, int(n.dir.Fd()), mask)
	if err != nil {
		err = fmt.Errorf("marking directory: %w", err)
		fs.release(n)
	}
	return err
}

// unwant takes mask back.
func (fs *filesystem) unwant(n *node, mask uint64) error {
	err := n.remove(fs.g.fd, int(n.dir.Fd()), mask)
	fs.release(n)
	return err
}

// release closes the site of n if nobody needs it.
func (fs *filesystem) release(n *node) {
	if n.used() {
		return
	}
	n.dir.Close()
	if n.mount.sites--; n.mount.sites == 0 {
		unix.Close(n.mount.fd)
		for i, m := range fs.mounts {
			if m == n.mount {
				fs.mounts = append(fs.mounts[:i], fs.mounts[i+1:]...)
				break
			}
		}
	}
	n.site = nil
	fs.unpin(n)
}

// mountOf counts one more site in the mount that dir is in.
func (fs *filesystem) mountOf(dir *os.File, id int) (*mount, error) {
	for _, m := range fs.mounts {
		if m.id == id {
			m.sites++
			return m, nil
		}
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating directory: %w", err)
	}
	m := &mount{id: id, fd: fd, sites: 1}
	fs.mounts = append(fs.mounts, m)
	fs.stale = true // it may show what was out of sight
	return m, nil
}
