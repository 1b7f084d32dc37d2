// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"time"

	"ksmbd-notifyd/genl"
)

// budget bounds what all queues hold together, in bytes as a queue counts them.
type budget struct {
	used, limit int
}

// queue holds the change records of one watch that no response carried yet.
type queue struct {
	records []genl.Record
	size    int       // bytes that the records take in a client's buffer
	limit   int       // bytes, the largest buffer that a client will ever give
	lost    bool      // records were lost and the client has not been told
	since   time.Time // when the first of what waits was there to be read
	budget  *budget
}

// Why a queue overflows.
const (
	tooLong   = "more records than the client's buffer takes"
	tooMany   = "too many records wait for clients"
	nameless  = "a name that no record can carry"
	lostAbove = "fanotify lost changes or could not name them"
	lostBelow = "ksmbd asks for a rescan"
	refused   = "ksmbd did not take the records"
	turnedOff = "change notify was turned off"
)

// push queues records that belong together, after merging the first with an
// equal neighbour. What does not fit makes the queue overflow; why is told.
func (q *queue) push(records []genl.Record) (why string) {
	if q.lost || len(records) == 0 {
		return ""
	}
	if n := len(q.records); n > 0 && q.records[n-1] == records[0] {
		records = records[1:]
	}
	size, valid := q.size, true
	for _, r := range records {
		size = align4(size) + recordSize(r.Name)
		valid = valid && genl.ValidName(r.Name)
	}
	switch {
	case !valid:
		why = nameless
	case q.budget.used+size-q.size > q.budget.limit:
		why = tooMany
	case size > q.limit:
		why = tooLong
	}
	if why != "" {
		q.overflow()
		return why
	}
	q.budget.used += size - q.size
	q.size = size
	q.records = append(q.records, records...)
	return ""
}

// overflow gives up all records; the client is to list the directory anew.
func (q *queue) overflow() {
	q.clear()
	q.lost = true
}

// clear empties the queue, after the client was told of it or will not be.
func (q *queue) clear() {
	q.budget.used -= q.size
	q.records, q.size, q.lost = nil, 0, false
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
