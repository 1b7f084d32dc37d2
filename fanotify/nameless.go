// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"hash/maphash"
	"math/bits"

	"golang.org/x/sys/unix"
)

// An event has the name by which its file was opened. That is nobody's any more if the file
// was removed since, or has lost that name and kept another. A file made with O_TMPFILE never
// had it: it is called "#" and its inode's number.

// recent keeps something of the last maxRecent keys at least, of twice as many at most. A
// key is a hash.
type recent[T any] struct{ last, before map[uint64]T }

const maxRecent = 4096

func (r *recent[T]) set(key uint64, to T) {
	if len(r.last) >= maxRecent || r.last == nil {
		r.last, r.before = r.before, r.last
		if clear(r.last); r.last == nil {
			r.last = make(map[uint64]T)
		}
	}
	r.last[key] = to
}

func (r *recent[T]) get(key uint64) (is T, ok bool) {
	if is, ok = r.last[key]; !ok {
		is, ok = r.before[key]
	}
	return is, ok
}

func (r *recent[T]) empty() bool { return len(r.last)+len(r.before) == 0 }

// forget forgets a key.
func (r *recent[T]) forget(key uint64) {
	delete(r.last, key)
	delete(r.before, key)
}

func fileKey(file handle) uint64 { return maphash.Bytes(seed, file) }

// nameKey is that of a name in dir.
func nameKey(dir *node, name []byte) uint64 {
	return maphash.String(seed, dir.handle) ^ bits.RotateLeft64(maphash.Bytes(seed, name), 1)
}

// linkKey is that of a name, of which the first argument is the key, as one of the file's.
func linkKey(name, file uint64) uint64 { return name ^ bits.RotateLeft64(file, 2) }

// An owner is the file that has a name now, if any. It is kept for names that may have been taken from another file: a rename
// does not say from which. At is where in the queue that was told.
type owner struct{ file, at uint64 }

// nameless says whether the name of the event at hand, in dir, is not its file's. If
// that has another name, which may be anywhere, all who ask for ops are told of an Overflow.
func (fs *filesystem) nameless(e *event, dir *node, ops Op) bool {
	if e.mask&unix.FAN_ONDIR != 0 || e.fid == nil {
		return false
	}
	if ops&(Create|Delete) != 0 {
		fs.countNames(dir, e, ops)
		return false
	}
	temporary := isInodeName(e.at.name)
	if !temporary && !fs.lostName(dir, e) {
		return false
	}
	l := look{fs: fs}
	defer l.close()
	switch {
	case l.names(dir, e.at.name, e.fid) && (temporary || !fs.givenLater(e, dir)):
		fs.found(dir, e.at.name, e.fid)
		return false
	case !temporary && fs.takenAway(e, dir):
		return false
	}
	named := fs.hasName(e.fid)
	if named {
		fs.somewhere(ops, true)
	}
	return named || temporary || fs.how.whole() // else it may have another name for long
}

// linkedIn says whether the file of the event at hand, which nobody sees in dir, has a name
// that somebody does, and not that of the event any more, or never. That it was given one is
// known if anybody asks for Create; else it may be so of all that were made with O_TMPFILE.
func (fs *filesystem) linkedIn(e *event, dir *node, ops Op) bool {
	if e.mask&unix.FAN_ONDIR != 0 || e.fid == nil || !fs.how.whole() {
		return false
	}
	if ops&Create != 0 {
		fs.found(dir, e.at.name, e.fid)
	}
	_, seen := fs.linked.get(fileKey(e.fid))
	if seen && ops&Delete != 0 {
		fs.unlinked.set(linkKey(nameKey(dir, e.at.name), fileKey(e.fid)), fs.g.position())
	}
	temporary := isInodeName(e.at.name)
	if ops&^data != 0 || !seen && (!temporary || fs.asks(Create)) || !temporary && !fs.lostName(dir, e) {
		return false
	}
	l := look{fs: fs}
	defer l.close()
	if l.names(dir, e.at.name, e.fid) {
		return !temporary && fs.givenLater(e, dir)
	}
	return (temporary || !fs.takenAway(e, dir)) && fs.hasName(e.fid)
}

// A taking is what events that are yet to be told do to a name of a file: where in the queue the last one is that takes
// it from the file, and the last one that gives it to the file.
type taking struct{ at, given uint64 }

// takenAway says whether an event that is yet to be told takes the name of the event at hand, in dir, from its file. Then it
// was that file's, if that is not known to have lost it, and has not been given it again in between.
func (fs *filesystem) takenAway(e *event, dir *node) bool {
	link := linkKey(nameKey(dir, e.at.name), fileKey(e.fid))
	if at, ok := fs.unlinked.get(link); ok && at <= fs.queue.told {
		return false
	}
	t := fs.coming(e, dir)
	return t.at > fs.g.position() && t.given <= fs.g.position()
}

// givenLater says whether an event that is yet to be told gives the name of the event at hand, in dir, to its file. If the
// file had lost it before, it is its own by now, and was not when the event was made.
func (fs *filesystem) givenLater(e *event, dir *node) bool {
	return fs.coming(e, dir).given > fs.g.position()
}

// coming reads on, and returns what is to come of the name of the event at hand, in dir, and of its file.
func (fs *filesystem) coming(e *event, dir *node) taking {
	fs.barrier(dir) // who takes it may have been stopped in the middle of that
	fs.g.more()
	q := fs.g.queue
	pos := max(fs.takenTo, fs.g.position())
	for end := q.told + uint64(len(q.buf)); pos < end; {
		var later event
		size, err := later.decode(q.buf[pos-q.told:])
		if err != nil {
			break // which is met again when it is told
		}
		pos += uint64(size)
		var t taking
		if later.mask&unix.FAN_DELETE != 0 {
			t.at = pos
		}
		if later.mask&unix.FAN_CREATE != 0 {
			t.given = pos
		}
		switch {
		case later.fsid != e.fsid:
		case later.mask&unix.FAN_RENAME != 0:
			fs.noteTaking(later.old, later.fid, taking{at: pos})
			fs.noteTaking(later.new, later.fid, taking{given: pos})
		case t != taking{}:
			fs.noteTaking(later.at, later.fid, t)
		}
	}
	fs.takenTo = pos
	t, _ := fs.taken.get(linkKey(nameKey(dir, e.at.name), fileKey(e.fid)))
	return t
}

func (fs *filesystem) noteTaking(name record, file handle, t taking) {
	if dir := fs.nodes[string(name.dir)]; dir != nil {
		link := linkKey(nameKey(dir, name.name), fileKey(file))
		was, _ := fs.taken.get(link)
		fs.taken.set(link, taking{max(was.at, t.at), max(was.given, t.given)})
	}
}

// vanished says whether the file of the event at hand has no name, and the directory that it
// was in was removed too, since it was opened: that is told by what removed them.
func (fs *filesystem) vanished(e *event, dir *node, ops Op) bool {
	if ops&^data != 0 || e.fid == nil || dir.parent != nil || dir.site != nil || !fs.how.whole() || fs.hasName(e.fid) {
		return false
	}
	_, _, err := fs.find(dir)
	return err == errGone
}

// countNames notes that a file was given a name in dir, or has lost one, or both.
func (fs *filesystem) countNames(dir *node, e *event, ops Op) {
	if ops&Create != 0 {
		fs.found(dir, e.at.name, e.fid)
	}
	if ops&Delete != 0 {
		fs.unlinked.set(linkKey(nameKey(dir, e.at.name), fileKey(e.fid)), fs.g.position())
	}
	if ops&(Create|Delete) == Create|Delete || fs.how.whole() && ops&Delete != 0 {
		return
	}
	change := 1
	if ops&Delete != 0 {
		change = -1
	}
	key := fileKey(e.fid)
	names, _ := fs.linked.get(key)
	fs.linked.set(key, names+change)
}

// lostName says whether the file of the event at hand has lost its name in dir before this batch, or may have. In a batch
// the order of events says little, see settle.go.
func (fs *filesystem) lostName(dir *node, e *event) bool {
	if fs.unlinked.empty() && fs.owners.empty() {
		return false
	}
	name, file := nameKey(dir, e.at.name), fileKey(e.fid)
	if at, ok := fs.unlinked.get(linkKey(name, file)); ok && at <= fs.queue.told {
		return true
	}
	o, ok := fs.owners.get(name)
	return ok && o.at <= fs.queue.told && o.file != file
}

// found notes that a file has a name in dir, which it or another may have lost before.
func (fs *filesystem) found(dir *node, name []byte, file handle) {
	if fs.unlinked.empty() && fs.owners.empty() {
		return
	}
	n, f := nameKey(dir, name), fileKey(file)
	fs.unlinked.forget(linkKey(n, f))
	if o, ok := fs.owners.get(n); ok {
		fs.owners.set(n, owner{f, o.at}) // the one before has still lost it
	}
}

// owned notes that the file, or none if that is nil, has a name in dir that may have been another's. Where a file that loses
// all its names cannot be told from one that keeps some, that says nothing.
func (fs *filesystem) owned(dir *node, name []byte, file handle) {
	n, f := nameKey(dir, name), fileKey(file)
	fs.unlinked.forget(linkKey(n, f))
	if !fs.how.whole() {
		return
	}
	o, ok := fs.owners.get(n)
	if !ok {
		o.at = fs.g.position()
	}
	fs.owners.set(n, owner{f, o.at}) // whoever had lost it before has still lost it
}

// names says whether name in dir is that of the file, or may be.
func (l *look) names(dir *node, name []byte, file handle) bool {
	h, err := l.file(dir, name)
	if err != nil {
		return err != errGone && err != unix.ENOENT
	}
	return string(h) == string(file)
}

// file returns the handle of what has the name in dir.
func (l *look) file(dir *node, name []byte) (handle, error) {
	if dir.site == nil {
		if err := l.at(dir); err != nil {
			return nil, err
		}
	}
	fd, way := l.in(dir)
	h, _, err := handleAt(fd, way+string(name))
	return h, err
}

// hasName says whether the file has a name, or may have. Where its handle cannot be opened
// that is known of one that was given it lately, and has not lost it.
func (fs *filesystem) hasName(file handle) bool {
	if !fs.how.whole() {
		names, _ := fs.linked.get(fileKey(file))
		return names > 0
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
