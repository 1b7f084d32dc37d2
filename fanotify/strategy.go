// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A strategy is how one kind of filesystem is watched. To bring a new kind takes
// a file with its strategy, and a line in choose.
type strategy interface {
	// of says which filesystem it is for, before anything else.
	of(fs *filesystem)
	// whole says whether one mark is on all of the filesystem.
	whole() bool
	// follows says whether the mark of a directory alone keeps the handle tree right, as
	// those of watch trees do.
	follows() bool
	// masks returns what w needs of the mark of its directory, and of fs.mark.
	masks(w *Watch) (directory, wide uint64)
	// alone says whether w is told by the mark of its directory alone.
	alone(w *Watch) bool
	// hold opens what a view needs of the mount that the directory dir is open in: handles
	// are opened through it, and the filesystem is marked by it.
	hold(dir int) (int, error)
	// arm adds mask to fs.mark, on what the directory n is in or above, seen through v.
	arm(n *node, v *view, mask uint64) error
	// disarm takes it back.
	disarm(v *view, mask uint64) error
	// locate finds out where n is, whose parent is not known. If it is not then,
	// without an error, n is out of sight.
	locate(n *node) error
	// open opens n with O_PATH, in the mount with that id or, if it is 0, any.
	open(n *node, mountID int) (int, error)
	// appeared says that the directory n is name in dir now, and how it came there.
	appeared(n, dir *node, name string, how arrival)
	// uncovered says that a mount that was over a directory of the filesystem has gone.
	uncovered(p *point)
	// settle is called when a batch has been told.
	settle()
	// removed says that the directory n was removed.
	removed(n *node)
	// forget drops the handle tree, to have it looked up as it is.
	forget()
}

// An arrival is how a directory came to where it is.
type arrival int

const (
	made      arrival = iota // there
	renamed                  // from where watches saw it
	shownAnew                // the same, and another mount shows it now, perhaps with what was covered in it before
	movedIn                  // from where none did, with all that is in it
)

// chosen is how a filesystem is watched, and what it is known by.
type chosen struct {
	how strategy
	dev uint64 // of its directories, st_dev
	id  uint64 // in its events
}

// choose returns how the filesystem that fd is open in is watched.
func (g *Group) choose(fd int, dev uint64, tree bool) (chosen, error) {
	id, kind, err := fsid(fd)
	if err != nil {
		return chosen{}, err
	}
	if tree && kind == unix.PROC_SUPER_MAGIC {
		return chosen{}, fmt.Errorf("proc has no events of what comes and goes in it: %w", unix.EOPNOTSUPP)
	}
	err = canMark(g.queues[0], fd)
	if kind == unix.BTRFS_SUPER_MAGIC && (err == nil || err == unix.EXDEV) {
		c, btrfsErr := chooseBtrfs(g.queues[0], fd)
		if btrfsErr == nil || isScarce(btrfsErr) { // then it is to be tried again, as what is chosen stays
			return c, btrfsErr
		}
		g.log.Warn("watching a btrfs subvolume directory by directory", "err", btrfsErr)
	}
	switch {
	case err == nil:
		return chosen{new(filesystemMark), dev, id}, nil
	case !isRefused(err):
		return chosen{}, fmt.Errorf("marking filesystem: %w", err)
	case tree:
		return chosen{new(directoryMarks), dev, id}, nil
	default:
		return chosen{&singleMarks{lasting: kind == unix.OVERLAYFS_SUPER_MAGIC}, dev, id}, nil
	}
}

// isRefused says whether err is what fanotify_mark(2) answers for filesystems that
// cannot be watched, or not as a whole.
func isRefused(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

// canMark tries to mark the filesystem that fd is in.
func canMark(q *queue, fd int) error {
	const mask, how = unix.FAN_DELETE_SELF, unix.FAN_MARK_FILESYSTEM // nothing else asks for it
	if err := fanotifyMark(q.fd, unix.FAN_MARK_ADD|how, mask, fd, ""); err != nil {
		return err
	}
	return fanotifyMark(q.fd, unix.FAN_MARK_REMOVE|how, mask, fd, "")
}
