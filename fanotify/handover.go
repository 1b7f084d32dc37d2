// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A queue outlives its process where somebody else has it open, and goes on
// being filled. What is watched again by a Group that has inherited it goes on
// without a gap, as if its reader had paused.

// Settled says whether what the last Drain told is all right for one who reads
// on in the queue and knows no more. If not, what waits in it may say that names
// were told wrong, which shows in this Group alone: Drain again.
func (g *Group) Settled() bool {
	waits := g.ahead
	for _, q := range g.queues {
		waits = waits || len(q.buf) > 0
		for _, fs := range q.filesystems {
			waits = waits || len(fs.doubts) > 0
		}
	}
	return !waits
}

// Detach returns the first queue, with its marks and with what waits in it, for
// another process to Inherit. The watches that are in it hear of nothing any
// more: they are only to be closed.
func (g *Group) Detach() (*os.File, error) {
	q := g.queues[0]
	fd, err := unix.FcntlInt(uintptr(q.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating fanotify: %w", err)
	}
	if err := g.reopen(q); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "fanotify"), nil
}

// Handover says what is mounted below a watch tree and watched with it, so that
// it can be compared, and whether all its marks are in the queue that Detach
// returns, and nothing is to be told later.
func (w *Watch) Handover() (mounts []string, ok bool) {
	g := w.fs.g
	ok = w.fs.queue == g.queues[0] && w.fs.unplaced.ops == 0
	for _, p := range g.points {
		if !w.sees(p) {
			continue
		}
		ok = ok && p.lower != nil && p.lower.queue == g.queues[0] && p.lower.unplaced.ops == 0
		mounts = append(mounts, fmt.Sprintf("%d %d %q", p.is.ID, p.is.Unique, p.mount.Point))
	}
	slices.Sort(mounts)
	return mounts, ok
}

// Inherit makes a queue that another Group has detached the first of g, which
// watches nothing yet. Then all watches that were in it are to be opened anew,
// since nothing else takes their marks away, and before Drain Confirm is to be
// called. Should that fail, they are to be closed, and the queue is to be given
// up by Detach.
func (g *Group) Inherit(queue *os.File) error {
	q := g.queues[0]
	kind, _, err := readMarks(q.fd)
	if err != nil {
		return err
	}
	inherited, marks, err := readMarks(int(queue.Fd()))
	if err != nil {
		return err
	}
	if inherited != kind {
		return fmt.Errorf("the inherited queue is of another kind: %q, not %q", inherited, kind)
	}
	fd, err := unix.FcntlInt(queue.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicating fanotify: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // passing it on may have changed that
		unix.Close(fd)
		return fmt.Errorf("inheriting fanotify: %w", err)
	}
	if err := g.replace(q, fd); err != nil {
		return err
	}
	q.empty = 0 // when that was, its last owner knows
	g.inherited, g.inheriting = marks, true
	return nil
}

var errMarks = errors.New("the inherited queue lacks marks")

// Confirm fails unless the inherited queue has had all marks of the watches, all
// the time.
func (g *Group) Confirm() error {
	_, marks, err := readMarks(g.queues[0].fd)
	if err == nil && !bytes.Equal(marks, g.inherited) {
		err = errMarks
	}
	g.inherited, g.inheriting = nil, false
	return err
}

// narrow says that a mark loses what a watch that is yet to be opened may need.
func (g *Group) narrow() { g.inherited = nil }

// readMarks returns how a queue was opened, and its marks with their masks, as
// proc_pid_fdinfo(5) has them.
func readMarks(fd int) (kind string, marks []byte, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return "", nil, fmt.Errorf("reading marks: %w", err)
	}
	const how = "fanotify flags:"
	_, text, ok := bytes.Cut(text, []byte(how))
	if !ok {
		return "", nil, errors.New("reading marks: not a fanotify queue")
	}
	first, marks, _ := bytes.Cut(text, []byte("\n"))
	return how + string(first), marks, nil
}
