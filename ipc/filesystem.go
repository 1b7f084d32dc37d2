// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

// Superblock is a filesystem as ksmbd knows it.
type Superblock struct {
	Type   string // as proc_pid_mountinfo(5) has it
	Device string // major:minor
}

func (fs Superblock) String() string { return "the " + fs.Type + " on device " + fs.Device }

// filesystemNames has the types of filesystem that a share is mostly on, by the
// numbers in statfs(2). All others are looked up among the mounts.
var filesystemNames = map[uint32]string{
	unix.EXT4_SUPER_MAGIC:      "ext4", // and ext2, ext3
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.CIFS_SUPER_MAGIC:      "cifs",
	unix.SMB2_SUPER_MAGIC:      "cifs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.MSDOS_SUPER_MAGIC:     "vfat",
	unix.EXFAT_SUPER_MAGIC:     "exfat",
	unix.PROC_SUPER_MAGIC:      "proc",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
}

// FilesystemOf returns the type of the filesystem that dir is on, such as ext4 or
// fuse.mergerfs, and its device as major:minor. What cannot be found out is "?".
func FilesystemOf(dir *os.File) (name, device string) {
	name, device = "?", "?"
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) == nil {
		device = deviceName(uint32(st.Dev))
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &fs) != nil {
		return name, device
	}
	magic := uint32(fs.Type)
	if name = filesystemNames[magic]; name == "" {
		name = mountedAs(uint64(st.Dev))
	}
	if name == "" {
		name = fmt.Sprintf("%#x", magic)
	}
	return name, device
}

// deviceName returns a device as major:minor.
func deviceName(device uint32) string {
	return fmt.Sprintf("%d:%d", unix.Major(uint64(device)), unix.Minor(uint64(device)))
}

// Mounts lists those that this process or process 1 sees. ksmbd's directories are in
// the mounts of process 1.
func Mounts() (list []mounts.Mount) {
	for _, file := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		text, _ := os.ReadFile(file) // process 1 may be out of sight
		list = append(list, mounts.Parse(text).All()...)
	}
	return list
}

// mountedAs returns the type of the filesystem that is mounted from a device. Each
// program's FUSE has a name of its own there.
func mountedAs(device uint64) string {
	for _, m := range Mounts() {
		if m.Device == device {
			return m.Kind
		}
	}
	return ""
}

// MountOnly says of a type of filesystem that it may change otherwise than through
// the mount at hand: by another client of the server or the cluster that has the
// files, or right in the directories that it is laid over. The kernel tells of
// nothing of that.
func MountOnly(kind string) bool {
	switch kind {
	case "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "coda", "lustre", "gfs2", "ocfs2", "gpfs", "beegfs", "orangefs",
		"vboxsf", "overlay", "ecryptfs", "fuse":
		return true
	}
	return strings.HasPrefix(kind, "fuse.")
}
