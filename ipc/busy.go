// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is when a filesystem that has not answered is spoken of.
const stuckAfter = 2 * time.Second

// busy is what a worker asks its filesystem for, which may never answer.
type busy struct {
	since atomic.Int64 // when it began, in ns of Unix time; else 0
	what  atomic.Pointer[string]
	alarm *time.Timer // speak, as long as armed
	armed atomic.Bool
	stuck atomic.Bool // and somebody was told
}

// What a worker may be about.
var (
	readingChanges = "reading changes"
	waitingBefore  = "what was left off"
	openingGroup   = "opening fanotify"
)

// begin says that the worker is about something that may block on the filesystem,
// until end.
func (l *worker) begin(what *string) {
	l.what.Store(what)
	l.since.Store(time.Now().UnixNano())
	if !l.armed.Swap(true) { // once in a while: to set a timer may take waking another thread
		l.alarm.Reset(stuckAfter)
	}
}

func (l *worker) end() {
	since := time.Unix(0, l.since.Swap(0))
	if l.stuck.Swap(false) {
		l.log.Info("a filesystem answers again", "filesystem", l.filesystem.Type, "device", l.filesystem.Device, "after", time.Since(since))
	}
}

// doing returns what the worker is about and since when, if that is long ago.
func (l *worker) doing() *Doing {
	since := l.since.Load()
	if since == 0 || time.Since(time.Unix(0, since)) < stuckAfter {
		return nil
	}
	return &Doing{time.Unix(0, since), *l.what.Load()}
}

// speak says that the filesystem does not answer, if it does not.
func (l *worker) speak() {
	l.armed.Store(false)
	since := l.since.Load()
	if since == 0 {
		return
	}
	doing := l.doing()
	if doing == nil { // it has begun after the alarm was set
		if !l.armed.Swap(true) {
			l.alarm.Reset(time.Until(time.Unix(0, since).Add(stuckAfter)))
		}
		return
	}
	l.stuck.Store(true)
	l.stats.note(Incident{Kind: Stuck, Reason: fmt.Sprintf("%v does not answer: %s", l.filesystem, doing.What)})
	l.log.Warn("a filesystem does not answer, what changes in it is told when it does", "filesystem", l.filesystem.Type,
		"device", l.filesystem.Device, "since", doing.Since, "in", doing.What)
}
