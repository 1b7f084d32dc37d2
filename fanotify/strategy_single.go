// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// singleMarks has a mark on each watched directory, where there is no filesystem mark
// and no watch tree.
//
// An event that a directory has of its own attributes says neither its name nor where
// it is, and not everywhere can it be opened by its handle. So the marks also tell which
// directories are made, renamed and removed in those that are watched, and once
// that is needed they are listed.
type singleMarks struct {
	filesystemMark
	lasting bool             // no handle of a directory that was removed is given to another one
	gone    recent[struct{}] // if so, the last that were removed, by fileKey
}

func (*singleMarks) whole() bool { return false }

func (*singleMarks) follows() bool { return true }

func (*singleMarks) alone(*Watch) bool { return true }

func (s *singleMarks) masks(w *Watch) (directory, wide uint64) {
	directory, _ = s.filesystemMark.masks(w)
	if w.ops&data != 0 {
		directory |= unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_RENAME
	}
	return directory, 0
}

func (*singleMarks) arm(*node, *view, uint64) error { return nil }

func (*singleMarks) disarm(*view, uint64) error { return nil }

func (s *singleMarks) locate(n *node) error {
	if _, ok := s.gone.get(fileKey(handle(n.handle))); ok {
		return errGone // it is still open, and somebody sets its attributes
	}
	if s.fs.unplaced.single != 0 {
		return errUnlisted // all list anew soon
	}
	for _, again := range []bool{false, true} { // its handle may be new, see directoryMarks.evicted
		for _, w := range s.fs.watches {
			d := w.node
			if n.parent != nil || d.listed == s.fs.g.batch || d.listed != 0 && !again {
				continue
			}
			d.listed = s.fs.g.batch
			if err := s.list(d); err != nil {
				return err
			}
		}
	}
	if n.parent == nil && n.site == nil {
		return errUnlisted
	}
	return nil
}

// list notes the names of the directories in d.
func (s *singleMarks) list(d *node) error {
	fd, err := unix.Openat(int(d.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	dir := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("reading directory: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		at, err := openHere(fd, e.Name())
		if err != nil {
			continue // it has gone, or something is mounted over it
		}
		h, _, err := handleAt(at, "")
		unix.Close(at)
		if err != nil {
			continue
		}
		if n := s.fs.get(h); n.parent == nil {
			s.fs.move(n, d, e.Name())
		}
	}
	return nil
}

func (s *singleMarks) removed(n *node) {
	if s.lasting {
		s.gone.set(fileKey(handle(n.handle)), struct{}{})
	}
	s.filesystemMark.removed(n)
}

func (s *singleMarks) open(n *node, mountID int) (int, error) {
	if n.site != nil {
		return unix.FcntlInt(n.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	return -1, errUnlisted
}

func (s *singleMarks) forget() {
	s.fs.forgetNodes()
	for _, w := range s.fs.watches {
		w.node.listed = 0
	}
}
