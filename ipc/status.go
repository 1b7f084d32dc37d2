// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// Status is what a Daemon does. Its JSON is described in ksmbd-notifyd(8).
type Status struct {
	Serving      bool          `json:"serving"`           // registered with ksmbd
	Since        time.Time     `json:"since"`             // when that became so
	Waiting      string        `json:"waiting,omitempty"` // for what, when not Serving
	Module       string        `json:"module,omitempty"`  // the module's release
	Open         Open          `json:"open"`
	Total        Total         `json:"total"`
	LastOverflow *Loss         `json:"last_overflow,omitempty"`
	Filesystems  []Filesystem  `json:"filesystems,omitempty"`
	Watches      []WatchStatus `json:"watches,omitempty"` // oldest first
}

// Open is what there is now.
type Open struct {
	Watches     int `json:"watches"`
	Trees       int `json:"trees"` // of the watches
	Requests    int `json:"requests"`
	QueuedBytes int `json:"queued_bytes"` // as records take in clients' buffers
}

// Total is what was done since the daemon started.
type Total struct {
	Watches        uint64 `json:"watches"`
	Refused        uint64 `json:"refused"` // watches that could not be armed
	Requests       uint64 `json:"requests"`
	Responses      uint64 `json:"responses"` // with records or one of the statuses that follow
	EnumDirs       uint64 `json:"enum_dirs"`
	DeletePendings uint64 `json:"delete_pendings"`
	Records        uint64 `json:"records"`
	Overflows      uint64 `json:"overflows"`       // how often a watch lost records
	QueueOverflows uint64 `json:"queue_overflows"` // how often the fanotify queue did
}

// A Loss is a watch's overflow.
type Loss struct {
	Time      time.Time `json:"time"`
	Directory string    `json:"directory"`
	Reason    string    `json:"reason"`
}

// A Filesystem is one that has watches.
type Filesystem struct {
	Type     string `json:"type"`
	Device   string `json:"device"` // major:minor
	Strategy string `json:"strategy"`
	Watches  int    `json:"watches"`
}

// WatchStatus is a watch as it is now.
type WatchStatus struct {
	ID          uint64    `json:"id"`
	Directory   string    `json:"directory"` // its path when the watch was opened
	Tree        bool      `json:"tree"`
	Filter      string    `json:"filter"`
	User        string    `json:"user"`
	Share       string    `json:"share"`
	Since       time.Time `json:"since"`
	Pending     int       `json:"pending"` // requests
	Queued      int       `json:"queued"`  // records
	QueuedBytes int       `json:"queued_bytes"`
	Overflowed  bool      `json:"overflowed"` // the next answer says so
	Overflows   uint64    `json:"overflows"`
	Filesystem  string    `json:"filesystem"`
	Device      string    `json:"device"`
	Strategy    string    `json:"strategy"`
}

// An ask is for the goroutine that serves to say what it does.
type ask struct {
	watches bool
	reply   chan<- Status // takes one without waiting
}

// Status has the goroutine that serves say what it does; that it answers shows
// that it is not stuck. With watches each of them is listed. It fails when ctx
// is done first.
func (d *Daemon) Status(ctx context.Context, watches bool) (Status, error) {
	reply := make(chan Status, 1)
	select {
	case d.asks <- ask{watches, reply}:
		return <-reply, nil
	case <-ctx.Done():
		return Status{}, context.Cause(ctx)
	}
}

// answer says what d does, in the goroutine that serves.
func (d *Daemon) answer(a ask) {
	s := d.state
	s.Total, s.LastOverflow = d.stats.total, d.stats.loss
	if l := d.loop; l != nil {
		s.Open = Open{Watches: len(l.watches), Trees: l.trees, Requests: len(l.waiting), QueuedBytes: l.budget.used}
		if a.watches {
			s.Watches = l.watchStatus()
			s.Filesystems = filesystems(s.Watches)
		}
	}
	a.reply <- s
}

// stats outlive a loop.
type stats struct {
	total Total
	loss  *Loss // the last one; not changed once it is here
}

func (s *stats) count(status genl.Status, records int) {
	s.total.Responses++
	switch status {
	case genl.StatusEnumDir:
		s.total.EnumDirs++
	case genl.StatusDeletePending:
		s.total.DeletePendings++
	default:
		s.total.Records += uint64(records)
	}
}

func (l *loop) watchStatus() []WatchStatus {
	list := make([]WatchStatus, 0, len(l.watches))
	for _, w := range l.watches {
		s := w.about
		s.Pending, s.Queued, s.QueuedBytes, s.Overflowed = len(w.pending), len(w.queue.records), w.queue.size, w.queue.lost
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b WatchStatus) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// filesystems sums watches up, the filesystem with the most first.
func filesystems(watches []WatchStatus) []Filesystem {
	count := make(map[Filesystem]int)
	for _, w := range watches {
		count[Filesystem{Type: w.Filesystem, Device: w.Device, Strategy: w.Strategy}]++
	}
	var list []Filesystem
	for fs, n := range count {
		fs.Watches = n
		list = append(list, fs)
	}
	slices.SortFunc(list, func(a, b Filesystem) int {
		return cmp.Or(cmp.Compare(b.Watches, a.Watches), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Strategy, b.Strategy))
	})
	return list
}

// filesystemNames has the types of filesystem that a share may well be on, by
// the numbers in statfs(2).
var filesystemNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4", // and ext2, ext3
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.CIFS_SUPER_MAGIC:      "cifs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.MSDOS_SUPER_MAGIC:     "vfat",
	unix.EXFAT_SUPER_MAGIC:     "exfat",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
}

// FilesystemOf returns the type of the filesystem that dir is on, and its
// device as major:minor. What cannot be found out is "?".
func FilesystemOf(dir *os.File) (name, device string) {
	name, device = "?", "?"
	var fs unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &fs) == nil {
		if name = filesystemNames[fs.Type]; name == "" {
			name = fmt.Sprintf("%#x", fs.Type)
		}
	}
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) == nil {
		device = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	return name, device
}
