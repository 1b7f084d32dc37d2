// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// dispatch tells the watches of what is in the batch.
func (g *Group) dispatch() {
	g.creator, g.remover = 0, 0
	g.full = g.full || !g.learn(0)
	g.putOff = 0
	for off := 0; off < len(g.buf) && !g.full; { // settling may have read on
		off = g.tell(off)
		for _, fs := range g.queue.filesystems {
			fs.settle()
		}
	}
	if g.full {
		g.overflows++
	}
	for _, fs := range g.queue.filesystems {
		if g.full {
			fs.overflowed()
		}
		fs.trim()
	}
	g.full = false
}

// tell goes through the batch from off and returns its end.
func (g *Group) tell(off int) int {
	var e event
	for off < len(g.buf) && !g.full {
		n, err := e.decode(g.buf[off:])
		if err != nil { // learn would have met it
			g.full = true
			break
		}
		off += n
		g.next = off
		if fs := g.queue.filesystems[e.fsid]; fs != nil {
			fs.dispatch(&e)
		}
	}
	return off
}

// learn goes ahead through the batch, from off. Where an event first mentions
// a directory that the tree does not know is where it was until then. It
// finds out who created and who removed names, and returns false if part of the
// queue was lost.
func (g *Group) learn(off int) bool {
	for off < len(g.buf) {
		size, _, mask, err := eventHeader(g.buf[off:])
		if err == nil && mask&unix.FAN_CREATE != 0 {
			g.creator = both(g.creator, eventThread(g.buf[off:]))
		}
		if err == nil && mask&unix.FAN_DELETE != 0 {
			g.remover = both(g.remover, eventThread(g.buf[off:]))
		}
		if err == nil && movesDir(mask) {
			var e event
			if _, err = e.decode(g.buf[off:]); err == nil {
				g.learnEvent(&e)
			}
		}
		if err != nil {
			g.log.Debug("cannot decode", "error", err)
			return false
		}
		if mask&unix.FAN_Q_OVERFLOW != 0 {
			return false
		}
		off += size
	}
	return true
}

// several stands for more than one thread. fanotify(7) says 0 of those that this
// process does not see.
const several = -1

// both returns who was and thread are; no thread was, if that is 0.
func both(was, thread int32) int32 {
	if thread == 0 || was != 0 && was != thread {
		return several
	}
	return thread
}

// crowd says whether a name may have been created by one thread and removed by
// another.
func (g *Group) crowd() bool {
	return g.creator != 0 && g.remover != 0 && (g.creator != g.remover || g.creator == several)
}

func movesDir(mask uint64) bool {
	return mask&unix.FAN_ONDIR != 0 && mask&(unix.FAN_CREATE|unix.FAN_DELETE|unix.FAN_RENAME) != 0
}

func (g *Group) learnEvent(e *event) {
	at := e.at
	if e.mask&unix.FAN_RENAME != 0 {
		at = e.old
	}
	fs := g.queue.filesystems[e.fsid]
	if fs == nil || !movesDir(e.mask) || at.dir == nil || e.fid == nil {
		return
	}
	if dir := fs.get(e.fid); dir.parent == nil {
		fs.move(dir, fs.get(at.dir), string(at.name))
	}
}

// more reads and learns what comes within a millisecond, and says whether
// that was anything.
func (g *Group) more() bool {
	had := len(g.buf)
	unix.Poll([]unix.PollFd{{Fd: int32(g.queue.fd), Events: unix.POLLIN}}, 1)
	if err := g.read(); err != nil { // the next Drain meets it again
		g.log.Debug("cannot read on", "error", err)
		return false
	}
	if len(g.buf) == had {
		return false
	}
	g.batch++ // who was told to list the directory may have done so before this
	g.full = g.full || !g.learn(had)
	return !g.full
}

func (fs *filesystem) dispatch(e *event) {
	switch {
	case e.mask&unix.FAN_RENAME != 0:
		fs.rename(e)
	case e.at.dir == nil:
		// A file that the kernel has no name for, opened by its handle as an
		// NFS server does. An ATTRIB alone says that a link to it went.
		// So does a rename of the name after it, see victim.
		if ops := opsOf(e.mask) &^ Attrib; ops != 0 {
			fs.lost(ops, false)
		}
	case string(e.at.name) == ".":
		fs.self(e)
	default:
		fs.entry(e)
	}
}

func opsOf(mask uint64) (ops Op) {
	for _, b := range opBits {
		if mask&b.bit != 0 && !(b.op == Access && mask&unix.FAN_ONDIR != 0) {
			ops |= b.op
		}
	}
	return ops
}

// entry tells what happened to a name in a directory.
func (fs *filesystem) entry(e *event) {
	dir, name, isDir := fs.get(e.at.dir), e.at.name, e.mask&unix.FAN_ONDIR != 0
	s, ops := &fs.g.from, opsOf(e.mask)
	if err := s.find(fs, dir, name); err != nil {
		fs.lost(ops, false)
	}
	if fs.walked && isDir && ops&Create != 0 && len(s.hits) > 0 {
		if n := fs.get(e.fid); !n.marked || n.parent != dir || n.name != string(name) {
			fs.enter(n, dir, string(name), true)
		}
	}
	if len(s.hits) > 0 && !(ops&(Create|Delete) == 0 && fs.unlinked(dir, name)) {
		c := fs.change(e, e.fid)
		c.Parent = dir.handle
		for _, op := range [...]Op{ops & Create, ops & data, ops & Delete} {
			if c.Op = op; op != 0 {
				s.tell(c)
			}
		}
		if ops&(Create|Delete) != 0 {
			d := doubt{name: name, present: ops&Delete == 0, isDir: isDir, merged: ops&Create != 0 && ops&Delete != 0}
			if isDir {
				d.is = fs.nodes[string(e.fid)]
			} else {
				d.file = e.fid
			}
			fs.believe(dir, d, d.merged)
		}
	}
	if isDir && ops&Delete != 0 {
		if n := fs.nodes[string(e.fid)]; n != nil {
			if n.parent != nil && (n.parent != dir || n.name != string(name)) {
				fs.misnamed() // it was looked up when it was on its way here
			}
			fs.gone(n)
			if ops&Create == 0 {
				fs.evict(n) // no event from inside it follows
			}
		}
	}
}

// self tells what happened to a directory's own attributes: the directories
// above hear of it.
func (fs *filesystem) self(e *event) {
	n := fs.get(e.at.dir)
	if n.site != nil && len(n.watches) > 0 {
		if e.mask&unix.FAN_MOVE_SELF != 0 && n.guard != nil {
			if err := fs.follow(n); err != nil {
				fs.g.log.Warn("cannot guard a watched directory", "error", err)
			}
		}
		if e.mask&(unix.FAN_ATTRIB|unix.FAN_MOVE_SELF) != 0 && n.removed() {
			fs.gone(n)
		}
	}
	ops := opsOf(e.mask) & data
	if !fs.asks(ops) {
		return
	}
	s := &fs.g.from
	err := fs.place(n)
	if err == errGone {
		return // with all its attributes; what removed it tells the rest
	}
	s.hits = s.hits[:0]
	if err == nil {
		err = s.find(fs, n.parent, []byte(n.name))
	}
	// A single directory's mark asked for it, if neither the filesystem's nor
	// its own did: then that directory must be found.
	if err != nil || fs.mark.mask()&unix.FAN_ATTRIB == 0 && n.site == nil && len(s.hits) == 0 {
		fs.lost(ops, true)
	}
	if len(s.hits) > 0 {
		c := fs.change(e, e.at.dir)
		c.Op, c.Parent = ops, n.parent.handle
		s.tell(c)
	}
}

// change returns a Change out of an event, of file.
func (fs *filesystem) change(e *event, file handle) Change {
	return Change{Dir: e.mask&unix.FAN_ONDIR != 0, File: file, Thread: e.pid, Read: fs.g.reads}
}

// rename tells of a rename and moves the directory that was renamed. Either
// side may be out of sight.
func (fs *filesystem) rename(e *event) {
	var from, to, moved *node
	if e.old.dir != nil {
		from = fs.get(e.old.dir)
	}
	if e.new.dir != nil {
		to = fs.get(e.new.dir)
	}
	isDir := e.mask&unix.FAN_ONDIR != 0
	if isDir && e.fid != nil {
		moved = fs.get(e.fid)
	}
	if moved != nil {
		fs.checkRename(moved, from, string(e.old.name), to, string(e.new.name))
	}
	fs.tellRename(e, from, to, moved)
	if moved != nil {
		fs.move(moved, to, string(e.new.name))
		fs.renames = append(fs.renames, rename{moved, from, string(e.old.name)})
		fs.g.ahead = true // so it is if this is half of an exchange
	}
}

// A rename is one of a directory, in the batch at hand.
type rename struct {
	node *node
	from *node
	old  string
}

// checkRename says so if a directory's rename shows that names below it were
// told wrong, or cannot be told right.
func (fs *filesystem) checkRename(moved, from *node, old string, to *node, name string) {
	if moved.parent != nil && !(moved.parent == from && moved.name == old) {
		fs.misnamed() // it was looked up when this rename had happened already
	}
	for _, r := range fs.renames {
		switch {
		case r.node == moved && r.from == to && r.old == name:
			fs.misnamed() // it is back, and if it left again the kernel has merged that with r
		case r.node != moved && r.node.parent == from && r.node.name == old:
			fs.misnamed() // exchanged: a client has mixed what is below the two
		}
	}
}

// victim says whether a rename replaced what had its new name. The kernel
// never names that, but says in one go and of one thread: RENAME, ATTRIB of
// the file or directory that lost its name, MOVE_SELF of the one renamed; see
// fsnotify_move in linux/fsnotify.h. The last may have been merged into that
// of an earlier rename; then a link or unlink may be what the ATTRIB is of.
func (g *Group) victim(e *event) bool {
	var next event
	var lost handle
	off := g.next
	for tries := 0; tries <= maxPutOff; tries++ {
		for off < len(g.buf) {
			n, err := next.decode(g.buf[off:])
			if err != nil {
				return false
			}
			off += n
			if next.pid != e.pid {
				continue
			}
			is := next.self()
			switch {
			case next.mask&unix.FAN_MOVE_SELF != 0 && bytes.Equal(is, e.fid):
				return lost != nil
			case lost != nil:
				return e.mask&unix.FAN_ONDIR == 0 &&
					!(next.mask&(unix.FAN_CREATE|unix.FAN_DELETE) != 0 && bytes.Equal(is, lost))
			case next.mask&unix.FAN_ATTRIB != 0 && (next.at.dir == nil || string(next.at.name) == "."):
				lost = is
			default:
				return false
			}
		}
		if !g.more() { // the writer may have been stopped in the middle of it
			break
		}
	}
	return lost != nil && e.mask&unix.FAN_ONDIR == 0
}

// self returns the handle of what the event happened to.
func (e *event) self() handle {
	if e.fid == nil {
		return e.at.dir
	}
	return e.fid
}

// tellRename tells each watch what it can see of a rename.
func (fs *filesystem) tellRename(e *event, from, to, moved *node) {
	old, new, isDir := e.old.name, e.new.name, e.mask&unix.FAN_ONDIR != 0
	a, b := &fs.g.from, &fs.g.to
	errOld := a.find(fs, from, old)
	errNew := b.find(fs, to, new)
	if errOld != nil || errNew != nil {
		fs.lost(^Op(0), false)
	}
	if fs.walked && moved != nil && len(b.hits) > 0 && (!moved.marked || len(a.hits) == 0) {
		fs.enter(moved, to, string(new), len(a.hits) > 0)
	}
	fs.g.movedIn = fs.g.movedIn || isDir && len(a.hits) < len(b.hits)
	if len(b.hits) > 0 && fs.asks(Delete) && fs.mark.mask()&victimMask == victimMask && fs.g.victim(e) {
		b.tell(Change{Op: Delete, Dir: isDir, Parent: to.handle})
	}
	tell := func(o, n *hit) {
		at := o
		if o == nil {
			at = n
		}
		for _, w := range at.node.watches {
			c := Change{Op: Rename, Dir: isDir}
			if o != nil {
				c.OldName, c.OldParent = o.nameFor(w), from.handle
			}
			if n != nil {
				c.Name, c.Parent = n.nameFor(w), to.handle
			}
			if c.OldName != nil || c.Name != nil {
				w.tell(c)
			}
		}
	}
	for i := range a.hits {
		tell(&a.hits[i], b.at(a.hits[i].node))
	}
	for i := range b.hits {
		if a.at(b.hits[i].node) == nil {
			tell(nil, &b.hits[i])
		}
	}
	if len(a.hits) > 0 {
		d := doubt{name: old, isDir: isDir}
		if from == to {
			d.alias = new
		}
		fs.believe(from, d, true)
	}
	if len(b.hits) > 0 {
		fs.believe(to, doubt{name: new, present: true, isDir: isDir, is: moved}, true)
	}
}

// at returns the hit of n.
func (s *scope) at(n *node) *hit {
	for i := range s.hits {
		if s.hits[i].node == n {
			return &s.hits[i]
		}
	}
	return nil
}

// tell tells the watches in s of c, whose name it fills in.
func (s *scope) tell(c Change) {
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if c.Name = s.hits[i].nameFor(w); c.Name != nil {
				w.tell(c)
			}
		}
	}
}

// tell tells w of c, if it asked for it.
func (w *Watch) tell(c Change) {
	if c.Op &= w.ops; c.Op != 0 && !w.gone && w.overflow != w.fs.g.batch {
		w.fn(c)
	}
}

// gone tells the watches of n that it was removed.
func (fs *filesystem) gone(n *node) {
	if n.site == nil {
		return
	}
	for _, w := range n.watches {
		if !w.gone {
			w.gone = true
			w.fn(Change{Op: Gone, Dir: true})
		}
	}
}

// lost tells the watch trees that ask for any of ops, and with singles all
// watches that do, that changes of theirs may be missing. They hear no more of
// this batch: who lists the directory after that sees all that is in it.
func (fs *filesystem) lost(ops Op, singles bool) {
	for _, w := range fs.watches {
		if (w.ops|Overflow)&ops != 0 && (w.tree || singles) {
			w.lose()
		}
	}
}

func (w *Watch) lose() {
	if batch := w.fs.g.batch; !w.gone && w.overflow != batch {
		w.overflow = batch
		w.fn(Change{Op: Overflow})
	}
}

// misnamed tells the watch trees that names they were told, and names below
// these, were wrong.
func (fs *filesystem) misnamed() {
	fs.stale = true
	fs.lost(^Op(0), false)
}

// overflowed tells all watches that part of the queue was lost, and finds out
// what must not have been.
func (fs *filesystem) overflowed() {
	fs.stale = true
	for _, w := range fs.watches {
		if w.inode {
			if err := fs.follow(w.node); err != nil {
				fs.g.log.Warn("cannot guard a watched directory", "error", err)
			}
		}
		if w.node.removed() {
			fs.gone(w.node)
		}
	}
	fs.lost(^Op(0), true)
}

// unlinked says whether name, in dir, is a file made with O_TMPFILE: its
// events call it "#" and its inode's number, which nobody can see.
func (fs *filesystem) unlinked(dir *node, name []byte) bool {
	if len(name) < 2 || name[0] != '#' {
		return false
	}
	for _, c := range name[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	l := look{fs: fs}
	defer l.close()
	st, err := l.stat(dir, name)
	return st == nil && err == nil
}
