// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

const (
	// maxInbox is how much is to be in an inbox before it is rid of what needs no answer.
	maxInbox = 1024

	// maxEnds is how many ends are taken before it is looked whether a client
	// waits for something, if that many do not.
	maxEnds = 16
)

// An inbox has what a worker is to do.
type inbox struct {
	mu     sync.Mutex
	items  []any         // genl.Item, unwanted, *apart to be armed, or func() error to be called
	ends   []any         // what nobody waits for, to be done after these: genl.Item, or func() error
	enough int           // when there is more, what has ended is withdrawn
	posted atomic.Uint64 // how often something was put in
}

// post puts something in. It never waits.
func (b *inbox) post(what ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, what := range what {
		if end, ok := what.(genl.Item); ok && isEnd(end) {
			b.ends = append(b.ends, end)
		} else {
			b.items = append(b.items, what)
		}
	}
	if len(b.items) >= maxInbox && len(b.items)+len(b.ends) > b.enough {
		b.withdraw()
		b.enough = 2 * (len(b.items) + len(b.ends)) // so that each is looked at a few times at the most
	}
	b.posted.Add(1)
}

// postLast puts in what is to be called when all else is done.
func (b *inbox) postLast(fn func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, fn)
}

// isEnd says whether an item is the end of a request or a watch. What else there
// is of that was posted before, and may be done before.
func isEnd(item genl.Item) bool {
	return item.Type == genl.ItemTypeCancel || item.Type == genl.ItemTypeUnwatch
}

// withdraw makes room in the inbox of a worker that does not get on: what has
// ended before it was looked at needs no answer any more, as ksmbd does not wait
// for longer than its timeout. Nor does its end, if it never began.
func (b *inbox) withdraw() {
	ended := make(map[uint64]bool) // watches and requests, and whether these never began
	for _, what := range b.ends {
		if id := endsWhat(what); id != 0 {
			ended[id] = false
		}
	}
	b.items = slices.DeleteFunc(b.items, func(what any) bool {
		item, _ := what.(genl.Item)
		if refused, ok := what.(unwanted); ok {
			item = refused.Item
		}
		_, cancelled := ended[item.RequestID]
		_, unwatched := ended[item.WatchID]
		switch {
		case item.Type == genl.ItemTypeRequest && cancelled:
			ended[item.RequestID] = true
		case item.Type == genl.ItemTypeWatch && unwatched && !item.Rescan: // else it may be armed
			ended[item.WatchID] = true
		case !unwatched:
			return false
		}
		release([]any{what})
		return true
	})
	b.ends = slices.DeleteFunc(b.ends, func(what any) bool { return ended[endsWhat(what)] })
}

// endsWhat returns the id of what ends, 0 for none.
func endsWhat(what any) uint64 {
	switch item, _ := what.(genl.Item); item.Type {
	case genl.ItemTypeCancel:
		return item.RequestID
	case genl.ItemTypeUnwatch:
		return item.WatchID
	}
	return 0
}

// withdrawn takes out one thing that was put in, if nobody has taken it.
func (b *inbox) withdrawn(what any) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.items, what)
	if i >= 0 {
		b.items = slices.Delete(b.items, i, i+1)
	}
	return i >= 0
}

// take takes all items and, if they are wanted, some of the ends, and says whether there are more of these.
func (b *inbox) take(ends bool) (taken []any, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken, b.items, b.enough = b.items, nil, 0
	n := min(len(b.ends), max(maxEnds, len(taken))) // at least as many as items: each of these may have an end
	if !ends {
		n = 0
	}
	taken = append(taken, b.ends[:n]...)
	if b.ends = b.ends[n:]; len(b.ends) == 0 {
		b.ends = nil
	}
	return taken, b.ends != nil
}

// request takes the next item of a watch, if that is a request.
func (b *inbox) request(watch uint64) (request genl.Item, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.items, func(what any) bool {
		item, ok := what.(genl.Item)
		return ok && item.WatchID == watch
	})
	if i < 0 {
		return request, false
	}
	if request = b.items[i].(genl.Item); request.Type != genl.ItemTypeRequest {
		return request, false
	}
	b.items = slices.Delete(b.items, i, i+1)
	return request, true
}

// empty says whether there is nothing to do.
func (b *inbox) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.items)+len(b.ends) == 0
}

// abandon drops all: nobody takes it any more.
func (b *inbox) abandon() {
	b.mu.Lock()
	items := b.items
	b.items, b.ends = nil, nil
	b.mu.Unlock()
	release(items)
}

// release closes what items refer to that nobody acts upon any more.
func release(items []any) {
	for _, what := range items {
		switch what := what.(type) {
		case genl.Item:
			if what.Type == genl.ItemTypeWatch {
				unix.Close(what.FD)
			}
		case unwanted:
			release([]any{what.Item})
		case *apart:
			what.dir.Close()
		}
	}
}
