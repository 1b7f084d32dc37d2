// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

func TestPolicyTells(t *testing.T) {
	for _, test := range []struct {
		policy Policy
		share  string
		want   bool
	}{
		{Policy{}, "docs", true},
		{Policy{Off: true}, "docs", false},
		{Policy{Shares: map[string]bool{"docs": false}}, "DOCS", false},
		{Policy{Shares: map[string]bool{"docs": false}}, "music", true},
		{Policy{Shares: map[string]bool{FoldShare("Ärger"): false}}, "a\u0308rger", false}, // as ksmbd has it
		{Policy{Shares: map[string]bool{FoldShare("Straße"): false}}, "STRASSE", false},
		{Policy{Shares: map[string]bool{FoldShare("a\xffB"): false}}, "A\xffb", false}, // no UTF-8
		{Policy{Off: true, Shares: map[string]bool{"docs": true}}, "Docs", true},
		{Policy{Off: true, Shares: map[string]bool{"docs": true}}, "music", false},
	} {
		if got := test.policy.Tells(test.share); got != test.want {
			t.Errorf("%+v, %s: %v", test.policy, test.share, got)
		}
	}
}

func TestPolicyString(t *testing.T) {
	for want, p := range map[string]Policy{
		"":                     {},
		"change notify is off": {Off: true, Shares: map[string]bool{"quiet": false}},
		"change notify is off but in docs, music":                           {Off: true, Shares: map[string]bool{"music": true, "docs": true}},
		"change notify is off in quiet":                                     {Shares: map[string]bool{"quiet": false, "docs": true}},
		"a user may have 5 watches; 7 KiB of records may wait for a client": {UserWatches: 5, ClientKiB: 7},
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
}

func (w *world) itemOf(id uint64, user, share string) genl.Item {
	item := w.watchItem(id)
	item.User, item.Share = user, share
	return item
}

// A watch that may not be is refused before it is armed, and one that goes makes
// room for another.
func TestPolicyAdmits(t *testing.T) {
	w := newWorld(t)
	before := countFDs(t)
	w.control.policy = Policy{Shares: map[string]bool{"quiet": false}, UserWatches: 2}
	w.served(w.itemOf(1, "anne", "quiet"), w.itemOf(2, "anne", "docs"), w.itemOf(3, "anne", "docs"), w.itemOf(4, "anne", "docs"),
		w.itemOf(5, "bert", "docs"))
	w.told("ack 1: ECANCELED", "ack 4: ENOSPC")
	if len(w.watch) != 3 {
		t.Errorf("%d were watched", len(w.watch))
	}
	// That nothing is told in a share is as the administrator wants it.
	if s := w.stats; s.total.Refused != 1 || len(s.incidents) != 1 || s.incidents[0].User != "anne" || s.incidents[0].Share != "docs" ||
		s.incidents[0].Reason != "the user has 2 watches already, and the settings allow no more" {
		t.Errorf("%d were refused: %+v", s.total.Refused, s.incidents)
	}
	w.served(unwatchItem(2), w.itemOf(6, "anne", "docs"))
	w.told()
	w.served(w.itemOf(7, "anne", "docs"), requestItem(8, 7), unwatchItem(6)) // who goes is fetched last
	w.told()
	w.served(w.itemOf(9, "anne", "docs")) // that who went has gone once is enough
	w.told("ack 9: ENOSPC")
	if countFDs(t) > before {
		t.Error("a directory was left open")
	}
	w.served(unwatchItem(3), unwatchItem(5), unwatchItem(7))
	if n := len(w.loop.routes) + len(w.loop.users); n != 0 {
		t.Errorf("left of those that have gone or were refused: %v, %v", w.loop.routes, w.loop.users)
	}
}

// More items are fetched only if a user seems to have too many watches.
func TestCrowded(t *testing.T) {
	w := newWorld(t)
	w.control.policy = Policy{UserWatches: 2, Shares: map[string]bool{"quiet": false}}
	w.served(w.itemOf(1, "anne", "docs"), w.itemOf(2, "anne", "docs"))
	w.told()
	watch := func(id uint64, user, share string) genl.Item {
		return genl.Item{Type: genl.ItemTypeWatch, WatchID: id, User: user, Share: share}
	}
	for _, test := range []struct {
		items []genl.Item
		want  bool
	}{
		{nil, false},
		{[]genl.Item{watch(3, "anne", "docs")}, true},
		{[]genl.Item{watch(3, "anne", "quiet")}, false}, // it is refused in any case
		{[]genl.Item{watch(2, "anne", "docs")}, false},  // which she has
		{[]genl.Item{watch(3, "bert", "docs"), watch(4, "bert", "docs")}, false},
		{[]genl.Item{watch(3, "bert", "docs"), watch(4, "bert", "docs"), watch(5, "bert", "docs")}, true},
		{[]genl.Item{watch(3, "anne", "docs"), unwatchItem(1)}, false},
		{[]genl.Item{watch(3, "anne", "docs"), watch(4, "anne", "docs"), unwatchItem(1)}, true},
		{[]genl.Item{watch(3, "anne", "docs"), requestItem(9, 1), unwatchItem(99)}, true},
	} {
		if got := w.loop.crowded(test.items); got != test.want {
			t.Errorf("%+v: %v", test.items, got)
		}
	}
	w.control.policy.UserWatches = 1
	if w.loop.crowded([]genl.Item{unwatchItem(1)}) || w.loop.crowded([]genl.Item{unwatchItem(1), watch(3, "anne", "docs")}) {
		t.Error("who has too many, and no more than before, is looked at")
	}
}

// What is watched when changes are no longer told has its client ask again, to be
// refused.
func TestPolicyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, _, end := w.running(false, func(d *Daemon) { d.Policy.Shares = map[string]bool{"other": false} })
		for _, i := range []genl.Item{g.itemOf(1, "anne", "docs"), requestItem(2, 1), g.itemOf(3, "anne", "music"), requestItem(4, 3)} {
			w.queue(encoded(t, i))
		}
		synctest.Wait()
		w.said("register 30", "serving true")
		if p := w.status().Policy; p.Tells("other") || !p.Tells("docs") {
			t.Errorf("at first: %+v", p)
		}
		if err := w.d.SetPolicy(t.Context(), Policy{Shares: map[string]bool{"docs": false}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.said("2: ENUM_DIR")
		w.queue(encoded(t, requestItem(5, 1)))
		synctest.Wait()
		w.said("ack 5: ECANCELED")
		g.happens(1, create, "a")
		g.wake <- struct{}{}
		synctest.Wait()
		w.said("4: +a")
		if s := w.status(); s.Open.Watches != 1 || s.Watches[0].Share != "music" {
			t.Errorf("status %+v", s)
		}
		if n := len(w.d.loop.routes); n != 1 || len(w.d.loop.users) != 1 {
			t.Errorf("%d watches have a worker, of %v", n, w.d.loop.users)
		}
		w.end(end)
		if err := w.d.SetPolicy(t.Context(), Policy{}); !errors.Is(err, errEnded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Who looks on hears of what concerns them and nobody waits for them.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, lines, end := w.running(false)
		docs := func(s WatchStatus) bool { return s.Share == "docs" }
		w.queue(encoded(t, g.itemOf(1, "anne", "docs")))
		synctest.Wait()
		trace, stop, err := w.d.Trace(t.Context(), "", docs)
		if err != nil {
			t.Fatal(err)
		}
		if trace.Watches != 1 {
			t.Errorf("%d watches at first", trace.Watches)
		}
		for _, i := range []genl.Item{requestItem(2, 1), g.itemOf(3, "bert", "docs"), g.itemOf(4, "bert", "music"), requestItem(5, 4)} {
			w.queue(encoded(t, i))
		}
		synctest.Wait()
		g.happens(0, rename, "a", "b")
		g.happens(2, create, "unheard of")
		g.wake <- struct{}{}
		synctest.Wait()
		var got []string
		for len(trace.Lines) > 0 {
			line := <-trace.Lines
			got = append(got, line[len(TraceTime)+1:])
		}
		want := []string{
			"request request=2 watch=1 buffer=4096",
			"watch watch=3 path=/ tree=false filter=" + All.String() + " buffer=4096 rescan=false user=bert share=docs",
			"change watch=1 op=rename from=//a path=//b thread=0",
			"record watch=1 action=RENAMED_OLD_NAME name=a path=//a",
			"record watch=1 action=RENAMED_NEW_NAME name=b path=//b",
			"complete request=2 watch=1 records=2",
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if strings.Contains(lines.String(), "change") {
			t.Errorf("the log has it too: %s", lines)
		}

		for range 2 * cap(trace.Lines) {
			g.happens(0, create, "a")
		}
		g.wake <- struct{}{}
		time.Sleep(2 * gap)
		synctest.Wait()
		if n := trace.Dropped.Load(); n == 0 {
			t.Error("nothing was dropped for who does not read")
		}

		for range maxTracers - 1 {
			_, stop, err := w.d.Trace(t.Context(), "", docs)
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
		}
		if _, _, err := w.d.Trace(t.Context(), "", docs); !errors.Is(err, ErrTracers) {
			t.Errorf("one too many: %v", err)
		}
		stop()
		for len(trace.Lines) > 0 {
			<-trace.Lines
		}
		g.happens(0, create, "b")
		g.wake <- struct{}{}
		time.Sleep(2 * gap)
		synctest.Wait()
		if len(trace.Lines) > 0 {
			t.Errorf("heard %q after it was stopped", <-trace.Lines)
		}
		w.end(end)
	})
}

// Who looks on at a directory hears of the changes there, and of all requests.
func TestTraceBelow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t}
		g, _, end := w.running(false)
		synctest.Wait()
		trace, stop, err := w.d.Trace(t.Context(), "/a", func(WatchStatus) bool { return true }) // before there is any ksmbd
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		w.load(30)
		synctest.Wait()
		w.queue(encoded(t, g.watchItem(1)))
		w.queue(encoded(t, requestItem(2, 1)))
		synctest.Wait()
		w.d.loop.each(func(l *worker) { l.watches[1].about.Directory = "" })
		for _, name := range []string{"b", "a/c"} {
			g.happens(0, create, name)
		}
		g.wake <- struct{}{}
		synctest.Wait()
		var got []string
		for len(trace.Lines) > 0 {
			words := strings.Fields(<-trace.Lines)
			got = append(got, words[2])
		}
		if want := []string{"watch", "request", "complete", "change", "record"}; !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
		w.end(end)
	})
}

// Who begins to look on, or ends that, while a watch is opened hears of it, or no more.
func TestTraceWhileWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &netlinkWorld{t: t, family: 30}
		g, _, end := w.running(false)
		var trace *Tracer
		var stop func()
		g.meanwhile = func(func(fanotify.Change)) {
			if trace != nil {
				stop()
				return
			}
			var err error
			if trace, stop, err = w.d.Trace(t.Context(), "", func(WatchStatus) bool { return true }); err != nil {
				t.Error(err)
			}
		}
		for id := uint64(1); id <= 2; id++ {
			w.queue(encoded(t, g.watchItem(id)))
			synctest.Wait()
			for len(trace.Lines) > 0 {
				<-trace.Lines
			}
			g.happens(int(id-1), create, "a")
			g.wake <- struct{}{}
			time.Sleep(2 * gap)
			synctest.Wait()
			if n := len(trace.Lines); (n > 0) != (id == 1) {
				t.Errorf("watch %d: %d lines", id, n)
			}
		}
		w.end(end)
	})
}

// What happens again and again is one incident, and only so many are kept.
func TestIncidents(t *testing.T) {
	s := newStats()
	for i := range maxIncidents + 1 {
		for range 3 {
			s.note(Incident{Kind: Refusal, Directory: string(rune('A' + i))})
		}
	}
	if n := len(s.incidents); n != maxIncidents || s.incidents[0].Directory != "B" || s.incidents[n-1].Count != 3 {
		t.Errorf("%d: %+v", n, s.incidents)
	}
}

// Numbers of more shares than any server has are kept together.
func TestSharesAreBounded(t *testing.T) {
	s := newStats()
	for i := range 2 * maxShares {
		s.of(string(rune('A'+i))).Records++
	}
	if n := len(s.list()); n != maxShares+1 || s.of("").Records != maxShares {
		t.Errorf("%d shares, %d records of others", n, s.of("").Records)
	}
}

// The time that a record waits for its client counts as well.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.served(w.itemOf(1, "anne", "docs"))
		w.happens(0, create, "a")
		w.drained()
		time.Sleep(2 * time.Second)
		w.happens(0, create, "b")
		w.served(requestItem(1, 1))
		w.told("1: +a +b")
		got := w.stats.of("docs").Latency
		if got.Seconds != 2 || got.Counts[9] != 1 { // to 3 s
			t.Errorf("%+v", got)
		}
	})
}

// A kind of filesystem is called as the kernel calls it.
func TestFilesystemOf(t *testing.T) {
	for path, want := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev/shm": "tmpfs"} {
		if got, _ := FilesystemOf(mustOpen(t, path)); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
	gone, err := os.Open(filepath.Join(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	if kind, device := FilesystemOf(gone); kind != "?" || device != "?" {
		t.Errorf("what is closed: %s, %s", kind, device)
	}
}

func TestMountOnly(t *testing.T) {
	for kind, want := range map[string]bool{
		"ext4": false, "xfs": false, "btrfs": false, "tmpfs": false, "fuseblk": false, "zfs": false,
		"nfs": true, "nfs4": true, "cifs": true, "smb3": true, "overlay": true, "fuse": true, "fuse.mergerfs": true, "fuse.rclone": true, "virtiofs": true,
	} {
		if MountOnly(kind) != want {
			t.Errorf("%s: %v", kind, !want)
		}
	}
}
