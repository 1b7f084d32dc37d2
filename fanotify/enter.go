// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

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
