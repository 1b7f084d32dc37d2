// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"errors"
	"testing"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// A change is told by its cause for as long as that may be the one of it.
func TestCauses(t *testing.T) {
	var next genl.Causes
	var err error
	k := causes{fetch: func() (genl.Causes, error) {
		defer func() { next = genl.Causes{} }()
		return next, err
	}}
	read := uint64(0)
	drain := func(c ...genl.Cause) {
		k.next()
		read++
		next.Causes = c
	}
	expect := func(want Filter, op fanotify.Op, thread int32, file string) {
		t.Helper()
		got := k.of(fanotify.Change{Op: op, Thread: thread, File: []byte(file), Read: read})
		if got != want {
			t.Errorf("%d changed %v of %q, want %v", thread, got, file, want)
		}
	}
	const attrib, modify = fanotify.Attrib, fanotify.Modify
	ea := genl.Cause{Thread: 1, File: "f", Filter: uint32(EA)}
	created := genl.Cause{Thread: 1, File: "g"}

	drain(ea, created)
	expect(EA, attrib, 1, "f")
	expect(0, attrib, 1, "g")
	expect(All, attrib, 1, "h") // ksmbd's thread, but not at a request's behest
	expect(All, attrib, 2, "f") // somebody else
	expect(All, attrib, 0, "f")
	expect(All, fanotify.Create, 1, "f")

	drain(genl.Cause{Thread: 1, File: "f", Filter: uint32(LastWrite)})
	expect(EA|LastWrite, attrib|modify, 1, "f") // of before, read only now
	drain()
	expect(LastWrite, modify, 1, "f")
	drain()
	expect(All, modify, 1, "f")

	drain()
	expect(All, attrib, 1, "f")
	read++ // reading on in the same Drain
	next.Causes = []genl.Cause{ea}
	expect(EA, attrib, 1, "f")

	drain(created, genl.Cause{Thread: 1, Filter: ^uint32(0)}) // any file's
	expect(All, attrib, 1, "g")

	for range 2 { // by ksmbd, by an error
		drain(ea)
		next.Lost = err == nil
		expect(All, attrib, 1, "f")
		err = nil
		drain(ea)
		expect(All, attrib, 1, "f") // it may be what was missing
		drain(ea)
		expect(EA, attrib, 1, "f")
		err = errors.New("cannot")
	}
}

func TestCreatingIsNoModifying(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(2, 1))
	w.caused.Causes = []genl.Cause{{Thread: 7, File: "h"}}
	c := fanotify.Change{File: []byte("h"), Thread: 7, Read: 1}
	c.Op = fanotify.Create
	w.change(0, c, "a")
	c.Op = fanotify.Attrib
	w.change(0, c, "a")
	c.Thread = 8
	w.change(0, c, "b")
	w.drained()
	w.told("2: +a")
	w.served(requestItem(3, 1))
	w.told("3: *b")
}
