// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// bequeath ends a group as a daemon that hands over does.
func bequeath(t *testing.T, g *Group) *os.File {
	t.Helper()
	queue, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	return queue
}

// inherit opens a group that goes on with a queue.
func inherit(t *testing.T, queue *os.File) *Group {
	t.Helper()
	g := openTest(t)
	if err := errJoin(g.Inherit(queue), queue.Close()); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestHandover: what happens while nobody reads is told by the next group as if
// it had been there, marks that were too little are noticed, and in the end
// no file is left open.
func TestHandover(t *testing.T) {
	const ops = allOps &^ Modify
	for _, kind := range []string{"tmpfs", "ext4", "btrfs", "subvolume"} {
		t.Run(kind, func(t *testing.T) {
			dir := mountTest(t, kind)
			in := func(name string) string { return filepath.Join(dir, name) }
			if err := errJoin(os.MkdirAll(in("w/a"), 0o755), os.Mkdir(in("single"), 0o755), os.Mkdir(in("w/mnt"), 0o755),
				unix.Mount("none", in("w/mnt"), "tmpfs", 0, "size=1m")); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(in("w/mnt"), unix.MNT_DETACH) })
			before := openFiles(t)
			g := openTest(t)
			tree, _ := watchTest(t, g, in("w"), true, ops)
			watchTest(t, g, in("single"), false, Create|Delete)
			mounts, ok := tree.Handover()
			if !ok || len(mounts) != 1 {
				t.Fatalf("tree watch hands over %q, %v", mounts, ok)
			}
			queue := bequeath(t, g)
			touch(t, in("w/a/1"))
			if err := errJoin(os.Rename(in("w/a"), in("w/b")), os.WriteFile(in("w/mnt/2"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			touch(t, in("single/3"))

			g = inherit(t, queue)
			tree, told := watchTest(t, g, in("w"), true, ops)
			_, single := watchTest(t, g, in("single"), false, Create|Delete)
			if now, ok := tree.Handover(); !ok || !slices.Equal(now, mounts) {
				t.Errorf("mounts %q, %v, want %q", now, ok, mounts)
			}
			if err := g.Confirm(); err != nil {
				t.Error(err)
			}
			drain(t, g)
			wantTold(t, single, "create 3")
			slices.Sort(*told) // those of the mount are of another filesystem
			wantTold(t, told, "create a/1", "create mnt/2", "rename a/ -> b/")

			queue = bequeath(t, g)
			if err := unix.Unmount(in("w/mnt"), 0); err != nil {
				t.Fatal(err)
			}
			touch(t, in("single/4"))
			g = inherit(t, queue)
			tree, told = watchTest(t, g, in("w"), true, ops)
			_, single = watchTest(t, g, in("single"), false, Create|Delete)
			if now, _ := tree.Handover(); slices.Equal(now, mounts) {
				t.Errorf("mounts %q, though it was unmounted", now)
			}
			if err := g.Confirm(); err != nil {
				t.Error(err)
			}
			drain(t, g)
			wantTold(t, told)
			wantTold(t, single, "create 4")

			queue = bequeath(t, g)
			g = inherit(t, queue)
			watchTest(t, g, t.TempDir(), false, Create)
			if err := g.Confirm(); err != errMarks {
				t.Errorf("what was not marked: %v", err)
			}
			queue = bequeath(t, g)
			g = inherit(t, queue)
			watchTest(t, g, in("w"), true, ops|Modify)
			if err := g.Confirm(); err != errMarks {
				t.Errorf("a mask that was narrower: %v", err)
			}
			queue = bequeath(t, g)
			g = inherit(t, queue)
			tree, _ = watchTest(t, g, in("w"), true, ops)
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
			watchTest(t, g, in("w"), true, ops)
			if err := g.Confirm(); err != errMarks {
				t.Errorf("a mark that was not there for a while: %v", err)
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d files open before, %d after", before, after)
			}
		})
	}
}

// Nothing but a queue that was opened as a Group does is inherited.
func TestInheritOther(t *testing.T) {
	g := openTest(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	other, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DIR_FID|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	group := os.NewFile(uintptr(other), "fanotify")
	defer group.Close()
	for _, f := range []*os.File{null, group} {
		if err := g.Inherit(f); err == nil {
			t.Errorf("%s was inherited", f.Name())
		}
	}
	dir := t.TempDir()
	_, told := watchTest(t, g, dir, false, Create)
	touch(t, dir+"/1")
	drain(t, g)
	wantTold(t, told, "create 1")
}

// TestSettled: while what was told may turn out to be wrong, there is nothing to
// hand over.
func TestSettled(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	if err := os.Mkdir(dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := openTest(t)
	var told []string
	_, err = g.Watch(f, true, Create|Delete|Rename, func(c Change) {
		if told = append(told, c.String()); len(told) == 1 {
			os.Rename(dir+"/d", dir+"/e") // before it is known where d is
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	touch(t, dir+"/1")
	touch(t, dir+"/d/2")
	drain(t, g)
	wantTold(t, &told, "create 1", "create e/2")
	if g.Settled() {
		t.Error("settled, though d was found where it is to move")
	}
	drain(t, g)
	wantTold(t, &told, "overflow")
	drain(t, g)
	if !g.Settled() {
		t.Error("not settled, though nothing happens")
	}
}
