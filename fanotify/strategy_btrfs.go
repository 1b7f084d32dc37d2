// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// btrfsTopLevel marks a btrfs by its top level, which stands for all its
// subvolumes: a mark takes nothing else of it. Events have the id of the top
// level, and those of marks on directories in subvolumes another. So a directory in
// one is told by the filesystem's mark too.
type btrfsTopLevel struct{ filesystemMark }

// Numbers of linux/btrfs_tree.h.
const (
	btrfsFirstInode = 256 // BTRFS_FIRST_FREE_OBJECTID, the directory of each subvolume
	btrfsTopTree    = 5   // BTRFS_FS_TREE_OBJECTID, the top level
)

// chooseBtrfs tries to mark the top level of the btrfs that fd is in.
func chooseBtrfs(q *queue, fd int) (chosen, error) {
	top, err := topLevel(fd)
	if err != nil {
		return chosen{}, err
	}
	defer unix.Close(top)
	if err := canMark(q, top); err != nil {
		return chosen{}, fmt.Errorf("marking the top level: %w", err)
	}
	id, _, err := fsid(top)
	if err != nil {
		return chosen{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil {
		return chosen{}, fmt.Errorf("looking at the top level: %w", err)
	}
	return chosen{new(btrfsTopLevel), uint64(st.Dev), id}, nil
}

// topLevel opens the top level of the btrfs that the directory fd is in. It need
// not be mounted: a handle leads to any subvolume, through each mount of one.
func topLevel(fd int) (int, error) {
	// struct btrfs_fid (fs/btrfs/export.h): an inode, its subvolume, and its
	// generation, of which 0 is any.
	const withoutParent = 0x4d // FILEID_BTRFS_WITHOUT_PARENT (linux/exportfs.h)
	var fid [20]byte
	binary.NativeEndian.PutUint64(fid[:], btrfsFirstInode)
	binary.NativeEndian.PutUint64(fid[8:], btrfsTopTree)
	top, err := unix.OpenByHandleAt(fd, unix.NewFileHandle(withoutParent, fid[:]), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening the top level: %w", err)
	}
	return top, nil
}

func (*btrfsTopLevel) hold(dir int) (int, error) { return topLevel(dir) }

func (s *btrfsTopLevel) alone(w *Watch) bool {
	id, _, err := fsid(int(w.dir.Fd()))
	return err == nil && id == s.fs.id && !w.tree
}

// removed says so to all watches in a subvolume that was deleted: they can be open
// for as long as they like, and nobody removes what is in it one by one.
func (s *btrfsTopLevel) removed(n *node) {
	s.fs.gone(n)
	inode, tree := btrfsFID(n.handle)
	if inode != btrfsFirstInode {
		return
	}
	for _, w := range s.fs.watches {
		if _, in := btrfsFID(w.node.handle); in == tree {
			s.fs.gone(w.node)
		}
	}
}

// btrfsFID returns the inode and the subvolume in a handle.
func btrfsFID(h string) (inode, tree uint64) {
	b := []byte(h)
	if len(b) < handleHeaderLen+16 {
		return 0, 0
	}
	return binary.NativeEndian.Uint64(b[handleHeaderLen:]), binary.NativeEndian.Uint64(b[handleHeaderLen+8:])
}
