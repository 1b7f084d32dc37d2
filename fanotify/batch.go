// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"time"

	"golang.org/x/sys/unix"
)

// dispatch tells the watches of what is in the batch.
func (g *Group) dispatch() {
	q := g.queue
	g.creator, g.remover = 0, 0
	clear(g.replaced.by)
	clear(g.replaced.did)
	q.full = q.full || !g.learn(0)
	g.putOff = 0
	for off := 0; ; {
		off = g.tellFrom(off)
		for _, fs := range q.filesystems {
			fs.settle()
		}
		if off == len(q.buf) || q.full { // else settling has read on
			break
		}
	}
	if q.full {
		g.overflows++
	}
	for _, fs := range q.filesystems {
		if q.full {
			fs.overflowed()
		}
		fs.trim()
	}
	q.full = false
}

// tellFrom goes through the batch from off and returns its end.
func (g *Group) tellFrom(off int) int {
	var e event
	q := g.queue
	for off < len(q.buf) && !q.full {
		n, err := e.decode(q.buf[off:])
		if err != nil { // learn would have met it
			q.full = true
			break
		}
		g.at, g.next = off, off+n
		g.leaveMoved()
		if fs := q.filesystems[e.fsid]; fs != nil {
			fs.dispatch(&e)
		}
		off += n
	}
	g.at = len(q.buf)
	return off
}

// learn goes through the batch from off before it is told. The first event that names a
// directory unknown to the tree says where that was until then. It also notes which threads
// created and removed names, and which renames replaced something. It returns false if
// part of the queue was lost.
func (g *Group) learn(off int) bool {
	buf := g.queue.buf
	for off < len(buf) {
		size, _, mask, err := eventHeader(buf[off:])
		if err == nil && mask&unix.FAN_CREATE != 0 {
			g.creator = both(g.creator, eventThread(buf[off:]))
		}
		if err == nil && mask&unix.FAN_DELETE != 0 {
			g.remover = both(g.remover, eventThread(buf[off:]))
		}
		if err == nil && (movesDir(mask) || g.replaced.wants(mask, buf[off:])) {
			var e event
			if _, err = e.decode(buf[off:]); err == nil {
				g.learnEvent(&e)
				g.replaced.learn(off, &e)
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

// several stands for more than one thread, or for one of another PID namespace, of which
// fanotify(7) says 0.
const several = -1

// both returns the thread that was and thread have in common, or several. A was of 0 is none.
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

// position returns the position in the queue at which the event that is being told ends.
func (g *Group) position() uint64 { return g.queue.told + uint64(g.next) }

func movesDir(mask uint64) bool {
	return mask&unix.FAN_ONDIR != 0 && mask&(unix.FAN_CREATE|unix.FAN_DELETE|unix.FAN_RENAME) != 0
}

func (g *Group) learnEvent(e *event) {
	at := e.at
	if e.mask&unix.FAN_RENAME != 0 {
		at = e.old
	}
	fs := g.queue.filesystems[e.fsid]
	if fs == nil || !fs.tracked() || !movesDir(e.mask) || at.dir == nil || e.fid == nil {
		return
	}
	if dir := fs.get(e.fid); dir.parent == nil {
		fs.move(dir, fs.get(at.dir), string(at.name))
	}
}

// more reads and learns what waits in the queue, as part of the batch, and says whether
// there was anything.
func (g *Group) more() bool {
	q := g.queue
	had := len(q.buf)
	if err := g.read(q); err != nil { // the next Drain meets it again
		g.log.Debug("cannot read on", "error", err)
		return false
	}
	if len(q.buf) == had {
		return false
	}
	g.batch++ // who was told to list the directory may have done so before this
	q.full = q.full || !g.learn(had)
	return !q.full
}

// wait is more after a millisecond, or as soon as there is something. A Drain does so only a
// few times, see patience.
func (g *Group) wait() bool {
	if g.patience == 0 {
		return false
	}
	g.patience--
	g.leave()
	unix.Poll([]unix.PollFd{{Fd: int32(g.queue.fd), Events: unix.POLLIN}}, 1)
	return g.more()
}

func (fs *filesystem) dispatch(e *event) {
	switch {
	case e.mask&unix.FAN_RENAME != 0:
		fs.rename(e)
	case e.at.dir == nil:
		// A file that the kernel has no name for, opened by its handle as an NFS server
		// does. ATTRIB alone has no meaning here: the kernel makes one whenever a file loses
		// a name, to an unlink or to a rename over it. What all are to be told of anyway needs no look.
		if ops := opsOf(e.mask) &^ Attrib; ops&^fs.unplaced.ops != 0 && (e.fid == nil || !fs.how.whole() || fs.hasName(e.fid)) {
			fs.somewhere(ops, false)
		}
	case string(e.at.name) == ".":
		fs.self(e)
	default:
		if e.pid == fs.exchanged.thread {
			fs.exchanged.thread = 0
		}
		fs.entry(e)
	}
}

// entry tells what happened to a name in a directory.
func (fs *filesystem) entry(e *event) {
	dir, name, isDir := fs.get(e.at.dir), e.at.name, e.mask&unix.FAN_ONDIR != 0
	s, ops := &fs.g.from, opsOf(e.mask)
	if fs.vanished(e, dir, ops) {
		return
	}
	if isDir && ops&Delete != 0 {
		fs.mistaken(e.fid)
	}
	fs.findOrLose(s, dir, name, ops)
	if len(s.hits) > 0 {
		if isDir && ops&(Create|Delete) == Create { // a directory that was removed comes never again
			fs.how.appeared(fs.get(e.fid), dir, string(name), made)
		}
		if isDir && ops&(Create|Delete) == Delete {
			fs.emptied(fs.nodes[string(e.fid)])
		}
		if !fs.nameless(e, dir, ops) {
			fs.tellEntry(e, s, dir, ops)
		}
	} else if fs.linkedIn(e, dir, ops) {
		fs.somewhere(ops, true)
	}
	if isDir && ops&Delete != 0 {
		fs.removedEntry(e, dir, ops)
	}
}

// tellEntry tells the watches in s what happened to a name in dir.
func (fs *filesystem) tellEntry(e *event, s *scope, dir *node, ops Op) {
	name, isDir := e.at.name, e.mask&unix.FAN_ONDIR != 0
	if ops&Create == 0 {
		fs.reveal(s, dir, name)
	} else if fs.expecting {
		fs.revealDirectory(dir)
	}
	if d := fs.believed(dir, name); ops&Create == 0 && d != nil && !d.present {
		ops &^= data // it was told as removed, and may still be open
	}
	c := fs.change(e, e.fid)
	c.Parent = dir.handle
	if ops&Create != 0 {
		c.Op = Create
		s.tell(c)
	}
	if c.Op = ops & data; c.Op != 0 {
		s.tell(c)
	}
	if ops&Delete != 0 {
		c.Op = Delete
		s.tell(c)
	}
	if ops&(Create|Delete) != 0 {
		d := doubt{name: name, present: ops&Delete == 0, isDir: isDir}
		if isDir {
			d.is = fs.nodes[string(e.fid)]
		} else {
			d.file = e.fid
		}
		fs.believe(dir, d, ops&Create != 0 && ops&Delete != 0) // in whichever order
	}
}

// removedEntry notes that a directory was removed.
func (fs *filesystem) removedEntry(e *event, dir *node, ops Op) {
	n := fs.nodes[string(e.fid)]
	if n == nil {
		if e.fid == nil {
			return
		}
		n = fs.get(e.fid)
	}
	if n.parent != nil && (n.parent != dir || n.name != string(e.at.name)) {
		fs.mixed(n.parent, n.name) // it was looked up when it was on its way here
		fs.mixed(dir, string(e.at.name))
	}
	fs.how.removed(n)
	if ops&Create == 0 {
		fs.evict(n) // no event from inside it follows
	}
}

// findOrLose finds who is to be told what happened to name in dir. Who cannot be
// told, but asks for any of ops, is told of an Overflow. It returns false if there may be
// anybody like that.
func (fs *filesystem) findOrLose(s *scope, dir *node, name []byte, ops Op) (all bool) {
	err := s.find(fs, dir, name)
	if err != nil {
		fs.lostFor(err, ops, false)
	}
	s.loseUnsure(ops)
	return err == nil && !s.unsure
}

// lostFor is lost where err keeps it from being found out who is to be told what. Who was told of
// names in a loop was told wrong ones.
func (fs *filesystem) lostFor(err error, ops Op, singles bool) {
	if err == errLoop {
		ops = ^Op(0)
	}
	fs.lost(ops, singles)
}

// self tells what happened to a directory's own attributes: the directories
// above hear of it.
func (fs *filesystem) self(e *event) {
	n := fs.get(e.at.dir)
	if n.site != nil && len(n.watches) > 0 {
		if e.mask&unix.FAN_MOVE_SELF != 0 && n.guard != nil {
			fs.guard(n)
		}
		if e.mask&(unix.FAN_ATTRIB|unix.FAN_MOVE_SELF) != 0 && n.wasRemoved() {
			fs.gone(n)
		}
	}
	ops := opsOf(e.mask) & data
	if !fs.asks(ops) {
		return
	}
	s := &fs.g.from
	err := s.findDirectory(fs, n)
	if err == errGone {
		return // with all its attributes; what removed it tells the rest
	}
	// If neither the filesystem's mark nor its own asked for this event, the mark of a
	// watched directory above did: if none is found, nobody knows whom to tell.
	switch {
	case err == errUnlisted:
		fs.somewhere(ops, true) // as anybody can have it be who has a removed one open
	case err != nil || fs.mark.mask()&unix.FAN_ATTRIB == 0 && n.site == nil && len(s.hits) == 0:
		fs.lostFor(err, ops, true)
	}
	s.loseUnsure(ops)
	if d := fs.believed(n.parent, []byte(n.name)); d != nil && !d.present && !d.expected {
		return // it was told as removed, by what came after this event and was merged with one before
	}
	if len(s.hits) > 0 {
		c := fs.change(e, e.at.dir)
		if c.Op = ops; n.parent != nil {
			fs.reveal(s, n.parent, []byte(n.name))
			c.Parent = n.parent.handle
		}
		s.tell(c)
	}
}

// change returns a Change out of an event, of file.
func (fs *filesystem) change(e *event, file handle) Change {
	return Change{Dir: e.mask&unix.FAN_ONDIR != 0, File: file, Thread: e.pid, Since: fs.queue.since, Until: fs.queue.until}
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
		if moved = fs.get(e.fid); moved.former == string(e.fid) {
			// Its node had been given the handle of what was found in its place. That was another
			// directory, as this one was renamed, unless it came back.
			fs.misnamed()
		}
	}
	back := moved != nil && fs.checkRename(moved, from, string(e.old.name), to, string(e.new.name))
	fs.tellRename(e, from, to, moved)
	if moved != nil && fs.tracked() {
		fs.move(moved, to, string(e.new.name))
		fs.renames.add(rename{moved, from, string(e.old.name), back})
		fs.g.ahead = true // so it is if this is half of an exchange
	}
}

// A rename is one of a directory, in the batch at hand.
type rename struct {
	node *node
	from *node
	old  string
	back bool // it has been where it was before, in the same batch
}

// renames are those in the batch at hand, and the last one before that: the other half of an exchange may be yet to come.
type renames struct {
	list []rename
	been map[visit]bool     // where directories were before
	at   map[place][2]*node // the last two that were renamed to a name, and may have it still
}

// A visit is where a directory was once. With no place it says that the directory has come back to where it was.
type visit struct {
	node *node
	place
}

// add takes in a rename that was told.
func (r *renames) add(x rename) {
	if r.at == nil {
		r.been, r.at = make(map[visit]bool), make(map[place][2]*node)
	}
	r.list = append(r.list, x)
	if x.from != nil {
		r.been[visit{x.node, place{x.from, x.old}}] = true
	}
	if x.back {
		r.been[visit{node: x.node}] = true
	}
	if to := x.node.place(); to.dir != nil && r.at[to][0] != x.node {
		r.at[to] = [2]*node{x.node, r.at[to][0]}
	}
}

// back says whether the directory has been there before, or has come back already.
func (r *renames) back(n *node, to place) bool {
	return r.been[visit{node: n}] || to.dir != nil && r.been[visit{n, to}]
}

// others says whether any other directory than n is there since it was renamed.
func (r *renames) others(n *node, at place) bool {
	for _, o := range r.at[at] {
		if o != nil && o != n && o.place() == at {
			return true
		}
	}
	return false
}

// settled forgets all but the last one.
func (r *renames) settled() {
	n := len(r.list)
	if n == 0 {
		return
	}
	last := rename{node: r.list[n-1].node}
	if n == 1 && r.list[0] == last {
		return // there was none in this batch
	}
	if n > allocDoubts {
		*r = renames{}
	}
	r.list = r.list[:0]
	clear(r.been)
	clear(r.at)
	r.add(last)
}

// A half is the last rename that was told. The kernel tells of an exchange (RENAME_EXCHANGE)
// as of two renames, and this may be the first of them.
type half struct {
	thread   int32
	from, to *node
	old, new string
	file     string
	isDir    bool
}

// completes says whether the rename that is being told is the second half of an exchange,
// after which both names are there. If not, it is remembered: it may be a first half.
func (x *half) completes(e *event, from, to *node) bool {
	if x.thread == e.pid && x.thread != 0 && x.from == to && x.to == from && from != nil && to != nil &&
		x.old == string(e.new.name) && x.new == string(e.old.name) && x.file != string(e.fid) {
		x.thread = 0
		return true
	}
	*x = half{e.pid, from, to, string(e.old.name), string(e.new.name), string(e.fid), e.mask&unix.FAN_ONDIR != 0}
	return false
}

// checkRename tells of an Overflow if a directory's rename shows that names below it were
// told wrong, or cannot be told right. It says whether the directory came back to where it
// had been in this batch. If it left again after that, there is no event: the kernel has
// merged it with the first one.
func (fs *filesystem) checkRename(moved, from *node, old string, to *node, name string) (back bool) {
	if moved.parent != nil && !(moved.parent == from && moved.name == old) {
		fs.mixed(moved.parent, moved.name) // it was looked up when this rename had happened already
		fs.mixed(from, old)
		fs.mixed(to, name)
	}
	if from != nil && fs.renames.others(moved, place{from, old}) {
		fs.mixed(from, old) // exchanged: a client has mixed what is below the two
		fs.mixed(to, name)
	}
	return fs.renames.back(moved, place{to, name})
}

// tellRename tells each watch what it can see of a rename.
func (fs *filesystem) tellRename(e *event, from, to, moved *node) {
	a, b := &fs.g.from, &fs.g.to
	all := fs.findOrLose(a, from, e.old.name, ^Op(0))
	all = fs.findOrLose(b, to, e.new.name, ^Op(0)) && all
	isDir := e.mask&unix.FAN_ONDIR != 0
	if moved != nil {
		fs.g.movedIn = fs.g.movedIn || !all // it may have come into sight, with mounts in it
		fs.sight(moved, to, string(e.new.name))
		if a.nested() || b.nested() { // what is told first changes the names of what would be told then
			a.lose(^Op(0))
			b.lose(^Op(0))
		}
	}
	if len(a.hits) > 0 {
		fs.reveal(a, from, e.old.name)
	}
	if len(b.hits) > 0 && fs.expecting {
		fs.revealDirectory(to)
	}
	if len(b.hits) > 0 && fs.asks(Delete) && fs.replaces(e, to) {
		b.tell(Change{Op: Delete, Dir: isDir, Parent: to.handle})
	}
	for i := range a.hits {
		h := &a.hits[i]
		fs.tellSides(h, b.at(h), isDir, from, to)
	}
	for i := range b.hits {
		if h := &b.hits[i]; a.at(h) == nil {
			fs.tellSides(nil, h, isDir, from, to)
		}
	}
	fs.believeRename(e, from, to, moved)
}

// sight notes whether a directory that is renamed comes into the sight of watches, or leaves
// it. Both sides of the rename have been found.
func (fs *filesystem) sight(moved, to *node, name string) {
	before, now := len(fs.g.from.hits) > 0, len(fs.g.to.hits) > 0
	switch {
	case now && before && len(fs.views) > 1 && !fs.g.to.within(&fs.g.from):
		fs.how.appeared(moved, to, name, shownAnew)
	case now && before:
		fs.how.appeared(moved, to, name, renamed)
	case now:
		fs.how.appeared(moved, to, name, movedIn)
	case before:
		fs.left = fs.g.position()
	}
	fs.g.movedIn = fs.g.movedIn || fs.g.misplaced || moved.mounts != nil
}

// believeRename remembers both names of a rename, since these are in doubt until settle has
// looked at them. After the second half of an exchange the old name is there, as that of the
// other file, which is told.
func (fs *filesystem) believeRename(e *event, from, to, moved *node) {
	a, b, isDir := &fs.g.from, &fs.g.to, e.mask&unix.FAN_ONDIR != 0
	left := doubt{name: e.old.name, isDir: isDir}
	if fs.exchanged.completes(e, from, to) {
		left.present, left.isDir = true, fs.exchanged.isDir
		a.tell(Change{Op: Create, Dir: left.isDir, Parent: from.handle})
	}
	if from == to {
		left.alias = e.new.name
	}
	if len(a.hits) > 0 && fs.hears(from, unix.FAN_CREATE) { // else it is no wonder if something has that name
		fs.believe(from, left, true)
	}
	if to != nil && !isDir && e.fid != nil {
		fs.owned(to, e.new.name, e.fid)
	}
	if len(b.hits) > 0 {
		fs.believe(to, doubt{name: e.new.name, present: true, isDir: isDir, is: moved}, true)
	}
}

// hears says whether a mark asks for that in the directory n.
func (fs *filesystem) hears(n *node, bit uint64) bool {
	return fs.mark.mask()&bit != 0 || n.site != nil && n.mask()&bit != 0
}

// tellSides tells the watches of one directory of a rename, of which they may see one
// side alone.
func (fs *filesystem) tellSides(old, new *hit, isDir bool, from, to *node) {
	at := old
	if old == nil {
		at = new
	}
	for _, w := range at.node.watches {
		c := Change{Op: Rename, Dir: isDir}
		if old != nil {
			c.OldName, c.OldParent = old.nameFor(w), old.parent(from)
		}
		if new != nil {
			c.Name, c.Parent = new.nameFor(w), new.parent(to)
		}
		if c.OldName == nil && c.Name != nil && isDir && w.tree {
			w.fs.g.movedIn = true // mounts may have come along
		}
		if c.OldName != nil || c.Name != nil {
			w.tell(c)
		}
	}
}

// tell tells w of c, if it asked for it and was there.
func (w *Watch) tell(c Change) {
	g := w.fs.g
	if q := g.queue; w.since > q.told && q == w.fs.queue && w.since > q.told+uint64(g.at) {
		return
	}
	w.pass(c)
}

// pass tells w of c, if it asked for it.
func (w *Watch) pass(c Change) {
	if c.Op &= w.ops; c.Op == 0 || w.gone || w.overflow == w.fs.g.batch {
		return
	}
	w.fn(c)
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
	for _, p := range fs.points {
		s, sure := p.find()
		if s.lose(ops); sure {
			continue
		}
		fs.g.eachTree(func(w *Watch) {
			if (w.ops|Overflow)&ops != 0 {
				w.lose()
			}
		})
	}
}

// spare is for how long nobody is told again that something changed under a name that
// nobody knows.
const spare = time.Second

// unplaced is what has changed somewhere, under a name that nobody knows.
type unplaced struct {
	told   time.Time // when that was told last
	ops    Op        // of what was not told since
	single Op        // of that, what concerns also those who watch a single directory
}

// somewhere tells that to all who ask for ops, as lost does: at once, and as long as more
// comes no more often than once in spare. Anybody could have all list anew all the time, else.
func (fs *filesystem) somewhere(ops Op, singles bool) {
	fs.unplaced.ops |= ops
	if singles {
		fs.unplaced.single |= ops
	}
	fs.tellUnplaced()
}

// tellUnplaced tells what changed somewhere, if it is time to.
func (fs *filesystem) tellUnplaced() {
	u := &fs.unplaced
	if u.ops == 0 {
		return
	}
	if now := time.Now(); now.Sub(u.told) >= fs.g.spare {
		fs.lost(u.ops, false)
		fs.lost(u.single, true)
		*u = unplaced{told: now}
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

// mixed tells that to the watch trees that see the directory name in dir. Where only the
// directories in watch trees are marked, those that are may be the wrong ones: that is for all.
func (fs *filesystem) mixed(dir *node, name string) {
	if !fs.how.whole() {
		fs.misnamed()
		return
	}
	if fs.relist(dir, name) {
		fs.stale = true
	}
}

// relist tells the watch trees that see the directory name in dir of an Overflow, and says
// whether there is any.
func (fs *filesystem) relist(dir *node, name string) (told bool) {
	s := &fs.g.nesting
	fs.findOrLose(s, dir, []byte(name), ^Op(0))
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if w.tree && s.hits[i].reaches(w) {
				told = true
				w.lose()
			}
		}
	}
	return told
}

// overflowed tells all watches that part of the queue was lost, and finds out
// what must not have been.
func (fs *filesystem) overflowed() {
	fs.stale = true
	fs.g.movedIn = true // a directory may have come into sight, with mounts in it
	fs.guardAll()
	fs.lost(^Op(0), true)
}

// guardAll has all guards follow their directories, and tells of those that were removed.
func (fs *filesystem) guardAll() {
	fs.unguarded = time.Time{}
	for _, w := range fs.watches {
		if w.inode {
			fs.guard(w.node)
		}
		if w.node.wasRemoved() {
			fs.gone(w.node)
		}
	}
}

// guard has the guard of n follow it. If that fails, all is looked at again after a while:
// nobody tells of a removal meanwhile.
func (fs *filesystem) guard(n *node) {
	if err := fs.follow(n); err != nil && !n.wasRemoved() {
		fs.unguarded = time.Now().Add(fs.g.retryAfter)
		fs.g.log.Warn("cannot guard a watched directory, will try again", "err", err)
	}
}
