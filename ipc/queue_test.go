// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"ksmbd-notifyd/genl"
)

func added(names ...string) []genl.Record {
	var records []genl.Record
	for _, name := range names {
		records = append(records, genl.Record{Action: genl.ActionAdded, Name: name})
	}
	return records
}

func TestRecordSize(t *testing.T) {
	for name, want := range map[string]int{
		"a":                14,
		"ab":               16,
		"d/a":              18,
		"\u00e9":           14, // two bytes, one unit
		"\u65e5\u672c":     16, // three bytes each, one unit each
		"\U0001f600":       16, // four bytes, two units
		"\U00010000":       16,
		"\uffff":           14,
		"\ufffd":           14, // itself a character
		"\xff":             14, // no character
		"\xe6\x97":         16, // cut short: each byte counts
		"a\xf0\x9f\x98b":   22,
		"\xed\xa0\x80":     18, // an encoded surrogate is no character
		"x\U0001f600\xffy": 22,
	} {
		if got := recordSize(name); got != want {
			t.Errorf("%q takes %d bytes, want %d", name, got, want)
		}
		if got := 12 + 2*len(utf16.Encode([]rune(name))); got != want {
			t.Errorf("%q: package utf16 says %d bytes, want %d", name, got, want)
		}
	}
}

// What the queue counts is what FILE_NOTIFY_INFORMATION takes: every entry but
// the last is padded to 4 bytes.
func TestQueueSize(t *testing.T) {
	b := budget{limit: 2 * 1000}
	q := queue{limit: 1000, budget: b.of(genl.Item{})}
	for _, step := range []struct {
		records []genl.Record
		size    int
	}{
		{added("a"), 14},
		{added("a"), 14}, // merged
		{added("bc"), 32},
		{added("bc"), 32},
		{added("d", "e"), 32 + 16 + 14},
		{added("e", "f"), 32 + 16 + 16 + 14}, // the first merged
		{nil, 78},
	} {
		q.push(newEvent(step.records), true)
		if q.size != step.size || b.total() != step.size || q.lost {
			t.Fatalf("after %v: %d bytes, %d in all, lost %v; want %d", step.records, q.size, b.total(), q.lost, step.size)
		}
	}
	if !q.fits(78) || q.fits(77) {
		t.Error("78 bytes do not fit exactly")
	}
	q.overflow()
	q.push(newEvent(added("x")), true)
	if b.total() != 0 || !q.waiting() || q.fits(1000) || q.records != nil {
		t.Errorf("after overflow: %+v, %d bytes in all", q, b.total())
	}
	q.clear()
	if q.waiting() {
		t.Errorf("after clear: %+v", q)
	}
}

// A pair is queued whole or not at all.
func TestPairIsAtomic(t *testing.T) {
	b := budget{limit: 2 * 1000}
	for limit := range 64 {
		q := queue{limit: limit, budget: b.of(genl.Item{})}
		q.push(newEvent(added("a")), true)
		q.push(newEvent([]genl.Record{{Action: genl.ActionRenamedOldName, Name: "b"}, {Action: genl.ActionRenamedNewName, Name: "c"}}), true)
		whole := limit >= 46
		if whole != (len(q.records) == 3) || whole == q.lost {
			t.Errorf("limit %d: %+v", limit, q)
		}
		q.clear()
	}
	if b.total() != 0 {
		t.Errorf("%d bytes in all", b.total())
	}
}

func TestBudgetIsTold(t *testing.T) {
	b := budget{limit: 40}
	a := b.of(genl.Item{})
	q, r, small := queue{limit: 1000, budget: a}, queue{limit: 1000, budget: a}, queue{limit: 10, budget: a}
	if q.push(newEvent(added("a")), true) != "" || q.lost {
		t.Error("the first record is too much")
	}
	if r.push(newEvent(added("b")), true) != tooMany || !r.lost {
		t.Error("the second record is not too much")
	}
	q.clear()
	r.clear()
	if small.push(newEvent(added("b")), true) != tooLong || !small.lost {
		t.Error("a record beyond the queue's own limit is not told apart")
	}
}

// A client may have what is left by all, to the byte, less if it is bounded, and what it gives back again.
func TestAccount(t *testing.T) {
	most := 0
	b := budget{limit: 3000, most: func() int { return most }}
	a, other := b.of(genl.Item{Client: 1}), b.of(genl.Item{Client: 2})
	for _, step := range []struct {
		of         *account
		most, take int // or to give, if negative
		want       bool
	}{
		{a, 0, 3001, false}, {a, 0, 3000, true}, {other, 0, 1, false}, {a, 0, -2000, true},
		{a, 0, 1, true}, {a, 0, -1, true}, {other, 0, 2001, false}, {other, 0, 2000, true}, {other, 0, -2000, true},
		{other, 1, 1025, false}, {other, 1, 1024, true}, {other, 0, -1024, true}, {a, 0, -1000, true}, {a, 0, 3000, true}, {a, 0, -3000, true},
	} {
		most = step.most
		if step.take < 0 {
			step.of.give(-step.take)
		} else if got := step.of.take(step.take); got != step.want {
			t.Errorf("%+v: client %d has %d of %d", step, step.of.client, step.of.used, b.total())
		}
	}
	if b.total() != 0 {
		t.Errorf("%d bytes in all", b.total())
	}
	a.leave()
	if again := b.of(genl.Item{Client: 2}); again != other || len(b.clients) != 1 {
		t.Errorf("accounts %v", b.clients)
	}
}

// What has room makes no queue overflow.
func TestRoom(t *testing.T) {
	b := budget{limit: 1000}
	e := newEvent([]genl.Record{{Action: genl.ActionRenamedOldName, Name: "b"}, {Action: genl.ActionRenamedNewName, Name: "c"}})
	for limit := range 64 {
		q := queue{limit: limit, budget: b.of(genl.Item{})}
		q.push(newEvent(added("a")), true)
		room, lost := q.room(e, limit), q.lost
		q.push(e, true)
		if room != (lost || !q.lost) {
			t.Errorf("limit %d: room %v, %+v", limit, room, q)
		}
		q.clear()
	}
}

// Who has more than others leave them by now is not told that it is too much as long as it takes nothing more.
func TestBudgetOfNothing(t *testing.T) {
	b := budget{limit: 40}
	q, other := queue{limit: 1000, budget: b.of(genl.Item{Client: 1})}, queue{limit: 1000, budget: b.of(genl.Item{Client: 2})}
	q.push(newEvent(added("abc")), true)
	other.push(newEvent(added("abc")), true)
	if why := q.push(newEvent(added("abc")), true); why != "" || !q.charge() {
		t.Errorf("the same record again: %s", why)
	}
	if why := q.push(newEvent(added("d")), true); why != tooMany || b.total() != other.size {
		t.Errorf("another record: %q, %d bytes in all", why, b.total())
	}
}

// What is taken from the front of a queue leaves one like any other, also if its client may have no more by now.
// It costs the same whatever is left.
func TestShiftMany(t *testing.T) {
	const n = 100_000
	b := budget{limit: n * 100}
	q, other := queue{limit: n * 100, budget: b.of(genl.Item{Client: 1})}, b.of(genl.Item{Client: 2})
	for i := range n {
		q.push(newEvent([]genl.Record{{Action: genl.ActionAdded, Name: strings.Repeat("n", 1+i%5)}}), i%2 == 0)
	}
	q.push(newEvent([]genl.Record{{Action: genl.ActionRenamedOldName, Name: "b"}, {Action: genl.ActionRenamedNewName, Name: "c"}}), true)
	other.take(b.limit - b.total() - 1)
	shifted := 0
	began := time.Now()
	for left := n + 2; left > 0; left = len(q.records) {
		shifted += len(q.shift())
		if shifted%1000 > 0 && left > 10 {
			continue
		}
		whole := newEvent(q.records)
		if size := whole.first + whole.others; q.size != size || q.charged > size || b.total() != q.charged+other.used {
			t.Fatalf("%d left: %d bytes, %d charged, %d in all; want %d bytes", len(q.records), q.size, q.charged, b.total()-other.used, size)
		}
		if c := cap(q.records); c > 4*len(q.records)+16 {
			t.Fatalf("room for %d records, where %d are", c, len(q.records))
		}
	}
	if took := time.Since(began); shifted != n+2 || q.waiting() || took > 10*time.Second {
		t.Errorf("%d records in %v, then %+v", shifted, took, q)
	}
}

// What ksmbd did not take comes before what has come since.
func TestUnpush(t *testing.T) {
	b := budget{limit: 1000}
	q := queue{limit: 46, budget: b.of(genl.Item{})}
	q.push(newEvent(added("c")), true)
	q.unpush(added("a", "b"), q.since)
	if got := recordString(q.records); got != "+a +b +c" || b.total() != 46 {
		t.Errorf("%s, %d bytes", got, b.total())
	}
	if why := q.unpush(added("z"), q.since); why != tooLong {
		t.Errorf("more than fits: %q", why)
	}
	if !q.lost || b.total() != 0 {
		t.Errorf("more than fits: %+v", q)
	}
}
