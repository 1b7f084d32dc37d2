// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watchTest watches path and returns what it was told, a line each.
func watchTest(t testing.TB, g *Group, path string, tree bool, ops Op) (*Watch, *[]string) {
	t.Helper()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	w, err := g.Watch(dir, tree, ops, func(c Change) { told = append(told, c.String()) })
	if err != nil {
		t.Fatal(err)
	}
	return w, &told
}

const allOps = Create | Delete | Rename | Modify | Attrib

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func drain(t testing.TB, g *Group) {
	t.Helper()
	if err := g.Drain(); err != nil {
		t.Fatal(err)
	}
}

func wantTold(t *testing.T, told *[]string, want ...string) {
	t.Helper()
	if fmt.Sprint(*told) != fmt.Sprint(want) {
		t.Errorf("told %q, want %q", *told, want)
	}
	*told = nil
}

func TestWait(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	w, told := watchTest(t, g, dir, false, Create)

	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	if err := g.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing waits: %v", err)
	}
	cancel()
	if err := g.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("done before: %v", err)
	}

	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	woke := make(chan error)
	go func() { woke <- g.Wait(ctx) }()
	touch(t, dir+"/1")
	if err := <-woke; err != nil {
		t.Errorf("an event waits: %v", err)
	}
	if err := g.Wait(ctx); err != nil {
		t.Errorf("it still waits: %v", err)
	}
	go func() { woke <- g.Wait(ctx) }()
	drain(t, g) // beside Wait
	wantTold(t, told, "create 1")
	touch(t, dir+"/2")
	if err := <-woke; err != nil {
		t.Errorf("an event waits: %v", err)
	}
	drain(t, g)

	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close of a watch: %v", err)
	}
	go func() { woke <- g.Wait(ctx) }()
	g.Close()
	if err := <-woke; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := g.Drain(); err == nil {
		t.Error("drained a closed group")
	}
}

// A directory may come open with O_PATH, as ksmbd hands it over, on any filesystem.
// What happens while a watch is opened is told at once, though the queue was read for that.
func TestWaitAfterWatch(t *testing.T) {
	for _, tree := range []bool{false, true} {
		g := openTest(t)
		dir := t.TempDir()
		watch := func(fn func(Change)) {
			f, err := os.Open(dir)
			if err == nil {
				_, err = g.Watch(f, tree, Create, fn)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		told := 0
		watch(func(Change) { told++ })
		drain(t, g)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		watch(func(c Change) { t.Errorf("the new watch is told of what was before: %v", c) })
		woke := make(chan error)
		go func() { woke <- g.Wait(ctx) }()
		if err := <-woke; err != nil {
			t.Fatal(err)
		}
		if err := g.Drain(); err != nil || told != 1 {
			t.Fatalf("told %d times, %v", told, err)
		}

		// The same of a Wait that has begun.
		go func() { woke <- g.Wait(ctx) }()
		time.Sleep(10 * time.Millisecond)
		g.queues[0].buf = append(g.queues[0].buf, 0)
		g.schedule()
		if err := <-woke; err != nil {
			t.Fatal(err)
		}
		g.queues[0].buf = nil
		g.Close()
	}
}

func TestPathOnly(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			dir := mountTest(t, f.name)
			if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			before := openFiles(t)
			var watches []*Watch
			var told []string
			for _, tree := range []bool{false, true} {
				fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				w, err := g.Watch(os.NewFile(uintptr(fd), dir), tree, Create, func(c Change) { told = append(told, c.String()) })
				if err != nil {
					t.Fatal(err)
				}
				watches = append(watches, w)
			}
			touch(t, dir+"/a/b/c")
			touch(t, dir+"/d")
			drain(t, g)
			slices.Sort(told)
			wantTold(t, &told, "create a/b/c", "create d", "create d")
			for _, w := range watches {
				w.Close()
			}
			if n := openFiles(t); n != before {
				t.Errorf("%d files left open", n-before)
			}
		})
	}
	g := openTest(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Watch(file, false, Create, nil); err == nil {
		t.Error("a device is watched")
	}
}

// A change names the directory that it was in by its handle.
func TestParent(t *testing.T) {
	g := openTest(t)
	root := t.TempDir()
	for _, dir := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	handleOf := func(dir string) string {
		h, _, err := handleAt(unix.AT_FDCWD, filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	var told []Change
	if _, err := g.Watch(dir, true, allOps, func(c Change) { told = append(told, c) }); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(root, "a/f"))
	if err := os.Rename(filepath.Join(root, "a/f"), filepath.Join(root, "b/f")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	for _, want := range []Change{
		{Op: Create, Parent: handleOf("a")},
		{Op: Rename, OldParent: handleOf("a"), Parent: handleOf("b")},
		{Op: Attrib, Parent: handleOf(".")},
	} {
		if !slices.ContainsFunc(told, func(c Change) bool {
			return c.Op == want.Op && c.Parent == want.Parent && c.OldParent == want.OldParent
		}) {
			t.Errorf("not told of %v from %x to %x", want.Op, want.OldParent, want.Parent)
		}
	}
}

// A thousand watchers of a directory, some of its tree: one mark of each
// kind, one fd, and one decoding.
func TestThousandWatchers(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	before := openFiles(t)
	var watches []*Watch
	told := 0
	add := func(tree bool, ops Op) {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		w, err := g.Watch(f, tree, ops, func(c Change) { told++ })
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	for i := range 1000 {
		add(i%10 == 0, Create)
	}
	if n := openFiles(t) - before; n != 2 { // the directory, and its mount
		t.Errorf("%d files open for one directory", n)
	}
	wantMarks(t, g, "inode 40000904", "filesystem 58000304")
	add(false, Modify)
	add(true, Attrib)
	wantMarks(t, g, "inode 58000b06", "filesystem 58000304")
	touch(t, dir+"/f")
	drain(t, g)
	if told != 1000 {
		t.Errorf("%d of 1000 told", told)
	}
	for len(watches) > 500 {
		w := watches[len(watches)-1]
		watches = watches[:len(watches)-1]
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantMarks(t, g, "inode 40000904", "filesystem 58000304")
	for _, w := range watches {
		w.Close()
	}
	wantMarks(t, g)
	if n := openFiles(t); n != before {
		t.Errorf("%d files left open", n-before)
	}
}

// wantMarks compares the group's marks, as the kernel lists them, with kinds
// and masks. The kernel adds EVENT_ON_CHILD to those of filesystems.
func wantMarks(t *testing.T, g *Group, want ...string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", g.queues[0].fd))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		var kind, mask string
		for _, word := range strings.Fields(line) {
			if m, ok := strings.CutPrefix(word, "mask:"); ok {
				mask = m
			}
		}
		switch {
		case strings.HasPrefix(line, "fanotify ino:"):
			kind = "inode"
		case strings.HasPrefix(line, "fanotify sdev:"):
			kind = "filesystem"
		default:
			continue
		}
		got[kind+" "+mask] = true
	}
	for _, w := range want {
		if !got[w] {
			t.Errorf("no mark %q in %v", w, got)
		}
	}
	if len(got) != len(want) {
		t.Errorf("marks %v, want %q", got, want)
	}
}

// One directory seen through two mounts: names come from wherever they can.
func TestMounts(t *testing.T) {
	mnt := mountTest(t, "ext4")
	if err := os.MkdirAll(mnt+"/a/share/d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	bind := filepath.Join(t.TempDir(), "bind")
	if err := os.Mkdir(bind, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(mnt+"/a/share", bind, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(bind, unix.MNT_DETACH)
	g := openTest(t)
	defer g.Close()
	_, share := watchTest(t, g, bind, true, allOps)
	_, inShare := watchTest(t, g, bind+"/d", true, allOps)
	touch(t, mnt+"/a/share/d/e/1")
	touch(t, mnt+"/a/outside")
	drain(t, g)
	wantTold(t, share, "create d/e/1")
	wantTold(t, inShare, "create e/1")

	_, whole := watchTest(t, g, mnt, true, allOps) // it sees what is above the first mount's root
	touch(t, bind+"/d/e/2")
	touch(t, mnt+"/a/3")
	drain(t, g)
	wantTold(t, share, "create d/e/2")
	wantTold(t, inShare, "create e/2")
	wantTold(t, whole, "create a/share/d/e/2", "create a/3")

	if err := os.Rename(mnt+"/a/share/d", mnt+"/d"); err != nil { // out of the first mount
		t.Fatal(err)
	}
	touch(t, mnt+"/d/e/4")
	drain(t, g)
	wantTold(t, share, "rename d/ -> .")
	wantTold(t, inShare, "create e/4")
	wantTold(t, whole, "rename a/share/d/ -> d/", "create d/e/4")
}

// Many changes, a short queue, a reader that sleeps: what is not told is
// under an Overflow.
func TestNoSilentLoss(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openQueued(t, 16)
	_, told := watchTest(t, g, dir, true, Create)
	for i := range 20000 {
		touch(t, fmt.Sprint(dir, "/", i))
	}
	drain(t, g)
	wantTold(t, told, "overflow")
	touch(t, dir+"/after")
	drain(t, g)
	wantTold(t, told, "create after")
	if n := g.Overflows(); n != 1 {
		t.Errorf("%d overflows counted, want 1", n)
	}
}

// A tree that nobody looked at is removed under an eager reader: its names
// are told, or there is an Overflow, and that is rare.
func TestRemoveCold(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			g := openTest(t)
			defer g.Close()
			names, overflows, rounds := make(map[string]bool), 0, 0
			dir, err := os.Open(mnt)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.Watch(dir, true, Delete, func(c Change) {
				if c.Op == Overflow {
					overflows++
					clear(names)
				}
				delete(names, string(c.Name))
			}); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(*convergeFor); time.Now().Before(end); rounds++ {
				for i := range 64 {
					path := fmt.Sprintf("a/%d/%d", i%8, i)
					names["a"], names[filepath.Dir(path)], names[path], names[path+"/f"] = true, true, true, true
					if err := os.MkdirAll(filepath.Join(mnt, path), 0o755); err != nil {
						t.Fatal(err)
					}
					touch(t, filepath.Join(mnt, path, "f"))
				}
				drain(t, g)
				for _, fs := range g.filesystems {
					fs.how.forget()
				}
				ctx, done := context.WithCancel(context.Background())
				go func() {
					defer done()
					if err := os.RemoveAll(mnt + "/a"); err != nil {
						t.Error(err)
					}
				}()
				for g.Wait(ctx) == nil {
					drain(t, g)
				}
				drain(t, g)
				if len(names) > 0 {
					t.Fatalf("not told: %v", names)
				}
			}
			t.Logf("%d rounds, %d overflows", rounds, overflows)
		})
	}
}

// What the kernel does not name, or cannot have meant.
func TestNameless(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	w, told := watchTest(t, g, dir, true, Create|Modify|Attrib)
	_, single := watchTest(t, g, dir, false, Create|Modify|Attrib)
	_, other := watchTest(t, g, dir, true, Create)
	touch(t, dir+"/f")
	file, _, err := handleAt(unix.AT_FDCWD, dir+"/f")
	if err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	*told, *single, *other = nil, nil, nil
	fid, gone := info{unix.FAN_EVENT_INFO_TYPE_FID, file, ""}, info{unix.FAN_EVENT_INFO_TYPE_FID, testHandle, ""}
	at := func(name string) info { return info{unix.FAN_EVENT_INFO_TYPE_DFID_NAME, testHandle, name} }
	for _, c := range []struct {
		what string
		buf  []byte
		want []string
	}{
		{"a write through a handle", encode(unix.FAN_MODIFY, w.fs.id, fid), []string{"overflow"}},
		{"that is gone", encode(unix.FAN_MODIFY, w.fs.id, gone), nil},
		{"a link less", encode(unix.FAN_ATTRIB, w.fs.id, fid), nil},
		{"a directory that is gone", encode(unix.FAN_MODIFY, w.fs.id, at("f")), []string{"overflow"}},
		{"attributes of it", encode(unix.FAN_ATTRIB|unix.FAN_ONDIR, w.fs.id, at(".")), nil},
		{"in a directory, and no name", encode(unix.FAN_MODIFY, w.fs.id, info{unix.FAN_EVENT_INFO_TYPE_DFID, testHandle, ""}), []string{"overflow"}},
		{"another filesystem", encode(unix.FAN_MODIFY, w.fs.id+1, at("f")), nil},
	} {
		g.batch++
		g.queue, g.queues[0].buf = g.queues[0], c.buf
		g.dispatch()
		g.queues[0].buf = nil
		t.Log(c.what)
		wantTold(t, told, c.want...)
		wantTold(t, single)
		wantTold(t, other)
	}
	g.queues[0].buf = []byte("nonsense")
	drain(t, g)
	wantTold(t, told, "overflow")
	wantTold(t, single, "overflow")
	wantTold(t, other, "overflow")
}

// A tree that there are too few marks for is refused and leaves nothing behind.
func TestRefused(t *testing.T) {
	needHandles(t)
	base := mountTest(t, "tmpfs")
	for _, d := range []string{"lower", "upper", "work", "o"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(base+"/lower/w/d", 0o755); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)
	if out, err := exec.Command("mount", "-t", "overlay", "-o", opts, "overlay", base+"/o").CombinedOutput(); err != nil {
		t.Skipf("no overlayfs: %s", out)
	}
	defer unix.Unmount(base+"/o", unix.MNT_DETACH)
	g := openTest(t)
	defer g.Close()
	g.maxMarks = 1
	before := openFiles(t)
	dir, err := os.Open(base + "/o/w")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Watch(dir, true, Create, nil); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a tree on overlayfs: %v", err)
	} else {
		t.Log(err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d files left open", n-before)
	}
	removed := filepath.Join(base, "removed")
	os.Mkdir(removed, 0o755)
	if dir, err = os.Open(removed); err != nil {
		t.Fatal(err)
	}
	os.Remove(removed)
	if _, err := g.Watch(dir, true, Create, nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a removed directory: %v", err)
	}
	wantMarks(t, g)

	_, told := watchTest(t, g, base+"/o/w", false, allOps)
	touch(t, base+"/o/w/f")
	os.Rename(base+"/o/w/f", base+"/o/w/g")
	os.Remove(base + "/o/w/g")
	drain(t, g)
	wantTold(t, told, "create f", "rename f -> g", "delete g")
	if err := os.RemoveAll(base + "/o/w"); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	wantTold(t, told, "delete d/", "gone")
}

// TestTooLarge: a watch tree that becomes too large for directory marks is told as an Overflow again and again, since no
// mark tells of changes in the rest of it, until it is not too large any more.
func TestTooLarge(t *testing.T) {
	dir := mountTest(t, "overlay")
	g := openTest(t)
	g.maxMarks, g.retryAfter = 2, 10*time.Millisecond
	_, told := watchTest(t, g, dir, true, Create)
	if err := errJoin(os.Mkdir(dir+"/a", 0o755), os.Mkdir(dir+"/b", 0o755)); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 3 {
		*told = nil
		for !slices.Contains(*told, "overflow") {
			if err := g.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
		}
	}
	if err := os.RemoveAll(dir + "/b"); err != nil {
		t.Fatal(err)
	}
	recovers(t, g)
	*told = nil
	touch(t, dir+"/a/end")
	drain(t, g)
	wantTold(t, told, "create a/end")
}

// What could not be settled in a Drain is told by the next, also if that has watch trees
// list anew: a watch of the directory alone need not.
func TestUnsettledWhenStale(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	_, tree := watchTest(t, g, dir, true, Create)
	w, single := watchTest(t, g, dir, false, Create)
	touch(t, dir+"/f")
	drain(t, g)
	wantTold(t, tree, "create f")
	wantTold(t, single, "create f")
	w.fs.believe(w.node, doubt{name: []byte("f")}, true) // as if it were not there
	w.fs.misnamed()
	w.fs.trim()
	wantTold(t, tree, "overflow")
	drain(t, g)
	wantTold(t, single, "create f")
}
