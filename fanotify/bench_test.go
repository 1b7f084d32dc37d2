// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is measured is compared within one run, by make bench; see the README.

func openBench(b *testing.B) *Group {
	g, err := Open(slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { g.Close() })
	return g
}

func watchBench(b *testing.B, g *Group, path string, tree bool, ops Op, fn func(Change)) *Watch {
	dir, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	w, err := g.Watch(dir, tree, ops, fn)
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// makeDirs makes n directories below dir, a hundred in each.
func makeDirs(b *testing.B, dir string, n int) (paths []string) {
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint(i/100), fmt.Sprint(i))
		if i%100 == 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// BenchmarkTree makes a watch tree of 100,000 directories ready, or does what
// takes with inotify.
func BenchmarkTree(b *testing.B) {
	dir := mountTest(b, "tmpfs")
	makeDirs(b, dir, 100_000)
	b.Run("by=fanotify", func(b *testing.B) {
		g := openBench(b)
		for b.Loop() {
			watchBench(b, g, dir, true, allOps, nil).Close()
		}
	})
	b.Run("by=inotify", func(b *testing.B) {
		const limit = "/proc/sys/fs/inotify/max_user_watches"
		old, err := os.ReadFile(limit)
		if err := errJoin(err, os.WriteFile(limit, []byte("1000000"), 0)); err != nil {
			b.Fatal(err)
		}
		defer os.WriteFile(limit, old, 0)
		for b.Loop() {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				b.Fatal(err)
			}
			err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					_, err = unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE|unix.IN_MODIFY|unix.IN_ATTRIB)
				}
				return err
			})
			unix.Close(fd)
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDirectories watches 10,000 directories, each by itself.
func BenchmarkDirectories(b *testing.B) {
	paths := makeDirs(b, mountTest(b, "tmpfs"), 10_000)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var bytes uint64
	for b.Loop() {
		b.StopTimer()
		g := openBench(b)
		before := heap()
		b.StartTimer()
		for _, path := range paths {
			watchBench(b, g, path, false, allOps, nil)
		}
		b.StopTimer()
		bytes += (heap() - before) / uint64(len(paths))
		g.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(bytes)/float64(b.N), "B/watch")
}

// readOn drains as the daemon does, at once and then after a gap, until ctx is
// done.
func readOn(ctx context.Context, g *Group) {
	for g.Wait(ctx) == nil && g.Drain() == nil {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// BenchmarkWriter measures what a watch tree with its reader costs those who
// change its filesystem, and those who do what no watch asks for: in all, and of a
// processor's time, which is nearly the same on a busy machine.
func BenchmarkWriter(b *testing.B) {
	for _, op := range []struct {
		name string
		do   func(path string) error
	}{
		{"create+remove", func(path string) error {
			fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			return errJoin(err, unix.Close(fd), unix.Unlink(path))
		}},
		{"open+close", func(path string) error {
			fd, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			return errJoin(err, unix.Close(fd))
		}},
	} {
		for _, watch := range []string{"none", "tree"} {
			b.Run("op="+op.name+"/watch="+watch, func(b *testing.B) {
				dir := mountTest(b, "tmpfs")
				g := openBench(b)
				if watch == "tree" {
					watchBench(b, g, dir, true, allOps, func(Change) {})
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() {
					defer close(done)
					readOn(ctx, g)
				}()
				defer func() {
					cancel()
					<-done
				}()
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				began, n := threadTime(b), 0
				for ; b.Loop(); n++ { // names by turns, that nothing merges
					if err := op.do(fmt.Sprintf("%s/%d", dir, n%1000)); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((threadTime(b)-began).Nanoseconds())/float64(n), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkLatency measures the time from a change until it is told, when
// nothing else happens.
func BenchmarkLatency(b *testing.B) {
	dir := mountTest(b, "tmpfs")
	g := openBench(b)
	told := make(chan time.Time, 1)
	watchBench(b, g, dir, true, Create, func(Change) { told <- time.Now() })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		readOn(ctx, g)
	}()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		time.Sleep(5 * time.Millisecond) // longer than the gap
		start := time.Now()
		touch(b, fmt.Sprint(dir, "/", i))
		took = append(took, (<-told).Sub(start))
	}
	cancel()
	<-done
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

// BenchmarkDrain measures reading, decoding, naming and telling, an event an
// operation, against a bare loop that reads and decodes the same events. The processor's
// time is nearly the same on a busy machine.
func BenchmarkDrain(b *testing.B) {
	for _, mode := range []string{"bare", "single", "tree", "logged"} {
		b.Run("as="+mode, func(b *testing.B) {
			dir := mountTest(b, "tmpfs")
			deep := dir + "/a/b/c/d"
			if err := os.MkdirAll(deep, 0o755); err != nil {
				b.Fatal(err)
			}
			level := slog.LevelInfo
			if mode == "logged" {
				level = slog.LevelDebug
			}
			g, err := Open(slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: level})))
			if err != nil {
				b.Skip(err)
			}
			defer g.Close()
			path := dir
			if mode == "single" {
				path = deep
			}
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			told := 0
			if _, err := g.Watch(f, mode != "single", allOps, func(c Change) { told++ }); err != nil {
				b.Fatal(err)
			}
			const batch = 4096 // changes of as many names, so that none merges
			name := func(i int) string { return fmt.Sprintf("%s/%d", deep, i) }
			for i := range batch {
				touch(b, name(i))
			}
			drain(b, g)
			told = 0
			b.ReportAllocs()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var worked time.Duration
			b.ResetTimer()
			n := 0
			for ; n < b.N; n += batch {
				b.StopTimer()
				for i := range batch {
					if err := os.Chmod(name(i), 0o600); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				began := threadTime(b)
				if mode == "bare" {
					if err := g.read(g.queues[0]); err != nil {
						b.Fatal(err)
					}
					var e event
					for off := 0; off < len(g.queues[0].buf); {
						size, err := e.decode(g.queues[0].buf[off:])
						if err != nil {
							b.Fatal(err)
						}
						off += size
					}
					g.queues[0].buf = g.queues[0].buf[:0]
				} else if err := g.Drain(); err != nil {
					b.Fatal(err)
				}
				worked += threadTime(b) - began
			}
			b.ReportMetric(float64(worked.Nanoseconds())/float64(n), "cpu-ns/event")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/event")
			if mode != "bare" && told != n {
				b.Errorf("%d events, told %d", n, told)
			}
		})
	}
}
