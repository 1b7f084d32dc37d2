// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"fmt"
	"hash/maphash"

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
	dir     *node
	name    []byte
	alias   []byte // the name in the same directory that it was changed to, perhaps by case alone
	present bool   // what was told last
	isDir   bool
	merged  bool   // it was created and removed, in whichever order
	is      *node  // the directory that has the name, if that is known
	file    handle // the file that all events were of: that it is gone confirms that the name is
	sure    bool   // it was only created, or only removed
}

type doubtKey struct {
	dir  *node
	name uint64 // hash; the look at the wrong one of two names with one hash is harmless
}

var seed = maphash.MakeSeed()

// believe notes what was told of a name in dir. Without doubtful it matters
// only for names that are in doubt already, or come to be when another thread
// undoes it.
func (fs *filesystem) believe(dir *node, d doubt, doubtful bool) {
	if len(fs.doubts) == 0 && !doubtful && !fs.g.crowd() {
		return
	}
	d.dir, d.sure = dir, !doubtful
	key := doubtKey{dir, maphash.Bytes(seed, d.name)}
	if i, ok := fs.doubtful[key]; ok {
		was := &fs.doubts[i]
		d.sure = d.sure && was.sure && was.present == d.present
		if !bytes.Equal(was.file, d.file) {
			d.file = nil
		}
		*was = d
	} else if doubtful || fs.g.crowd() {
		fs.doubtful[key] = len(fs.doubts)
		fs.doubts = append(fs.doubts, d)
	}
}

// maxPutOff bounds how often a Drain puts off what differs. Somebody who never
// stops changing things must not keep it.
const maxPutOff = 4

// keepDoubts is for how many names memory stays allocated between two batches.
const keepDoubts = 4096

// settle looks at what is in doubt and tells what differs. If it may be the work
// of events that came meanwhile, these are told first.
func (fs *filesystem) settle() {
	fs.enterRest()
	l := look{fs: fs}
	for i := 0; i < len(fs.doubts) && !fs.g.full; i++ {
		if !fs.settleName(&l, &fs.doubts[i]) {
			l.close()
			return
		}
	}
	l.close()
	if n := len(fs.renames); n > 0 { // the other half of an exchange may be yet to come
		fs.renames = append(fs.renames[:0], rename{node: fs.renames[n-1].node})
	}
	switch n := len(fs.doubts); {
	case n > keepDoubts:
		fs.doubts, fs.doubtful = nil, make(map[doubtKey]int)
	case n > 0:
		fs.doubts = fs.doubts[:0]
		clear(fs.doubtful)
	}
}

// settleName settles d, or returns false to have it put off.
func (fs *filesystem) settleName(l *look, d *doubt) bool {
	// To look at a name takes its directory's lock, for which writers wait.
	if d.sure || !d.present && d.file != nil && fs.whole && fs.mounts[0].gone(string(d.file)) {
		return true
	}
	st, err := l.stat(d.dir, d.name)
	isDir := st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if st != nil && d.alias != nil {
		// In a directory that ignores case the old name finds the new one.
		now, err := l.stat(d.dir, d.alias)
		if err == nil && now != nil && now.Ino == st.Ino && (isDir || st.Nlink == 1) {
			st = nil
		}
	}
	present, op := st != nil, Delete
	if present {
		op = Create
	}
	switch {
	case err == errGone && !d.present || err == nil && present == d.present && (!present || isDir == d.isDir):
		return true
	case fs.g.putOff < maxPutOff && fs.g.more():
		fs.g.putOff++
		return false
	case err != nil: // a directory in the place of a removed one may have the name
		fs.lost(^Op(0), true)
		return true
	case !present && d.is != nil && !fs.stale:
		return true // nothing has merged: what took the directory away waits unread, and what left it before
	case isDir && d.isDir && !d.merged && !d.present: // exchanged perhaps, with all that is below
		fs.misnamed()
	}
	s := &fs.g.from
	if err := s.find(fs, d.dir, d.name); err != nil {
		fs.lost(op, false)
	}
	s.tell(Change{Op: op, Dir: isDir || !present && d.isDir, Parent: d.dir.handle})
	return true
}

// A look is a directory held open to look at names in it.
type look struct {
	fs  *filesystem
	dir *node
	fd  int
}

// stat looks at name in dir. It returns nil when there is none, and errGone
// when there is no such directory any more.
func (l *look) stat(dir *node, name []byte) (*unix.Stat_t, error) {
	fd := l.fd
	switch {
	case dir == nil || dir == l.fs.top:
		return nil, nil
	case dir.site != nil:
		fd = int(dir.dir.Fd())
	case dir != l.dir:
		var err error
		l.close()
		fd, _, err = l.fs.open(dir)
		if err != nil {
			return nil, err
		}
		l.dir, l.fd = dir, fd
	}
	st := new(unix.Stat_t)
	switch err := unix.Fstatat(fd, string(name), st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking at name: %w", err)
	}
	return st, nil
}

func (l *look) close() {
	if l.dir != nil {
		unix.Close(l.fd)
		l.dir = nil
	}
}
