// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// causes knows what SMB requests have changed. fanotify does not tell which of a
// file's attributes were, ksmbd does, see causes in ksmbd-notify.yaml.
//
// The cause of a change is among those fetched since the last time that the
// queue was read before it was told, or among those of the Drain before.
type causes struct {
	fetch    func() (genl.Causes, error)
	now, old fetched
	read     uint64 // the read of the queue after which was fetched last
}

// fetched is what was fetched during one Drain.
type fetched struct {
	by   map[causeKey]Filter
	lost bool // some is missing
}

type causeKey struct {
	thread int32
	file   string // "" for any
}

// next says that a Drain begins.
func (k *causes) next() {
	if k.old, k.now = k.now, k.old; k.now.by == nil {
		k.now.by = make(map[causeKey]Filter)
	}
	clear(k.now.by)
	k.now.lost = false
}

// of returns what c may have changed, All if that is not known.
func (k *causes) of(c fanotify.Change) Filter {
	if c.Thread == 0 || c.Op&(fanotify.Modify|fanotify.Attrib) == 0 {
		return All
	}
	if k.read != c.Read {
		k.read = c.Read
		k.more()
	}
	var cause Filter
	known := false
	for _, f := range [...]*fetched{&k.now, &k.old} {
		for _, file := range [...][]byte{c.File, nil} {
			filter, ok := f.by[causeKey{c.Thread, string(file)}]
			cause |= filter
			// Of any file, it is the only one that its thread changes
			// attributes of now. But it may also write for a loop device.
			known = known || ok && (file != nil || c.Op&fanotify.Modify == 0)
		}
	}
	if !known || k.now.lost || k.old.lost {
		return All
	}
	return cause & All
}

func (k *causes) more() {
	m, err := k.fetch()
	k.now.lost = k.now.lost || m.Lost || err != nil
	for _, c := range m.Causes {
		k.now.by[causeKey{c.Thread, c.File}] |= Filter(c.Filter)
	}
}
