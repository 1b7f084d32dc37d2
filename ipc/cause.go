// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"slices"
	"sync"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// A causeHub fetches what SMB requests have changed, for all workers: what one
// fetches no other could fetch again. fanotify does not tell which of a file's
// attributes were changed, ksmbd does, see causes in ksmbd-notify.yaml.
type causeHub struct {
	mu    sync.Mutex // also of what the members have
	fetch func() (genl.Causes, error)
	of    []*causes
}

const (
	// manyCauses have a worker look at its queue, which is empty, if it is not
	// stuck: then it need not keep them.
	manyCauses = 512
	// maxCauses bounds what is kept for one that is.
	maxCauses = 4096
)

// causes knows what may be the cause of what one worker is told.
//
// The causes of a change are fetched after it was read. They may have been
// fetched in the Drain before as well, as the queue was read before that.
type causes struct {
	hub      *causeHub
	wake     func()
	now, old map[causeKey][]genl.Cause // fetched in this Drain, and in the one before
	kept     int                       // how many are in now
	lost     int64                     // causes that ended until then are missing
	until    int64                     // what happened until then has its causes fetched
}

type causeKey struct {
	thread int32
	file   string
}

// join has k hear of what is fetched from now on.
func (k *causes) join() {
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	k.now = make(map[causeKey][]genl.Cause)
	k.hub.of = append(k.hub.of, k)
}

// leave ends that.
func (k *causes) leave() {
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	k.hub.of = slices.DeleteFunc(k.hub.of, func(other *causes) bool { return other == k })
}

// next says that a Drain begins.
func (k *causes) next() {
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	if k.old, k.now = k.now, k.old; k.now == nil {
		k.now = make(map[causeKey][]genl.Cause)
	}
	clear(k.now)
	k.kept = 0
}

// full says whether a Drain would have much to forget.
func (k *causes) full() bool {
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	return k.kept >= manyCauses
}

// of returns what an Attrib in c stands for, All if that is not known.
func (k *causes) of(c fanotify.Change) Filter {
	if c.Thread == 0 || c.Op&fanotify.Attrib == 0 {
		return All
	}
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	if k.until != c.Until {
		k.until = c.Until
		k.hub.more(c.Until)
	}
	if c.Since <= k.lost { // or it is 0, not known: its causes may have been fetched long ago
		return All
	}
	var of Filter
	known := false
	for _, fetched := range [...]map[causeKey][]genl.Cause{k.now, k.old} {
		for _, cause := range fetched[causeKey{c.Thread, string(c.File)}] {
			if cause.Begun <= c.Until && c.Since <= cause.Ended {
				of |= Filter(cause.Filter)
				known = true
			}
		}
	}
	if !known {
		return All
	}
	return of & All
}

// more fetches for all, of what has happened until then.
func (h *causeHub) more(until int64) {
	m, err := h.fetch()
	if err != nil {
		m.Lost = until // they are gone from the kernel, perhaps
	}
	for _, k := range h.of {
		k.lost = max(k.lost, m.Lost)
		for _, c := range m.Causes {
			if k.kept >= maxCauses {
				k.lost = max(k.lost, c.Ended)
				continue
			}
			key := causeKey{c.Thread, c.File}
			k.now[key] = append(k.now[key], c)
			k.kept++
		}
		if k.kept >= manyCauses {
			k.wake()
		}
	}
}
