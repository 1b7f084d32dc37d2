// SPDX-License-Identifier: GPL-2.0-or-later

// Package mounts reads the mounts of a namespace as a whole, from
// proc_pid_mountinfo(5), and knows how they lie in one another. It knows no
// fanotify.
//
// The ids in the table are given again as soon as they are free. What tells two
// mounts apart for good is their unique id, see Identify.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/raw"
)

// A Mount is a line of the table.
type Mount struct {
	ID, Parent int
	Device     uint64 // of the filesystem, as unix.Mkdev makes it; a btrfs subvolume's directories have another
	Root       string // the directory of the filesystem that is mounted
	Point      string // where it is mounted
	Kind       string // the filesystem's type
}

// A Table has the mounts of a namespace, each after the one that it is in.
type Table struct {
	list []Mount
	at   map[int]int // where in list, by id
}

// unescape undoes what the kernel does to blanks and backslashes in a path.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)

// Parse reads lines like
// 36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda rw,errors=continue
// and skips those that are not. Only spaces divide a line: the kernel leaves all other blanks
// in a path as they are, but for the few that unescape knows.
func Parse(text []byte) *Table {
	var list []Mount
	for line := range strings.SplitSeq(string(text), "\n") {
		if m, ok := parse(line); ok {
			list = append(list, m)
		}
	}
	return sorted(list)
}

func parse(line string) (m Mount, ok bool) {
	mount, super, _ := strings.Cut(line, " - ")
	kind, _, _ := strings.Cut(super, " ")
	f := strings.Split(mount, " ")
	if len(f) < 6 || kind == "" {
		return m, false
	}
	major, minor, _ := strings.Cut(f[2], ":")
	var numbers [4]int
	for i, text := range []string{f[0], f[1], major, minor} {
		n, err := strconv.Atoi(text)
		if err != nil {
			return m, false
		}
		numbers[i] = n
	}
	return Mount{
		ID: numbers[0], Parent: numbers[1], Device: unix.Mkdev(uint32(numbers[2]), uint32(numbers[3])),
		Root: unescape.Replace(f[3]), Point: unescape.Replace(f[4]), Kind: kind,
	}, true
}

// sorted puts each mount after the one that it is in: the kernel lists them as
// they were made, and a mount can be moved into a later one.
func sorted(list []Mount) *Table {
	t := &Table{list: make([]Mount, 0, len(list)), at: make(map[int]int, len(list))}
	known := make(map[int]bool, len(list))
	inside := make(map[int][]int)
	for _, m := range list {
		known[m.ID] = true
	}
	var roots []int
	for i, m := range list {
		if known[m.Parent] && m.Parent != m.ID {
			inside[m.Parent] = append(inside[m.Parent], i)
		} else {
			roots = append(roots, i)
		}
	}
	for next := roots; len(next) > 0; {
		i := next[0]
		next = next[1:]
		t.at[list[i].ID] = len(t.list)
		t.list = append(t.list, list[i])
		next = append(next, inside[list[i].ID]...)
	}
	return t
}

// All returns the mounts, each after the one that it is in.
func (t *Table) All() []Mount {
	if t == nil {
		return nil
	}
	return t.list
}

// Lookup returns the mount with that id, or nil.
func (t *Table) Lookup(id int) *Mount {
	if t == nil {
		return nil
	}
	if i, ok := t.at[id]; ok {
		return &t.list[i]
	}
	return nil
}

// Holds says whether anything is mounted in that mount.
func (t *Table) Holds(id int) bool {
	return slices.ContainsFunc(t.All(), func(m Mount) bool { return m.Parent == id && m.ID != id })
}

// Covered says whether another mount is over that one, or over a directory above it, so
// that nobody comes to it by its path.
func (t *Table) Covered(id int) bool {
	for m := t.Lookup(id); m != nil; m = t.Lookup(m.Parent) {
		up := t.Lookup(m.Parent)
		for i := range t.list {
			o := &t.list[i]
			switch {
			case o.ID == m.ID || o == up:
			case m.ID == id && o.Parent == id && o.Point == m.Point: // on its root
				return true
			case up == nil || up == m || o.Parent != up.ID:
			case m.Below(o.Point) && o.Point != up.Point || o.Point == up.Point && m.Point != up.Point: // beside it
				return true
			}
		}
		if up == m {
			break
		}
	}
	return false
}

// Below says whether m is mounted below the directory dir.
func (m *Mount) Below(dir string) bool {
	if dir == "/" {
		return m.Point != "/"
	}
	return len(m.Point) > len(dir)+1 && m.Point[len(dir)] == '/' && m.Point[:len(dir)] == dir
}

// Relative returns the way to path from the directory from, both absolute.
func Relative(from, path string) string {
	f, p := split(from), split(path)
	for len(f) > 0 && len(p) > 0 && f[0] == p[0] {
		f, p = f[1:], p[1:]
	}
	way := make([]string, 0, len(f)+len(p)+1)
	for range f {
		way = append(way, "..")
	}
	way = append(way, p...)
	if len(way) == 0 {
		return "."
	}
	return strings.Join(way, "/")
}

func split(name string) []string {
	if name = strings.Trim(path.Clean(name), "/"); name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

// An Identity tells a mount from all others.
type Identity struct {
	ID     int    // as in a Table; given again when it is free
	Unique uint64 // never given again; 0 before Linux 6.8
}

// Identify returns the mount that name, in the directory dirfd, leads into: the
// topmost there. Neither is an automount set off by it, nor is a server asked.
func Identify(dirfd int, name string) (Identity, error) {
	flags := unix.AT_NO_AUTOMOUNT | unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_DONT_SYNC
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dirfd, name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return Identity{}, fmt.Errorf("identifying a mount: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return Identity{}, fmt.Errorf("identifying a mount: %w: it takes Linux 5.8", errors.ErrUnsupported)
	}
	is := Identity{ID: int(st.Mnt_id)}
	if err := unix.Statx(dirfd, name, flags, unix.STATX_MNT_ID_UNIQUE, &st); err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		is.Unique = st.Mnt_id
	}
	return is, nil
}

// Leads says whether name, in the directory dirfd, leads to the root of that mount. It looks
// once.
func (is Identity) Leads(dirfd int, name string) bool {
	id, mask := uint64(is.ID), unix.STATX_MNT_ID
	if is.Unique != 0 {
		id, mask = is.Unique, unix.STATX_MNT_ID_UNIQUE
	}
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_NO_AUTOMOUNT|unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, mask, &st)
	return err == nil && int(st.Mask)&mask != 0 && st.Mnt_id == id && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// Sources are those of which one asks whether anything has changed.
type Sources struct {
	epoll int // of their files
	all   []*Source
}

// NewSources returns none.
func NewSources() (*Sources, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("opening epoll: %w", err)
	}
	return &Sources{epoll: epoll}, nil
}

// A Source is a file that has a namespace's mounts.
type Source struct {
	name  string
	fd    int
	table *Table
	stale atomic.Bool // Changed may be asked in another goroutine than Table
}

// Open opens the mounts of a process, by /proc/PID/mountinfo.
func (s *Sources) Open(name string) (*Source, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLPRI, Fd: int32(len(s.all))}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("polling %s: %w", name, err)
	}
	source := &Source{name: name, fd: fd}
	source.stale.Store(true)
	s.all = append(s.all, source)
	return source, nil
}

// Close ends the asking. The sources are closed by themselves.
func (s *Sources) Close() error { return unix.Close(s.epoll) }

// Close closes the file.
func (s *Source) Close() error { return unix.Close(s.fd) }

// Changed says whether anything of s was mounted, moved or unmounted since it was asked
// of that last, which is what poll(2) says of that file. Others may have it open too, each
// is told by itself.
func (s *Sources) Changed() bool {
	var changed [2]unix.EpollEvent // enough for those that there are
	n, err := raw.EpollReady(s.epoll, changed[:])
	if err != nil {
		for _, source := range s.all {
			source.stale.Store(true)
		}
	}
	for _, e := range changed[:n] {
		s.all[e.Fd].stale.Store(true)
	}
	return n > 0 || err != nil
}

// Forget has the next Table read anew though nothing was mounted: the path of a mount
// changes also when a directory is renamed.
func (s *Source) Forget() { s.stale.Store(true) }

// Table returns the mounts as they were when Changed was asked last, or later.
func (s *Source) Table() (*Table, error) {
	if !s.stale.Swap(false) { // before it is read: what changes from here on is for the next time
		return s.table, nil
	}
	text, err := os.ReadFile(s.name)
	if err != nil {
		s.stale.Store(true)
		return s.table, fmt.Errorf("reading mounts: %w", err)
	}
	s.table = Parse(text)
	return s.table, nil
}
