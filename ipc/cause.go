// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// causes knows what SMB requests have changed. fanotify does not tell which of a
// file's attributes were, ksmbd does, see causes in ksmbd-notify.yaml.
//
// The causes of a change are fetched after it was read. They may have been
// fetched in the Drain before as well, as the queue was read before that.
type causes struct {
	fetch    func() (genl.Causes, error)
	now, old map[causeKey][]genl.Cause // fetched in this Drain, and in the one before
	lost     int64                     // causes that ended until then are missing
	until    int64                     // what happened until then has its causes fetched
}

type causeKey struct {
	thread int32
	file   string
}

// next says that a Drain begins.
func (k *causes) next() {
	if k.old, k.now = k.now, k.old; k.now == nil {
		k.now = make(map[causeKey][]genl.Cause)
	}
	clear(k.now)
}

// of returns what an Attrib in c stands for, All if that is not known.
func (k *causes) of(c fanotify.Change) Filter {
	if c.Thread == 0 || c.Op&fanotify.Attrib == 0 {
		return All
	}
	if k.until != c.Until {
		k.until = c.Until
		k.more()
	}
	if c.Since <= k.lost {
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

func (k *causes) more() {
	m, err := k.fetch()
	if err != nil {
		m.Lost = k.until // they are gone from the kernel, perhaps
	}
	k.lost = max(k.lost, m.Lost)
	for _, c := range m.Causes {
		key := causeKey{c.Thread, c.File}
		k.now[key] = append(k.now[key], c)
	}
}
