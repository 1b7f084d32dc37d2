// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"os"
	"path/filepath"
	"testing"
)

// A directory of a FUSE filesystem that the kernel dropped from memory before it was marked
// has another handle then, and is told by name all the same.
func TestEvicted(t *testing.T) {
	dir := mountTest(t, "fuse")
	drop := func() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) }
	in := func(name string) string { return dir + "/w/" + name }
	for _, c := range []struct {
		what string
		do   func() error
		want []string
	}{
		{"made", func() error { return errJoin(os.Mkdir(in("d"), 0o755), drop()) }, []string{"create d/"}},
		{"changed before", func() error {
			return errJoin(os.MkdirAll(in("d/e"), 0o755), os.WriteFile(in("d/e/f"), nil, 0o600), drop())
		}, []string{"create d/", "create d/e/", "create d/e/f"}},
		{"changed since", func() error {
			return errJoin(os.Mkdir(in("d"), 0o755), drop(), os.Mkdir(in("d/e"), 0o755), drop(), os.WriteFile(in("d/e/f"), nil, 0o600))
		}, []string{"create d/", "create d/e/", "create d/e/f"}},
		{"renamed", func() error { return errJoin(os.Mkdir(in("o"), 0o755), drop(), os.Rename(in("o"), in("d"))) },
			[]string{"create o/", "rename o/ -> d/"}},
		{"moved in", func() error {
			return errJoin(os.MkdirAll(dir+"/o/e", 0o755), os.Rename(dir+"/o", in("d")), drop())
		}, []string{"rename . -> d/"}},
		{"removed", func() error {
			return errJoin(os.Mkdir(in("d"), 0o755), drop(), os.Remove(in("d")), os.Mkdir(in("d"), 0o755))
		}, []string{"create d/", "delete d/", "create d/"}},
	} {
		if err := os.Mkdir(dir+"/w", 0o755); err != nil {
			t.Fatal(err)
		}
		g := openTest(t)
		_, told := watchTest(t, g, dir+"/w", true, Create|Delete|Rename)
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		drain(t, g)
		t.Log(c.what)
		wantTold(t, told, c.want...)
		touch(t, in("d/g"))
		if err := os.Rename(in("d"), in("x")); err != nil {
			t.Fatal(err)
		}
		touch(t, in("x/h"))
		drain(t, g)
		wantTold(t, told, "create d/g", "rename d/ -> x/", "create x/h")
		g.Close() // whose marks keep it in memory
		g = openTest(t)
		_, single := watchTest(t, g, dir+"/w", false, Attrib)
		for _, mode := range []os.FileMode{0o700, 0o755} {
			if err := errJoin(drop(), os.Chmod(in("x"), mode)); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, single, "attrib x/")
		}
		if err := errJoin(g.Close(), os.RemoveAll(dir+"/w")); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory is removed, or renamed, just before it would be marked, and another is made in its
// place. That is not taken for the first one with a new handle: what is in it is told, by its name.
func TestMadeAgain(t *testing.T) {
	for _, c := range []struct {
		what  string
		leave func(d string) error // has it leave its place
		want  []string
	}{
		{"removed", os.Remove, []string{"create x", "create d/", "delete d/", "create d/", "create d/f", "create d/e/"}},
		{"renamed", func(d string) error {
			return errJoin(os.Rename(d, d+"2"), os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		}, []string{"create x", "create d/", "overflow", "overflow"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := mountTest(t, "fuse") + "/d"
			g := openTest(t)
			defer g.Close()
			dir, err := os.Open(filepath.Dir(d))
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			_, err = g.Watch(dir, true, Create|Delete|Rename, func(is Change) {
				if told = append(told, is.String()); is.String() == "create x" {
					if err := errJoin(c.leave(d), os.MkdirAll(d+"/e", 0o755), os.WriteFile(d+"/f", nil, 0o600)); err != nil {
						t.Error(err)
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			touch(t, filepath.Dir(d)+"/x")
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, &told, c.want...)
			touch(t, d+"/e/g")
			drain(t, g)
			wantTold(t, &told, "create d/e/g")
		})
	}
}
