// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"
	"unique"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// watch is a directory that ksmbd wants watched for one open handle.
type watch struct {
	id      uint64
	mark    Mark
	filter  Filter
	queue   queue
	pending []request // oldest first
	telling bool      // its oldest request is in the outbox
	last    uint64    // id of the newest request
	looked  uint64    // at what count of inbox.posted there was no request of it
	gone    bool      // the directory was removed
	told    time.Time // when it was told last
	reach   *int      // how many watches had the last event that it was told, see pace
	given   *int      // and that it was given
	rested  bool      // since it was told
	held    bool      // it is among those that pace holds
	about   WatchStatus
	log     *slog.Logger
}

// request is a client's that waits for records of a watch. It comes again if the
// client's user may see none of those that it was completed with, and has pended all
// the time: the first that has happened since is what completes it.
type request struct {
	id     uint64
	length int // of the client's buffer, bytes
	again  bool
}

// unwanted is a watch item that is to be refused.
type unwanted struct {
	genl.Item
	why error
}

// watch arms a watch, or marks the one that there is for a rescan.
func (l *worker) watch(item genl.Item) {
	dir, about := l.open(item)
	log := l.control.logger(l.log, about)
	w := l.watches[item.WatchID]
	known := w != nil
	var err error
	if known {
		dir.Close()
	} else {
		w, err = l.arm(item, dir, about, log)
	}
	// Not before: whoever asked may be changing things already.
	log.Debug("watch", "watch", item.WatchID, "path", about.Directory, "tree", item.Tree, "filter", Filter(item.Filter),
		"buffer", item.BufferLength, "rescan", item.Rescan, "user", item.User, "share", item.Share)
	switch {
	case known:
		l.mu.Lock()
		l.lose(w, lostBelow)
		l.mu.Unlock()
		l.kernel.Ack(item.WatchID, 0)
	case err != nil:
		l.refused(item, about, log, err)
	default:
		l.mu.Lock()
		w.about.Strategy = w.mark.Strategy()
		w.log = l.control.logger(l.log, about) // for whoever traces it now: Trace sets it anew for those who begin or end later
		l.watches[w.id] = w
		if item.Tree {
			l.trees++
		}
		l.mu.Unlock()
		l.kernel.Ack(item.WatchID, 0)
		l.stats.count(func(t *Total) { t.Watches++ })
	}
}

// open returns the directory of a watch item, and what there is to say of it.
func (l *worker) open(item genl.Item) (*os.File, WatchStatus) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", item.FD))
	if err != nil {
		path = "?" // only for people
	}
	return os.NewFile(uintptr(item.FD), path), WatchStatus{
		ID: item.WatchID, Directory: path, Tree: item.Tree, User: unique.Make(item.User).Value(), Share: unique.Make(item.Share).Value(),
		Since: time.Now(), Filesystem: l.filesystem.Type, Device: l.filesystem.Device,
	}
}

// arm makes a watch of an item and has dir watched for it. It may be told of something before
// that has returned.
func (l *worker) arm(item genl.Item, dir *os.File, about WatchStatus, log *slog.Logger) (*watch, error) {
	w := &watch{
		id:     item.WatchID,
		filter: Filter(item.Filter),
		queue:  queue{limit: int(item.BufferLength), budget: l.budget.of(item)},
		about:  about,
		log:    log,
	}
	name := "watching " + dir.Name()
	l.begin(&name)
	defer l.end()
	var err error
	w.mark, err = l.group.Watch(dir, item.Tree, w.filter.Ops(), func(c fanotify.Change) { l.changed(w, c) })
	if err == nil && !l.takeOver(w) && item.Rescan {
		w.queue.overflow()
	}
	if err != nil {
		w.queue.clear() // of what it was told before that failed
		w.queue.budget.leave()
	}
	return w, err
}

// refuse refuses what is not wanted.
func (l *worker) refuse(item unwanted) {
	switch item.Type {
	case genl.ItemTypeWatch:
		dir, about := l.open(item.Item)
		dir.Close()
		l.refused(item.Item, about, l.control.logger(l.log, about), item.why)
	case genl.ItemTypeRequest:
		l.kernel.Ack(item.RequestID, unix.EPROTO)
	}
}

// refused has ksmbd end a watch that is not armed.
func (l *worker) refused(item genl.Item, about WatchStatus, log *slog.Logger, err error) {
	level := slog.LevelWarn
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errOff) { // removed meanwhile, or it is as wanted
		level = slog.LevelDebug
	} else {
		l.stats.count(func(t *Total) { t.Refused++ })
		l.stats.note(Incident{Kind: Refusal, Directory: about.Directory, User: about.User, Share: about.Share, Reason: err.Error()})
	}
	log.Log(context.Background(), level, "directory cannot be watched, its client is refused: see ksmbd-notifyd check",
		"path", about.Directory, "filesystem", l.filesystem.Type, "tree", item.Tree, "err", err)
	errno := unix.EIO
	errors.As(err, &errno)
	l.kernel.Ack(item.WatchID, errno)
	l.forget(item.WatchID)
}

func (l *worker) request(item genl.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.watches[item.WatchID]
	switch {
	case w == nil:
		// It has been refused, after its request was queued; in any other case
		// nobody may wait for ever.
		l.log.Debug("request of no watch", "request", item.RequestID, "watch", item.WatchID)
		l.kernel.Ack(item.RequestID, unix.EPROTO)
		return
	case l.waiting[item.RequestID] != nil:
		l.log.Error("request came twice", "request", item.RequestID, "watch", item.WatchID)
		return
	}
	l.accept(w, item)
	l.deliver(w)
	l.kernel.Ack(item.RequestID, 0)
}

// accept adds a request to those that w's records may complete.
func (l *worker) accept(w *watch, item genl.Item) {
	w.log.Debug("request", "request", item.RequestID, "watch", w.id, "buffer", item.BufferLength)
	l.stats.count(func(t *Total) { t.Requests++ })
	// One whose records were withheld comes again, and is the oldest still.
	i, _ := slices.BinarySearchFunc(w.pending, item.RequestID, func(r request, id uint64) int { return cmp.Compare(r.id, id) })
	w.pending = slices.Insert(w.pending, i, request{item.RequestID, int(item.BufferLength), item.RequestID <= w.last})
	w.last = max(w.last, item.RequestID)
	l.waiting[item.RequestID] = w
}

// forgetRequest drops a request that has ended.
func (l *worker) forgetRequest(id uint64) {
	if w := l.waiting[id]; w != nil {
		delete(l.waiting, id)
		w.pending = slices.DeleteFunc(w.pending, func(r request) bool { return r.id == id })
		if len(w.pending) == 0 && !w.queue.charge() {
			w.queue.overflow()
			l.overflowed(w, tooMany)
		}
	}
}

// drop drops a watch that has ended.
func (l *worker) drop(w *watch) {
	l.mu.Lock()
	l.flush()
	for _, r := range w.pending {
		delete(l.waiting, r.id)
	}
	w.queue.clear()
	w.queue.budget.leave()
	delete(l.watches, w.id)
	if w.about.Tree {
		l.trees--
	}
	l.mu.Unlock()
	name := "ending the watch of " + w.about.Directory
	l.begin(&name)
	defer l.end()
	if err := w.mark.Close(); err != nil && !errors.Is(err, errLost) { // with all watches of the process, of which is told
		l.log.Warn("ending a watch failed", "watch", w.id, "err", err)
	}
}
