// SPDX-License-Identifier: GPL-2.0-or-later

package mounts

import (
	"os"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		what, text string
		want       []Mount
	}{
		{"nothing", "", nil},
		{"nonsense", "x\n1 2 3\n1 2 a:b / / rw - ext4 x rw\n\n", nil},
		{"a line", "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n",
			[]Mount{{36, 35, unix.Mkdev(98, 0), "/mnt1", "/mnt2", "ext4"}}},
		{"no optional fields", "36 35 0:5 / /a rw - tmpfs none rw\n", []Mount{{36, 35, unix.Mkdev(0, 5), "/", "/a", "tmpfs"}}},
		{"blanks", `36 35 0:5 / /a\040b\011c\134\012d rw - fuse.x a\040b rw` + "\n",
			[]Mount{{36, 35, unix.Mkdev(0, 5), "/", "/a b\tc\\\nd", "fuse.x"}}},
		{"blanks that are left as they are", "36 35 0:5 /r\u00a0 /a\u3000b\rc\vd\fe\u0085f\u2028 rw - tmpfs none rw\n",
			[]Mount{{36, 35, unix.Mkdev(0, 5), "/r\u00a0", "/a\u3000b\rc\vd\fe\u0085f\u2028", "tmpfs"}}},
		{"no kind", "36 35 0:5 / /a rw - \n36 35 0:5 / /a rw -\n36 35 0:5 / /a rw\n", nil},
		{"moved into a later one", "2 3 0:2 / /a/b rw - tmpfs n rw\n3 1 0:3 / /a rw - tmpfs n rw\n1 0 0:1 / / rw - ext4 n rw\n",
			[]Mount{{1, 0, unix.Mkdev(0, 1), "/", "/", "ext4"}, {3, 1, unix.Mkdev(0, 3), "/", "/a", "tmpfs"}, {2, 3, unix.Mkdev(0, 2), "/", "/a/b", "tmpfs"}}},
		{"in itself", "1 1 0:1 / / rw - rootfs n rw\n", []Mount{{1, 1, unix.Mkdev(0, 1), "/", "/", "rootfs"}}},
		{"a ring, which there cannot be", "1 2 0:1 / /a rw - x n rw\n2 1 0:1 / /b rw - x n rw\n", nil},
	} {
		table := Parse([]byte(c.text))
		if !slices.Equal(table.All(), c.want) {
			t.Errorf("%s: %v, want %v", c.what, table.All(), c.want)
		}
		for _, m := range c.want {
			if got := table.Lookup(m.ID); got == nil || *got != m {
				t.Errorf("%s: %d is %v", c.what, m.ID, got)
			}
		}
		if table.Lookup(99) != nil {
			t.Errorf("%s: a mount that there is not", c.what)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		point, dir string
		want       bool
	}{
		{"/a/b", "/a", true}, {"/a/b/c", "/a", true}, {"/a/b", "/", true}, {"/a", "/a", false}, {"/", "/", false},
		{"/ab", "/a", false}, {"/a", "/a/b", false}, {"/b/a/c", "/a", false},
	} {
		if m := (Mount{Point: c.point}); m.Below(c.dir) != c.want {
			t.Errorf("%s below %s: %v", c.point, c.dir, !c.want)
		}
	}
}

func TestRelative(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"/a", "/a", "."}, {"/a", "/a/b/c", "b/c"}, {"/a/b", "/a", ".."}, {"/a/b", "/a/c/d", "../c/d"}, {"/", "/a", "a"}, {"/a", "/", ".."},
		{"/a/b", "/ab", "../../ab"},
	} {
		if got := Relative(c.from, c.to); got != c.want {
			t.Errorf("from %s to %s: %s, want %s", c.from, c.to, got, c.want)
		}
	}
}

// A mount that takes another's place, and its id, is another.
func TestSource(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it takes root to mount")
	}
	dir := t.TempDir()
	// In a mount namespace of its own thread, which ends with the test: other tests mount too.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	sources, err := NewSources()
	if err != nil {
		t.Fatal(err)
	}
	defer sources.Close()
	s, err := sources.Open("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	find := func() *Mount {
		table, err := s.Table()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range table.All() {
			if m.Point == dir {
				return &m
			}
		}
		return nil
	}
	sources.Changed()
	if m := find(); m != nil {
		t.Fatalf("%v is mounted", m)
	}
	seen := make(map[uint64]bool)
	for range 20 {
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		if !sources.Changed() || sources.Changed() {
			t.Error("a mount is to be told of once")
		}
		is, err := Identify(unix.AT_FDCWD, dir)
		m := find()
		if err != nil || m == nil || m.ID != is.ID || m.Kind != "tmpfs" {
			t.Errorf("mounted %v, %v, but the table has %v", is, err, m)
		}
		if is.Unique == 0 {
			t.Log("no unique ids before Linux 6.8")
		} else if seen[is.Unique] {
			t.Errorf("unique id %d came again", is.Unique)
		}
		seen[is.Unique] = true
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		if !sources.Changed() || find() != nil {
			t.Error("not told that it was unmounted")
		}
	}
}

// Covered goes by the table alone: nothing is touched.
func TestCovered(t *testing.T) {
	table := Parse([]byte(`1 1 8:1 / / rw - ext4 /dev/a rw
2 1 0:2 / /a rw - tmpfs none rw
3 2 0:3 / /a/b/c rw - fuse none rw
4 2 0:4 / /a/b rw - tmpfs none rw
5 2 0:5 / /a/d rw - fuse none rw
6 5 0:6 / /a/d rw - fuse none rw
7 6 0:7 / /a/d/e rw - fuse none rw
8 1 0:8 / /f/g rw - fuse none rw
9 8 0:9 / /f/g/h rw - fuse none rw
10 8 0:10 / /f/g rw - tmpfs none rw
11 1 0:11 / /ab rw - fuse none rw
`))
	for id, want := range map[int]bool{1: false, 2: false, 3: true, 4: false, 5: true, 6: false, 7: false, 8: true, 9: true, 10: false, 11: false} {
		if table.Covered(id) != want {
			t.Errorf("%d is covered: %v", id, !want)
		}
	}
	if !table.Holds(2) || table.Holds(11) {
		t.Error("what holds mounts is not known")
	}
}
