// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// Nobody takes anything out of the inbox of a worker that hangs: of watches that come and go nothing is left in it,
// but for the ends of those that may be armed.
func TestInboxOfHung(t *testing.T) {
	before := countFDs(t)
	var b inbox
	open := func(id uint64, rescan bool) genl.Item {
		fd, err := unix.Open(os.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return genl.Item{Type: genl.ItemTypeWatch, WatchID: id, FD: fd, Rescan: rescan}
	}
	b.post(func() error { return nil }, open(1, false), requestItem(2, 1), open(3, true), requestItem(4, 3), unwatchItem(3), cancelItem(5))
	const n = 20 * maxInbox
	for id := uint64(10); id < 10+4*n; id += 4 {
		b.post(open(id, false), unwanted{open(id+1, false), unix.ENOSPC}, requestItem(id+2, id))
		b.post(requestItem(id+3, 1), cancelItem(id+3), unwatchItem(id), unwatchItem(id+1))
	}
	if files := countFDs(t) - before; len(b.items) > 2*maxInbox || len(b.ends) > 2*maxInbox || files > 2*maxInbox {
		t.Errorf("%d items, %d ends, %d files", len(b.items), len(b.ends), files)
	}
	b.withdraw()
	if len(b.items) != 3 || !slices.Equal(b.ends, []any{unwatchItem(3), cancelItem(5)}) {
		t.Errorf("items %v, ends %v", b.items, b.ends)
	}
	b.abandon()
	if !b.empty() {
		t.Error("something is left, to be closed again")
	}
	if after := countFDs(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

// That many end costs so much for each of them.
func TestInboxOfMany(t *testing.T) {
	const n = 100_000
	var b inbox
	began := time.Now()
	for id := uint64(1); id <= n; id++ {
		b.post(requestItem(id, n+id))
	}
	for id := uint64(1); id <= n; id++ {
		b.post(unwatchItem(n + id))
	}
	if took := time.Since(began); took > 10*time.Second { // a minute if all are looked at for each
		t.Errorf("%v", took)
	}
}

// However many requests are made and cancelled at a time, their ends do not become more and more.
func TestInboxOfCancelled(t *testing.T) {
	var b inbox
	const n = 10 * maxEnds
	for round := range uint64(100) {
		for i := range uint64(n) {
			id := 1 + round*n + i
			b.post(requestItem(id, 1), cancelItem(id))
		}
		b.take(true)
	}
	if len(b.ends) > n {
		t.Errorf("%d ends wait", len(b.ends))
	}
}
