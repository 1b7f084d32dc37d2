// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"os"
	"slices"
	"sync"
	"time"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
)

// A mount of a filesystem that can hang may be below a watch tree of one that cannot. It is
// watched by the worker of its own filesystem, for the worker that has the tree, which
// waits for it no longer than for armWithin.

// armWithin is how long a new watch tree waits for a mount below it to be watched, if its
// filesystem is not stuck already. If that takes longer, the clients list it anew.
const armWithin = 50 * time.Millisecond

// maxApart bounds the changes that wait to be taken from one mount.
const maxApart = 16384

// apart is a mount that is watched by another worker. It implements fanotify.Apart.
type apart struct {
	*worker // of the tree
	by      *worker
	dir     *os.File // of who arms it, or withdraws it from by
	device  uint64
	armed   chan struct{} // closed when it was looked whether it can be watched
	mark    Mark          // of by's goroutine

	mu      sync.Mutex
	changes []fanotify.Change
	closed  bool
}

// watchApart has the worker of its filesystem watch a mount below l's trees.
func (l *worker) watchApart(dir *os.File, m mounts.Mount) fanotify.Apart {
	a := &apart{worker: l, by: l.neighbour(Superblock{m.Kind, deviceName(uint32(m.Device))}), dir: dir, device: m.Device, armed: make(chan struct{})}
	if a.by == nil {
		dir.Close()
		a.add(fanotify.Change{Op: fanotify.Gone})
		return a
	}
	a.by.post(a)
	if since := a.by.since.Load(); since == 0 || time.Since(time.Unix(0, since)) < armWithin {
		select {
		case <-a.armed:
			a.forgive()
		case <-time.After(armWithin):
		}
	}
	return a
}

// forgive forgets what was to be told of the time before the mount was watched: nobody has
// listed anything yet. That it is not watched stays.
func (a *apart) forgive() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes = slices.DeleteFunc(a.changes, isNotGone)
}

func isNotGone(c fanotify.Change) bool { return c.Op != fanotify.Gone }

// arm watches the mount. In by's goroutine.
func (a *apart) arm() {
	defer close(a.armed)
	if a.by.group == nil || a.isClosed() {
		a.dir.Close()
		a.add(fanotify.Change{Op: fanotify.Gone})
		return
	}
	name := "watching " + a.dir.Name()
	a.by.begin(&name)
	defer a.by.end()
	var err error
	a.mark, err = a.by.group.WatchMount(a.dir, a.device, ^fanotify.Op(0), a.add)
	if err != nil {
		a.log.Warn("a mount below a watched directory cannot be watched", "path", a.dir.Name(), "err", err)
		a.add(fanotify.Change{Op: fanotify.Gone})
		return
	}
	a.add(fanotify.Change{Op: fanotify.Overflow}) // of what was before
}

// add takes in a change, for the worker of the tree to take.
func (a *apart) add(c fanotify.Change) {
	c.Name, c.OldName, c.File = clone(c.Name), clone(c.OldName), nil
	a.mu.Lock()
	if len(a.changes) >= maxApart && isNotGone(c) {
		a.changes, c = slices.DeleteFunc(a.changes, isNotGone), fanotify.Change{Op: fanotify.Overflow}
	}
	a.changes = append(a.changes, c)
	first := len(a.changes) == 1 && !a.closed
	a.mu.Unlock()
	if first {
		a.post(a.drain)
	}
}

// clone copies a name, of which nil and none are different.
func clone(name []byte) []byte {
	if name == nil {
		return nil
	}
	return append([]byte{}, name...)
}

func (a *apart) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// Take implements fanotify.Apart.
func (a *apart) Take(fn func(fanotify.Change)) {
	a.mu.Lock()
	changes := a.changes
	a.changes = nil
	a.mu.Unlock()
	for _, c := range changes {
		fn(c)
	}
}

// Close implements fanotify.Apart. It does not wait.
func (a *apart) Close() error {
	a.mu.Lock()
	a.closed, a.changes = true, nil
	a.mu.Unlock()
	switch {
	case a.by == nil:
	case a.by.inbox.withdrawn(a): // which does not get on
		a.dir.Close()
		a.by.guests.Add(-1)
	default:
		a.by.post(func() error {
			if a.mark != nil {
				a.mark.Close()
				a.mark = nil
			}
			a.by.guests.Add(-1)
			return nil
		})
	}
	return nil
}
