// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// status asks w's daemon, which must be able to answer.
func (w *netlinkWorld) status() Status {
	w.t.Helper()
	s, err := w.d.Status(w.t.Context(), true)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t}
		g, lines, end := w.running(false)
		synctest.Wait()
		waited := time.Now()
		if s := w.status(); s.Serving || !s.Since.Equal(waited) || s.Waiting != ErrNoFamily.Error() || s.Module != "" {
			t.Errorf("without a module: %+v", s)
		}

		time.Sleep(time.Minute)
		w.load(30)
		item := g.watchItem(1)
		item.Tree, item.User, item.Share, item.Filter = true, "user", "TEST", uint32(FileName|EA)
		for _, i := range []genl.Item{item, requestItem(2, 1), requestItem(3, 1), g.watchItem(4)} {
			w.queue(encoded(t, i))
		}
		synctest.Wait()
		g.happens(0, create, "a") // completes a request
		g.happens(1, create, "b")
		g.happens(1, create, "c") // both wait for one
		g.wake <- struct{}{}
		synctest.Wait()
		s := w.status()
		loaded := waited.Add(time.Minute)
		fs, device := FilesystemOf(mustOpen(t, "/"))
		want := Status{
			Serving: true, Since: loaded, Module: "1.0",
			Open:   Open{Watches: 2, Trees: 1, Requests: 1, QueuedBytes: 30},
			Total:  Total{Watches: 2, Requests: 2, Responses: 1, Records: 1},
			Shares: []ShareStatus{{Share: "TEST", Responses: 1, Records: 1, Latency: Latency{Counts: [13]uint64{1}}}},
			Filesystems: []Filesystem{
				{Type: fs, Device: device, Strategy: "tree false", Watches: 1},
				{Type: fs, Device: device, Strategy: "tree true", Watches: 1},
			},
			Watches: []WatchStatus{
				{ID: 1, Directory: "/", Tree: true, Filter: "file-name,ea", User: "user", Share: "TEST", Since: loaded,
					Pending: 1, Filesystem: fs, Device: device, Strategy: "tree true"},
				{ID: 4, Directory: "/", Filter: All.String(), Since: loaded,
					Queued: 2, QueuedBytes: 30, Filesystem: fs, Device: device, Strategy: "tree false"},
			},
		}
		if !reflect.DeepEqual(s, want) {
			t.Errorf("got  %+v\nwant %+v", s, want)
		}
		if s, err := w.d.Status(t.Context(), false); err != nil || s.Watches != nil || s.Open != want.Open {
			t.Errorf("without watches: %+v, %v", s, err)
		}

		// What was done outlives the module, what was open does not.
		time.Sleep(time.Minute)
		g.happens(0, overflow)
		g.happens(1, overflow)
		g.happens(1, overflow) // lost is lost
		g.queue = append(g.queue, func() { g.lost++ })
		g.wake <- struct{}{}
		synctest.Wait()
		w.load(0)
		sleepRetry()
		s = w.status()
		total := Total{Watches: 2, Requests: 2, Responses: 2, Records: 1, EnumDirs: 1, Overflows: 2, QueueOverflows: 1}
		loss := Loss{Time: loaded.Add(time.Minute), Directory: "/", Reason: lostAbove}
		if s.Serving || s.Open != (Open{}) || s.Watches != nil || s.Total != total || *s.LastOverflow != loss {
			t.Errorf("after the module: %+v, %+v", s, s.LastOverflow)
		}
		of := func(kind, share, reason string) Incident {
			i := Incident{First: loss.Time, Last: loss.Time, Count: 1, Kind: kind, Share: share, Reason: reason}
			if kind == Overflow {
				i.Directory = "/"
			}
			if share != "" {
				i.User = "user"
			}
			return i
		}
		incidents := []Incident{of(Overflow, "TEST", lostAbove), of(Overflow, "", lostAbove), of(QueueOverflow, "", "more changed at once than fs.fanotify.max_queued_events")}
		if !reflect.DeepEqual(s.Incidents, incidents) {
			t.Errorf("got  %+v\nwant %+v", s.Incidents, incidents)
		}
		w.end(end)
		if !strings.Contains(lines.String(), "raise fs.fanotify.max_queued_events") {
			t.Errorf("the log does not say what to do: %s", lines)
		}
	})
}

func mustOpen(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A refused watch counts, and its line names what is to be known of it.
func TestStatusOfRefusedWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, lines, end := w.running(false)
		g.refuse = unix.EXDEV
		w.queue(encoded(t, g.watchItem(1)))
		synctest.Wait()
		if s := w.status(); s.Total != (Total{Refused: 1}) || s.Open != (Open{}) || len(s.Incidents) != 1 ||
			s.Incidents[0].Kind != Refusal || s.Incidents[0].Reason != "invalid cross-device link" {
			t.Errorf("status %+v", s)
		}
		fs, _ := FilesystemOf(mustOpen(t, "/"))
		w.end(end)
		if !strings.Contains(lines.String(), "refused: see ksmbd-notifyd check\" path=/ filesystem="+fs+" tree=false err=\"invalid cross-device link\"") {
			t.Errorf("log %s", lines)
		}
	})
}

// A loop that is stuck gives no answer, and nobody waits for it without end.
func TestStatusOfStuckLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, _, end := w.running(false)
		synctest.Wait()
		stuck := make(chan struct{})
		g.queue = append(g.queue, func() { <-stuck })
		g.wake <- struct{}{}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if s, err := w.d.Status(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %+v, %v", s, err)
		}
		close(stuck)
		synctest.Wait()
		w.status()
		w.end(end)
	})
}
