// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

// A mount may be of a filesystem that does not answer: of a FUSE server or an NFS server
// that hangs. Who so much as looks at its root may wait for ever. A Group can leave such
// mounts below its watch trees to somebody else: it knows of them from the table of
// mounts alone, touches neither them nor what is mounted in them, and tells its watches
// of what that other has found.

// Apart is who watches a mount that a Group leaves alone.
type Apart interface {
	// Take calls fn with what has changed since it was called last, without waiting. The
	// names begin with that of the mount point. Overflow is that some of it is not known,
	// Gone that nobody watches the mount.
	Take(fn func(Change))
	io.Closer
}

// Leave has g leave alone the mounts below watch trees whose filesystem is of a kind that
// leaves says, and what is mounted in these. For each, watch is called, from Drain or
// Watch, with the directory that it is mounted in, open with O_PATH, which watch owns, and
// the mount. It does not wait for the mount. Drain is to be called when there is
// something to Take. Leave is called before anything is watched.
func (g *Group) Leave(leaves func(kind string) bool, watch func(dir *os.File, m mounts.Mount) Apart) {
	g.leaves, g.watchApart = leaves, watch
}

// WatchMount watches what is mounted from the device below the directory that dir is open
// on, and nothing else: for a Group that has left that alone. It is like Watch otherwise.
func (g *Group) WatchMount(dir *os.File, device uint64, ops Op, fn func(Change)) (*Watch, error) {
	return g.watch(&Watch{tree: true, ops: ops, fn: fn, device: device}, dir)
}

// leftIn returns the outermost mount that is to be left alone among m and what it is in,
// up to a mount where ways begin. It is nil if there is none.
func (g *Group) leftIn(table *mounts.Table, m *mounts.Mount, bases map[int]base) (left *mounts.Mount) {
	for ; m != nil; m = table.Lookup(m.Parent) {
		if _, ok := bases[m.ID]; ok || m.Parent == m.ID {
			break
		}
		if g.leaves != nil && g.leaves(m.Kind) {
			left = m
		}
	}
	return left
}

// watchedFrom says whether m, or what it is in, is of the device that a base is for.
func watchedFrom(table *mounts.Table, m *mounts.Mount, from base, bases map[int]base) bool {
	if from.device == 0 {
		return true
	}
	for ; m != nil; m = table.Lookup(m.Parent) {
		if _, ok := bases[m.ID]; ok || m.Parent == m.ID {
			return false
		}
		if m.Device == from.device {
			return true
		}
	}
	return false
}

// attachApart has the mount watched by somebody else.
func (p *point) attachApart() {
	g := p.upper.g
	p.failed = false
	fd, err := p.upper.how.open(p.dir, p.host.id)
	if err != nil {
		p.failed = true
		g.refuse(p.mount, fmt.Errorf("opening the directory that it is mounted in: %w", err))
		return
	}
	p.apart = g.watchApart(os.NewFile(uintptr(fd), p.mount.Point), p.mount)
}

// takeApart tells of what has changed in mounts that are left alone.
func (g *Group) takeApart() {
	for _, p := range g.points {
		if p.apart != nil {
			p.apart.Take(p.tellApart)
		}
	}
}

func (p *point) tellApart(c Change) {
	g := p.upper.g
	switch c.Op {
	case Gone:
		p.failed = true
		p.apart.Close()
		p.apart = nil
		g.refuse(p.mount, errNobody)
		p.lose()
		return
	case Overflow:
		p.lose()
		return
	}
	c.OldName, c.Name = p.within(c.OldName), p.within(c.Name)
	c.Parent, c.OldParent, c.File = elsewhere, "", nil
	if c.OldName != nil {
		c.OldParent = elsewhere
	}
	old, now := p.hits(&g.from, c.OldName, c.Op), p.hits(&g.to, c.Name, c.Op)
	for i := range max(len(old), len(now)) { // both are of the same directories, unless there are none
		at := now
		if len(now) == 0 {
			at = old
		}
		for _, w := range at[i].node.watches {
			told := c
			told.OldName, told.Name = nil, nil
			if i < len(old) {
				told.OldName = old[i].nameFor(w)
			}
			if i < len(now) {
				told.Name = now[i].nameFor(w)
			}
			if told.OldName != nil || told.Name != nil {
				w.pass(told)
			}
		}
	}
}

// hits returns the directories whose watches see a name, if there is one.
func (p *point) hits(s *scope, name []byte, ops Op) []hit {
	if name == nil {
		return nil
	}
	if err := s.findIn(p.upper, p.dir, name, p.host.id); err != nil {
		p.upper.lostFor(err, ops, false)
	}
	s.loseUnsure(ops)
	return s.hits
}

// within returns a name if it is in the mount, and else nil: what another has found may be
// in two mounts of one filesystem.
func (p *point) within(name []byte) []byte {
	if rest, ok := bytes.CutPrefix(name, []byte(p.name)); ok && len(rest) > 1 && rest[0] == '/' {
		return name
	}
	return nil
}

// leftAt says whether a mount that is left alone is over the name in the directory n, so
// that the name is not to be looked at.
func (n *node) leftAt(name string) bool {
	if n.mounts == nil {
		return false
	}
	for _, p := range n.mounts.in {
		if p.left && p.covers(name) {
			return true
		}
	}
	return false
}

// openHere opens what name is in a directory with O_PATH, without touching what is mounted
// over it, which is EXDEV.
func openHere(dir int, name string) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV})
}
