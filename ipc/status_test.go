// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
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
		fs, device := "ext4", "8:1"
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
		shares := []ShareStatus{{Overflows: 1}, {Share: "TEST", Responses: 2, Records: 1, EnumDirs: 1, Overflows: 1, Latency: Latency{Counts: [13]uint64{1}}}}
		if !reflect.DeepEqual(s.Shares, shares) {
			t.Errorf("shares %+v, want %+v", s.Shares, shares)
		}
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
		incidents := []Incident{of(Overflow, "TEST", lostAbove), of(Overflow, "", lostAbove), of(QueueOverflow, "", "more changed at once on the ext4 on device 8:1 than fs.fanotify.max_queued_events")}
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
// How requests end is counted, and the time that records took as one of those up to a bound.
func TestTotals(t *testing.T) {
	s := newStats()
	for _, status := range []genl.Status{0, genl.StatusEnumDir, genl.StatusEnumDir, genl.StatusDeletePending} {
		c := Completion{Status: status}
		if status == 0 {
			c.Records = added("a", "b")
		}
		s.told("docs", &c, LatencyBounds[1])
	}
	s.told("a", &Completion{Records: added("a")}, LatencyBounds[len(LatencyBounds)-1]+1)
	if want := (Total{Responses: 5, EnumDirs: 2, DeletePendings: 1, Records: 3}); s.total != want {
		t.Errorf("got %+v, want %+v", s.total, want)
	}
	list := s.list()
	if len(list) != 2 || list[0].Share != "a" || list[0].Latency.Counts[len(LatencyBounds)] != 1 || list[1].EnumDirs != 2 || list[1].Latency.Counts[1] != 1 {
		t.Errorf("shares %+v", list)
	}
}

// Filesystems are told with the most watches first.
func TestFilesystems(t *testing.T) {
	on := func(device, strategy string) WatchStatus {
		return WatchStatus{Filesystem: "ext4", Device: device, Strategy: strategy}
	}
	doing := &Doing{What: "x"}
	stuck := []Filesystem{{Type: "fuse", Device: "0:9", Stuck: doing}, {Type: "ext4", Device: "8:2", Stuck: doing}}
	got := filesystems(stuck, []WatchStatus{on("8:2", "b"), on("8:2", "a"), on("8:1", "a"), on("8:3", "a"), on("8:3", "a")})
	want := []Filesystem{
		{Type: "ext4", Device: "8:3", Strategy: "a", Watches: 2}, {Type: "ext4", Device: "8:1", Strategy: "a", Watches: 1},
		{Type: "ext4", Device: "8:2", Strategy: "a", Watches: 1, Stuck: doing}, {Type: "ext4", Device: "8:2", Strategy: "b", Watches: 1, Stuck: doing},
		{Type: "fuse", Device: "0:9", Stuck: doing},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if none := filesystems(nil, nil); none != nil {
		t.Errorf("of none: %v", none)
	}
}

// Watch trees are counted as long as they are there.
func TestTrees(t *testing.T) {
	w := newWorld(t)
	tree := w.watchItem(1)
	tree.Tree = true
	for _, step := range []struct {
		item genl.Item
		want int
	}{{tree, 1}, {w.watchItem(2), 1}, {unwatchItem(2), 1}, {unwatchItem(1), 0}} {
		if w.served(step.item); w.trees != step.want {
			t.Errorf("after %+v: %d trees", step.item, w.trees)
		}
	}
}

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
		fs := "ext4"
		w.end(end)
		if !strings.Contains(lines.String(), "refused: see ksmbd-notifyd check\" path=/ filesystem="+fs+" tree=false err=\"invalid cross-device link\"") {
			t.Errorf("log %s", lines)
		}
	})
}

// A filesystem that does not answer holds up its own watches and nobody else's, nor
// the end of the daemon. When it answers, nothing that happened in it is missing.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		hung := newWorld(t)
		g, lines, end := w.running(false, func(d *Daemon) {
			open := d.open
			d.open = func(fs Superblock) (Group, error) {
				if fs.Type == "fuse.test" {
					return hung.opens(fs)
				}
				return open(fs)
			}
		})
		fuse := hung.watchItem(2)
		fuse.Filesystem, fuse.Device = "fuse.test", 0x40
		for _, i := range []genl.Item{g.watchItem(1), requestItem(11, 1), fuse, requestItem(12, 2)} {
			w.queue(encoded(t, i))
		}
		synctest.Wait()
		w.said("register 30", "serving true")
		stuck := make(chan struct{})
		hung.queue = append(hung.queue, func() { <-stuck })
		hung.happens(0, create, "meanwhile")
		hung.wake <- struct{}{}
		synctest.Wait()
		since := time.Now()
		time.Sleep(time.Hour)
		g.happens(0, create, "a")
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("11: +a")
		s := w.status()
		if len(s.Filesystems) != 2 || s.Filesystems[0].Stuck != nil && s.Filesystems[1].Stuck != nil {
			t.Fatalf("filesystems %+v", s.Filesystems)
		}
		for _, fs := range s.Filesystems {
			if fs.Type == "fuse.test" && (fs.Stuck == nil || !fs.Stuck.Since.Equal(since) || fs.Stuck.What != readingChanges) {
				t.Errorf("stuck: %+v", fs)
			}
		}
		if n := len(s.Incidents); n != 1 || s.Incidents[0].Kind != Stuck {
			t.Errorf("incidents %+v", s.Incidents)
		}

		// Requests come and go; nobody keeps a heap of them.
		w.acked = nil
		for i := range 10 * maxInbox {
			w.items = append(w.items, encoded(t, requestItem(uint64(1000+i), 2)),
				encoded(t, genl.Item{Type: genl.ItemTypeCancel, WatchID: 2, RequestID: uint64(1000 + i), FD: -1}))
			if i%100 == 0 {
				w.queue(encoded(t, requestItem(uint64(100000+i), 1)))
				synctest.Wait()
			}
		}
		for fs, l := range w.d.loop.workers {
			if n := len(l.inbox.items); n > maxInbox+100 {
				t.Errorf("%v: %d in the inbox", fs, n)
			}
		}
		if len(w.acked) < 100 {
			t.Errorf("%d were acknowledged", len(w.acked))
		}

		close(stuck)
		synctest.Wait()
		w.said("12: +meanwhile")
		for _, said := range []string{"a filesystem does not answer", "filesystem=fuse.test device=0:64", "answers again"} {
			if !strings.Contains(lines.String(), said) {
				t.Errorf("%q is not in the log: %s", said, lines)
			}
		}

		again := make(chan struct{})
		hung.queue = append(hung.queue, func() { <-again })
		hung.wake <- struct{}{}
		synctest.Wait()
		before := time.Now()
		w.end(end)
		if took := time.Since(before); took > endWithin {
			t.Errorf("the end took %v", took)
		}
		close(again)
		synctest.Wait()
		if !hung.watch[0].closed {
			t.Error("what hung has not ended")
		}
	})
}
