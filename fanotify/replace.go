// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"golang.org/x/sys/unix"
)

// A rename may replace what had its new name. The kernel makes no event with that name.
// It makes three of one thread, one after the other (fsnotify_move in linux/fsnotify.h):
// RENAME; ATTRIB of the file or directory that has lost its name, if there was one;
// MOVE_SELF of the one renamed. So an ATTRIB between the other two tells of a victim.
// MOVE_SELF may be missing here, if it was merged into that of an earlier rename; then the
// ATTRIB may also be that of a later link or unlink. All three are in the queue before
// the lock of the new name's directory is given up.

// replacements are the renames in a batch that replaced something.
type replacements struct {
	by map[int32]replacement // the last rename of a thread, as long as it is not known
	// did has the renames that replaced something, by where in the batch they begin. For a file it has "". For a directory
	// it has the handle of the one that was replaced, if that is gone: if not, nothing was.
	did map[int]string
}

// A replacement is what is known of a rename whose last event is yet to come.
type replacement struct {
	off   int
	file  string // that was renamed
	lost  string // that lost its name
	isDir bool
}

// wants says whether the event at the start of buf, with that mask, says anything of a
// rename.
func (r *replacements) wants(mask uint64, buf []byte) bool {
	if mask&unix.FAN_RENAME != 0 {
		return true
	}
	if len(r.by) == 0 {
		return false
	}
	_, is := r.by[eventThread(buf)]
	return is
}

// learn takes in the event that begins at off.
func (r *replacements) learn(off int, e *event) {
	if was, ok := r.by[e.pid]; ok {
		r.next(was, e)
	}
	if e.mask&unix.FAN_RENAME != 0 {
		r.by[e.pid] = replacement{off: off, file: string(e.fid), isDir: e.mask&unix.FAN_ONDIR != 0}
	}
}

// next takes in the next event of a thread after its rename.
func (r *replacements) next(was replacement, e *event) {
	is := e.self()
	switch {
	case e.mask&unix.FAN_MOVE_SELF != 0 && string(is) == was.file:
		r.decide(was, e.pid, was.lost != "", "")
	case was.lost != "":
		unlinked := e.mask&(unix.FAN_CREATE|unix.FAN_DELETE) != 0 && string(is) == was.lost
		r.decide(was, e.pid, !unlinked, was.directory())
	case e.mask&unix.FAN_ATTRIB != 0 && (e.at.dir == nil || string(e.at.name) == "."):
		was.lost = string(is)
		r.by[e.pid] = was
	default:
		r.decide(was, e.pid, false, "")
	}
}

func (r *replacements) decide(was replacement, thread int32, did bool, gone string) {
	delete(r.by, thread)
	if did {
		r.did[was.off] = gone
	}
}

// directory returns the directory that lost its name. That is sure only if it is gone: whoever sets the attributes of one
// makes the same event.
func (was *replacement) directory() string {
	if was.isDir {
		return was.lost
	}
	return ""
}

// self returns the handle of what the event happened to.
func (e *event) self() handle {
	if e.fid == nil {
		return e.at.dir
	}
	return e.fid
}

// replaces says whether the rename at hand, into the directory to, replaced something.
func (fs *filesystem) replaces(e *event, to *node) bool {
	g := fs.g
	if d := fs.believed(to, e.new.name); d != nil && d.present && !d.expected {
		return true // it was told as being there
	}
	if fs.mark.mask()&victimMask != victimMask {
		return false
	}
	if was, ok := g.replaced.by[e.pid]; ok && was.off == g.at {
		fs.barrier(to) // the writer may have been stopped in the middle of it
		g.more()
		if was, ok := g.replaced.by[e.pid]; ok && was.off == g.at {
			return was.lost != "" && fs.gave(was.directory(), to, e.new.name)
		}
	}
	gone, did := g.replaced.did[g.at]
	return did && fs.gave(gone, to, e.new.name)
}

// gave says whether a rename has replaced the directory d: that is gone, and had the name in to, or may have had it. Of a
// file, which has "" for d, that is known already.
func (fs *filesystem) gave(d string, to *node, name []byte) bool {
	if d == "" {
		return true
	}
	if n := fs.nodes[d]; n != nil && n.parent != nil && (n.parent != to || n.name != string(name)) {
		return false
	}
	return fs.how.whole() && !fs.hasName(handle(d))
}
