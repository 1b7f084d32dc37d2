// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namelessKinds are the filesystems on which a file may be written whose name is gone.
var namelessKinds = []string{"tmpfs", "ext4", "xfs", "btrfs", "subvolume", "overlay", "overlay-export"}

// watchBoth watches a new filesystem as a tree and its root by itself, and returns what each is told.
func watchBoth(t *testing.T, kind string) (dir string, g *Group, tree, single *[]string) {
	t.Helper()
	dir = mountTest(t, kind)
	g = openTest(t)
	_, tree = watchTest(t, g, dir, true, allOps)
	_, single = watchTest(t, g, dir, false, allOps)
	return dir, g, tree, single
}

// What docs/guarantees.md says of files whose events have no name that anybody sees.
func TestLinkedLater(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			dir, g, tree, single := watchBoth(t, kind)
			fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, tree)
			wantTold(t, single)
			if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/f", unix.AT_SYMLINK_FOLLOW); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			if !slices.Contains(*tree, "create f") || !slices.Contains(*single, "create f") {
				t.Errorf("told %q and %q of the link", *tree, *single)
			}
			*tree, *single = nil, nil
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			for _, told := range []*[]string{tree, single} {
				if len(*told) != 1 || (*told)[0] != "overflow" && (*told)[0] != "modify f" {
					t.Errorf("told %q of a write", *told)
				}
			}
		})
	}
}

// So it is with one that was made, or opened, where nobody watches, if a watch tree has seen
// its new name.
func TestLinkedFromOutside(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			mnt := mountTest(t, kind)
			if err := errJoin(os.Mkdir(mnt+"/w", 0o755), os.Mkdir(mnt+"/out", 0o755)); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			w, told := watchTest(t, g, mnt+"/w", true, allOps)
			if w.Strategy() != "filesystem mark" {
				return // nothing tells of it, see docs/guarantees.md
			}
			for _, c := range []struct {
				flags int
				name  string
				link  []string
				write []string
			}{
				{unix.O_TMPFILE, "w/1", []string{"create 1"}, []string{"overflow"}},
				{unix.O_TMPFILE, "out/2", nil, nil},
				{unix.O_CREAT, "w/3", []string{"create 3"}, []string{"overflow"}},
				{unix.O_CREAT, "out/4", nil, nil},
			} {
				name := mnt + "/out"
				if c.flags == unix.O_CREAT {
					name += "/f"
				}
				fd, err := unix.Open(name, c.flags|unix.O_RDWR, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				drain(t, g)
				err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, mnt+"/"+c.name, unix.AT_SYMLINK_FOLLOW)
				if c.flags == unix.O_CREAT {
					err = errJoin(err, os.Remove(name))
				}
				if err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				wantTold(t, told, c.link...)
				if _, err := unix.Write(fd, []byte("x")); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				wantTold(t, told, c.write...)
			}
		})
	}
}

// A file that is open and loses the name it was opened by: written later, it is told under no
// name that is not its own.
func TestUnlinkedLater(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			dir, g, tree, single := watchBoth(t, kind)
			alone := openTest(t) // who asks for nothing else is told so, too
			_, data := watchTest(t, alone, dir, true, Modify)
			_, singleData := watchTest(t, alone, dir, false, Modify)
			f, n, o := dir+"/f", dir+"/n", dir+"/o"
			for _, c := range []struct {
				what string
				do   func(fd int) error
				want []string
			}{
				{"removed", func(int) error { return os.Remove(f) }, nil},
				{"another in its place", func(int) error { return errJoin(os.Remove(f), os.WriteFile(f, nil, 0o600)) }, nil},
				{"linked and unlinked", func(int) error { return errJoin(os.Link(f, n), os.Remove(f)) }, []string{"overflow"}},
				{"renamed", func(int) error { return os.Rename(f, n) }, []string{"modify n"}},
				{"replaced", func(int) error { return errJoin(os.WriteFile(o, nil, 0o600), os.Rename(o, f)) }, nil},
				{"linked and replaced", func(int) error {
					return errJoin(os.Link(f, n), os.WriteFile(o, nil, 0o600), os.Rename(o, f))
				}, []string{"overflow"}},
				{"linked and replaced by what has gone", func(int) error {
					return errJoin(os.Link(f, n), os.WriteFile(o, nil, 0o600), os.Rename(o, f), os.Remove(f), os.WriteFile(f, nil, 0o600))
				}, []string{"overflow"}},
				{"another name unlinked", func(int) error { return errJoin(os.Link(f, n), os.Remove(n)) }, []string{"modify f"}},
			} {
				os.Remove(f)
				os.Remove(n)
				touch(t, f)
				if err := onFile(f, func(fd int) error {
					if err := c.do(fd); err != nil {
						return err
					}
					drain(t, g)
					drain(t, alone)
					*tree, *single, *data, *singleData = nil, nil, nil, nil
					_, err := unix.Write(fd, []byte("x"))
					return err
				}); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				drain(t, alone)
				t.Log(c.what)
				if kind == "overlay" && (c.want == nil || strings.HasPrefix(c.what, "linked and replaced")) {
					c.want = []string{"modify f"} // it may have had another name for long
				}
				wantTold(t, tree, c.want...)
				wantTold(t, single, c.want...)
				wantTold(t, data, c.want...)
				wantTold(t, singleData, c.want...)
			}
		})
	}
}

// The event by which a file loses its name is added to the one by which it got it first, and so comes before the one by which
// another thread gave it that name again.
func TestUnlinkedBefore(t *testing.T) {
	for _, kind := range namelessKinds {
		for what, end := range map[string]func(f string) error{
			"removed":              os.Remove,
			"another in its place": func(f string) error { return errJoin(os.Remove(f), os.WriteFile(f, nil, 0o600)) },
		} {
			t.Run(kind+"/"+what, func(t *testing.T) {
				dir, g, tree, single := watchBoth(t, kind)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				f, n := dir+"/f", dir+"/n"
				touch(t, f)
				var err error
				newThread(t)(func() { err = errJoin(os.Rename(f, n), os.Link(n, f)) })
				if err != nil {
					t.Fatal(err)
				}
				if err := onFile(f, func(fd int) error {
					if err := end(f); err != nil {
						return err
					}
					drain(t, g)
					*tree, *single = nil, nil
					_, err := unix.Write(fd, []byte("x"))
					return err
				}); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				want := "overflow"
				if kind == "overlay" {
					want = "modify f" // it may have had another name for long
				}
				wantTold(t, tree, want)
				wantTold(t, single, want)
			})
		}
	}
}

// A file that is open has lost the name it was opened by and keeps another. It is told under neither if it is written to and
// another thread gives it the old name for a moment, or if that changes hands once more, before anybody looks.
func TestLostAgain(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			dir, g, tree, single := watchBoth(t, kind)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			another := newThread(t) // whose events are not merged with those of this one
			f, n, o, p := dir+"/f", dir+"/n", dir+"/o", dir+"/p"
			unlinked := func() error { return errJoin(os.Link(f, n), os.Remove(f)) }
			replaced := func() error { return errJoin(os.Link(f, n), os.Rename(o, f)) }
			nothing := func() error { return nil }
			for what, c := range map[string]struct{ lose, before, after func() error }{
				"linked and unlinked": {unlinked, nothing, func() error { return errJoin(os.Link(n, f), os.Remove(f)) }},
				"linked and renamed":  {unlinked, nothing, func() error { return errJoin(os.Link(n, f), os.Rename(f, p)) }},
				"replaced, linked and renamed": {replaced, nothing, func() error {
					return errJoin(os.Remove(f), os.Link(n, f), os.Rename(f, p))
				}},
				"replaced again": {replaced, func() error { return os.Rename(o, f) }, nothing},
				"renamed back":   {unlinked, nothing, func() error { return os.Rename(n, f) }},
				"linked again":   {unlinked, nothing, func() error { return os.Link(n, f) }},
			} {
				for _, name := range []string{f, n, o, p} {
					os.Remove(name)
				}
				touch(t, f)
				touch(t, o)
				drain(t, g)
				if err := onFile(f, func(fd int) error {
					if err := c.lose(); err != nil {
						return err
					}
					touch(t, o)
					drain(t, g)
					*tree, *single = nil, nil
					var err error
					another(func() { err = c.before() })
					_, err2 := unix.Write(fd, []byte("x"))
					another(func() { err = errJoin(err, err2, c.after()) })
					return err
				}); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				for _, told := range []*[]string{tree, single} {
					if kind != "overlay" && !slices.Contains(*told, "overflow") { // there it may have had another name for long
						t.Errorf("%s: told %q", what, *told)
					}
				}
			}
		})
	}
}

// A file is changed by a name that it has for a moment, by another thread, and that another file was renamed to once. That
// tells nobody to list anew: whose the name was is known.
func TestLinkedForAMoment(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			dir, g, tree, single := watchBoth(t, kind)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			f, n, o := dir+"/f", dir+"/n", dir+"/o"
			touch(t, n)
			touch(t, o)
			if err := os.Rename(o, f); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			*tree, *single = nil, nil
			err := os.Link(n, f)
			newThread(t)(func() { err = errJoin(err, os.Chmod(f, 0o640)) })
			if err = errJoin(err, os.Remove(f)); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, tree, "create f", "delete f")
			wantTold(t, single, "create f", "delete f")
		})
	}
}

// A file that has a name to which another was renamed once, which went unseen, and that is renamed at once when it was
// written, is told under that name.
func TestRenamedAtOnce(t *testing.T) {
	for _, kind := range namelessKinds {
		t.Run(kind, func(t *testing.T) {
			dir := mountTest(t, kind)
			g := openTest(t)
			defer g.Close()
			_, told := watchTest(t, g, dir, true, Modify) // does not hear of new names
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			another := newThread(t) // whose events are not merged with those of this one
			for _, end := range []func() error{
				func() error { return os.Rename(dir+"/f", dir+"/n") },
				func() (err error) {
					another(func() { err = errJoin(os.Link(dir+"/f", dir+"/n"), os.Remove(dir+"/f")) })
					return err
				},
			} {
				if err := errJoin(os.WriteFile(dir+"/o", nil, 0o600), os.Rename(dir+"/o", dir+"/f")); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				if err := errJoin(os.Remove(dir+"/f"), os.WriteFile(dir+"/f", nil, 0o600)); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				*told = nil
				if err := errJoin(os.WriteFile(dir+"/f", []byte("x"), 0o600), end()); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				wantTold(t, told, "modify f")
				if err := os.Remove(dir + "/n"); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What changes under a name that nobody knows is told at once, and as long as that goes on once
// a second. A file without any name is nobody's.
func TestSomewhere(t *testing.T) {
	ways := map[string]func(dir string) (fd int, err error){
		"by handle": func(dir string) (int, error) { return openByHandle(dir, dir+"/home/f") },
		"another name": func(dir string) (int, error) {
			f := dir + "/share/f"
			fd, err := unix.Open(f, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			return fd, errJoin(err, os.Link(f, dir+"/home/l"), os.Remove(f))
		},
	}
	for what, open := range ways {
		t.Run(what, func(t *testing.T) {
			dir := mountTest(t, "ext4")
			if err := errJoin(os.Mkdir(dir+"/share", 0o755), os.Mkdir(dir+"/home", 0o755), write(dir+"/home/f")); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			spare := time.Second / 4
			g.spare = spare
			w, told := watchTest(t, g, dir+"/share", true, allOps)
			fd, err := open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			drain(t, g)
			*told = nil
			began, writes := time.Now(), 0
			for ; len(*told) == 0 && time.Since(began) < spare/2; writes++ {
				if _, err := unix.Write(fd, []byte("x")); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				if writes == 0 {
					wantTold(t, told, "overflow")
				}
			}
			// What came last has yet to be told: the next daemon would not know of it.
			if _, ok := w.Handover(); ok {
				t.Error("nothing is left to be told")
			}
			for len(*told) == 0 && time.Since(began) < 40*spare {
				if _, err := g.WaitUntil(time.Now().Add(spare)); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
			}
			wantTold(t, told, "overflow")
			t.Logf("%d writes, %v", writes, time.Since(began))
			if _, ok := w.Handover(); !ok {
				t.Error("something is left to be told")
			}

			time.Sleep(spare)
			if err := errJoin(os.RemoveAll(dir+"/home"), os.Mkdir(dir+"/home", 0o755)); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, told)
		})
	}
}

// A directory whose path is too long concerns those watch trees alone that it is in.
func TestDeep(t *testing.T) {
	dir := mountTest(t, "tmpfs")
	g := openTest(t)
	defer g.Close()
	if err := errJoin(os.Mkdir(dir+"/share", 0o755), os.Mkdir(dir+"/home", 0o755)); err != nil {
		t.Fatal(err)
	}
	_, share := watchTest(t, g, dir+"/share", true, allOps)
	_, home := watchTest(t, g, dir+"/home", true, allOps)
	inner := deep(t, dir+"/home", 18)
	defer inner.Close()
	drain(t, g)
	for _, fs := range g.filesystems {
		fs.how.forget() // as if no event had told of them
	}
	*share, *home = nil, nil
	for i := range 20 {
		f, err := unix.Openat(int(inner.Fd()), fmt.Sprint(i), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(f)
		drain(t, g)
	}
	wantTold(t, share)
	if len(*home) != 20 || (*home)[0] != "overflow" {
		t.Errorf("told %q", *home)
	}
}

// Where each directory has a mark, what is made in one whose path is longer than the kernel takes is told by name, and nobody
// else lists anew.
func TestDeepMade(t *testing.T) {
	mnt := mountTest(t, "overlay")
	if err := errJoin(os.Mkdir(mnt+"/w", 0o755), os.Mkdir(mnt+"/v", 0o755)); err != nil {
		t.Fatal(err)
	}
	const depth = 36 // twice as long
	dir := deep(t, mnt+"/w", depth)
	defer dir.Close()
	g := openTest(t)
	defer g.Close()
	_, told := watchTest(t, g, mnt+"/w", true, allOps)
	_, other := watchTest(t, g, mnt+"/v", true, allOps)
	above := strings.Repeat(strings.Repeat("d", 250)+"/", depth)
	if err := unix.Mkdirat(int(dir.Fd()), "x", 0o755); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	x, err := unix.Openat(int(dir.Fd()), "x", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(x)
	if err := unix.Mkdirat(x, "y", 0o755); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	if err := errJoin(unix.Unlinkat(x, "y", unix.AT_REMOVEDIR), unix.Unlinkat(int(dir.Fd()), "x", unix.AT_REMOVEDIR)); err != nil {
		t.Fatal(err)
	}
	drain(t, g)
	wantTold(t, told, "create "+above+"x/", "create "+above+"x/y/", "delete "+above+"x/y/", "delete "+above+"x/")
	wantTold(t, other)
}

// A file that is open, and was removed with the directory that it was in, is nobody's: it is
// written to and nobody is told, or waits.
func TestRemovedWhileOpen(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			if err := os.Mkdir(mnt+"/w", 0o755); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			_, tree := watchTest(t, g, mnt+"/w", true, allOps)
			_, single := watchTest(t, g, mnt+"/w", false, allOps)
			for _, dir := range []string{mnt + "/w/d", mnt + "/d"} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				file, err := os.Create(dir + "/f")
				if err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				if err := errJoin(os.Remove(dir+"/f"), os.Remove(dir)); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				*tree, *single = nil, nil
				for range 3 {
					file.WriteString("x") // fails on FUSE
					drain(t, g)
					if g.patience < patience {
						t.Error("it waited")
					}
				}
				file.Close()
				wantTold(t, tree)
				wantTold(t, single)
			}
			g.Close()
		})
	}
}

// mergedKinds have directories that are in two layers of overlayfs, and one whose directories are like any other's.
var mergedKinds = []string{"tmpfs", "overlay-lower", "overlay-export-lower"}

// A directory of overlayfs that is in a lower layer too counts as removed when it was, also for who looks later.
func TestMergedRemoved(t *testing.T) {
	for _, kind := range mergedKinds {
		for _, tree := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tree=%v", kind, tree), func(t *testing.T) {
				mnt := mountTest(t, kind)
				empty := func(dir string) string {
					t.Helper()
					if err := errJoin(os.MkdirAll(dir+"/a", 0o755), os.RemoveAll(dir+"/a"), os.RemoveAll(dir+"/b"), os.RemoveAll(dir+"/c")); err != nil {
						t.Fatal(err)
					}
					return dir
				}
				dir, err := os.Open(empty(mnt + "/w/a"))
				if err := errJoin(err, os.Remove(mnt+"/w/a")); err != nil {
					t.Fatal(err)
				}
				g := openQueued(t, 4)
				if _, err := g.Watch(dir, tree, allOps, func(Change) {}); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE) {
					t.Errorf("a removed directory: %v", err)
				}

				lost, replaced, odd := empty(mnt+"/w/b"), empty(mnt+"/w/c"), mnt+"/w/c (deleted)"
				_, told := watchTest(t, g, lost, tree, allOps)
				for i := range 8 { // more than the queue holds
					touch(t, fmt.Sprint(lost, "/", i))
				}
				if err := os.RemoveAll(lost); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				if !slices.Contains(*told, "gone") {
					t.Errorf("removed when the queue was full: told %q", *told)
				}

				if err := errJoin(os.Mkdir(odd, 0o755), os.Mkdir(mnt+"/w/new", 0o755)); err != nil {
					t.Fatal(err)
				}
				_, told = watchTest(t, g, replaced, tree, allOps)
				_, other := watchTest(t, g, odd, tree, allOps)
				if err := errJoin(syscall.Rename(mnt+"/w/new", replaced), os.Chmod(odd, 0o700)); err != nil {
					t.Fatal(err)
				}
				touch(t, odd+"/f")
				drain(t, g)
				wantTold(t, told, "gone")
				if slices.Contains(*other, "gone") {
					t.Errorf("of another that is there: %q", *other)
				}
				g.Close()
			})
		}
	}
}

// A directory that was removed when it was to be found is not told under the name that the kernel has for it then.
func TestMergedUnknown(t *testing.T) {
	for _, kind := range []string{"tmpfs", "overlay-export-lower"} {
		t.Run(kind, func(t *testing.T) {
			mnt := mountTest(t, kind)
			if err := errJoin(os.MkdirAll(mnt+"/w/a/a", 0o755), os.RemoveAll(mnt+"/w/a/a"), os.RemoveAll(mnt+"/w/a/b"), write(mnt+"/w/a/c")); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			_, told := watchTest(t, g, mnt+"/w", true, allOps)
			held, err := os.Open(mnt + "/w/a")
			if err := errJoin(err, os.Remove(mnt+"/w/a/c")); err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			g.queue = g.queues[0] // as Drain does
			g.batch++
			g.patience = patience
			if err := errJoin(g.read(g.queue), os.Remove(mnt+"/w/a")); err != nil {
				t.Fatal(err)
			}
			g.dispatch()
			g.queue.forgetBatch()
			drain(t, g)
			wantTold(t, told, "delete a/c", "delete a/")
		})
	}
}

// A directory that was removed and is still open is nobody's: what becomes of its attributes tells nobody anything. Where no
// event says which directory was removed, all list anew, but not each time.
func TestRemovedDirectoryOpen(t *testing.T) {
	for _, f := range slices.Concat(testFilesystems, lowerFilesystems) {
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			dir := mnt + "/w/a/b"
			if err := errJoin(os.MkdirAll(dir, 0o755), os.RemoveAll(dir+"/a"), os.RemoveAll(dir+"/b"), os.RemoveAll(dir+"/c")); err != nil {
				t.Fatal(err)
			}
			g := openTest(t)
			defer g.Close()
			g.spare = time.Hour
			_, told := watchTest(t, g, mnt+"/w/a", false, allOps)
			held, err := os.Open(dir)
			if err := errJoin(err, os.Remove(dir)); err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			drain(t, g)
			wantTold(t, told, "delete b/")
			for i := range 5 {
				held.Chmod(0o700 + os.FileMode(i)) // fails on FUSE
				drain(t, g)
			}
			if f.name == "overlay-lower" && len(*told) == 1 {
				wantTold(t, told, "overflow")
			}
			wantTold(t, told)
		})
	}
}
