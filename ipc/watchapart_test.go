// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/fanotify/mounts"
)

// A mount that another worker watches, or cannot: nobody has listed anything before it is armed, and
// what comes later than that is told, also that nobody watches it.
func TestWatchApart(t *testing.T) {
	for name, c := range map[string]struct {
		open  func(other *world) (Group, error) // that of the other worker
		ended bool                              // the conversation has
		want  []fanotify.Op
	}{
		"at once": {open: func(other *world) (Group, error) {
			other.meanwhile = func(fn func(fanotify.Change)) { fn(fanotify.Change{Op: create}) }
			return other.fake(), nil
		}},
		"late": {open: func(other *world) (Group, error) {
			time.Sleep(2 * armWithin)
			return other.fake(), nil
		}, want: []fanotify.Op{overflow}},
		"refused": {open: func(other *world) (Group, error) {
			other.refuse = unix.EMFILE
			return other.fake(), nil
		}, want: []fanotify.Op{gone}},
		"no group": {open: func(*world) (Group, error) { return nil, fmt.Errorf("none: %w", unix.EMFILE) }, want: []fanotify.Op{gone}},
		"the end":  {ended: true, want: []fanotify.Op{gone}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before := countFDs(t)
				w, other := newWorld(t), newWorld(t)
				w.loop.open = func(Superblock) (Group, error) { return c.open(other) }
				ctx, end := context.WithCancel(t.Context())
				defer end()
				if w.loop.working = ctx; c.ended {
					end()
				}
				a := w.worker.watchApart(openDir(t, "/"), mounts.Mount{Kind: "fuse.test", Device: 7}).(*apart)
				time.Sleep(4 * armWithin)
				synctest.Wait()
				var got []fanotify.Op
				a.Take(func(c fanotify.Change) { got = append(got, c.Op) })
				if !slices.Equal(got, c.want) {
					t.Errorf("told %v, want %v", got, c.want)
				}
				if told := w.inbox.empty(); told && c.want != nil {
					t.Error("the worker of the tree does not hear of it")
				}
				if a.by != nil && w.loop.retire(a.by) {
					t.Error("who has guests retires")
				}
				if len(other.watch) > 0 {
					for range maxApart + 1 {
						other.watch[0].fn(fanotify.Change{Op: create, Name: []byte("a")})
					}
					got = nil
					a.Take(func(c fanotify.Change) { got = append(got, c.Op) })
					if !slices.Equal(got, []fanotify.Op{overflow}) {
						t.Errorf("%d changes wait, want an overflow", len(got))
					}
				}
				a.Close()
				synctest.Wait()
				if len(other.watch) > 0 && !other.watch[0].closed {
					t.Error("it is watched on")
				}
				if a.by != nil && a.by.guests.Load() != 0 {
					t.Error("a guest is left")
				}
				if after := countFDs(t); after > before {
					t.Errorf("%d file descriptors before, %d after", before, after)
				}
			})
		})
	}
}

// Who does not want a mount any more when it could be watched does not have it watched.
func TestWatchApartClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		w.loop.open = func(Superblock) (Group, error) {
			time.Sleep(2 * armWithin)
			return other.fake(), nil
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		w.loop.working = ctx
		a := w.worker.watchApart(openDir(t, "/"), mounts.Mount{Kind: "fuse.test", Device: 7})
		a.Close()
		time.Sleep(4 * armWithin)
		synctest.Wait()
		if len(other.watch) > 0 || !w.inbox.empty() {
			t.Error("it is watched")
		}
	})
}

// A worker that hangs keeps nothing of mounts that nobody wants watched any more. That nobody watches
// one is not forgotten, however much there is to tell of it.
func TestWatchApartOfHung(t *testing.T) {
	w := newWorld(t)
	hangs := newWorker(w.loop.shared, Superblock{"fuse.test", deviceName(7)}, nil, w.loop)
	hangs.since.Store(1)
	w.loop.workers[hangs.filesystem] = hangs
	w.loop.working = t.Context()
	before := countFDs(t)
	for range 100 {
		w.worker.watchApart(openDir(t, "/"), mounts.Mount{Kind: "fuse.test", Device: 7}).Close()
	}
	if after := countFDs(t); after > before || !hangs.inbox.empty() || hangs.guests.Load() != 0 {
		t.Errorf("%d file descriptors before, %d after, %d guests", before, after, hangs.guests.Load())
	}
	a := w.worker.watchApart(openDir(t, "/"), mounts.Mount{Kind: "fuse.test", Device: 7}).(*apart)
	for i := range 2*maxApart + 2 {
		c := fanotify.Change{Op: create, Name: []byte("a")}
		if i == maxApart {
			c = fanotify.Change{Op: gone}
		}
		a.add(c)
	}
	told := make(map[fanotify.Op]bool)
	a.Take(func(c fanotify.Change) { told[c.Op] = true })
	if !told[gone] || !told[overflow] {
		t.Errorf("told %v", told)
	}
	hangs.inbox.abandon()
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}
