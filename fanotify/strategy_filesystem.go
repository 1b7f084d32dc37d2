// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A filesystemMark tells of all that happens in a filesystem, whatever the size of
// the watch trees in it. A directory by itself has a mark of its own, so that
// the rest costs nobody anything.
type filesystemMark struct{ fs *filesystem }

func (s *filesystemMark) of(fs *filesystem) { s.fs = fs }

func (*filesystemMark) whole() bool { return true }

func (*filesystemMark) follows() bool { return false }

func (*filesystemMark) alone(w *Watch) bool { return !w.tree }

func (s *filesystemMark) masks(w *Watch) (directory, wide uint64) {
	mask := bitsOf(w.ops)
	if w.ops&Delete != 0 {
		wide = victimMask
	}
	if !w.inode {
		return 0, mask | treeMask | wide
	}
	if w.ops&data != 0 {
		// DELETE and RENAME show whose the name is that a change has, see nameless.go.
		mask |= unix.FAN_EVENT_ON_CHILD | unix.FAN_DELETE | unix.FAN_RENAME
	}
	return mask | selfMask, wide
}

func (*filesystemMark) hold(dir int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating directory: %w", err)
	}
	return fd, nil
}

func (s *filesystemMark) arm(_ *node, v *view, mask uint64) error {
	fd, err := s.enter(v)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := s.fs.mark.add(s.fs.queue.fd, fd, mask); err != nil {
		return fmt.Errorf("marking filesystem: %w", err)
	}
	return nil
}

func (s *filesystemMark) disarm(v *view, mask uint64) error {
	fd, err := s.enter(v)
	if err != nil { // the mark went with the filesystem
		s.fs.mark.count(mask, -1)
		return nil
	}
	defer unix.Close(fd)
	return s.fs.mark.remove(s.fs.queue.fd, fd, mask)
}

// enter opens what the filesystem is marked by.
func (s *filesystemMark) enter(v *view) (int, error) {
	fd, _, err := v.enter()
	if err != nil {
		return -1, err
	}
	defer v.exit()
	return s.fs.how.hold(fd)
}

// locate looks the directory up by its handle.
func (s *filesystemMark) locate(n *node) error { return s.fs.lookUp(n) }

func (s *filesystemMark) open(n *node, mountID int) (int, error) {
	for _, v := range s.fs.views {
		if v.id == mountID || mountID == 0 {
			fd, _, err := v.open(n.handle)
			return fd, err
		}
	}
	return -1, errGone
}

func (*filesystemMark) appeared(_, _ *node, _ string, _ arrival) {}

func (*filesystemMark) uncovered(*point) {}

func (*filesystemMark) settle() {}

func (s *filesystemMark) removed(n *node) { s.fs.gone(n) }

func (s *filesystemMark) forget() { s.fs.forgetNodes() }
