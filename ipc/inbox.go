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
	// maxInbox is when an inbox is rid of what needs no answer.
	maxInbox = 1024

	// maxEnds is how many ends are taken before it is looked whether a client
	// waits for something.
	maxEnds = 16
)

// An inbox has what a worker is to do.
type inbox struct {
	mu     sync.Mutex
	items  []any         // genl.Item, unwanted, or func() error to be called
	ends   []genl.Item   // that nobody waits for, to be done after these
	posted atomic.Uint64 // how often something was put in
}

// post puts something in. It never waits.
func (b *inbox) post(what ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, what := range what {
		if end, ok := what.(genl.Item); ok && isEnd(end) {
			if len(b.items) < maxInbox || !b.withdraw(end) {
				b.ends = append(b.ends, end)
			}
			continue
		}
		b.items = append(b.items, what)
	}
	b.posted.Add(1)
}

// isEnd says whether an item is the end of a request or a watch. What else there
// is of that was posted before, and may be done before.
func isEnd(item genl.Item) bool {
	return item.Type == genl.ItemTypeCancel || item.Type == genl.ItemTypeUnwatch
}

// withdraw makes room in the inbox of a worker that does not get on: what has
// ended before it was looked at needs no answer any more, as ksmbd does not wait
// for longer than its timeout. It says whether the end itself is to be forgotten.
func (b *inbox) withdraw(end genl.Item) bool {
	had := len(b.items)
	b.items = slices.DeleteFunc(b.items, func(what any) bool {
		item, ok := what.(genl.Item)
		return ok && (end.Type == genl.ItemTypeCancel && item.Type == genl.ItemTypeRequest && item.RequestID == end.RequestID ||
			end.Type == genl.ItemTypeUnwatch && item.Type != genl.ItemTypeWatch && item.WatchID == end.WatchID)
	})
	return end.Type == genl.ItemTypeCancel && len(b.items) < had
}

// take takes all items and some of the ends, and says whether there are more of these.
func (b *inbox) take() (taken []any, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken, b.items = b.items, nil
	n := min(len(b.ends), maxEnds)
	for _, end := range b.ends[:n] {
		taken = append(taken, end)
	}
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
	taken, _ := b.take()
	release(taken)
}

// release closes what items refer to that nobody acts upon any more.
func release(items []any) {
	for _, what := range items {
		item, _ := what.(genl.Item)
		if refused, ok := what.(unwanted); ok {
			item = refused.Item
		}
		if item.Type == genl.ItemTypeWatch {
			unix.Close(item.FD)
		}
	}
}
