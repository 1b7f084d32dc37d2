// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

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
