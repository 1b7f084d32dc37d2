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

	"golang.org/x/sys/unix"
)

// A view is a mount through which a filesystem can be seen: handles are
// opened, and directories are found, through it.
type view struct {
	id    int    // of the mount
	fd    int    // of a directory in it by which the filesystem can be marked; the view owns it. -1 if it has a point
	point *point // a mount below a watch tree, in which nothing is held open: it could not be unmounted
	users int
	trees []*Watch // the watch trees that begin in it; each knows its index
}

// see returns the view of the mount that dir is in, with one more user.
func (fs *filesystem) see(dir *os.File, id int) (*view, error) {
	for _, v := range fs.views {
		if v.id == id && v.point == nil {
			v.users++
			return v, nil
		}
	}
	fd, err := fs.how.hold(int(dir.Fd()))
	if err != nil {
		return nil, err
	}
	v := &view{id: id, fd: fd, users: 1}
	fs.addView(v)
	return v, nil
}

// addView adds a view. Those that hold the mount open come first: they cost less.
func (fs *filesystem) addView(v *view) {
	at := len(fs.views)
	if v.point == nil {
		at = 0
	}
	fs.views = slices.Insert(fs.views, at, v)
	if fs.top.kids > 0 {
		fs.stale = true // it may show what was out of sight
	}
}

// unsee takes a user from a view.
func (fs *filesystem) unsee(v *view) {
	if v.users--; v.users > 0 {
		return
	}
	if v.fd >= 0 {
		unix.Close(v.fd)
	}
	i := slices.Index(fs.views, v)
	fs.views = slices.Delete(fs.views, i, i+1)
}

// enter returns a directory that is open in the mount, or in a copy of it, and the id of
// that. Who has looked at something in it exits.
func (v *view) enter() (fd, id int, err error) {
	if v.point == nil {
		return v.fd, v.id, nil
	}
	return v.point.enter()
}

func (v *view) exit() {
	if v.point != nil {
		v.point.exit()
	}
}

// open opens a directory by its handle, with O_PATH. It returns the id of the mount that
// it is open in, too.
func (v *view) open(h string) (fd, id int, err error) {
	at, id, err := v.enter()
	if err != nil {
		return -1, 0, err
	}
	defer v.exit()
	fd, err = openHandle(at, h, unix.O_DIRECTORY)
	return fd, id, err
}

// openHandle opens what has the handle h with O_PATH, through the mount that fd is in.
func openHandle(at int, h string, flags int) (int, error) {
	kind := int32(binary.NativeEndian.Uint32([]byte(h[4:])))
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(kind, []byte(h[handleHeaderLen:])), unix.O_PATH|unix.O_CLOEXEC|flags)
	switch {
	case err == unix.ESTALE:
		return -1, errGone
	case err != nil:
		return -1, fmt.Errorf("opening by a handle: %w", err)
	}
	return fd, nil
}

// has says whether there still is what has the handle h.
func (fs *filesystem) has(h string) bool {
	fd, _, err := fs.views[0].open(h)
	if err == nil {
		unix.Close(fd)
	}
	return err != errGone
}

// above returns the handle of the directory that the directory h is in, and
// h's name there, which is empty where the path to h is longer than the kernel
// tells. Errors: errGone, errMoving, errOutside where the mount does not show
// what is above h, and errCovered where something is mounted over that.
func (v *view) above(h string) (handle, string, error) {
	fd, id, err := v.open(h)
	if err != nil {
		return nil, "", err
	}
	defer unix.Close(fd)
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	for range 8 { // renames beyond that are not met by chance
		before, err := os.Readlink(link)
		if err != nil && !isTooLong(err) {
			return nil, "", fmt.Errorf("naming directory: %w", err)
		}
		parent, mountID, err := handleAt(fd, "..")
		if err == unix.ENOENT { // h is not below the mount's root, and its path is a mere "/"
			return nil, "", errOutside
		}
		if err != nil {
			return nil, "", fmt.Errorf("taking handle of the directory above: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, "", fmt.Errorf("looking at directory: %w", err)
		}
		if st.Nlink == 0 {
			return nil, "", errGone
		}
		if mountID != id || string(parent) == h {
			if isMountRoot(fd) || mountID == id {
				return nil, "", errOutside
			}
			return nil, path.Base(before), errCovered // by anything, even by h itself
		}
		after, err := os.Readlink(link)
		if before == "" && isTooLong(err) {
			return parent, "", nil
		}
		if err == nil && after == before && isDeleted(fd, before, h) {
			return nil, "", errGone
		}
		if err == nil && after == before {
			return parent, path.Base(before), nil
		}
	}
	return nil, "", errMoving
}

// isDeleted says whether the directory h, which is open as fd and has that path, was removed. The path of one that was ends in
// " (deleted)". On overlayfs nothing else tells that of a directory that is in a lower layer too: its count of links stays one.
func isDeleted(fd int, name, h string) bool {
	if !strings.HasSuffix(name, " (deleted)") {
		return false
	}
	beside, err := openHere(fd, "../"+path.Base(name)) // the name may be its own
	if err == nil {
		var is handle
		is, _, err = handleAt(beside, "")
		if unix.Close(beside); err != nil || string(is) == h {
			return false
		}
	} else if !isOther(err) {
		return false
	}
	now, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) // it may have been renamed meanwhile
	return err == nil && now == name
}

func isTooLong(err error) bool { return errors.Is(err, unix.ENAMETOOLONG) }

// errno returns the kernel's error in err.
func errno(err error) (is unix.Errno) {
	errors.As(err, &is)
	return is
}

// isMountRoot says whether fd is open on the root of a mount.
func isMountRoot(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// handleAt returns the handle of what name is below dirfd, or of dirfd itself
// when name is empty, as events carry it, and the id of its mount.
func handleAt(dirfd int, name string) (handle, int, error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	fh, mountID, err := unix.NameToHandleAt(dirfd, name, flags)
	if err == unix.EOPNOTSUPP { // handles to compare, not to open
		fh, mountID, err = unix.NameToHandleAt(dirfd, name, flags|atHandleFID)
	}
	if err != nil {
		return nil, 0, err
	}
	h := make(handle, handleHeaderLen, handleHeaderLen+fh.Size())
	binary.NativeEndian.PutUint32(h, uint32(fh.Size()))
	binary.NativeEndian.PutUint32(h[4:], uint32(fh.Type()))
	return append(h, fh.Bytes()...), mountID, nil
}
