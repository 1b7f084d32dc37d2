// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
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

// maxEnters is how often enter tries when mounts change meanwhile.
const maxEnters = 16

var (
	errUnmounted = errors.New("unmounted")
	errNobody    = errors.New("nobody watches it")
)

// way returns how the mount point is reached from a directory that is held open, or in
// a mount that is. The caller closes fd. It is errMoving if that is not known, as long as a
// rename waits unread.
func (p *point) way() (fd int, way string, err error) {
	if p.host.point == nil {
		fd, err = p.upper.how.open(p.dir, p.host.id)
		return fd, p.name, err
	}
	fd, way, err = p.host.point.wayTo(p.dir)
	return fd, way + p.name, err
}

// wayTo does that for the directory at, by the names that are known. The way has a '/' at its end.
func (p *point) wayTo(at *node) (fd int, way string, err error) {
	var names []string
	length := 0
	for n := at; n != p.root; n = n.parent {
		if err := p.lower.place(n); err != nil {
			return -1, "", err
		}
		if length += len(n.name) + 1; n.parent == nil || n.name == "" || length > unix.PathMax {
			return -1, "", errUnmounted
		}
		names = append(names, n.name)
	}
	fd, above, err := p.way()
	if err != nil {
		return -1, "", err
	}
	slices.Reverse(names)
	way = path.Join(above, strings.Join(names, "/"))
	h, _, err := handleAt(fd, way)
	switch {
	case err == nil && string(h) == at.handle:
		return fd, way + "/", nil
	case err == nil || isOther(err):
		err = errMoving
	}
	unix.Close(fd)
	return -1, "", err
}

// stands says whether the mount is still where it was, and nothing over it. If that cannot be
// said while a rename above it waits unread, it is asked once more when all has been told.
func (p *point) stands() bool {
	if p.left {
		return p.upper.g.mounts.has(p.mount)
	}
	dir, way, err := p.way()
	if p.moving = errors.Is(err, errMoving) && !p.moving; p.moving {
		p.upper.g.movedIn = true
		p.sawIn = p.upper.g.batch
		p.seers(func(w *Watch) { p.saw = append(p.saw, w) }) // it may go with the directory that it is in
		return true
	}
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	if !p.is.Leads(dir, way) {
		return false
	}
	p.saw = nil
	return true
}

// enter opens the root of the mount, and returns it with the id of the mount that it is
// in. It is open until the group leaves, which has to be soon.
//
// Where that is possible it is in a copy of the mount: then only the superblock is held,
// and the mount can be unmounted. The copy is in no namespace, so that nothing but fd
// keeps it. If mounts change all the time it is given up with errUnmounted: the mounts
// are looked at again then anyway. It is errMoving if the way to the mount is looked for
// through the mount itself: of a filesystem that is mounted in itself.
func (p *point) enter() (fd, id int, err error) {
	g := p.upper.g
	if p.entering {
		return -1, 0, errMoving
	}
	p.entering = true
	defer func() { p.entering = false }()
	g.leaveMoved()
	for tries := 0; p.fd < 0; g.leaveMoved() {
		if tries++; tries > maxEnters {
			return -1, 0, errUnmounted
		}
		if len(g.entered) == 0 {
			g.enteredAt = g.mounts.count()
		}
		if p.fd, p.copied, err = p.openRoot(); err != nil {
			return -1, 0, err
		}
		g.entered = append(g.entered, p) // unless it has moved meanwhile
	}
	if in, err := mounts.Identify(p.fd, ""); err == nil {
		return p.fd, in.ID, nil
	}
	return -1, 0, errUnmounted
}

// openRoot opens the root of the mount, in a copy if that can be.
func (p *point) openRoot() (fd int, copied bool, err error) {
	dir, way, err := p.way()
	if err != nil {
		return -1, false, err
	}
	defer unix.Close(dir)
	if !p.is.Leads(dir, way) {
		return -1, false, errUnmounted
	}
	if fd, err = copyMount(dir, way); err == nil {
		return fd, true, nil
	}
	if fd, err = p.copyOwn(dir, way); err == nil {
		return fd, true, nil
	}
	fd, err = unix.Openat(dir, way, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, false, err
}

// dup enters the mount for a caller that closes what is returned.
func (p *point) dup() (int, error) {
	at, _, err := p.enter()
	if err != nil {
		return -1, err
	}
	defer p.exit()
	return unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// copyMount opens the root of a copy of the mount that way leads to. The kernel copies only
// mounts of this process's own namespace.
func copyMount(dir int, way string) (int, error) {
	tree, err := unix.OpenTree(dir, way, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	defer unix.Close(tree) // which takes the copy out of the namespace that it had
	return unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

var errHidden = errors.New("this process's own mount namespace hides the mount")

// copyOwn opens the root of a copy of what this process's own mount namespace has in the
// place of the mount that way leads to, if it is the same directory. A service's sandbox is
// such a namespace: what is mounted elsewhere is mounted in it too.
func (p *point) copyOwn(dir int, way string) (int, error) {
	fd, err := copyMount(unix.AT_FDCWD, p.mount.Point)
	if err != nil {
		return -1, err
	}
	same, err := sameRoot(fd, dir, way)
	if err == nil && !same {
		err = errHidden
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sameRoot says whether fd is open on the directory that way leads to.
func sameRoot(fd, dir int, way string) (bool, error) {
	var is, wanted unix.Stat_t
	if err := unix.Fstat(fd, &is); err != nil {
		return false, err
	}
	if err := unix.Fstatat(dir, way, &wanted, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return false, err
	}
	return is.Dev == wanted.Dev && is.Ino == wanted.Ino, nil
}

// exit leaves a mount that had to be entered itself.
func (p *point) exit() {
	if p.fd >= 0 && !p.copied {
		p.upper.g.leave()
	}
}

// leave closes what was entered.
func (g *Group) leave() {
	if len(g.entered) > 0 {
		g.left++
	}
	for _, p := range g.entered {
		unix.Close(p.fd)
		p.fd = -1
	}
	g.entered = g.entered[:0]
}

// leaveMoved does that if anything was mounted, moved or unmounted since. Who unmounts
// waits for a moment, in which a copy must be left for the superblock to go too.
func (g *Group) leaveMoved() {
	if len(g.entered) == 0 {
		return
	}
	if g.enteredAt != g.mounts.count() {
		g.leave()
	}
}

// A namespace is one whose mounts a Group hears of.
type namespace struct {
	*mounts.Source
	wake int // the same file again, for Wait's epoll: polling one takes its news away
}

// A mountTable has the mounts of this process's namespace and that of process
// 1, whence directories may come that are handed over.
type mountTable struct {
	namespaces []namespace
	sources    *mounts.Sources // theirs
	changed    atomic.Bool     // since refresh last looked
	moves      atomic.Uint64   // how often they have
}

// open opens what there is; process 1 may be out of sight, and that is all that may be.
func (t *mountTable) open(g *Group) (err error) {
	if t.sources, err = mounts.NewSources(); err != nil {
		return err
	}
	for _, name := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		source, err := t.sources.Open(name)
		if len(t.namespaces) > 0 && (errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission)) {
			break
		}
		if err != nil {
			return err
		}
		wake, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			source.Close()
			return fmt.Errorf("opening %s: %w", name, err)
		}
		t.namespaces = append(t.namespaces, namespace{source, wake})
		if err := g.poll(wake, unix.EPOLLPRI); err != nil {
			return err
		}
	}
	return nil
}

func (t *mountTable) close() {
	for _, n := range t.namespaces {
		n.Close()
		unix.Close(n.wake)
	}
	if t.sources != nil {
		t.sources.Close()
	}
}

// poll says whether mounts may have changed since refresh last looked. Wait
// asks too.
func (t *mountTable) poll() bool {
	if t.sources.Changed() {
		t.changed.Store(true)
		t.moves.Add(1)
	}
	return t.changed.Load()
}

// count says how often mounts have changed.
func (t *mountTable) count() uint64 {
	t.poll()
	return t.moves.Load()
}

// has says whether that mount is still there and seen, without touching it.
func (t *mountTable) has(m mounts.Mount) bool {
	for _, n := range t.namespaces {
		if table, _ := n.Table(); table.Lookup(m.ID) != nil {
			return *table.Lookup(m.ID) == m && !table.Covered(m.ID)
		}
	}
	return false
}

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
