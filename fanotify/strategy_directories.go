// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// directoryMarks has a mark on each directory of its watch trees, where there is no
// filesystem mark. A directory is marked first and then read: what was made in it before the
// mark is found there, what was made since has an event. The handle tree has all these
// directories, and any other directory is in no watch tree.
//
// A directory that leaves the tree keeps its mark, and a mark keeps the bits that no watch
// asks for any more, until the filesystem has no watch tree: these have a queue of their own,
// and when it is closed all its marks are gone.
type directoryMarks struct {
	fs        *filesystem
	unentered []unentered     // what could not be marked where it should have been
	covered   bool            // a walk has come to a mount
	barred    map[place]error // the directories that could not be read, and why: in them nothing is marked
	warned    time.Time       // when the log told of these last
}

// A place is a name in a directory.
type place struct {
	dir  *node
	name string
}

// An unentered directory could not be marked, as it was not where events said.
type unentered struct {
	node *node
	walk walk
}

// maxMarks bounds the directories that are marked, at about 2 KiB of the
// kernel's memory each.
const maxMarks = 256 << 10

// A tree that cannot be marked as a whole is tried again after retryAfter, or
// retryShare times as long as trying took. Each time it is told as an Overflow,
// since what is changed in the rest of it is not told at all.
const (
	retryAfter = 10 * time.Second
	retryShare = 10
)

var errTooMany = fmt.Errorf("more than %d directories, and no filesystem mark: %w", maxMarks, unix.EOPNOTSUPP)

func (s *directoryMarks) of(fs *filesystem) { s.fs = fs }

func (*directoryMarks) whole() bool { return false }

func (*directoryMarks) follows() bool { return false }

func (*directoryMarks) alone(*Watch) bool { return true }

func (*directoryMarks) masks(w *Watch) (directory, wide uint64) {
	return selfMask, bitsOf(w.ops) | treeMask | selfMask | walkMask
}

func (*directoryMarks) hold(dir int) (int, error) { return new(filesystemMark).hold(dir) }

// arm marks the tree of n as v shows it, and with a wider mask those of all watches.
func (s *directoryMarks) arm(n *node, v *view, mask uint64) error {
	roots := []root{{n, v.id}}
	if wider := s.fs.mark.count(mask, 1); wider != 0 {
		roots = s.roots()
	} else if n.marked && s.seen(roots[0]) {
		return nil
	}
	for _, r := range roots {
		if err := s.walkRoot(r); err != nil {
			s.fs.mark.count(mask, -1)
			return err
		}
	}
	return nil
}

func (s *directoryMarks) disarm(_ *view, mask uint64) error {
	s.fs.mark.count(mask, -1)
	return nil
}

// A root is a directory where a watch tree begins, or a mount below one. What one mount
// shows of a directory may be covered in another.
type root struct {
	*node
	mount int // the id of the mount that it is seen in
}

// roots returns all of them.
func (s *directoryMarks) roots() (roots []root) {
	seen := make(map[root]bool)
	add := func(r root) {
		if !seen[r] {
			seen[r] = true
			roots = append(roots, r)
		}
	}
	for _, w := range s.fs.watches {
		add(root{w.node, w.mountID})
	}
	for _, p := range s.fs.points {
		add(root{p.root, p.is.ID})
	}
	return roots
}

// seen says whether r is in the tree of a watch, or of a mount, besides one that begins
// there, as that mount shows it or, if its id is 0, any.
func (s *directoryMarks) seen(r root) bool {
	if r.beginnings(r.mount) > 1 {
		return true
	}
	if r.parent == nil && r.site != nil { // an event that says where it is may wait
		if h, _, err := handleAt(int(r.dir.Fd()), ".."); err == nil && string(h) != r.handle {
			above := s.fs.nodes[string(h)]
			return above != nil && above.marked
		}
	}
	for p := r.parent; p != nil; p = p.parent {
		if p.beginnings(r.mount) > 0 {
			return true
		}
	}
	return false
}

// beginnings counts the watch trees, and the mounts below these, that begin at n, up to two:
// those in the mount with that id or, if it is 0, any.
func (n *node) beginnings(mount int) (count int) {
	if n.site != nil {
		for i := 0; i < len(n.watches) && count < 2; i++ {
			if w := n.watches[i]; mount == 0 || w.mountID == mount {
				count++
			}
		}
	}
	if n.mounted(mount) != nil {
		count++
	}
	return count
}

// mounted returns what has n as its root: the mount with that id or, if it is 0, any.
func (n *node) mounted(mount int) *point {
	if n.mounts != nil {
		for _, p := range n.mounts.of {
			if mount == 0 || p.is.ID == mount {
				return p
			}
		}
	}
	return nil
}

func (s *directoryMarks) walkRoot(r root) error {
	dir, at, err := r.enter(r.mount)
	if dir < 0 {
		return cmp.Or(err, errUnmounted)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	return s.walk(r.node, fd, walk{point: at, seen: s.seen(root{node: r.node})})
}

// A walk is one through a tree, or what it knows of a part of that.
type walk struct {
	point *point // the mount, if it begins at the root of one below a watch tree
	seen  bool   // it is in the tree of another watch too, to which the event of what is new here is yet to be told
	tell  bool   // what it finds is new, and must be told unless an event tells of it
}

// walk marks the directory n, which it has open as fd and closes, and all below on
// the same mount.
func (s *directoryMarks) walk(n *node, fd int, k walk) error {
	fs := s.fs
	if k.point != nil {
		if _, _, err := k.point.enter(); err != nil { // it was unmounted meanwhile
			unix.Close(fd)
			return err
		}
		k.point.exit()
	}
	// By that name ReadDir looks at entries whose type the filesystem does not say.
	dir := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer dir.Close()
	marked, err := s.mark(n, fd, k)
	if !marked {
		return err
	}
	for {
		entries, err := dir.ReadDir(512)
		for _, e := range entries {
			if k.tell {
				fs.expect(n, e.Name(), e.IsDir())
			}
			if e.IsDir() {
				if err := s.walkEntry(n, fd, e.Name(), k); err != nil {
					return err
				}
			}
		}
		switch {
		case err == io.EOF || isRemoved(err):
			return nil
		case err != nil:
			fs.unmark(n) // so that it is read again, wherever it is when it is met next
			return fmt.Errorf("reading directory: %w", err)
		}
	}
}

// mark marks the directory n, which is open as fd. It returns false without an error if the
// directory was removed, of which an event should tell.
func (s *directoryMarks) mark(n *node, fd int, k walk) (bool, error) {
	fs := s.fs
	if !n.marked && fs.marked >= fs.g.maxMarks {
		return false, errTooMany
	}
	switch err := fanotifyMark(fs.queue.fd, unix.FAN_MARK_ADD, fs.mark.mask(), fd, ""); {
	case isRemoved(err):
		s.unentered = append(s.unentered, unentered{n, k})
		return false, nil
	case err != nil:
		return false, fmt.Errorf("marking directory: %w", err)
	}
	if !n.marked {
		n.marked, n.pending = true, k.seen
		fs.marked++
		fs.pin(n)
	}
	if k.tell {
		n.pending = false
	}
	return true, nil
}

// isRemoved says whether err is what FUSE, and others without an inode of their
// own, answer for a directory that is held open and was removed.
func isRemoved(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE)
}

// isOther says whether err means that there is no directory of that name any more: nothing,
// or something else.
func isOther(err error) bool {
	return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP
}

// walkEntry walks the directory name in n. If there is none any more it does nothing: an
// event tells of that. It sets off no automount.
func (s *directoryMarks) walkEntry(n *node, dirfd int, name string, k walk) error {
	fd, h, err := readHere(dirfd, name)
	if err == unix.EXDEV && k.tell {
		s.fs.g.movedIn = true // a mount came along with a directory
		n.loseMounts(name)
	}
	if isOther(err) || err == unix.EXDEV {
		s.covered = s.covered || err == unix.EXDEV
		return nil
	}
	if err != nil {
		return s.bar(n, name, fmt.Errorf("opening directory: %w", err))
	}
	child := s.fs.get(h)
	if child.parent != n || child.name != name {
		s.fs.move(child, n, name)
	}
	k.seen = k.seen || child.beginnings(0) > 0
	return s.bar(n, name, s.walk(child, fd, k))
}

// bar takes the error of reading or marking the directory name in dir. If it is that directory's
// own, as where root has no right or the disk is broken, bar notes that unbar is to try again, and
// returns nil: the rest of the tree is watched all the same. Any other error it returns.
func (s *directoryMarks) bar(dir *node, name string, err error) error {
	if err == nil || isOther(err) || isRefused(err) || isScarce(err) {
		return err
	}
	if len(s.barred) >= s.fs.g.maxMarks {
		return errTooMany
	}
	if s.barred == nil {
		s.barred = make(map[place]error)
	}
	if s.barred[place{dir, name}] = err; s.fs.again.IsZero() {
		s.fs.again = time.Now().Add(s.fs.g.retryAfter)
	}
	return nil
}

// scarce are the errors for which a tree cannot be marked, whatever directory they are met at.
var scarce = []error{errTooMany, errUnmounted, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSPC}

func isScarce(err error) bool {
	return slices.ContainsFunc(scarce, func(e error) bool { return errors.Is(err, e) })
}

// unbar tries again to read the directories that could not be, when it is time to. The watch trees
// that see them are told of an Overflow each time.
func (s *directoryMarks) unbar() {
	fs, began := s.fs, time.Now()
	if fs.again.IsZero() || began.Before(fs.again) {
		return
	}
	barred := s.barred
	s.barred, fs.again = nil, time.Time{}
	for p := range barred {
		if fs.nodes[p.dir.handle] != p.dir || !p.dir.marked {
			continue // it has gone
		}
		dir, err := s.open(p.dir, 0)
		if err == nil {
			err = s.walkEntry(p.dir, dir, p.name, walk{})
			unix.Close(dir)
		}
		if err != nil {
			fs.misnamed() // all is tried again then
			return
		}
	}
	fs.g.batch++ // who was told of an Overflow earlier in this batch may have listed before they were marked
	for p := range barred {
		fs.relist(p.dir, p.name)
	}
	if len(s.barred) == 0 {
		return
	}
	took := time.Since(began)
	fs.again = began.Add(took + max(fs.g.retryAfter, retryShare*took))
	if began.Sub(s.warned) <= refusedAgain {
		return
	}
	s.warned = began
	for p, err := range s.barred { // one of them will do
		fs.g.log.Warn("cannot look into directories, clients list anew as long as that lasts", "count", len(s.barred), "one", p.name, "err", err)
		return
	}
}

// loseMounts has who sees what is mounted over the directory name in n list anew: the directory was told as gone, and is back.
func (n *node) loseMounts(name string) {
	if n.mounts == nil {
		return
	}
	for _, p := range n.mounts.in {
		if p.covers(name) {
			p.lose()
		}
	}
}

// locate finds nothing: what a walk did not find is out of sight.
func (*directoryMarks) locate(*node) error { return nil }

// appeared marks the tree of n. What is in there is told, unless a client lists it, as it does what
// is moved into its sight.
func (s *directoryMarks) appeared(n, dir *node, name string, how arrival) {
	known := n.marked && !n.pending
	if known && (how == renamed || how == made && n.parent == dir && n.name == name) {
		return
	}
	k := walk{seen: how == shownAnew, tell: how != movedIn && !(known && how == shownAnew)}
	if err := s.tryEnter(n, dir, name, k); err != nil {
		s.unentered = append(s.unentered, unentered{n, k})
	}
}

func (s *directoryMarks) tryEnter(n, dir *node, name string, k walk) error {
	above, err := s.open(dir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(above)
	fd, h, err := readHere(above, name)
	if err == unix.EXDEV || isOther(err) && dir.marked {
		return nil // something is mounted over it, or it was removed or renamed, of which an event tells
	}
	if err != nil {
		return s.bar(dir, name, err)
	}
	if string(h) != n.handle {
		o := s.fs.nodes[string(h)]
		switch {
		case o != nil && o.marked && o.parent == dir && o.name == name:
			return unix.Close(fd) // another has its place: an event told of that
		case !s.evicted(n, h):
			unix.Close(fd)
			return errMoving
		}
		n = s.fs.rehandle(n, h)
		s.fs.move(n, dir, name)
	}
	s.covered = false
	err = s.bar(dir, name, s.walk(n, fd, k))
	if s.covered && len(s.fs.views) > 1 {
		s.fs.misnamed() // what is covered in this mount may be seen in another: all are walked
	}
	return err
}

// evicted says whether h is the new handle of n, which had no mark yet to keep its inode in
// memory: most FUSE servers have the kernel make a new inode then. Of a directory that is
// known the handle is its own.
func (s *directoryMarks) evicted(n *node, h handle) bool {
	if o := s.fs.nodes[string(h)]; o != nil && (o.parent != nil || o.marked || o.site != nil || o.mounts != nil) {
		return false
	}
	if fd, _, err := s.fs.views[0].open(string(h)); err == nil { // else no handle can be opened here
		unix.Close(fd)
		return !s.fs.has(n.handle)
	}
	return false
}

// readHere opens the directory that name is for reading, and returns its handle. What is
// mounted over it is not touched, which is EXDEV.
func readHere(dir int, name string) (fd int, h handle, err error) {
	at, err := openHere(dir, name)
	if err != nil {
		return -1, nil, err
	}
	defer unix.Close(at)
	if h, _, err = handleAt(at, ""); err != nil {
		return -1, nil, err
	}
	fd, err = unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return fd, h, err
}

// uncovered marks what a mount had covered. Who sees that lists it anew.
func (s *directoryMarks) uncovered(p *point) {
	dir, err := s.open(p.dir, p.host.id)
	if err == errGone || err == errMoving {
		return // it has gone, or nobody sees it
	}
	if err != nil {
		s.fs.misnamed()
		return
	}
	defer unix.Close(dir)
	fd, h, err := readHere(dir, p.name)
	if isOther(err) || err == unix.EXDEV {
		return
	}
	if err != nil {
		if s.bar(p.dir, p.name, err) != nil {
			s.fs.misnamed()
		}
		return
	}
	unix.Close(fd)
	n := s.fs.get(h)
	s.fs.move(n, p.dir, p.name)
	s.appeared(n, p.dir, p.name, movedIn)
}

// settle tries again, when the batch has been told, to mark what could not be. If
// more has happened meanwhile, that may say where it is.
func (s *directoryMarks) settle() {
	s.unbar()
	rest := s.unentered
	s.unentered = nil
	for _, u := range rest {
		n := u.node
		if n.parent == nil {
			continue // it has gone again
		}
		err := s.tryEnter(n, n.parent, n.name, u.walk)
		if err == nil {
			continue
		}
		if s.fs.barrier(n.parent); s.fs.g.putOff < maxPutOff && s.fs.g.more() {
			s.fs.g.putOff++
			s.unentered = append(s.unentered, u)
		} else {
			s.fs.g.log.Debug("cannot mark a directory", "name", n.name, "err", err)
			s.fs.misnamed()
		}
	}
}

// open opens a directory with O_PATH by its name below the nearest one that is watched, or
// mounted, in the mount with that id or, if it is 0, any.
func (s *directoryMarks) open(n *node, mountID int) (fd int, err error) {
	var names []string
	base, length := -1, 0
	for top := n; ; top = top.parent {
		base, _, err = top.enter(mountID)
		if err != nil {
			return -1, err
		}
		if base >= 0 {
			break
		}
		names = append(names, top.name)
		if length += len(top.name) + 1; top.parent == nil || length > maxPath {
			return -1, errGone // as has been told, or out of sight
		}
	}
	slices.Reverse(names)
	for {
		way, rest := firstPath(names)
		if rest == nil {
			fd, err = n.openAt(base, cmp.Or(way, "."))
			unix.Close(base)
			return fd, err
		}
		next, err := openBelow(base, way)
		if unix.Close(base); err != nil {
			return -1, err
		}
		base, names = next, rest
	}
}

// firstPath joins names to a path as long as the kernel takes it, and returns the rest of them.
func firstPath(names []string) (way string, rest []string) {
	length := 0
	for i, name := range names {
		if length += len(name) + 1; length > unix.PathMax {
			return strings.Join(names[:i], "/"), names[i:]
		}
	}
	return strings.Join(names, "/"), nil
}

// openAt opens n with O_PATH by its name below the directory dir.
func (n *node) openAt(dir int, name string) (int, error) {
	fd, err := openBelow(dir, name)
	if err != nil {
		return -1, err
	}
	if h, _, err := handleAt(fd, ""); err != nil || string(h) != n.handle {
		unix.Close(fd)
		return -1, errMoving
	}
	return fd, nil
}

// openBelow opens a directory with O_PATH by its name below the directory dir.
func openBelow(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if isOther(err) {
		return -1, errMoving
	}
	if err != nil {
		return -1, fmt.Errorf("opening directory: %w", err)
	}
	return fd, nil
}

// enter opens n, if it is watched or mounted in the mount with that id, or any. If only the
// latter, it returns that too. If neither, it returns -1.
func (n *node) enter(mount int) (int, *point, error) {
	if n.site != nil {
		for _, w := range n.watches {
			if w.mountID == mount || mount == 0 {
				fd, err := unix.FcntlInt(w.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
				return fd, nil, err
			}
		}
	}
	if p := n.mounted(mount); p != nil {
		fd, err := p.dup()
		return fd, p, err
	}
	return -1, nil, nil
}

// removed forgets the mark of a directory, which went with it.
func (s *directoryMarks) removed(n *node) { s.fs.gone(n) }

// forget begins anew, with an empty queue, new marks on all directories, and the handle tree
// as it is found on disk. All watches are told of an Overflow.
func (s *directoryMarks) forget() {
	fs := s.fs
	began, failed := time.Now(), !fs.retry.IsZero()
	fs.retry = began.Add(fs.g.retryAfter)
	if err := fs.g.reopen(fs.queue); err != nil {
		fs.g.log.Error("cannot begin anew, will try again", "err", err)
		return
	}
	var sites []*node
	for _, n := range fs.nodes {
		if n.site != nil {
			sites = append(sites, n)
		}
	}
	fs.forgetNodes()
	s.unentered, s.barred = nil, nil
	fs.retry, fs.again = time.Time{}, time.Time{}
	for _, n := range sites {
		if mask := n.mask(); mask != 0 {
			if err := fanotifyMark(fs.queue.fd, unix.FAN_MARK_ADD, mask, int(n.dir.Fd()), ""); err != nil && !n.wasRemoved() {
				s.retry(began, fmt.Errorf("marking directory: %w", err))
			}
		}
	}
	for _, r := range s.roots() {
		err := s.walkRoot(r)
		if r.site != nil {
			err = errors.Join(err, fs.follow(r.node))
		}
		switch {
		case r.site != nil && r.wasRemoved():
			fs.gone(r.node)
		case err != nil:
			s.retry(began, err)
		}
	}
	for _, n := range fs.nodes {
		n.pending = false // of what was found here no event tells
	}
	if failed && fs.retry.IsZero() {
		fs.g.movedIn = true // what is mounted below could not be placed meanwhile
	}
	fs.g.batch++
	fs.lost(^Op(0), true)
}

// retry has forget, which has begun then, try again.
func (s *directoryMarks) retry(began time.Time, err error) {
	took := time.Since(began)
	s.fs.retry = began.Add(took + max(s.fs.g.retryAfter, retryShare*took))
	s.fs.g.log.Warn("cannot mark a watch tree, clients list it anew until it can be", "err", err)
}
