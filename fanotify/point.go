// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

// A watch tree does not end at a mount below it. What is mounted there is marked
// too, and what happens in it is told under the name that it has in the tree: the
// climb of a scope goes on from the root of a mount in the directory that it is
// mounted in.
//
// Nothing is held open in such a mount, so that it can be unmounted. It is looked at
// through a copy of its own, see enter, or one system call at a time, by the way to it
// from the directory of a watch tree: that crosses into the mounts of its namespace,
// even where this process has others.

// A point is a mount that is seen below a watch tree.
type point struct {
	is    mounts.Identity
	mount mounts.Mount
	host  *view // the mount that it is mounted in
	upper *filesystem
	dir   *node  // the directory there that has the mount point
	name  string // of the mount point; with '/' where it is in something that cannot be watched

	failed bool     // it could not be watched, and is to be tried again
	moving bool     // since the way to it is not known as it is now: an event that tells may wait
	saw    []*Watch // who saw it when stands could not say whether it is there
	sawIn  uint64   // the last batch before that
	left   bool     // it is not to be touched, see Leave
	apart  Apart

	lower *filesystem // nil while it is not watched
	root  *node       // its root directory
	view  *view

	fd       int  // of the root, while it is entered; else -1
	copied   bool // it is open in a copy of the mount
	entering bool // it is about to be
}

// A mounted has the points at a directory.
type mounted struct {
	in []*point // in the directory
	of []*point // whose root it is
}

// covers says whether the mount, or what it is in, is over the directory name.
func (p *point) covers(name string) bool {
	first, _, _ := strings.Cut(p.name, "/")
	return first == name
}

// synthetic are the kinds that the kernel itself fills: nobody changes anything in
// them that fanotify would tell. They cover what they are mounted on.
var synthetic = map[string]bool{
	"autofs": true, "binfmt_misc": true, "bpf": true, "cgroup": true, "cgroup2": true, "configfs": true, "debugfs": true,
	"devpts": true, "efivarfs": true, "fusectl": true, "mqueue": true, "nfsd": true, "nsfs": true, "proc": true, "pstore": true,
	"rpc_pipefs": true, "securityfs": true, "selinuxfs": true, "sysfs": true, "tracefs": true,
}

// find finds who sees the mount. It returns false if any watch tree may: that could not be
// found out, as when no file can be opened.
func (p *point) find() (*scope, bool) {
	s := &p.upper.g.nesting
	err := s.findIn(p.upper, p.dir, []byte(p.name), p.host.id)
	return s, err == nil || err == errGone
}

// seen says whether a watch tree sees the mount, or may: then that is asked again.
func (p *point) seen() bool {
	s, sure := p.find()
	if !sure {
		p.upper.g.retryMounts = time.Now().Add(p.upper.g.retryAfter)
	}
	return !sure || s.seen()
}

// sees says whether w sees the mount, or may.
func (w *Watch) sees(p *point) bool {
	s, sure := p.find()
	for i := range s.hits {
		if h := &s.hits[i]; h.node == w.node && h.reaches(w) && w.tree {
			return true
		}
	}
	return !sure && w.tree
}

// lose tells the watch trees that see the mount, or may, that changes in it may be missing.
func (p *point) lose() { p.loseBut(nil) }

// loseBut tells that to all of them but one.
func (p *point) loseBut(but *Watch) {
	owe := func(w *Watch) {
		if w != but {
			p.upper.g.owe(w)
		}
	}
	for _, w := range p.saw {
		if w.overflow <= p.sawIn { // else it has listed since
			owe(w)
		}
	}
	p.seers(owe)
}

// seers calls fn for the watch trees that see the mount, or may.
func (p *point) seers(fn func(*Watch)) {
	s, sure := p.find()
	if !sure {
		p.upper.g.eachTree(fn)
		return
	}
	for i := range s.hits {
		for _, w := range s.hits[i].node.watches {
			if w.tree && s.hits[i].reaches(w) {
				fn(w)
			}
		}
	}
}

// eachTree calls fn for each watch tree.
func (g *Group) eachTree(fn func(*Watch)) {
	for _, fs := range g.filesystems {
		for _, w := range fs.watches {
			if w.tree {
				fn(w)
			}
		}
	}
}

// owe has w told of an Overflow by the next Drain, or the one at hand.
func (g *Group) owe(w *Watch) {
	if !w.owed {
		w.owed = true
		g.owed = append(g.owed, w)
	}
}

func (g *Group) tellOwed() {
	for _, w := range g.owed {
		if w.owed = false; !w.closed {
			w.lose()
		}
	}
	g.owed = g.owed[:0]
}

// put adds a point where it is mounted.
func (g *Group) put(p *point) {
	g.points[p.is.ID] = p
	p.host.users++
	m := p.upper.mountsAt(p.dir)
	m.in = append(m.in, p)
}

// mountsAt returns the points at n, which stays as long as there are any.
func (fs *filesystem) mountsAt(n *node) *mounted {
	fs.changes++
	if n.mounts == nil {
		n.mounts = new(mounted)
		fs.pin(n)
	}
	return n.mounts
}

// unmount takes a point from one of the lists at n.
func (fs *filesystem) unmount(n *node, list *[]*point, p *point) {
	fs.changes++
	*list = slices.DeleteFunc(*list, func(o *point) bool { return o == p })
	if len(n.mounts.in)+len(n.mounts.of) == 0 {
		n.mounts = nil
		fs.unpin(n)
	}
}

// attach has what is mounted marked. If that fails, it is tried again.
func (p *point) attach() {
	g := p.upper.g
	if synthetic[p.mount.Kind] {
		return
	}
	if p.left {
		p.attachApart()
		return
	}
	err := p.tryAttach()
	p.failed = err != nil && !errors.Is(err, unix.ENOTDIR) // which is a mount on a file
	p.moving = errors.Is(err, errMoving)
	if !p.failed || errors.Is(err, errUnmounted) { // which is another change of the mounts
		return
	}
	g.refuse(p.mount, err)
}

func (p *point) tryAttach() error {
	g := p.upper.g
	fd, _, err := p.enter()
	if err != nil {
		return fmt.Errorf("opening the mount: %w", err)
	}
	defer p.exit()
	h, _, err := handleAt(fd, "")
	if err != nil {
		return fmt.Errorf("taking handle of the mount: %w", err)
	}
	fs, err := g.filesystem(fd, true)
	if err != nil {
		return err
	}
	p.lower, p.root = fs, fs.get(h)
	p.view = &view{id: p.is.ID, fd: -1, point: p, users: 1}
	fs.addView(p.view)
	m := fs.mountsAt(p.root)
	m.of = append(m.of, p)
	fs.points = append(fs.points, p)
	if fs.stale {
		fs.how.forget()
	}
	if len(fs.points) == 1 {
		mask := g.nestedMask()
		if err = fs.how.arm(p.root, p.view, mask); err == nil {
			fs.nested = mask
		}
	} else {
		err = fs.how.arm(p.root, p.view, 0)
	}
	if err != nil {
		p.detach()
	}
	return err
}

// detach undoes attach.
func (p *point) detach() {
	if p.apart != nil {
		p.apart.Close()
		p.apart = nil
	}
	fs := p.lower
	if fs == nil {
		return
	}
	p.lower = nil
	fs.points = slices.DeleteFunc(fs.points, func(o *point) bool { return o == p })
	if len(fs.points) == 0 && fs.nested != 0 {
		fs.g.narrow()
		if err := fs.how.disarm(fs.anyView(p.view), fs.nested); err != nil {
			fs.g.log.Debug("cannot take back a mark", "path", p.mount.Point, "err", err)
		}
		fs.nested = 0
	}
	fs.unmount(p.root, &p.root.mounts.of, p)
	fs.unsee(p.view)
	fs.stale = fs.stale || !fs.tracked()
	fs.close()
}

// remove drops a point, and those in it.
func (g *Group) remove(id int) {
	p := g.points[id]
	if p == nil {
		return
	}
	delete(g.points, id)
	for inner, o := range g.points {
		if o.upper == p.lower && o.host == p.view {
			o.lose()
			g.remove(inner)
		}
	}
	p.detach()
	p.upper.unmount(p.dir, &p.dir.mounts.in, p)
	p.upper.unsee(p.host)
}

// nestedMask is what the watch trees need of a filesystem that is mounted below them.
func (g *Group) nestedMask() uint64 {
	mask := uint64(treeMask | selfMask | walkMask)
	var ops Op
	for i, n := range g.asked {
		if n > 0 {
			ops |= 1 << i
		}
	}
	return mask | bitsOf(ops)
}

// widenNested brings the masks of what is mounted below watch trees up to date with
// what these ask for.
func (g *Group) widenNested() {
	mask := g.nestedMask()
	for _, fs := range g.filesystems {
		if len(fs.points) == 0 || fs.nested == mask {
			continue
		}
		p := fs.points[0]
		if err := fs.how.arm(p.root, fs.anyView(p.view), mask); err != nil {
			if !errors.Is(err, errUnmounted) {
				g.refuse(p.mount, err)
				p.lose()
			}
			continue
		}
		fs.how.disarm(fs.anyView(p.view), fs.nested)
		fs.nested = mask
	}
}

// anyView returns a view that is open, if there is one, or v.
func (fs *filesystem) anyView(v *view) *view {
	if len(fs.views) > 0 && fs.views[0].point == nil {
		return fs.views[0]
	}
	return v
}

// elsewhere is the handle of no directory, of type FILEID_INVALID (linux/exportfs.h): nothing
// of a mount below a watch tree can be opened through the watch's own.
var elsewhere = string(binary.NativeEndian.AppendUint32(make([]byte, 4), 0xff))
