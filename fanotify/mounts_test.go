// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// A mount is in a watch tree also when a new watch has seen it first.
func TestMountSeenByAnother(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	in := filepath.Join(dir, "m")
	if err := os.Mkdir(in, 0o755); err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	_, told := watchTest(t, g, dir, true, Create)
	if err := unix.Mount("none", in, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(in, unix.MNT_DETACH) })
	watchTest(t, g, dir, true, Create)
	drain(t, g)
	wantTold(t, told, "overflow")
	touch(t, in+"/f")
	drain(t, g)
	wantTold(t, told, "create m/f")
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
