// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDrainBound: whatever the others do, a Drain takes time for what they did and waits
// for nobody, but for the few milliseconds of its patience.
func TestDrainBound(t *testing.T) {
	for _, f := range testFilesystems {
		if f.mkfs != "" || f.name == "subvolume" || f.name == "overlay-export" {
			continue // as tmpfs, but slower to make
		}
		t.Run(f.name, func(t *testing.T) {
			for _, c := range []struct {
				what   string
				n      int
				growth time.Duration // of each, when there are eight times as many
				do     func(dir string, n int) error
			}{
				{"files in a new directory", 400, 5, func(dir string, n int) error {
					if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
						return err
					}
					for i := range n {
						if err := os.WriteFile(fmt.Sprint(dir, "/a/b/", i), nil, 0o600); err != nil {
							return err
						}
					}
					return nil
				}},
				{"threads that rename twice and end", 100, 5, func(dir string, n int) error {
					return eachThread(n, func(i int) error {
						path := fmt.Sprint(dir, "/", i)
						return errJoin(os.WriteFile(path, nil, 0o600), os.Rename(path, path+"a"), os.Rename(path+"a", path))
					})
				}},
				{"directories made and removed", 100, 5, func(dir string, n int) error {
					for i := range n {
						d := fmt.Sprint(dir, "/", i)
						if err := errJoin(os.MkdirAll(d+"/x/y", 0o755), os.RemoveAll(d)); err != nil {
							return err
						}
					}
					return nil
				}},
				{"directories renamed", 500, 4, func(dir string, n int) error {
					for i := range n {
						d := fmt.Sprint(dir, "/", i)
						if err := errJoin(os.Mkdir(d, 0o755), os.Rename(d, d+"x")); err != nil {
							return err
						}
					}
					return nil
				}},
				{"directories renamed by way of one name", 500, 4, func(dir string, n int) error {
					for i := range n {
						d := fmt.Sprint(dir, "/", i)
						if err := errJoin(os.Mkdir(d, 0o755), os.Rename(d, dir+"/x"), os.Rename(dir+"/x", d+"x")); err != nil {
							return err
						}
					}
					return nil
				}},
				// A name is eight times as long then, and each would take sixty-four times if it were put together anew.
				{"directories in one another", 100, 16, func(dir string, n int) error {
					return os.MkdirAll(dir+strings.Repeat("/d", n), 0o755)
				}},
			} {
				t.Run(c.what, func(t *testing.T) {
					mnt := mountTest(t, f.name)
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					each := func(n int) time.Duration { // of a Drain, for each of n
						best := time.Hour
						for try := range 2 {
							g := openTest(t)
							dir := fmt.Sprintf("%s/%d-%d", mnt, n, try)
							if err := os.Mkdir(dir, 0o755); err != nil {
								t.Fatal(err)
							}
							_, told := watchTest(t, g, dir, true, allOps)
							if err := c.do(dir, n); err != nil {
								t.Fatal(err)
							}
							began := threadTime(t)
							drain(t, g)
							best = min(best, threadTime(t)-began)
							if waited := patience - g.patience; waited > 1 {
								t.Errorf("%d: waited %d times", n, waited)
							}
							if len(*told) < n {
								t.Errorf("%d: told of %d changes alone", n, len(*told))
							}
							g.Close()
						}
						return best / time.Duration(n)
					}
					few, many := each(c.n), each(8*c.n)
					t.Logf("for each of %d %v, of %d %v", c.n, few, 8*c.n, many)
					if many > c.growth*few { // it would be eight times as long if each looked at all others
						t.Errorf("for each of %d %v, of %d %v", c.n, few, 8*c.n, many)
					}
				})
			}
		})
	}
}

// TestStrayBound: a directory that came back to where it was and went on, over and over, and of
// which the kernel has merged the last renames with the first, is looked for once.
func TestStrayBound(t *testing.T) {
	mnt := mountTest(t, "tmpfs")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	took := func(strays bool) time.Duration {
		best := time.Hour
		for try := range 3 {
			g := openTest(t)
			dir := fmt.Sprint(mnt, "/", strays, try)
			if err := errJoin(os.Mkdir(dir, 0o755), os.Mkdir(dir+"/a", 0o755)); err != nil {
				t.Fatal(err)
			}
			_, told := watchTest(t, g, dir, true, allOps)
			names := []string{"b", "a"}
			for i := range 3000 {
				names = append(names, fmt.Sprint(i))
			}
			if names = append(names, "a"); strays {
				names = append(names, "b")
			}
			at := "a"
			for _, name := range names {
				if err := os.Rename(dir+"/"+at, dir+"/"+name); err != nil {
					t.Fatal(err)
				}
				at = name
			}
			began := threadTime(t)
			drain(t, g)
			best = min(best, threadTime(t)-began)
			if lost := slices.Contains(*told, "overflow"); lost != strays {
				t.Errorf("strays %v, listed anew %v", strays, lost)
			}
			g.Close()
		}
		return best
	}
	without, with := took(false), took(true)
	t.Logf("%v, and if it strays %v", without, with)
	if with > 4*without {
		t.Error("too long")
	}
}

// eachThread has n threads do something, one after the other, and end.
func eachThread(n int, do func(i int) error) error {
	var first error
	for i := range n {
		var thread sync.WaitGroup
		thread.Go(func() {
			runtime.LockOSThread() // and never unlocked: it ends with the goroutine
			if err := do(i); err != nil {
				first = err
			}
		})
		thread.Wait()
	}
	return first
}

// threadTime returns how long the processor has worked for this thread.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
