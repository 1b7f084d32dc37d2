// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// Users of the guest's /etc/passwd.
const (
	uid1 = 1000
	uid2 = 1001
)

// TestPermissions: a watch tree tells only of directories that its user can list and get to.
func TestPermissions(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	for _, dir := range []struct {
		name string
		mode os.FileMode
	}{
		{"open", 0o755},
		{"private", 0o700},
		{"private/inner", 0o755}, // could be listed, but cannot be got to
		{"passage", 0o711},       // cannot be listed, but be passed
		{"passage/inner", 0o755},
	} {
		path := filepath.Join(w.dir, dir.name)
		w.mkdir(dir.name)
		w.ok(os.Chmod(path, dir.mode))
		w.ok(os.Chown(path, uid1, uid1))
	}
	all := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 65536}
	_, tree1 := w.connect(smb2.Options{})
	_, tree2 := w.connect2()
	theirs, others := w.open(tree1, ""), w.open(tree2, "")
	w.arm(theirs, all)
	pending, _ := w.park(others, all)

	rename := func(old, name string) {
		w.ok(os.Rename(filepath.Join(w.dir, old), filepath.Join(w.dir, name)))
	}
	// On the server, and by their owner through SMB.
	w.touch("private/a")
	w.touch("private/inner/b")
	rename("private/a", "private/inner/a")
	w.ok(w.createFile(tree1, `private\c`).Close(w.ctx))
	w.ok(os.Remove(filepath.Join(w.dir, "private/c")))
	w.touch("passage/d")

	w.touch("passage/inner/e")
	w.told(pending, `ADDED passage\inner\e`)
	w.touch("private/f")
	rename("private/f", "open/f")
	rename("open/f", "private/g")
	first := []string{
		`ADDED private\a`, `ADDED private\inner\b`, `REMOVED private\a`, `ADDED private\inner\a`,
		`ADDED private\c`, `REMOVED private\c`, `ADDED passage\d`,
		`ADDED passage\inner\e`, `ADDED private\f`, `REMOVED private\f`, `ADDED open\f`, `REMOVED open\f`, `ADDED private\g`,
	}
	if *fsType == "overlay" { // found by their names, directories must keep them until they are told of
		w.toldInAll(others, all, `ADDED open\f`, `REMOVED open\f`)
		w.toldInAll(theirs, all, first...)
		return
	}
	rename("private", "hidden")
	w.touch("hidden/h")
	w.touch("end")
	w.toldInAll(others, all,
		`ADDED open\f`, `REMOVED open\f`, `RENAMED_OLD_NAME private`, `RENAMED_NEW_NAME hidden`, `ADDED end`)

	w.toldInAll(theirs, all, append(first,
		`RENAMED_OLD_NAME private`, `RENAMED_NEW_NAME hidden`, `ADDED hidden\h`, `ADDED end`)...)

	// Of a directory that is gone it counts whether it could be listed when it was last told of.
	for _, name := range []string{"a", "b", ""} {
		w.ok(os.Remove(filepath.Join(w.dir, "hidden/inner", name)))
	}
	w.touch("more")
	w.toldInAll(theirs, all, `REMOVED hidden\inner\a`, `REMOVED hidden\inner\b`, `REMOVED hidden\inner`, `ADDED more`)
	w.toldInAll(others, all, `ADDED more`)
}

// TestUnsearchableDirectory: who may list the watched directory and not get to what is in it is told of nothing below.
func TestUnsearchableDirectory(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("top")
	w.mkdir("top/sub")
	w.ok(os.Chown(filepath.Join(w.dir, "top"), uid1, uid1))
	w.ok(os.Chmod(filepath.Join(w.dir, "top"), 0o744))
	all := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 4096}
	_, tree1 := w.connect(smb2.Options{})
	_, tree2 := w.connect2()
	owner, other := w.open(tree1, "top"), w.open(tree2, "top")
	w.arm(owner, all)
	w.arm(other, all)
	w.touch("top/sub/secret")
	w.touch("top/end")
	w.toldInAll(owner, all, `ADDED sub\secret`, "ADDED end")
	w.toldInAll(other, all, "ADDED end")
}

// TestVetoFiles: names that listings leave out are not told, nor what is below them.
func TestVetoFiles(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("vetoed-dir")
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	all := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 4096}
	call, _ := w.park(f, all)
	w.touch("vetoed-file")
	w.touch("vetoed-dir/file")
	w.ok(os.Rename(filepath.Join(w.dir, "vetoed-file"), filepath.Join(w.dir, "file")))
	w.told(call, "ADDED file")
	w.ok(os.Rename(filepath.Join(w.dir, "file"), filepath.Join(w.dir, "vetoed-file")))
	w.told(w.send(f, all), "REMOVED file")
}

// posixACL gives the second user an entry of permissions in a directory's ACL, besides those of a mode of 0755 or 0700.
func posixACL(w *wire, path string, others, user2 uint16) {
	const tagOwner, tagUser, tagGroup, tagMask, tagOther, nobody = 0x01, 0x02, 0x04, 0x10, 0x20, 0xffffffff
	acl := binary.LittleEndian.AppendUint32(nil, 2) // linux/posix_acl_xattr.h
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{tagOwner, 7, nobody}, {tagUser, user2, uid2}, {tagGroup, others, nobody}, {tagMask, 7, nobody}, {tagOther, others, nobody},
	} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	w.ok(unix.Setxattr(path, "system.posix_acl_access", acl, 0))
}

// windowsACL sets an ACL that ksmbd keeps beside the mode, which lets everyone in.
func windowsACL(w *wire, tree *smb2.Tree, name string, aces ...smb2.ACE) {
	dir := w.create(tree, smb2.CreateParams{
		Name: w.path(name), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	})
	w.ok(dir.SetDACL(w.ctx, aces...))
	w.ok(dir.Close(w.ctx))
	w.ok(os.Chmod(filepath.Join(w.dir, name), 0o777))
}

// TestHiddenDirectory: whatever keeps a user from listing a directory keeps what happens in it from being told, and
// nothing else does. Of what leaves it or comes in, the half outside is told. The user's own open of a directory says
// which it is.
func TestHiddenDirectory(t *testing.T) {
	chmod := func(mode os.FileMode) func(*wire, *smb2.Tree, string) {
		return func(w *wire, _ *smb2.Tree, path string) { w.ok(os.Chmod(path, mode)) }
	}
	for _, test := range []struct {
		name, share    string
		hide           func(w *wire, tree *smb2.Tree, path string)
		private, inner bool // may be listed
	}{
		{"mode", "TEST", chmod(0o700), false, false},
		{"passage", "TEST", chmod(0o711), false, true},
		{"open", "TEST", chmod(0o755), true, true},
		{"posix-acl", "TEST", func(w *wire, _ *smb2.Tree, path string) { posixACL(w, path, 5, 0) }, false, false},
		{"posix-acl-grants", "TEST", func(w *wire, _ *smb2.Tree, path string) { posixACL(w, path, 0, 5) }, true, true},
		// ksmbd asks the Windows ACL of what is opened, and none of those on the way.
		{"windows-acl", "ACL", func(w *wire, tree *smb2.Tree, _ string) { windowsACL(w, tree, "private") }, false, true},
		{"windows-acl-grants", "ACL", func(w *wire, tree *smb2.Tree, _ string) {
			windowsACL(w, tree, "private", smb2.ACE{SID: smb2.SID(1, 0), Mask: 0x1f01ff}) // everyone, everything
		}, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			begin(t)
			w := newWireAt(t, long, sharePath(test.share))
			for _, name := range []string{"private", "open"} {
				w.mkdir(name)
				w.ok(os.Chown(filepath.Join(w.dir, name), uid1, uid1))
			}
			w.mkdir("private/inner")
			owner, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, test.share)
			w.ok(err)
			test.hide(w, owner, filepath.Join(w.dir, "private"))
			tree, err := w.dial(wireUser2()).TreeConnect(w.ctx, test.share)
			w.ok(err)
			for name, may := range map[string]bool{"private": test.private, `private\inner`: test.inner} {
				dir, err := tree.Create(w.ctx, smb2.CreateParams{
					Name: w.path(name), Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
				})
				if (err == nil) != may {
					t.Fatalf("the user opens %s: %v", name, err)
				}
				if err == nil {
					w.ok(dir.Close(w.ctx))
				}
			}
			var want []string
			expect := func(may bool, records ...string) {
				if may {
					want = append(want, records...)
				}
			}
			rename := func(old, name string) {
				w.ok(os.Rename(filepath.Join(w.dir, old), filepath.Join(w.dir, name)))
			}

			f := w.open(tree, "")
			p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterAll, Length: 65536}
			w.arm(f, p)
			w.touch("private/a")
			rename("private/a", "private/b")
			w.ok(os.Chmod(filepath.Join(w.dir, "private/b"), 0o600))
			rename("private/b", "open/b")
			expect(test.private, `ADDED private\a`, `RENAMED_OLD_NAME private\a`, `RENAMED_NEW_NAME private\b`, `MODIFIED private\b`,
				`REMOVED private\b`)
			rename("open/b", "private/c")
			expect(true, `ADDED open\b`, `REMOVED open\b`)
			expect(test.private, `ADDED private\c`)
			w.touch("private/inner/d")
			expect(test.inner, `ADDED private\inner\d`)
			w.touch("end")
			expect(true, "ADDED end")
			w.toldInAll(f, p, want...)

			// A directory that is gone has no permissions any more.
			want = nil
			w.ok(os.RemoveAll(filepath.Join(w.dir, "private/inner")))
			expect(test.inner, `REMOVED private\inner\d`)
			expect(test.private, `REMOVED private\inner`)
			w.touch("end2")
			expect(true, "ADDED end2")
			w.toldInAll(f, p, want...)
		})
	}
}

// TestHiddenDirectoryRemoved: a directory that others cannot list goes, with all that is in it, before the daemon looks.
// If it was told of earlier, that it went is told and nothing of what was in it. Else nobody can tell any more who could
// list what, and the client lists anew: no name is told that it may not know.
func TestHiddenDirectoryRemoved(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known=%v", known), func(t *testing.T) {
			begin(t)
			w := newWire(t, long)
			dirs := []string{"private", "private/a", "private/a/b"}
			for _, name := range dirs {
				w.mkdir(name)
				w.touch(filepath.Join(name, "file"))
			}
			w.ok(os.Chmod(filepath.Join(w.dir, "private"), 0o700))
			_, tree := w.connect2()
			f := w.open(tree, "")
			p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 65536}
			call, _ := w.park(f, p)
			if known {
				for _, name := range dirs {
					w.touch(filepath.Join(name, "another"))
				}
				w.touch("known")
				w.told(call, "ADDED known")
				call, _ = w.park(f, p)
			}
			w.ok(server.notifyd.cmd.Process.Signal(syscall.SIGSTOP))
			err := os.RemoveAll(filepath.Join(w.dir, "private"))
			w.touch("end")
			w.ok(errors.Join(err, server.notifyd.cmd.Process.Signal(syscall.SIGCONT)))
			if known && *fsType != "overlay" { // there it might be elsewhere
				w.told(call, "REMOVED private")
				w.told(w.send(f, p), "ADDED end")
			} else {
				w.enumDir(w.ends(call, smb2.StatusNotifyEnumDir))
			}
		})
	}
}

// TestHiddenDirectoryRenamed: what a user could list once counts no more, also when the directory has another name by the
// time that records are sent.
func TestHiddenDirectoryRenamed(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("dir")
	_, tree := w.connect2()
	f := w.open(tree, "")
	p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 65536}
	call, _ := w.park(f, p)
	w.touch("dir/open")
	w.told(call, `ADDED dir\open`)
	w.ok(os.Chmod(filepath.Join(w.dir, "dir"), 0o700))
	w.touch("dir/secret")
	w.ok(os.Rename(filepath.Join(w.dir, "dir"), filepath.Join(w.dir, "other")))
	w.touch("end")
	if *fsType == "overlay" { // it is found by its name, or not at all
		w.enumDir(w.ends(w.send(f, p), smb2.StatusNotifyEnumDir))
		return
	}
	w.toldInAll(f, p, "RENAMED_OLD_NAME dir", "RENAMED_NEW_NAME other", "ADDED end")
}

// TestOtherShares: a watch tree tells of its share alone, whatever is above or beside it in the same file system.
func TestOtherShares(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	w.ok(clean(sharePath("INNER")))
	w.ok(clean(sharePath("BESIDE")))
	watch := func(share string) *smb2.File {
		tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, share)
		w.ok(err)
		return w.create(tree, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
	}
	outer, inner := watch("OUTER"), watch("INNER")
	p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 65536}
	w.arm(outer, p)
	w.arm(inner, p)
	at := func(share, name string) string { return filepath.Join(sharePath(share), name) }
	for _, name := range []string{at("OUTER", "a"), at("BESIDE", "b"), at("INNER", "c"), at("TEST", "d")} {
		w.ok(os.WriteFile(name, nil, 0o666))
	}
	w.ok(os.Rename(at("INNER", "c"), at("BESIDE", "c")))
	w.ok(os.Rename(at("BESIDE", "b"), at("INNER", "b")))
	w.ok(os.WriteFile(at("OUTER", "end"), nil, 0o666))
	w.toldInAll(inner, p, "ADDED c", "REMOVED c", "ADDED b")
	w.toldInAll(outer, p, "ADDED a", `ADDED beside\b`, `ADDED inner\c`, `REMOVED inner\c`, `ADDED beside\c`,
		`REMOVED beside\b`, `ADDED inner\b`, "ADDED end")
	w.quiet(inner.Conn())
}

// TestDotFiles: listings show dot files, as hidden or as not; they are told.
func TestDotFiles(t *testing.T) {
	for _, share := range []string{"TEST", "DOTS"} {
		t.Run(share, func(t *testing.T) {
			begin(t)
			w := newWireAt(t, long, sharePath(share))
			tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, share)
			w.ok(err)
			f := w.open(tree, "")
			call, _ := w.park(f, wireNames())
			w.touch(".dot")
			names, err := w.open(tree, "").List(w.ctx)
			w.ok(err)
			if !slices.Equal(names, []string{".dot"}) {
				t.Fatalf("listed %q", names)
			}
			w.told(call, "ADDED .dot")
		})
	}
}
