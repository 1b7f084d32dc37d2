// SPDX-License-Identifier: GPL-2.0-or-later

//go:build amd64 || arm64

// go-fuse is for 64 bits only.

package fanotify

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// broken is a FUSE filesystem that answers with an error for directories of one name.
type broken struct {
	fuse.RawFileSystem
	mu   sync.Mutex
	bad  map[uint64]bool // the inodes that have the name
	open fuse.Status     // what it answers to OPENDIR of these
	read fuse.Status     // and to READDIR
}

func (b *broken) answer(open, read fuse.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open, b.read = open, read
}

// note notes whether the inode with the name is one of these.
func (b *broken) note(name string, out *fuse.EntryOut) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name == "bad" {
		b.bad[out.NodeId] = true
	}
}

func (b *broken) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	status := b.RawFileSystem.Lookup(cancel, header, name, out)
	b.note(name, out)
	return status
}

func (b *broken) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	status := b.RawFileSystem.Mkdir(cancel, in, name, out)
	b.note(name, out)
	return status
}

// is returns the one answer for a bad directory, and OK for any other.
func (b *broken) is(node uint64, status *fuse.Status) fuse.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bad[node] {
		return *status
	}
	return fuse.OK
}

func (b *broken) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if status := b.is(in.NodeId, &b.open); status != fuse.OK {
		return status
	}
	return b.RawFileSystem.OpenDir(cancel, in, out)
}

func (b *broken) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if status := b.is(in.NodeId, &b.read); status != fuse.OK {
		return status
	}
	return b.RawFileSystem.ReadDir(cancel, in, out)
}

func (b *broken) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if status := b.is(in.NodeId, &b.read); status != fuse.OK {
		return status
	}
	return b.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// TestBarred: directories that cannot be read, as they have it on a broken disk or where root has
// no right, keep nobody from being told what happens around them. As long as it lasts who sees
// them is told to list anew, and no one else.
func TestBarred(t *testing.T) {
	for _, c := range []struct {
		what       string
		open, read fuse.Status
	}{
		{"opendir", fuse.EIO, fuse.OK},
		{"readdir", fuse.OK, fuse.EIO},
		{"forbidden", fuse.EACCES, fuse.OK},
	} {
		for _, before := range []bool{true, false} {
			name := c.what + " later"
			if before {
				name = c.what
			}
			t.Run(name, func(t *testing.T) {
				needHandles(t)
				under, dir := mountTest(t, "tmpfs"), t.TempDir()
				root, err := fs.NewLoopbackRoot(under)
				if err != nil {
					t.Fatal(err)
				}
				b := &broken{RawFileSystem: fs.NewNodeFS(root, &fs.Options{}), bad: make(map[uint64]bool)}
				server, err := fuse.NewServer(b, dir, &fuse.MountOptions{DirectMount: true, FsName: "test", Name: "test"})
				if err != nil {
					t.Fatal(err)
				}
				go server.Serve()
				if err := errJoin(server.WaitMount(), os.MkdirAll(dir+"/w/a", 0o755), os.MkdirAll(dir+"/w/z", 0o755), os.Mkdir(dir+"/other", 0o755)); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := server.Unmount(); err != nil {
						t.Error(err)
					}
				})
				breaks := func() {
					if err := os.MkdirAll(dir+"/w/d/bad/deep", 0o755); err != nil {
						t.Fatal(err)
					}
					b.answer(c.open, c.read)
				}
				if before {
					breaks()
				}
				g := openTest(t)
				defer g.Close()
				g.retryAfter = 10 * time.Millisecond
				_, told := watchTest(t, g, dir+"/w", true, Create|Delete|Rename)
				_, other := watchTest(t, g, dir+"/other", true, Create|Delete|Rename)
				if !before {
					breaks()
				}
				drain(t, g)
				*told = nil
				touch(t, dir+"/w/a/f")
				touch(t, dir+"/w/z/f")
				touch(t, dir+"/w/d/f")
				drain(t, g)
				for _, want := range []string{"create a/f", "create z/f", "create d/f"} {
					if !slices.Contains(*told, want) {
						t.Errorf("told %q, not %s", *told, want)
					}
				}
				wait := func(what string) {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					for *told = nil; !slices.Contains(*told, what); drain(t, g) {
						if err := g.Wait(ctx); err != nil {
							t.Fatalf("not told %s, but %q: %v", what, *told, err)
						}
					}
				}
				for range 3 {
					wait("overflow")
				}
				// It may go elsewhere meanwhile.
				if err := unix.Rename(dir+"/w/d/bad", dir+"/w/d/moved"); err != nil {
					t.Fatal(err)
				}
				wait("rename d/bad/ -> d/moved/")
				for range 3 {
					wait("overflow")
				}
				b.answer(fuse.OK, fuse.OK)
				wait("overflow")
				for g.retry.Load() != nil {
					time.Sleep(time.Millisecond)
					drain(t, g)
				}
				*told = nil
				if err := errJoin(os.WriteFile(dir+"/w/d/moved/f", nil, 0o600), os.WriteFile(dir+"/w/d/moved/deep/f", nil, 0o600), os.WriteFile(dir+"/other/f", nil, 0o600)); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				wantTold(t, told, "create d/moved/f", "create d/moved/deep/f")
				wantTold(t, other, "create f")
				if err := unix.Rename(dir+"/w/d/moved", dir+"/w/x"); err != nil {
					t.Fatal(err)
				}
				drain(t, g)
				wantTold(t, told, "rename d/moved/ -> x/")
			})
		}
	}
}
