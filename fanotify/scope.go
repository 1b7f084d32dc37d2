// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"cmp"
	"slices"
)

// A scope lists the watched directories at and above a name's directory, the
// nearest first: those who are to be told what happened to that name.
type scope struct {
	hits   []hit
	buf    [maxPath]byte // filled from its end
	more   [][]byte      // as many others, for names that go on above a mount
	used   int           // of these
	unsure bool          // some watches see the name, and nobody can say what they call it

	last   *node  // the directory whose hits these are, if they are as good for another name in it
	tree   uint64 // filesystem.changes when that was so
	length int    // of the name
}

// A hit is a directory with watches.
type hit struct {
	node   *node
	name   []byte // relative to node; nil if it is too long to be known
	direct bool   // there is nothing between
	above  []byte // of name, what is above the mount that it happened in
	mount  int    // the id of the mount in which the watches see the name; 0 is any
	hidden []int  // ids of mounts in which they do not
}

// A climb is the state of going up from a name, directory by directory, to the top.
type climb struct {
	buf     []byte
	at      int   // the name so far is buf[at:]
	cut     int   // where in buf the part begins that is below the first mount boundary
	crossed bool  // there is one
	lost    bool  // the name is not known
	direct  bool  // it has no '/'
	mount   int   // the id of the mount that it is in; 0 is any
	hidden  []int // ids of those that it is not in
	steps   int
}

// find fills s for name in dir. When it fails, the hits are right as far as
// they go.
func (s *scope) find(fs *filesystem, dir *node, name []byte) error {
	if s.last == dir && dir != nil && s.tree == fs.changes && s.renameTo(name) {
		return nil
	}
	err := s.findIn(fs, dir, name, 0)
	if err == nil && !s.unsure && s.used == 0 {
		s.last, s.tree, s.length = dir, fs.changes, len(name)
	}
	return err
}

// renameTo has the hits be of another name in the same directory. It returns false if that
// would be too long.
func (s *scope) renameTo(name []byte) bool {
	if len(s.hits) == 0 {
		return true
	}
	end := len(s.buf)
	above := s.buf[end-len(s.hits[len(s.hits)-1].name) : end-s.length] // what the highest has before the name
	if len(above)+len(name) > end {
		return false
	}
	copy(s.buf[end-len(name)-len(above):], above)
	copy(s.buf[end-len(name):], name)
	for i := range s.hits {
		h := &s.hits[i]
		h.name = s.buf[end-len(name)-len(h.name)+s.length:]
	}
	s.length = len(name)
	return true
}

// findIn is find for what is in the mount with that id; 0 is any.
func (s *scope) findIn(fs *filesystem, dir *node, name []byte, mount int) error {
	c := s.begin(mount)
	if dir == nil {
		return nil
	}
	prepend(&c, name)
	return s.climb(fs, dir, c)
}

// findDirectory fills s for the name of the directory n.
func (s *scope) findDirectory(fs *filesystem, n *node) error {
	c := s.begin(0)
	crossErr := s.crossAll(n, &c)
	up, err := s.up(fs, n, &c)
	if up != nil {
		err = s.climb(fs, up, c)
	}
	return cmp.Or(err, crossErr)
}

func (s *scope) begin(mount int) climb {
	s.hits, s.used, s.unsure, s.last = s.hits[:0], 0, false, nil
	return climb{buf: s.buf[:], at: len(s.buf), cut: len(s.buf), mount: mount}
}

// climb goes up from the directory n, and adds the watches there and above.
func (s *scope) climb(fs *filesystem, n *node, c climb) error {
	var failed error
	for n != nil && n != fs.top {
		if n.site != nil && len(n.watches) > 0 {
			s.collect(n, &c)
		}
		if fs.trees == 0 && len(fs.points) == 0 {
			break
		}
		if n.mounts != nil {
			failed = cmp.Or(failed, s.crossAll(n, &c))
		}
		var err error
		if n, err = s.up(fs, n, &c); err != nil {
			return err
		}
	}
	return failed
}

// up goes from n to the directory above. It returns nil where the climb ends.
func (s *scope) up(fs *filesystem, n *node, c *climb) (*node, error) {
	if err := fs.place(n); err != nil || n.parent == nil || n.parent == fs.top {
		return nil, err
	}
	if n.parent.mounts != nil && c.covered(n.parent.mounts, n.name) {
		return nil, nil
	}
	if c.steps++; c.steps > maxPath/2 {
		fs.stale = true
		return nil, errLoop
	}
	prepend(c, n.name)
	return n.parent, nil
}

// prepend puts the name of a directory before the name.
func prepend[T string | []byte](c *climb, name T) {
	c.direct = c.at == len(c.buf) && !c.lost
	if c.lost || len(name) == 0 || c.at < len(name)+1 {
		c.lost = true
		return
	}
	if !c.direct {
		c.at--
		c.buf[c.at] = '/'
	}
	c.at -= len(name)
	copy(c.buf[c.at:], name)
}

// collect adds the watches of n.
func (s *scope) collect(n *node, c *climb) {
	h := hit{node: n, direct: c.direct, mount: c.mount, hidden: c.hidden}
	if c.lost {
		s.unsure = true
	} else {
		h.name = c.buf[c.at:]
		if c.crossed {
			h.above = c.buf[c.at:c.cut]
		}
	}
	s.hits = append(s.hits, h)
}

// crossAll climbs on above the mounts whose root n is, for each that a watch tree sees.
func (s *scope) crossAll(n *node, c *climb) error {
	if n.mounts == nil {
		return nil
	}
	var failed error
	for _, p := range n.mounts.of {
		if c.mount != 0 && c.mount != p.is.ID || slices.Contains(c.hidden, p.is.ID) {
			continue
		}
		if s.used == len(s.more) {
			s.more = append(s.more, make([]byte, maxPath))
		}
		up := *c
		up.buf = s.more[s.used]
		s.used++
		copy(up.buf[up.at:], c.buf[c.at:])
		up.mount, up.hidden = p.host.id, nil
		if !c.crossed {
			up.crossed, up.cut = true, c.at
		}
		prepend(&up, p.name)
		failed = cmp.Or(failed, s.climb(p.upper, p.dir, up))
	}
	return failed
}

// covered says whether the climb ends since something is mounted over name, in the directory
// that has mounts. A directory may be in several mounts of its filesystem: if it is covered
// in one of them, the climb goes on for the others.
func (c *climb) covered(mounts *mounted, name string) bool {
	for _, p := range mounts.in {
		if !p.covers(name) {
			continue
		}
		if c.mount == p.host.id {
			return true
		}
		if c.mount == 0 {
			c.hidden = append(slices.Clip(c.hidden), p.host.id)
		}
	}
	return false
}

// at returns the hit that is the other side of h, of a rename.
func (s *scope) at(h *hit) *hit {
	for i := range s.hits {
		if o := &s.hits[i]; o.node == h.node && o.mount == h.mount && bytes.Equal(o.above, h.above) {
			return o
		}
	}
	return nil
}

// within says whether all hits of s are the other side of one of o.
func (s *scope) within(o *scope) bool {
	return !slices.ContainsFunc(s.hits, func(h hit) bool { return o.at(&h) == nil })
}

// reaches says whether w, a watch of h's directory, sees the name.
func (h *hit) reaches(w *Watch) bool {
	return (w.tree || h.direct) && (h.mount == 0 || h.mount == w.mountID) && !slices.Contains(h.hidden, w.mountID)
}

// nameFor returns what w, a watch of h's directory, calls the name, or nil when
// it does not see it.
func (h *hit) nameFor(w *Watch) []byte {
	if h.reaches(w) {
		return h.name
	}
	return nil
}

// parent returns the handle that the watches are told for the directory dir.
func (h *hit) parent(dir *node) string {
	if h.above != nil {
		return elsewhere
	}
	return dir.handle
}

// tell tells the watches in s of c, whose name it fills in.
func (s *scope) tell(c Change) {
	parent := c.Parent
	for i := range s.hits {
		h := &s.hits[i]
		if c.Parent = parent; h.above != nil {
			c.Parent = elsewhere
		}
		for _, w := range h.node.watches {
			if c.Name = h.nameFor(w); c.Name != nil {
				w.tell(c)
			}
		}
	}
}

// nested says whether a directory of that name is seen in itself too, through a mount.
func (s *scope) nested() bool {
	if s.used == 0 { // no mount was crossed, so that there is one name
		return false
	}
	for i := range s.hits {
		for j := range s.hits {
			in, ok := bytes.CutPrefix(s.hits[i].name, s.hits[j].name)
			if ok && len(in) > 0 && in[0] == '/' && s.hits[i].node == s.hits[j].node {
				return true
			}
		}
	}
	return false
}

// seen says whether any watch tree sees the name.
func (s *scope) seen() bool {
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if w.tree && s.hits[i].reaches(w) {
				return true
			}
		}
	}
	return false
}

// lose tells the watches in s that ask for any of ops that changes of theirs may
// be missing.
func (s *scope) lose(ops Op) {
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if (w.ops|Overflow)&ops != 0 && s.hits[i].reaches(w) {
				w.lose()
			}
		}
	}
}

// loseUnsure does that for those who see the name and would not know it.
func (s *scope) loseUnsure(ops Op) {
	if !s.unsure {
		return
	}
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if h := &s.hits[i]; h.name == nil && (w.ops|Overflow)&ops != 0 && h.reaches(w) {
				w.lose()
			}
		}
	}
}
