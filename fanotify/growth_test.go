// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// each does something as often as the benchmark wants, and reports what that takes of a
// processor's time too, which is nearly the same on a busy machine.
func each(b *testing.B, do func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, n := threadTime(b), 0
	for ; b.Loop(); n++ {
		do()
	}
	b.ReportMetric(float64((threadTime(b)-began).Nanoseconds())/float64(n), "cpu-ns/op")
}

// BenchmarkGrowth does with many watches what should cost the same with few: what is
// measured is one operation with its Drain.
func BenchmarkGrowth(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if more := (unix.Rlimit{Cur: 250_000, Max: max(limit.Max, 250_000)}); unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
		limit = more
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	files := uint64(limit.Max)
	for _, what := range []string{"directories", "trees", "one"} {
		for _, n := range []int{1_000, 10_000, 100_000} {
			if what != "one" && uint64(n)+1000 > files {
				b.Logf("%d %s take more open files than %d", n, what, files) // each directory is held open
				continue
			}
			g := openBench(b)
			dir := mountTest(b, "tmpfs")
			extra := filepath.Join(dir, "extra")
			elsewhere := filepath.Join(dir, "elsewhere")
			if err := errJoin(os.Mkdir(extra, 0o755), os.Mkdir(elsewhere, 0o755)); err != nil {
				b.Fatal(err)
			}
			var watches []*Watch
			if what == "one" {
				for range n {
					watches = append(watches, watchBench(b, g, dir, false, allOps, func(Change) {}))
				}
			} else {
				for _, path := range makeDirs(b, dir, n) {
					watches = append(watches, watchBench(b, g, path, what == "trees", allOps, func(Change) {}))
				}
			}
			drain(b, g)
			watched := watches[0].dir.Name()
			name := func(op string) string { return fmt.Sprintf("op=%s/%s=%d", op, what, n) }
			b.Run(name("open+close"), func(b *testing.B) {
				each(b, func() {
					watchBench(b, g, extra, what == "trees", allOps, nil).Close()
				})
			})
			b.Run(name("event"), func(b *testing.B) {
				path := filepath.Join(watched, "f")
				if what == "one" {
					path = filepath.Join(extra, "f")
					watchBench(b, g, extra, false, allOps, func(Change) {})
				}
				touch(b, path)
				drain(b, g)
				each(b, func() {
					if err := os.Chmod(path, 0o600); err != nil {
						b.Fatal(err)
					}
					drain(b, g)
				})
			})
			b.Run(name("mkdir"), func(b *testing.B) {
				path := filepath.Join(watched, "d")
				if what == "one" {
					path = filepath.Join(extra, "d")
				}
				each(b, func() {
					if err := errJoin(os.Mkdir(path, 0o700), os.Remove(path)); err != nil {
						b.Fatal(err)
					}
					drain(b, g)
				})
			})
			b.Run(name("mount"), func(b *testing.B) {
				each(b, func() {
					if err := unix.Mount("none", elsewhere, "tmpfs", 0, "size=1m"); err != nil {
						b.Fatal(err)
					}
					drain(b, g)
					if err := unix.Unmount(elsewhere, 0); err != nil {
						b.Fatal(err)
					}
					drain(b, g)
				})
			})
			began := time.Now()
			for _, w := range watches {
				w.Close()
			}
			closed := time.Since(began)
			b.Run(name("close"), func(b *testing.B) {
				b.ReportMetric(float64(closed.Nanoseconds())/float64(n), "ns/op")
			})
			g.Close()
		}
	}
}
