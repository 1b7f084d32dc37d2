// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"ksmbd-notifyd/fanotify/mounts"
)

// A base is where the way to a mount begins: a watched directory that is held open.
type base struct {
	fs   *filesystem
	view *view
	fd   int    // of the directory
	path string // its, in its namespace

	device uint64 // what is to be watched of what is mounted there; 0 is all
}

// bases are where ways to mounts can begin. For each mount that has watch trees one of these is chosen. It may not reach all
// that is mounted below, since its directory has been moved out of the mount or is hidden by another one: then all watch trees
// are tried whose path is above the mount that is looked for.
type bases struct {
	g   *Group
	in  map[int]base      // the chosen ones, by the mount's id
	all map[string][]base // those of all watch trees by their paths, read when they are needed first
}

// above returns those whose path is above that one, the nearest first.
func (b *bases) above(name string) (found []base) {
	if b.all == nil {
		b.all = make(map[string][]base)
		type place struct {
			*node
			mount  int
			device uint64
		}
		known := make(map[place]bool)
		b.g.eachTree(func(w *Watch) {
			if p := (place{w.node, w.mountID, w.device}); !known[p] {
				known[p] = true
				from := w.base(w.view)
				b.all[from.path] = append(b.all[from.path], from)
			}
		})
	}
	for up := path.Dir(name); up != name; name, up = up, path.Dir(up) { // it ends at the root, of whatever path
		found = append(found, b.all[up]...)
	}
	return found
}

// refresh brings the points up to date with the mounts that there are, as a whole:
// what does not stand any more goes, what is new is marked, and what could not be
// is tried again. Watch trees that see any of these list anew.
func (g *Group) refresh() {
	g.mounts.changed.Store(false) // what changes from here on is for the next time
	g.retryMounts = time.Time{}
	for _, fs := range g.filesystems {
		if fs.hidden {
			fs.how.forget()
		}
	}
	var failed []string
	for _, p := range g.points {
		if p.failed {
			failed = append(failed, p.mount.Point)
		}
	}
	for id, p := range g.points {
		// What is in a mount that could not be watched has another place when that can be.
		if p.failed || slices.ContainsFunc(failed, p.mount.Below) || !p.stands() || !p.seen() {
			p.lose()
			g.remove(id)
			p.upper.how.uncovered(p)
		}
	}
	for _, n := range g.mounts.namespaces {
		g.extend(n, g.bases(), "/", (*point).lose)
	}
	g.widenNested()
}

// refreshMoved does that after a directory was moved into a watch tree, of which the table
// of mounts says nothing.
func (g *Group) refreshMoved() {
	for _, n := range g.mounts.namespaces {
		n.Forget()
	}
	g.refresh()
}

// bases returns where ways to mounts can begin.
func (g *Group) bases() *bases {
	b := &bases{g: g, in: make(map[int]base)}
	for _, fs := range g.filesystems {
		for _, v := range fs.views {
			if len(v.trees) > 0 {
				b.in[v.id] = v.trees[0].base(v)
			}
		}
	}
	return b
}

func (w *Watch) base(v *view) base {
	fd := int(w.dir.Fd())
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || !path.IsAbs(name) {
		name = "" // too deep, or not in any namespace
	}
	return base{w.fs, v, fd, name, w.device}
}

// extend adds the points of mounts that are below the directory top and are not known yet,
// and has found called for each.
func (g *Group) extend(n namespace, b *bases, top string, found func(*point)) {
	table, err := n.Table()
	if err != nil {
		g.refuse(mounts.Mount{Point: "/", Kind: "all"}, err)
		for _, from := range b.in {
			for _, w := range from.view.trees {
				g.owe(w)
			}
		}
		return
	}
	for _, m := range table.All() {
		p, from := g.points[m.ID], base{}
		if p != nil {
			from = b.in[p.host.id]
		} else if m.Below(top) {
			if p, from = g.locate(table, m, b); p != nil {
				g.put(p)
				p.attach()
				found(p)
			}
		}
		if p != nil && p.lower != nil && from.view != nil {
			b.in[m.ID] = base{fs: p.lower, view: p.view, fd: from.fd, path: from.path}
		}
	}
}

// locate finds out where a mount is seen below a watch tree, if it is, and from where the way to it begins.
func (g *Group) locate(table *mounts.Table, m mounts.Mount, b *bases) (*point, base) {
	from, ok := base{}, false
	for up := table.Lookup(m.Parent); up != nil && !ok; up = table.Lookup(up.Parent) {
		if from, ok = b.in[up.ID]; up.Parent == up.ID {
			break
		}
	}
	if !ok {
		return nil, from
	}
	p, err := g.locateFrom(table, m, from, b)
	if err == nil {
		return p, from
	}
	for _, other := range b.above(m.Point) {
		p, otherErr := g.locateFrom(table, m, other, b)
		if otherErr == nil {
			return p, other
		}
		if err == errUnseen {
			from, err = other, otherErr
		}
	}
	if err != errUnseen {
		g.missed(m, from.view, err)
	}
	return nil, from
}

// errUnseen says that a mount may be seen from elsewhere.
var errUnseen = errors.New("mount is not seen from there")

// locateFrom does that by the way from one base. Without an error, no point means that nobody sees the mount.
func (g *Group) locateFrom(table *mounts.Table, m mounts.Mount, from base, b *bases) (*point, error) {
	if from.path == "" || !watchedFrom(table, &m, from, b.in) {
		return nil, errUnseen
	}
	to := func(name string) string { return mounts.Relative(from.path, name) }
	is, left := mounts.Identity{ID: m.ID}, g.leftIn(table, &m, b.in)
	switch {
	case left == nil:
		var err error
		if is, err = mounts.Identify(from.fd, to(m.Point)); err != nil {
			return nil, err
		}
	case left.ID != m.ID || table.Covered(m.ID):
		return nil, nil
	}
	if is.ID != m.ID {
		return nil, errUnseen // something is mounted over it, or over a directory above
	}
	p := &point{is: is, mount: m, left: left != nil, fd: -1}
	if err := p.placeIn(from.fd, to, b.in); err != nil {
		return nil, err
	}
	if p.host == nil || !p.seen() {
		return nil, nil
	}
	return p, nil
}

// placeIn finds the nearest mount above the point that is watched, and the directory there
// that has the mount point. What is between, which cannot be watched, becomes part of the
// point's name. If none is watched there is no host. The table's paths are reached from the
// directory fd by to.
func (p *point) placeIn(fd int, to func(string) string, bases map[int]base) error {
	for dir, name := path.Dir(p.mount.Point), path.Base(p.mount.Point); ; dir, name = path.Dir(dir), path.Join(path.Base(dir), name) {
		in, err := mounts.Identify(fd, to(dir))
		if err != nil {
			return err
		}
		if host, ok := bases[in.ID]; ok {
			h, _, err := handleAt(fd, to(dir))
			if err != nil {
				return fmt.Errorf("taking handle of the directory that it is mounted in: %w", err)
			}
			p.host, p.upper, p.dir, p.name = host.view, host.fs, host.fs.get(h), name
			return nil
		}
		if dir == "/" {
			return nil
		}
	}
}

// missed says so if a mount cannot be found. The watch trees above it list anew until
// it can.
func (g *Group) missed(m mounts.Mount, v *view, err error) {
	if isOther(errno(err)) {
		g.misplaced = true // it is hidden, or has moved just now
		return
	}
	g.refuse(m, err)
	for _, w := range v.trees {
		if top := w.base(v).path; top == "" || m.Below(top) {
			g.owe(w)
		}
	}
}

// refuse has a mount that cannot be watched tried again, and the log tell of it.
func (g *Group) refuse(m mounts.Mount, err error) {
	now := time.Now()
	g.retryMounts = now.Add(g.retryAfter)
	if last, ok := g.refused[m.Point]; !ok || now.Sub(last) > refusedAgain {
		if len(g.refused) >= maxRefused {
			clear(g.refused)
		}
		g.refused[m.Point] = now
		g.log.Warn("a mount cannot be watched, clients list their directories anew as long as that lasts",
			"path", m.Point, "filesystem", m.Kind, "err", err)
	}
}

const (
	refusedAgain = time.Hour // how often the log tells of a mount that cannot be watched
	maxRefused   = 1024      // how many it remembers
)
