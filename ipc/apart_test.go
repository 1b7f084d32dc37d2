// SPDX-License-Identifier: GPL-2.0-or-later

//go:build amd64 || arm64

// go-fuse is for 64 bits only.

package ipc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hanging is a FUSE filesystem that answers nothing while it hangs.
type hanging struct {
	fuse.RawFileSystem
	sync.RWMutex // held while it hangs
}

func (h *hanging) wait() {
	h.RLock()
	defer h.RUnlock()
}

func (h *hanging) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	h.wait()
	return h.RawFileSystem.Lookup(cancel, header, name, out)
}

func (h *hanging) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.wait()
	return h.RawFileSystem.GetAttr(cancel, in, out)
}

func (h *hanging) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.wait()
	return h.RawFileSystem.OpenDir(cancel, in, out)
}

func (h *hanging) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	h.wait()
	return h.RawFileSystem.StatFs(cancel, in, out)
}

// below is a watch tree of a tmpfs that is served by a conversation, with whatever is
// mounted in it.
type below struct {
	*world
	dir  string
	next uint64
}

// serveBelow serves watches of a tmpfs until the test ends. What can hang has a process of
// its own.
func serveBelow(t *testing.T) *below {
	t.Helper()
	if os.Geteuid() != 0 {
		cannotRun(t, "only root can mount, and have a fanotify group that watches trees")
	}
	b := &below{world: newWorld(t), dir: t.TempDir(), next: 10}
	if err := errors.Join(unix.Mount("none", b.dir, "tmpfs", 0, "size=1m"), unix.Mount("", b.dir, "", unix.MS_PRIVATE, ""), os.Mkdir(b.dir+"/m", 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(b.dir, unix.MNT_DETACH) })
	log := slog.New(slog.DiscardHandler)
	apart := OpenProcess(groupCommand)
	loop := newLoop(log, b.world, func(s Superblock) (Group, error) {
		if MayHang(s.Type) {
			return apart(s)
		}
		return OpenFanotify(log)(s)
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- loop.run(ctx, b.bell) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

// give queues items in ksmbd.
func (b *below) give(items ...any) {
	b.mu.Lock()
	b.items = append(b.items, items...)
	b.mu.Unlock()
	b.bell <- struct{}{}
}

func (b *below) watchTree(id uint64) {
	item := b.watchItem(id)
	unix.Close(item.FD)
	fd, err := unix.Open(b.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	item.FD, item.Tree, item.Filesystem, item.Device = fd, true, "tmpfs", 99
	b.give(item)
	b.await(func() bool { return slices.Contains(b.acked, id) })
}

// await waits until something is so.
func (b *below) await(so func() bool) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Microsecond) {
		b.mu.Lock()
		is := so()
		log := slices.Clone(b.log)
		b.mu.Unlock()
		if is {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("acked %v, ksmbd was told %q", b.acked, log[max(0, len(log)-20):])
		}
	}
}

// answer asks for what has changed and returns the answer.
func (b *below) answer(watch uint64) (answer string) {
	b.t.Helper()
	b.next++
	id := fmt.Sprintf("%d: ", b.next)
	b.give(requestItem(b.next, watch))
	b.await(func() bool {
		for _, line := range b.log {
			if rest, ok := strings.CutPrefix(line, id); ok {
				answer = rest
			}
		}
		return answer != ""
	})
	return answer
}

// until asks until something is told.
func (b *below) until(watch uint64, whats ...string) {
	b.t.Helper()
	for {
		answer := b.answer(watch)
		for _, what := range whats {
			if strings.Contains(answer, what) {
				return
			}
		}
	}
}

// median returns how long it takes mostly that a new file is told.
func (b *below) median(watch uint64, round string) time.Duration {
	var took []time.Duration
	for i := range 51 {
		name := fmt.Sprint(round, i)
		begin := time.Now()
		if err := os.WriteFile(filepath.Join(b.dir, name), nil, 0o600); err != nil {
			b.t.Fatal(err)
		}
		b.until(watch, name)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// What hangs below a watch tree of another filesystem holds up nothing of that, and when it
// answers all is told.
func TestHangsBelow(t *testing.T) {
	var served chan struct{} // closed when the FUSE server has ended; nil if there is none
	t.Cleanup(func() {       // tests that count descriptors are not to see it close its own
		if served == nil {
			return
		}
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Error("the FUSE server does not end")
		}
	})
	b := serveBelow(t)
	b.watchTree(1)
	alone := b.median(1, "alone")

	root, err := fs.NewLoopbackRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &hanging{RawFileSystem: fs.NewNodeFS(root, &fs.Options{})}
	m := b.dir + "/m"
	server, err := fuse.NewServer(h, m, &fuse.MountOptions{DirectMount: true, FsName: "test", Name: "test"})
	if err != nil {
		cannotRun(t, fmt.Sprintf("a FUSE server cannot mount here, is there no /dev/fuse? %v", err))
	}
	served = make(chan struct{})
	go func() {
		server.Serve()
		close(served)
	}()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(m, unix.MNT_DETACH) })
	b.until(1, "ENUM_DIR")
	told := false
	for i := 0; !told; i++ { // until it is watched
		if err := os.WriteFile(fmt.Sprintf("%s/first%d", m, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		answer := b.answer(1)
		told = strings.Contains(answer, "m/first")
	}
	if err := os.Rename(m+"/first0", m+"/second"); err != nil {
		t.Fatal(err)
	}
	b.until(1, "m/first0>m/second")

	h.Lock()
	release := sync.OnceFunc(h.Unlock)
	defer release()
	done := make(chan error)
	go func() { done <- os.WriteFile(m+"/hung", nil, 0o600) }()
	go os.Stat(m) // its attributes, which are not cached
	b.watchTree(2)
	beside := b.median(2, "beside")
	b.give(unwatchItem(2))
	// A mount beside it has all mounts looked at.
	if err := errors.Join(os.Mkdir(b.dir+"/n", 0o755), unix.Mount("none", b.dir+"/n", "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(b.dir+"/n", unix.MNT_DETACH)
	b.until(1, "ENUM_DIR")
	if err := os.WriteFile(b.dir+"/n/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.until(1, "n/f")
	t.Logf("told after %v alone, %v beside one that hangs", alone, beside)
	if beside > 2*alone+10*time.Millisecond { // it would be for ever; a busy machine takes its time
		t.Errorf("told after %v alone, %v beside one that hangs", alone, beside)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.until(1, "m/hung", "ENUM_DIR")
	// go-fuse opens a file in the mount, at first, which a process that was started then has open too.
	if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	b.until(1, "ENUM_DIR")
}
