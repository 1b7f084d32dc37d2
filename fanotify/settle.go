// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// While events wait unread, the kernel adds a new one to an older one that is
// its like and of the same thread, past all that came in between, so their
// order says little about a name that came and went, or was renamed, more than
// once. Exchanged names come as two renames. Such names are looked at when the
// batch has been told, and what a client that replays it would get wrong is
// put right.

// A doubt is a name that must be looked at.
type doubt struct {
	dir      *node
	name     []byte
	alias    []byte // the name in the same directory that it was changed to, perhaps by case alone
	present  bool   // what was told last
	expected bool   // it was found by a walk, and not told yet
	isDir    bool
	is       *node  // the directory that has the name, if that is known
	file     handle // the file that all events were of: that it is gone confirms that the name is
	sure     bool   // it was only created, or only removed
	at       uint64 // where in the queue that was told
	certain  bool   // all that was under way when it was looked at has been told since
	next     int    // the next one in the same directory, as node.doubts
}

type doubtKey struct {
	dir  *node
	name uint64 // hash; the look at the wrong one of two names with one hash is harmless
}

var seed = maphash.MakeSeed()

// clone returns d as it is to be kept when its batch is forgotten.
func (d *doubt) clone() doubt {
	c := *d
	c.name, c.alias, c.file = bytes.Clone(d.name), bytes.Clone(d.alias), bytes.Clone(d.file)
	return c
}

// believe remembers the last thing that was told about a name in dir. If doubtful,
// settle looks at the name; if not, that only updates a name that is to be looked
// at already, or comes to be when another thread undoes it.
func (fs *filesystem) believe(dir *node, d doubt, doubtful bool) {
	// Where handles are not the kernel's own, a file may have several: its events are
	// merged past those of its other handles.
	undone := fs.g.crowd() || !fs.how.whole()
	if len(fs.doubts) == 0 && !doubtful && !undone {
		return
	}
	d.dir, d.sure, d.at = dir, !doubtful, fs.g.position()
	key := doubtKey{dir, maphash.Bytes(seed, d.name)}
	if i, ok := fs.doubtful[key]; ok {
		was := &fs.doubts[i]
		d.sure = d.sure && was.sure && was.present == d.present
		if !bytes.Equal(was.file, d.file) {
			d.file = nil
		}
		d.next = was.next
		*was = d
	} else if doubtful || undone {
		fs.addDoubt(key, d)
	}
}

func (fs *filesystem) addDoubt(key doubtKey, d doubt) {
	fs.doubtful[key] = len(fs.doubts)
	d.next = d.dir.doubts
	fs.doubts = append(fs.doubts, d)
	d.dir.doubts = len(fs.doubts)
}

// emptied tells that the names in the directory n went that were told as being there: it is
// about to be told that it was removed, and so nothing was in it any more.
func (fs *filesystem) emptied(n *node) {
	if n == nil {
		return
	}
	for i := n.doubts; i > 0; {
		d := &fs.doubts[i-1]
		if i = d.next; !d.present {
			continue
		}
		d.present = false
		s := &fs.g.nesting
		fs.findOrLose(s, n, d.name, Delete)
		s.tell(Change{Op: Delete, Dir: d.isDir, Parent: n.handle})
	}
}

// believed returns what is remembered of a name in dir, or nil.
func (fs *filesystem) believed(dir *node, name []byte) *doubt {
	if len(fs.doubts) == 0 || dir == nil {
		return nil
	}
	i, ok := fs.doubtful[doubtKey{dir, maphash.Bytes(seed, name)}]
	if !ok || !bytes.Equal(fs.doubts[i].name, name) {
		return nil
	}
	return &fs.doubts[i]
}

// expect remembers that a walk found a name in dir. If no event tells that it was made
// before it is settled, or before anything else is told of it, it is told then.
func (fs *filesystem) expect(dir *node, name string, isDir bool) {
	if d := fs.believed(dir, []byte(name)); d != nil && d.present && d.at > fs.left { // and has not gone out of sight with a directory since
		return
	}
	fs.expecting = true
	fs.believe(dir, doubt{name: []byte(name), isDir: isDir, expected: true}, true)
}

// reveal tells the watches in s that name was made in dir, if a walk found it and
// that was not told: something else is about to be. So it is with the directories
// above.
func (fs *filesystem) reveal(s *scope, dir *node, name []byte) {
	if !fs.expecting {
		return
	}
	fs.revealDirectory(dir)
	if d := fs.believed(dir, name); d != nil && d.expected {
		d.expected, d.present = false, true
		s.tell(Change{Op: Create, Dir: d.isDir, Parent: dir.handle})
	}
}

// revealDirectory does that for the directory n and those above, the highest first.
func (fs *filesystem) revealDirectory(n *node) {
	var expected []*node
	for steps := 0; n != nil && n.parent != nil && steps < maxPath/2; steps++ { // outdated positions can be a loop
		if d := fs.believed(n.parent, []byte(n.name)); d != nil && d.expected {
			d.expected, d.present = false, true
			expected = append(expected, n)
		}
		n = n.parent
	}
	for _, n := range slices.Backward(expected) {
		s := &fs.g.nesting
		fs.findOrLose(s, n.parent, []byte(n.name), Create)
		s.tell(Change{Op: Create, Dir: true, Parent: n.parent.handle})
	}
}

// maxPutOff bounds how often a Drain puts off what differs. Somebody who never
// stops changing things must not keep it; what is not certain then is for the next.
const maxPutOff = 4

// allocDoubts is for how many names memory stays allocated between two batches.
const allocDoubts = 4096

// settle looks at what is in doubt and tells what differs. What differs may be the work
// of events that came meanwhile: then these are told first.
func (fs *filesystem) settle() {
	g := fs.g
	fs.how.settle()
	if !g.queue.full && fs.strayed() {
		return
	}
	var unsettled []doubt
	if len(fs.doubts) > 0 && !g.queue.full {
		differ := fs.differences()
		if len(differ) > 0 && g.putOff < maxPutOff {
			fs.barriers(differ)
			if g.more() {
				g.putOff++
				return
			}
		}
		for _, d := range differ {
			if !d.certain && d.dir.next == nil { // nor evicted before it is
				unsettled = append(unsettled, d.clone())
				continue
			}
			if present := d.st != nil; d.err != nil || d.present != present || d.isDir != d.nowDir() { // nor revealed meanwhile
				fs.correct(&d)
			}
			d.expected = false
		}
	}
	fs.renames.settled()
	fs.keepDoubts(unsettled)
}

// forgetTold forgets what is in doubt since all watch trees are told of an Overflow. Of
// names in a watched directory, which a watch of it alone may ask for, it forgets nothing.
func (fs *filesystem) forgetTold() {
	var kept []doubt
	for _, d := range fs.doubts {
		if d.dir.site != nil && len(d.dir.watches) > 0 {
			kept = append(kept, d)
		}
	}
	fs.keepDoubts(kept)
}

// keepDoubts forgets all doubts but those.
func (fs *filesystem) keepDoubts(kept []doubt) {
	fs.forgetDoubts()
	for _, d := range kept {
		fs.addDoubt(doubtKey{d.dir, maphash.Bytes(seed, d.name)}, d)
		fs.expecting = fs.expecting || d.expected
	}
}

func (fs *filesystem) forgetDoubts() {
	fs.expecting = false
	for i := range fs.doubts {
		fs.doubts[i].dir.doubts = 0
	}
	switch n := len(fs.doubts); {
	case n > allocDoubts:
		fs.doubts, fs.doubtful = nil, make(map[doubtKey]int)
	case n > 0:
		fs.doubts = fs.doubts[:0]
		clear(fs.doubtful)
	}
}

// A difference is a name that is not as it was told.
type difference struct {
	*doubt
	st  *unix.Stat_t // what has it now; nil if nothing
	err error        // it cannot be looked at
}

// strayed looks whether the directories are where they were told that have been to and fro
// in this batch, and has it told if they are not. It says whether there is more to tell
// before that can be said.
func (fs *filesystem) strayed() bool {
	l := look{fs: fs}
	defer l.close()
	var there map[*node]bool // of the directories that were looked for
	for _, r := range fs.renames.list {
		if _, looked := there[r.node]; looked || !r.back || fs.nodes[r.node.handle] != r.node { // removed
			continue
		}
		if there == nil {
			there = make(map[*node]bool)
		}
		if there[r.node] = l.finds(r.node); there[r.node] {
			continue
		}
		if l.close(); fs.g.putOff < maxPutOff && r.node.parent != nil {
			fs.barrier(r.node.parent)
			if fs.g.more() {
				fs.g.putOff++
				return true
			}
		}
		fs.mixed(r.node.parent, r.node.name)
	}
	for _, r := range fs.renames.list {
		if found, looked := there[r.node]; looked && !found {
			fs.mixed(r.from, r.old)
		}
	}
	return false
}

// finds says whether the directory n is where it was told.
func (l *look) finds(n *node) bool {
	dir := n.parent
	if dir == nil || dir == l.fs.top || dir.leftAt(n.name) || dir.site == nil && l.at(dir) != nil {
		return false
	}
	fd, way := l.in(dir)
	h, _, err := handleAt(fd, way+n.name)
	return err == nil && string(h) == n.handle
}

func (d *difference) nowDir() bool { return d.st != nil && d.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// differences looks at all that is in doubt.
func (fs *filesystem) differences() (differ []difference) {
	l := look{fs: fs}
	defer l.close()
	for i := range fs.doubts {
		d := &fs.doubts[i]
		// To look at a name takes its directory's lock, for which writers wait.
		if d.sure || !d.present && d.file != nil && fs.views[0].point == nil && fs.how.whole() && !fs.has(string(d.file)) {
			continue
		}
		now := difference{doubt: d}
		now.st, now.err = l.stat(d.dir, d.name)
		if now.st != nil && d.alias != nil && l.same(d, now.st) {
			now.st = nil
		}
		present := now.st != nil
		// A file may have lost the name by an event that comes before the one that gave it to it.
		if present && !now.nowDir() {
			if file, err := l.file(d.dir, d.name); err == nil {
				fs.owned(d.dir, d.name, file)
			}
		} else if now.err == nil {
			fs.owned(d.dir, d.name, nil)
		}
		if now.err == errGone && !d.present || now.err == nil && present == d.present && (!present || now.nowDir() == d.isDir) {
			continue
		}
		differ = append(differ, now)
	}
	return differ
}

// same says whether the old name of d finds the new one, whose file is st, as it does in
// a directory that ignores case.
func (l *look) same(d *doubt, st *unix.Stat_t) bool {
	now, err := l.stat(d.dir, d.alias)
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	// With two links both are there. On FUSE one of them may be remembered from when it was alone.
	return err == nil && now != nil && now.Ino == st.Ino && (isDir || st.Nlink == 1 && now.Nlink == 1)
}

// barriers waits until whatever was under way in the directories of the differences, when
// they were looked at, has been put in the queue.
func (fs *filesystem) barriers(differ []difference) {
	dirs := make([]*node, 0, len(differ))
	for _, d := range differ {
		d.certain = true
		dirs = append(dirs, d.dir)
	}
	fs.barrier(slices.Compact(dirs)...)
}

// tooLong is longer than any filesystem's names.
var tooLong = strings.Repeat("x", 2000)

// barrier does that for directories. Whoever changes a directory holds its lock
// until the event is in the queue. To look up a name that is too long takes that lock
// and leaves nothing behind.
func (fs *filesystem) barrier(dirs ...*node) {
	l := look{fs: fs}
	defer l.close()
	for _, dir := range dirs {
		l.stat(dir, []byte(tooLong))
	}
}

// correct tells what is true of a name.
func (fs *filesystem) correct(d *difference) {
	present, op := d.st != nil, Delete
	if present {
		op = Create
	}
	s := &fs.g.from
	switch {
	case d.err != nil: // a directory in the place of a removed one may have the name
		fs.findOrLose(s, d.dir, d.name, ^Op(0))
		s.lose(^Op(0))
		return
	case !present && d.is != nil && !fs.stale:
		return // nothing has merged: what took the directory away waits unread, and what left it before
	case d.nowDir() && !d.present && !d.expected:
		// A rename brought it here, with all that is below, and was merged with an earlier one.
		fs.mixed(d.dir, string(d.name))
	}
	if fs.expecting {
		fs.revealDirectory(d.dir)
	}
	fs.findOrLose(s, d.dir, d.name, op)
	s.tell(Change{Op: op, Dir: d.nowDir() || !present && d.isDir, Parent: d.dir.handle})
}

// A look is a directory held open to look at names in it or, where that would keep a
// mount from being unmounted, the way to it from one that is.
type look struct {
	fs   *filesystem
	dir  *node
	fd   int
	way  string
	left uint64 // the group's, at that time: what it has left is not to be held either
}

// stat looks at name in dir. It returns nil when there is none, and errGone
// when there is no such directory any more.
func (l *look) stat(dir *node, name []byte) (*unix.Stat_t, error) {
	if dir == nil || dir == l.fs.top {
		return nil, nil
	}
	if dir.site == nil {
		if err := l.at(dir); err != nil {
			return nil, err
		}
	}
	fd, way := l.in(dir)
	st := new(unix.Stat_t)
	if dir.leftAt(string(name)) {
		st.Mode = unix.S_IFDIR
		return st, nil
	}
	switch err := unix.Fstatat(fd, way+string(name), st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking at name: %w", err)
	}
	return st, nil
}

// in returns from where names in dir are looked at, and what goes before them.
func (l *look) in(dir *node) (fd int, way string) {
	if dir.site != nil {
		return int(dir.dir.Fd()), ""
	}
	return l.fd, l.way
}

// at has l look at names in dir.
func (l *look) at(dir *node) error {
	if l.fs.g.leaveMoved(); dir == l.dir && l.left == l.fs.g.left {
		return nil
	}
	fd, way, err := l.open(dir)
	l.close()
	if err != nil {
		return err
	}
	l.dir, l.fd, l.way, l.left = dir, fd, way, l.fs.g.left
	return nil
}

// open opens dir, or a directory from where way leads to it.
func (l *look) open(dir *node) (fd int, way string, err error) {
	p, below := l.fs.views[0].point, l.dir != nil && l.dir == dir.parent
	switch {
	case p != nil && !p.copied:
		return p.wayTo(dir)
	case below && l.left == l.fs.g.left && !l.fs.how.whole(): // the way from above may be long
		fd, err = dir.openAt(l.fd, dir.name)
	default:
		fd, err = l.fs.how.open(dir, 0)
	}
	return fd, "", err
}

func (l *look) close() {
	if l.dir != nil {
		unix.Close(l.fd)
		l.dir = nil
	}
}
