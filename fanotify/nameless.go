// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"hash/maphash"

	"golang.org/x/sys/unix"
)

// An event has the name by which its file was opened. That is nobody's any more if the file
// was removed since, or has lost that name and kept another. A file made with O_TMPFILE never
// had it: it is called "#" and its inode's number.

// recent counts what happened to files lately, by the hash of their handles: of the last
// maxRecent files at least, of twice as many at most.
type recent struct{ last, before map[uint64]int }

const maxRecent = 4096

func (r *recent) add(file handle, n int) {
	if len(r.last) >= maxRecent || r.last == nil {
		r.last, r.before = make(map[uint64]int), r.last
	}
	r.last[maphash.Bytes(seed, file)] += n
}

func (r *recent) count(file handle) int {
	if len(r.last) == 0 {
		return 0
	}
	key := maphash.Bytes(seed, file)
	return r.last[key] + r.before[key]
}

// nameless says whether the name of the event at hand, in dir, is not its file's. If
// that has another name, which may be anywhere, all who ask for ops are told of an Overflow.
func (fs *filesystem) nameless(e *event, s *scope, dir *node, ops Op) bool {
	if e.mask&unix.FAN_ONDIR != 0 || e.fid == nil {
		return false
	}
	if ops&(Create|Delete) != 0 {
		fs.countNames(e.fid, ops)
		return false
	}
	temporary := isInodeName(e.at.name)
	if !temporary && fs.unlinked.count(e.fid) == 0 {
		return false
	}
	l := look{fs: fs}
	defer l.close()
	if l.names(dir, e.at.name, e.fid) {
		return false
	}
	named := fs.hasName(e.fid)
	if named {
		s.lose(ops)
		fs.lost(ops, true)
	}
	return named || temporary || fs.how.whole() // else it may have another name for long
}

// countNames notes that a file was given a name, or has lost one.
func (fs *filesystem) countNames(file handle, ops Op) {
	if ops&Create != 0 && !fs.how.whole() {
		fs.linked.add(file, 1)
	}
	if ops&Delete != 0 {
		fs.unlinked.add(file, 1)
		if !fs.how.whole() {
			fs.linked.add(file, -1)
		}
	}
}

// names says whether name in dir is that of the file, or may be.
func (l *look) names(dir *node, name []byte, file handle) bool {
	if dir.site == nil {
		if err := l.at(dir); err != nil {
			return err != errGone
		}
	}
	fd, way := l.in(dir)
	h, _, err := handleAt(fd, way+string(name))
	if err != nil {
		return err != unix.ENOENT
	}
	return string(h) == string(file)
}

// hasName says whether the file has a name, or may have. Where its handle cannot be opened
// that is known of one that was given it lately, and has not lost it.
func (fs *filesystem) hasName(file handle) bool {
	if !fs.how.whole() {
		return fs.linked.count(file) > 0
	}
	at, _, err := fs.views[0].enter()
	if err != nil {
		return true
	}
	defer fs.views[0].exit()
	fd, err := openHandle(at, string(file), 0)
	if err == errGone {
		return false
	}
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) != nil || st.Nlink > 0
}

// isInodeName says whether name is "#" and a number.
func isInodeName(name []byte) bool {
	if len(name) < 2 || name[0] != '#' {
		return false
	}
	for _, c := range name[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
