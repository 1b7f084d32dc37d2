// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"ksmbd-notifyd/test/smb2"
)

// TestPermissions: a watch tree tells only of directories that its user can list and get to.
func TestPermissions(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	const owner = 1000 // "user", see /etc/passwd
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
		w.ok(os.Chown(path, owner, owner))
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
	rename("private", "hidden")
	w.touch("hidden/h")
	w.touch("end")
	w.toldInAll(others, all,
		`ADDED open\f`, `REMOVED open\f`, `RENAMED_OLD_NAME private`, `RENAMED_NEW_NAME hidden`, `ADDED end`)

	w.toldInAll(theirs, all,
		`ADDED private\a`, `ADDED private\inner\b`, `REMOVED private\a`, `ADDED private\inner\a`,
		`ADDED private\c`, `REMOVED private\c`, `ADDED passage\d`,
		`ADDED passage\inner\e`, `ADDED private\f`, `REMOVED private\f`, `ADDED open\f`, `REMOVED open\f`, `ADDED private\g`,
		`RENAMED_OLD_NAME private`, `RENAMED_NEW_NAME hidden`, `ADDED hidden\h`, `ADDED end`)

	// Whether a directory that is gone could be listed, nobody can tell: its owner lists anew, and others who could
	// not get there anyway are told nothing.
	w.ok(os.RemoveAll(filepath.Join(w.dir, "hidden/inner")))
	w.touch("more")
	w.enumDir(w.ends(w.send(theirs, all), smb2.StatusNotifyEnumDir))
	w.toldInAll(others, all, `ADDED more`)
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
