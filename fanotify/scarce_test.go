// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
	"ksmbd-notifyd/test/limit"
)

// withFiles does something while no more than n files can be opened.
func withFiles(t testing.TB, n int, do func()) {
	t.Helper()
	defer limit.Files(t, n)()
	do()
}

// failMarks has the kernel answer fanotify_mark(2) with an error, if fail returns one, until it is
// undone.
func failMarks(fail func(flags uint, mask uint64) error) (undo func()) {
	fanotifyMark = func(fd int, flags uint, mask uint64, dirfd int, path string) error {
		if err := fail(flags, mask); err != nil {
			return err
		}
		return unix.FanotifyMark(fd, flags, mask, dirfd, path)
	}
	return func() { fanotifyMark = unix.FanotifyMark }
}

// few says ENOMEM after n of them.
func few(n int) func(uint, uint64) error {
	return func(uint, uint64) error {
		if n--; n < 0 {
			return unix.ENOMEM
		}
		return nil
	}
}

// recovers drains until nothing is to be tried again.
func recovers(t *testing.T, g *Group) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for drain(t, g); g.retry.Load() != nil; drain(t, g) {
		if err := g.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// However few files can be opened, a group is opened with all it needs, or not at all.
func TestOpenWithFewFiles(t *testing.T) {
	all := len(openTest(t).mounts.namespaces)
	before := openFiles(t)
	for n := 0; ; n++ {
		var g *Group
		var err error
		withFiles(t, n, func() { g, err = Open(nil) })
		if err == nil {
			if got := len(g.mounts.namespaces); got != all {
				t.Errorf("with %d files: %d mount namespaces of %d", n, got, all)
			}
			g.Close()
			break
		}
		if after := openFiles(t); !errors.Is(err, unix.EMFILE) || after != before {
			t.Errorf("with %d files: %v, %d files open before, %d after", n, err, before, after)
		}
	}
}

// A watch that cannot be leaves nothing behind, whatever it was that could not be opened or marked.
// One that is misses nothing, though what is mounted below it could not be opened at first.
func TestWatchWithFew(t *testing.T) {
	for _, kind := range []string{"tmpfs", "btrfs", "subvolume", "overlay"} {
		for _, tree := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s tree %v", kind, tree), func(t *testing.T) {
				dir := mountTest(t, kind)
				mountTmpfs(t, dir+"/d/m")
				try := func(what string, want unix.Errno, short func(func())) (done bool) {
					g := openTest(t)
					defer g.Close()
					g.retryAfter = time.Millisecond
					before := openFiles(t)
					f, err := os.Open(dir + "/d")
					if err != nil {
						t.Fatal(err)
					}
					var told []string
					var w *Watch
					short(func() { w, err = g.Watch(f, tree, Create, func(c Change) { told = append(told, c.String()) }) })
					if err != nil {
						if after := openFiles(t); !errors.Is(err, want) || after != before || len(g.filesystems) > 0 || len(g.points) > 0 {
							t.Errorf("%s: %v, %d files open before, %d after", what, err, before, after)
						}
						return false
					}
					recovers(t, g)
					told = nil
					name := fmt.Sprint(len(what), want) // a new one
					touch(t, dir+"/d/"+name)
					touch(t, dir+"/d/m/"+name)
					drain(t, g)
					slices.Sort(told)
					if wanted := []string{"create " + name, "create m/" + name}; !slices.Equal(told, wanted) && (tree || !slices.Equal(told, wanted[:1])) {
						t.Errorf("%s: told %q", what, told)
					}
					if err := os.Remove(dir + "/d/" + name); err != nil {
						t.Fatal(err)
					}
					os.Remove(dir + "/d/m/" + name)
					if err := w.Close(); err != nil {
						t.Error(err)
					}
					if after := openFiles(t); after != before {
						t.Errorf("%s: %d files open before, %d after", what, before, after)
					}
					return true
				}
				for n := range 16 {
					try(fmt.Sprintf("%d files", n), unix.EMFILE, func(do func()) { withFiles(t, n, do) })
				}
				for n := range 8 {
					try(fmt.Sprintf("%d marks", n), unix.ENOMEM, func(do func()) {
						defer failMarks(few(n))()
						do()
					})
				}
			})
		}
	}
}

// A watched directory that was moved while nothing could be marked is told as removed all the same.
func TestGuardLater(t *testing.T) {
	for _, kind := range []string{"tmpfs", "overlay"} {
		t.Run(kind, func(t *testing.T) {
			dir := mountTest(t, kind)
			if err := errJoin(os.Mkdir(dir+"/a", 0o755), os.Mkdir(dir+"/w", 0o755)); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			g.retryAfter = time.Millisecond
			_, told := watchTest(t, g, dir+"/w", false, Create)
			undo := failMarks(few(0))
			defer undo()
			if err := os.Rename(dir+"/w", dir+"/a/w"); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			if g.retry.Load() == nil {
				t.Fatal("it is not tried again")
			}
			undo()
			recovers(t, g)
			wantTold(t, told)
			if err := os.Remove(dir + "/a/w"); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, told, "gone")
		})
	}
}

// A directory by itself is watched again when that can be, after its queue had to be given up.
func TestMarkLater(t *testing.T) {
	dir := mountTest(t, "overlay")
	if err := os.MkdirAll(dir+"/w/d", 0o755); err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	defer g.Close()
	g.retryAfter = time.Millisecond
	w, told := watchTest(t, g, dir+"/w", true, Create)
	for marks := range 4 {
		n := marks
		undo := failMarks(func(uint, uint64) error {
			if n--; n == -1 {
				return unix.ENOMEM
			}
			return nil
		})
		w.fs.misnamed()
		drain(t, g)
		if g.retry.Load() == nil {
			t.Errorf("mark %d is not tried again", marks)
		}
		undo()
		recovers(t, g)
		*told = nil
		touch(t, fmt.Sprintf("%s/w/d/%d", dir, marks))
		drain(t, g)
		wantTold(t, told, fmt.Sprintf("create d/%d", marks))
	}
}

// Who sees a mount cannot be found out while nothing can be opened: all that may are told to list anew.
func TestLostInMount(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/a/b/m")
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	_, single := watchTest(t, g, dir, false, Create)
	for _, mounts := range []bool{false, true} {
		for _, fs := range g.filesystems {
			fs.how.forget()
		}
		touch(t, fmt.Sprintf("%s/a/b/m/%v", dir, mounts))
		g.mounts.changed.Store(mounts) // and all points are looked at
		withFiles(t, 0, func() { drain(t, g) })
		if *told = slices.Compact(*told); !slices.Equal(*told, []string{"overflow"}) {
			t.Errorf("mounts have changed %v: told %q", mounts, *told)
		}
		g.retryMounts = time.Now()
		drain(t, g)
		*told = nil
		touch(t, fmt.Sprintf("%s/a/b/m/%v later", dir, mounts))
		drain(t, g)
		wantTold(t, told, fmt.Sprintf("create a/b/m/%v later", mounts))
		wantTold(t, single)
	}
}

// Who sees a mount cannot be found out while nothing can be opened: it is not held for good when a watch, or the group, ends then.
func TestCloseWithoutFiles(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	in := dir + "/a/b/m" // is of the same filesystem
	if err := errJoin(os.MkdirAll(in, 0o755), os.Mkdir(dir+"/o", 0o755), unix.Mount(dir+"/o", in, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(in, unix.MNT_DETACH) })
	g := openTest(t)
	g.retryAfter = time.Millisecond
	empty := openFiles(t)
	for _, closes := range []func(*Watch) error{(*Watch).Close, func(*Watch) error { return g.Close() }} {
		w, _ := watchTest(t, g, dir, true, Create)
		for _, fs := range g.filesystems {
			fs.how.forget()
		}
		withFiles(t, 0, func() {
			if err := closes(w); err != nil {
				t.Error(err)
			}
		})
		if len(g.points) > 0 && g.retry.Load() == nil {
			t.Error("it is not looked for again")
		}
		if len(g.queues) > 0 {
			recovers(t, g)
		}
		if left := openFiles(t); left > empty || len(g.points) > 0 {
			t.Errorf("%d files open before, %d after, %d mounts", empty, left, len(g.points))
		}
	}
}

// The way to a mount in its own filesystem may have to be looked for in that.
func TestMountInItself(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/a")
	if err := errJoin(os.MkdirAll(dir+"/a/n/b", 0o755), unix.Mount("", dir+"/a", "", unix.MS_PRIVATE, ""), unix.Mount(dir+"/a", dir+"/a/n/b", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/a/n/b", unix.MNT_DETACH) })
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	for _, fs := range g.filesystems {
		slices.Reverse(fs.views)
		fs.how.forget()
	}
	touch(t, dir+"/a/n/f")
	drain(t, g)
	slices.Sort(*told)
	wantTold(t, told, "create a/n/b/n/f", "create a/n/f")
}

// What is mounted below a new watch tree is watched though the mounts could not be read at first.
func TestNestLater(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/m")
	g := openTest(t)
	defer g.Close()
	g.retryAfter = time.Millisecond
	var undo func()
	defer failMarks(func(uint, uint64) error {
		if undo == nil && len(g.filesystems) > 0 { // it is being armed
			undo = limit.Files(t, -1)
		}
		return nil
	})()
	_, told := watchTest(t, g, dir, true, Create)
	undo()
	recovers(t, g)
	*told = nil
	touch(t, dir+"/m/f")
	drain(t, g)
	wantTold(t, told, "create m/f")
}

// What is mounted in a mount that could not be watched covers what is there, when that can be.
func TestCoveredLater(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/m")
	mountTmpfs(t, dir+"/m/d/in")
	under := t.TempDir() // the same filesystem elsewhere, where nothing covers
	if err := unix.Mount(dir+"/m", under, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(under, unix.MNT_DETACH) })
	g := openTest(t)
	defer g.Close()
	g.retryAfter = time.Millisecond
	undo := failMarks(func(uint, uint64) error {
		if len(g.points) == 1 { // it is that of the outer
			return unix.ENOMEM
		}
		return nil
	})
	defer undo()
	_, told := watchTest(t, g, dir, true, Create)
	undo()
	recovers(t, g)
	*told = nil
	touch(t, under+"/d/in/hidden")
	touch(t, dir+"/m/d/in/f")
	drain(t, g)
	wantTold(t, told, "create m/d/in/f")
}

// A queue that cannot be read, or not decoded, is no silence.
func TestBrokenQueue(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	defer g.Close()
	w, told := watchTest(t, g, dir, true, Create)
	file := info{unix.FAN_EVENT_INFO_TYPE_FID, testHandle, ""}
	event := encode(unix.FAN_MODIFY, w.fs.id, file)
	g.queues[0].buf = append(g.queues[0].buf, event[:len(event)-1]...)
	drain(t, g)
	wantTold(t, told, "overflow")
	event[metadataLen+2] = 1 // its record has no end: nobody looks at that before it is told
	g.queues[0].buf = append(g.queues[0].buf, event...)
	drain(t, g)
	wantTold(t, told, "overflow")
	if n := g.Overflows(); n != 2 {
		t.Errorf("%d overflows are counted", n)
	}
	g.queues[0].buf = append(g.queues[0].buf, make([]byte, maxBatch)...) // there is room for no more
	drain(t, g)
	wantTold(t, told, "overflow")

	q := g.queues[0].fd
	broken, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0) // reading it is EISDIR
	if err != nil {
		t.Fatal(err)
	}
	g.queues[0].fd = broken
	if err := g.Drain(); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a queue that cannot be read: %v", err)
	}
	g.queue = g.queues[0]
	if g.readOn(g.queue) != 0 || g.more() {
		t.Error("something is read on")
	}
	g.queues[0].fd = q
	unix.Close(broken)
	touch(t, dir+"/f")
	drain(t, g)
	wantTold(t, told, "create f")
}

// What cannot be handed over for lack of files is gone on with, and nothing is left open.
func TestHandoverWithFewFiles(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	before := openFiles(t)
	for n := range 2 {
		withFiles(t, n, func() {
			if _, err := g.Detach(); !errors.Is(err, unix.EMFILE) {
				t.Errorf("handed over with %d files: %v", n, err)
			}
		})
	}
	touch(t, dir+"/1")
	drain(t, g)
	wantTold(t, told, "create 1")
	queue, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	heir := openTest(t)
	defer heir.Close()
	withFiles(t, 0, func() {
		if err := heir.Inherit(queue); !errors.Is(err, unix.EMFILE) {
			t.Errorf("inherited with no file: %v", err)
		}
	})
	queue.Close()
	_, told = watchTest(t, heir, dir, true, Create)
	touch(t, dir+"/2")
	drain(t, heir)
	wantTold(t, told, "create 2")
	heir.Close()
	if after := openFiles(t); after > before {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

// nobodys is of whoever does not watch. It implements Apart.
type nobodys struct{ closed *int }

func (nobodys) Take(fn func(Change)) { fn(Change{Op: Gone}) }

func (n nobodys) Close() error { *n.closed++; return nil }

// A mount that is left to somebody else, who does not watch it, is tried again, and as long as that
// lasts clients list anew.
func TestLeaveToNobody(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	if err := os.Mkdir(dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	defer g.Close()
	g.retryAfter = time.Millisecond
	asked, closed := 0, 0
	watches := func(dir *os.File, _ mounts.Mount) Apart {
		asked++
		dir.Close()
		return nobodys{&closed}
	}
	_, told := watchTest(t, g, dir, true, Create)
	g.Leave(func(kind string) bool { return kind == "tmpfs" }, watches)
	mountTmpfs(t, dir+"/d/m")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for tries := range 3 {
		*told = nil
		for !slices.Contains(*told, "overflow") {
			if err := g.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			if tries == 1 {
				withFiles(t, 0, func() { drain(t, g) })
			} else {
				drain(t, g)
			}
		}
	}
	if asked < 2 || closed < asked-1 {
		t.Errorf("%d were asked, %d closed", asked, closed)
	}
}

// hears is whoever watches a mount for a group, and has heard that. It implements Apart.
type hears struct{ changes *[]Change }

func (h hears) Take(fn func(Change)) {
	for _, c := range *h.changes {
		fn(c)
	}
	*h.changes = nil
}

func (hears) Close() error { return nil }

// What another has heard of a mount is told as it is seen here: a name may be out of sight, and if it
// cannot be found out what it is called, all are told to list anew.
func TestToldApart(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/d/m")
	g := openTest(t)
	defer g.Close()
	var changes []Change
	g.Leave(func(kind string) bool { return kind == "tmpfs" }, func(dir *os.File, _ mounts.Mount) Apart {
		dir.Close()
		return hears{&changes}
	})
	w, told := watchTest(t, g, dir, true, Create|Rename)
	m := []byte("m/f")
	for _, c := range []struct {
		change Change
		want   []string
	}{
		{Change{Op: Create, Name: m}, []string{"create d/m/f"}},
		{Change{Op: Rename, OldName: m, Name: m}, []string{"rename d/m/f -> d/m/f"}},
		{Change{Op: Rename, OldName: m, Name: []byte("n/f")}, []string{"rename d/m/f -> ."}},
		{Change{Op: Rename, OldName: []byte("n/f"), Name: m}, []string{"rename . -> d/m/f"}},
		{Change{Op: Create, Name: []byte("mm/f")}, nil},
		{Change{Op: Modify, Name: m}, nil},
	} {
		changes = []Change{c.change}
		drain(t, g)
		wantTold(t, told, c.want...)
	}
	w.fs.how.forget()
	changes = []Change{{Op: Create, Name: m}}
	withFiles(t, 0, func() { drain(t, g) })
	wantTold(t, told, "overflow")

	// The name itself is not looked at: that may take for ever.
	w.fs.believe(w.fs.nodes[w.node.handle], doubt{name: []byte("d"), present: true, isDir: true}, true)
	for _, p := range g.points {
		w.fs.believe(p.dir, doubt{name: []byte(p.name), present: true, isDir: true}, true)
	}
	drain(t, g)
	wantTold(t, told)
}

// What is mounted below a watch tree is marked for what another watch asks for too, later if it cannot
// be yet.
func TestWidenNested(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/m")
	touch(t, dir+"/m/f")
	g := openTest(t)
	defer g.Close()
	g.retryAfter = time.Millisecond
	_, first := watchTest(t, g, dir, true, Create)
	modify := func() {
		t.Helper()
		if err := os.WriteFile(dir+"/m/f", []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		drain(t, g)
	}
	w, second := watchTest(t, g, dir, true, Modify)
	modify()
	if *second = slices.Compact(*second); !slices.Equal(*second, []string{"modify m/f"}) {
		t.Errorf("told %q", *second)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	asked := false
	defer failMarks(func(flags uint, mask uint64) error {
		if flags&unix.FAN_MARK_ADD != 0 && mask&unix.FAN_MODIFY != 0 && !asked { // that of the mount comes first
			asked = true
			return unix.ENOMEM
		}
		return nil
	})()
	_, second = watchTest(t, g, dir, true, Modify)
	if !asked {
		t.Error("the mount's mark is not widened")
	}
	recovers(t, g)
	if !slices.Contains(*second, "overflow") || !slices.Contains(*first, "overflow") {
		t.Errorf("told %q and %q when it could not be marked", *first, *second)
	}
	*second = nil
	modify()
	if *second = slices.Compact(*second); !slices.Equal(*second, []string{"modify m/f"}) {
		t.Errorf("later told %q", *second)
	}
}

// A directory is watched again that a mount had covered, also if it could not be opened at first.
func TestUncoveredLater(t *testing.T) {
	dir := mountTest(t, "overlay")
	if err := os.MkdirAll(dir+"/d/m/x", 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 6 {
		mountTmpfs(t, dir+"/d/m")
		g := openTest(t)
		g.retryAfter = time.Millisecond
		_, told := watchTest(t, g, dir, true, Create)
		if err := unix.Unmount(dir+"/d/m", 0); err != nil {
			t.Fatal(err)
		}
		withFiles(t, n, func() { drain(t, g) })
		recovers(t, g)
		*told = nil
		touch(t, fmt.Sprintf("%s/d/m/x/%d", dir, n))
		drain(t, g)
		wantTold(t, told, fmt.Sprintf("create d/m/x/%d", n))
		g.Close()
	}
}

// A directory that is gone when it is to be marked is looked for again: events say what became of it.
func TestGoneWhenMarked(t *testing.T) {
	dir := mountTest(t, "overlay")
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	gone := true
	defer failMarks(func(uint, uint64) error {
		if gone {
			gone = false
			return unix.ENOENT
		}
		return nil
	})()
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	wantTold(t, told, "create a/", "create a/b/")
	touch(t, dir+"/a/b/c")
	drain(t, g)
	wantTold(t, told, "create a/b/c")
}

// Who may not is told what it takes.
func TestOpenWithoutRight(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its rights
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := Open(nil)
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "it takes root") {
		t.Errorf("error %v", err)
	}
}

// proc tells nobody what comes and goes in it.
func TestProc(t *testing.T) {
	dir, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openTest(t).Watch(dir, true, Create, nil); !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "proc") {
		t.Errorf("error %v", err)
	}
}
