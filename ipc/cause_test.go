// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"errors"
	"testing"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// An ATTRIB stands for what its causes say, and for nothing that the same thread
// did to the same file at another time.
func TestCauses(t *testing.T) {
	var next genl.Causes
	var err error
	hub := causeHub{fetch: func() (genl.Causes, error) {
		defer func() { next = genl.Causes{} }()
		return next, err
	}}
	k := causes{hub: &hub}
	k.join()
	now := int64(100)
	drain := func(c ...genl.Cause) { // what happened in the last ten units of time
		k.next()
		now += 10
		next.Causes = c
	}
	expect := func(want Filter, op fanotify.Op, thread int32, file string) {
		t.Helper()
		c := fanotify.Change{Op: op, Thread: thread, File: []byte(file), Since: now - 10, Until: now}
		if got := k.of(c); got != want {
			t.Errorf("%d changed %v of %q, want %v", thread, got, file, want)
		}
	}
	const attrib, modify = fanotify.Attrib, fanotify.Modify
	cause := func(file string, filter Filter, begun, ended int64) genl.Cause {
		return genl.Cause{Thread: 1, File: file, Filter: uint32(filter), Begun: begun, Ended: ended}
	}

	drain(cause("f", EA, 101, 102), cause("g", 0, 105, 109))
	expect(EA, attrib, 1, "f")
	expect(EA, attrib|modify, 1, "f")
	expect(0, attrib, 1, "g")
	expect(All, attrib, 1, "h") // ksmbd's thread, but not at a request's behest
	expect(All, attrib, 2, "f") // somebody else
	expect(All, attrib, 0, "f")
	expect(All, fanotify.Create, 1, "f")

	drain(cause("f", Creation, 95, 99), cause("f", Security, 112, 113), cause("f", EA, 121, 122))
	expect(Security, attrib, 1, "f") // neither what came before nor what came after
	drain()
	expect(EA, attrib, 1, "f") // fetched the last time, read now

	drain(cause("f", EA, 125, 132)) // it spans two reads
	expect(EA, attrib, 1, "f")
	drain()
	expect(All, attrib, 1, "f")

	drain(cause("f", EA, 151, 152), cause("f", Creation, 153, 154), cause("f", 0, 155, 156))
	expect(EA|Creation, attrib, 1, "f")

	drain(cause("f", EA, 161, 162))
	next.Lost = 159
	expect(EA, attrib, 1, "f")
	drain(cause("f", EA, 171, 172))
	next.Lost = 171
	expect(All, attrib, 1, "f")
	drain(cause("f", EA, 181, 182))
	expect(EA, attrib, 1, "f")

	err = errors.New("cannot")
	drain()
	expect(All, attrib, 1, "f")
	err = nil
	drain(cause("f", EA, 201, 202))
	expect(All, attrib, 1, "f") // more of them may have been among those that did not arrive
	drain(cause("f", EA, 211, 212))
	expect(EA, attrib, 1, "f")
}

// What one worker fetches is there for the others, who need not keep it for ever.
func TestCausesAreShared(t *testing.T) {
	var next []genl.Cause
	hub := causeHub{fetch: func() (genl.Causes, error) {
		defer func() { next = nil }()
		return genl.Causes{Causes: next}, nil
	}}
	woken := 0
	a, b := causes{hub: &hub, wake: func() {}}, causes{hub: &hub, wake: func() { woken++ }}
	a.join()
	b.join()
	change := func(k *causes, thread int32, until int64) Filter {
		return k.of(fanotify.Change{Op: fanotify.Attrib, Thread: thread, File: []byte("f"), Since: until - 10, Until: until})
	}
	next = []genl.Cause{{Thread: 1, File: "f", Filter: uint32(EA), Begun: 101, Ended: 102}, {Thread: 2, File: "f", Filter: uint32(Security), Begun: 103, Ended: 104}}
	a.next()
	if got := change(&a, 1, 110); got != EA {
		t.Errorf("the one who fetches: %v", got)
	}
	b.next()
	if got := change(&b, 2, 110); got != Security {
		t.Errorf("the other: %v", got)
	}

	for i := range manyCauses {
		next = append(next, genl.Cause{Thread: int32(100 + i), File: "f", Begun: 111, Ended: 112})
	}
	a.next()
	change(&a, 1, 120)
	if woken == 0 || !b.full() {
		t.Error("the other is not told that there are many")
	}
	for i := range maxCauses {
		next = append(next, genl.Cause{Thread: int32(10000 + i), File: "f", Begun: 121, Ended: 122})
	}
	a.next()
	change(&a, 1, 130)
	if b.kept > maxCauses {
		t.Errorf("%d are kept", b.kept)
	}
	if got := change(&b, 2, 130); got != All {
		t.Errorf("with some missing: %v", got)
	}
	a.leave()
	if len(hub.of) != 1 {
		t.Errorf("%d are left", len(hub.of))
	}
}

func TestCreatingIsNoModifying(t *testing.T) {
	w := newWorld(t)
	w.served(w.watchItem(1), requestItem(2, 1))
	w.caused.Causes = []genl.Cause{{Thread: 7, File: "h", Begun: 1, Ended: 2}}
	c := fanotify.Change{File: []byte("h"), Thread: 7, Since: 1, Until: 3}
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
