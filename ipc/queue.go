// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"math/bits"
	"slices"
	"sync"
	"time"

	"ksmbd-notifyd/genl"
)

// budget bounds what all queues hold together, in bytes as a queue counts them. A
// client may have no more than what is left by all: however much some want, there
// is room for one more.
type budget struct {
	mu          sync.Mutex
	used, limit int
	most        func() int // that a client may have, in KiB, 0 for what is left; nil says that too
	clients     map[uint64]*account
}

// account is what the queues of a client's watches hold.
type account struct {
	*budget
	client  uint64
	watches int
	used    int
}

// of returns the account of who a watch is for, until leave.
func (b *budget) of(item genl.Item) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.clients[item.Client]
	if a == nil {
		if b.clients == nil {
			b.clients = make(map[uint64]*account)
		}
		a = &account{budget: b, client: item.Client}
		b.clients[item.Client] = a
	}
	a.watches++
	return a
}

// leave says that a watch has ended.
func (a *account) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watches--; a.watches == 0 {
		delete(a.clients, a.client)
	}
}

// take charges bytes, or returns false if they are too many.
func (a *account) take(n int) bool {
	if n == 0 { // also where there is too much already
		return true
	}
	most := 0
	if a.most != nil {
		most = a.most()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+n > a.limit-a.budget.used || most > 0 && a.used+n > most<<10 {
		return false
	}
	a.used += n
	a.budget.used += n
	return true
}

func (a *account) give(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
	a.budget.used -= n
}

// total returns what all hold.
func (b *budget) total() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// queue holds the change records of one watch that no response carried yet.
type queue struct {
	records []genl.Record
	size    int       // bytes that the records take in a client's buffer
	charged int       // how many of these
	limit   int       // bytes, the largest buffer that a client will ever give
	lost    bool      // records were lost and the client has not been told
	since   time.Time // when the first of what waits was there to be read
	budget  *account
}

// Why a queue overflows.
const (
	tooLong   = "more records than the client's buffer takes"
	tooMany   = "too many records wait for clients"
	nameless  = "a name that no record can carry"
	lostAbove = "fanotify lost changes or could not name them"
	lostBelow = "ksmbd asks for a rescan"
	notTaken  = "ksmbd did not take the records"
	turnedOff = "change notify was turned off"
)

// event has the records of one change, which belong together, with what there is to
// know of them: many queues take the same.
type event struct {
	records []genl.Record
	first   int  // bytes that the first takes in a client's buffer
	others  int  // those of the others, which come after it, with what pads the first
	valid   bool // each name is one that a record can carry
	reach   *int // how many watches were given it whose clients ask, see pace
}

func newEvent(records []genl.Record) event {
	e := event{records: records, valid: true, reach: new(int)}
	for i, r := range records {
		size := recordSize(r.Name)
		if e.valid = e.valid && genl.ValidName(r.Name); i == 0 {
			e.first = size
		} else {
			e.others = align4(e.first+e.others) + size - e.first
		}
	}
	return e
}

// room says whether an event more makes a queue of limit bytes at the most, or it has lost all in
// any case.
func (q *queue) room(e event, limit int) bool {
	return q.lost || align4(q.size)+e.first+e.others <= limit
}

// charge charges what was not charged yet, or returns false if that is too much.
func (q *queue) charge() bool {
	more := q.size - q.charged
	if !q.budget.take(more) {
		return false
	}
	q.charged += more
	return true
}

// push queues the records of an event, after merging the first with an equal
// neighbour. What does not fit makes the queue overflow; why is told. What leaves it
// again at once need not be charged.
func (q *queue) push(e event, charge bool) (why string) {
	if q.lost || len(e.records) == 0 {
		return ""
	}
	records, size := e.records, align4(q.size)+e.first+e.others
	if n := len(q.records); n > 0 && q.records[n-1] == records[0] {
		records = records[1:]
		size = q.size + e.others
	}
	switch {
	case !e.valid:
		why = nameless
	case size > q.limit:
		why = tooLong
	case charge && !q.budget.take(size-q.size):
		why = tooMany
	case charge:
		q.charged += size - q.size
	}
	if why != "" {
		q.overflow()
		return why
	}
	if q.size = size; len(q.records) == 0 {
		q.records = records[:len(records):len(records)] // an event's, which do not change
	} else {
		q.records = append(q.records, records...)
	}
	return ""
}

// shift takes the first record from the queue, with the one that goes with it.
func (q *queue) shift() []genl.Record {
	n := 1
	if len(q.records) > 1 && q.records[1].Action == genl.ActionRenamedNewName {
		n = 2
	}
	first, rest := q.records[:n:n], q.records[n:]
	if len(rest) == 0 {
		q.clear()
		return first
	}
	if bits.Len(uint(len(rest))) < bits.Len(uint(len(q.records))) { // it has halved, and so is its memory to be
		rest = slices.Clone(rest)
	}
	q.records = rest
	for _, r := range first {
		q.size -= align4(recordSize(r.Name))
	}
	if more := q.charged - q.size; more > 0 {
		q.budget.give(more)
		q.charged = q.size
	}
	return first
}

// unpush puts back records that were told of, and nobody has heard of. If that makes the
// queue overflow, why is told.
func (q *queue) unpush(records []genl.Record, since time.Time) (why string) {
	if q.lost || len(records) == 0 {
		return ""
	}
	after := q.records
	q.clear()
	if why = q.push(newEvent(records), true); why == "" {
		why = q.push(newEvent(after), true)
	}
	q.since = since
	return why
}

// overflow gives up all records; the client is to list the directory anew.
func (q *queue) overflow() {
	q.clear()
	q.lost = true
}

// clear empties the queue, after the client was told of it or will not be.
func (q *queue) clear() {
	if q.charged > 0 {
		q.budget.give(q.charged)
	}
	q.records, q.size, q.charged, q.lost = nil, 0, 0, false
}

// waiting reports whether there is something to tell the client.
func (q *queue) waiting() bool {
	return q.lost || len(q.records) > 0
}

// fits reports whether a buffer of so many bytes takes all that is waiting.
func (q *queue) fits(length int) bool {
	return !q.lost && q.size <= length
}

// recordSize returns the bytes of a FILE_NOTIFY_INFORMATION, MS-FSCC 2.7.1,
// less the padding to 4 bytes that follows if another comes after it.
func recordSize(name string) int {
	size := 12
	for _, r := range name { // an invalid byte comes as one U+FFFD
		size += 2
		if r >= 1<<16 {
			size += 2
		}
	}
	return size
}

func align4(n int) int { return (n + 3) &^ 3 }
