// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
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

// Mounts below a watch tree are in it, those that come later too, and can be
// unmounted under it.
func TestNestedMounts(t *testing.T) {
	for _, kind := range []string{"tmpfs", "overlay"} {
		t.Run(kind, func(t *testing.T) {
			dir := mountTest(t, kind)
			do := func(errs ...error) {
				t.Helper()
				if err := errJoin(errs...); err != nil {
					t.Fatal(err)
				}
			}
			in := func(name string) string { return filepath.Join(dir, name) }
			mount := func(name string) {
				t.Helper()
				do(unix.Mount("none", in(name), "tmpfs", 0, "size=1m"))
				t.Cleanup(func() { unix.Unmount(in(name), unix.MNT_DETACH) })
			}
			do(os.MkdirAll(in("m"), 0o755), os.MkdirAll(in("a/b/late"), 0o755), os.MkdirAll(in("aside"), 0o755))
			mount("m")
			mount("aside")
			do(os.MkdirAll(in("m/inner"), 0o755))
			mount("m/inner")

			g := openTest(t)
			defer g.Close()
			before := openFiles(t)
			w, told := watchTest(t, g, dir, true, Create|Delete|Rename)
			_, single := watchTest(t, g, dir, false, Create|Delete|Rename)
			touch(t, in("m/1"))
			touch(t, in("m/inner/2"))
			do(os.Rename(in("m/1"), in("m/3")))
			drain(t, g)
			wantTold(t, told, "create m/1", "create m/inner/2", "rename m/1 -> m/3")

			mount("a/b/late")
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			do(g.Wait(ctx)) // a mount wakes it
			drain(t, g)
			wantTold(t, told, "overflow")
			touch(t, in("a/b/late/4"))
			drain(t, g)
			wantTold(t, told, "create a/b/late/4")

			do(os.Rename(in("a/b"), in("c")))
			drain(t, g)
			*told = nil
			touch(t, in("c/late/5"))
			drain(t, g)
			wantTold(t, told, "create c/late/5")

			do(unix.Unmount(in("c/late"), 0), unix.Unmount(in("m/inner"), 0), unix.Unmount(in("m"), 0)) // none is busy
			drain(t, g)
			*told = slices.Compact(*told) // the mounts went, and what was under them is marked anew
			wantTold(t, told, "overflow")
			touch(t, in("m/6"))
			drain(t, g)
			wantTold(t, told, "create m/6")
			wantTold(t, single, "rename . -> c/")
			do(w.Close())
			drain(t, g)
			if n := openFiles(t) - before; n > 3 { // of the other watch: its directory, its mount, perhaps its queue
				t.Errorf("%d files left open", n)
			}
		})
	}
}

// A btrfs subvolume takes a filesystem mark also where no top level is mounted,
// and nothing but the watch's own directory is held open.
func TestSubvolumeAlone(t *testing.T) {
	base := mountTest(t, "btrfs")
	dir := filepath.Join(t.TempDir(), "subvolume")
	if err := errJoin(os.Mkdir(dir, 0o755), exec.Command("btrfs", "-q", "subvolume", "create", base+"/s").Run(),
		unix.Mount(base+"/s", dir, "", unix.MS_BIND, ""), unix.Unmount(base, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Mount("none", base, "tmpfs", 0, "") }) // for mountTest to unmount
	g := openTest(t)
	w, told := watchTest(t, g, dir, true, Create)
	if w.Strategy() != "filesystem mark" {
		t.Errorf("it is watched by %s", w.Strategy())
	}
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, dir+"/a/b/c")
	drain(t, g)
	wantTold(t, told, "create a/", "create a/b/", "create a/b/c")
	if err := errJoin(w.Close(), unix.Unmount(dir, 0)); err != nil {
		t.Error(err)
	}
}

// A mount is in a watch tree also when a new watch has seen it first, before anybody has looked
// at the mounts, or after that.
func TestMountSeenByAnother(t *testing.T) {
	for _, looked := range []bool{false, true} {
		dir := mountTest(t, "tmpfs")
		in := filepath.Join(dir, "m")
		if err := os.Mkdir(in, 0o755); err != nil {
			t.Fatal(err)
		}
		g := openTest(t)
		_, told := watchTest(t, g, dir, true, Create)
		mountTmpfs(t, in)
		if g.mounts.poll(); looked {
			g.mounts.changed.Store(false)
		}
		_, own := watchTest(t, g, dir, true, Create)
		drain(t, g)
		wantTold(t, told, "overflow")
		touch(t, in+"/f")
		drain(t, g)
		wantTold(t, told, "create m/f")
		if looked {
			wantTold(t, own, "create m/f")
		}
		g.Close()
	}
}

// A mount is looked for from each watch tree that is above it, whichever came first: from that the
// way may lead to what is mounted over it, or nowhere.
func TestMountReached(t *testing.T) {
	do := func(t *testing.T, errs ...error) {
		t.Helper()
		if err := errJoin(errs...); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(t *testing.T, dir string) string {
		t.Helper()
		to := filepath.Join(t.TempDir(), "bind")
		do(t, os.Mkdir(to, 0o755), unix.Mount(dir, to, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
		return to
	}
	for _, c := range []struct {
		what string
		do   func(t *testing.T, mnt string, watch func(first bool, dir *os.File) *[]string) (told *[]string, touched, want string)
	}{
		{"under another", func(t *testing.T, mnt string, watch func(bool, *os.File) *[]string) (*[]string, string, string) {
			do(t, os.MkdirAll(mnt+"/w/c/sub", 0o755), unix.Mount("", mnt, "", unix.MS_SHARED, ""))
			alias := bind(t, mnt+"/w")
			do(t, unix.Mount("", mnt, "", unix.MS_SLAVE, ""))
			watch(true, opened(t, mnt+"/w"))
			told := watch(false, opened(t, mnt+"/w/c"))
			under := opened(t, mnt+"/w/c")
			t.Cleanup(func() { under.Close() })
			mountTmpfs(t, mnt+"/w/c")
			mountTmpfs(t, alias+"/c/sub") // and so under that
			t.Cleanup(func() { unix.Unmount(mnt+"/w/c", unix.MNT_DETACH) })
			return told, fmt.Sprintf("/proc/self/fd/%d/sub", under.Fd()), "create sub/f"
		}},
		{"moved out of the mount", func(t *testing.T, mnt string, watch func(bool, *os.File) *[]string) (*[]string, string, string) {
			do(t, os.MkdirAll(mnt+"/a/share/d", 0o755), os.MkdirAll(mnt+"/a/share/m", 0o755))
			share := bind(t, mnt+"/a/share")
			do(t, unix.Mount("", share, "", unix.MS_PRIVATE, ""))
			watch(true, opened(t, share+"/d"))
			told := watch(false, opened(t, share))
			do(t, os.Rename(mnt+"/a/share/d", mnt+"/d"))
			mountTmpfs(t, share+"/m")
			return told, share + "/m", "create m/f"
		}},
		{"too deep", func(t *testing.T, mnt string, watch func(bool, *os.File) *[]string) (*[]string, string, string) {
			do(t, os.Mkdir(mnt+"/m", 0o755))
			watch(true, deep(t, mnt, 18))
			told := watch(false, opened(t, mnt))
			mountTmpfs(t, mnt+"/m")
			return told, mnt + "/m", "create m/f"
		}},
	} {
		for _, order := range []string{"first", "last"} {
			t.Run(c.what+"/"+order, func(t *testing.T) {
				mnt := mountTest(t, "tmpfs")
				g := openTest(t)
				t.Cleanup(func() { g.Close() }) // before what is mounted goes
				var later func()
				told, touched, want := c.do(t, mnt, func(first bool, dir *os.File) *[]string {
					told := new([]string)
					open := func() {
						if _, err := g.Watch(dir, true, Create, func(c Change) { *told = append(*told, c.String()) }); err != nil {
							t.Fatal(err)
						}
					}
					switch {
					case first && order == "last":
						later = open
					default:
						open()
						if later != nil {
							later()
						}
					}
					return told
				})
				drain(t, g)
				if !slices.Contains(*told, "overflow") {
					t.Errorf("told %q of the mount", *told)
				}
				*told = nil
				touch(t, touched+"/f")
				drain(t, g)
				wantTold(t, told, want)
				g.Close()
			})
		}
	}
}

func opened(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// deep makes directories in dir, as many in one another, whose names have 250 bytes each, and opens the last.
func deep(t *testing.T, dir string, n int) *os.File {
	t.Helper()
	f, name := opened(t, dir), strings.Repeat("d", 250)
	for range n {
		mkdirErr := unix.Mkdirat(int(f.Fd()), name, 0o755)
		fd, err := unix.Openat(int(f.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err := errJoin(mkdirErr, err); err != nil {
			t.Fatal(err)
		}
		f.Close()
		f = os.NewFile(uintptr(fd), name)
	}
	return f
}

// A mount wakes who waits also where only one namespace hears of it.
func TestMountWakes(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	others := g.mounts.namespaces[1:]
	g.mounts.namespaces = g.mounts.namespaces[:1]
	for _, n := range others {
		n.Close()
		unix.Close(n.wake)
	}
	_, told := watchTest(t, g, dir, true, Create)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, name := range []string{"1", "2"} {
		mounted := make(chan error)
		time.AfterFunc(10*time.Millisecond, func() { // while it waits
			mounted <- errJoin(unix.Mount("none", dir, "tmpfs", 0, "size=1m"), unix.Unmount(dir, 0))
		})
		waitErr := g.Wait(ctx)
		if err := errJoin(<-mounted, waitErr); err != nil {
			t.Fatal(name, err)
		}
		drain(t, g)
	}
	wantTold(t, told)
}

// A mount that is hidden while a name in it is looked for is not out of sight afterwards.
func TestHiddenForAMoment(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	mountTmpfs(t, dir+"/m/d")
	if err := os.Mkdir(dir+"/m/d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, dir, true, Create)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Watch(f, false, Create, func(c Change) {
		switch string(c.Name) {
		case "before":
			mountTmpfs(t, dir+"/m/d")
		case "after":
			if err := unix.Unmount(dir+"/m/d", 0); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	touch(t, dir+"/before")
	touch(t, dir+"/m/d/e/1")
	touch(t, dir+"/after")
	drain(t, g)
	if !slices.Contains(*told, "overflow") {
		t.Errorf("told %q", *told)
	}
	for g.retry.Load() != nil {
		drain(t, g)
	}
	*told = nil
	touch(t, dir+"/m/d/e/2")
	drain(t, g)
	wantTold(t, told, "create m/d/e/2")
}
