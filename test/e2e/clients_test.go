// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// What clients in the field ask for, and what they do with what they are told.

// nodeWatch is what fs.watch of Node.js asks for on Windows, and watchdog of Python: all but EA, security and streams.
func nodeWatch() smb2.NotifyParams { return smb2.NotifyParams{Filter: 0x17f, Length: 4096} }

// TestReaderWakesNoWatcher: a client that reads what changed, or a server process that does, is not told of it as of
// another change, not even where the filter has LAST_ACCESS, however the filesystem keeps access times.
func TestReaderWakesNoWatcher(t *testing.T) {
	begin(t)
	for how, flag := range map[string]uintptr{"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "noatime": unix.MS_NOATIME} {
		if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_BIND|flag, ""); err != nil {
			t.Fatal(err)
		}
		for name, p := range map[string]smb2.NotifyParams{
			"node": nodeWatch(), "tree": {Tree: true, Filter: smb2.FilterAll, Length: 65536},
		} {
			t.Run(how+"/"+name, func(t *testing.T) { readerWakesNoWatcher(t, p) })
		}
	}
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RELATIME, ""); err != nil {
		t.Fatal(err)
	}
}

func readerWakesNoWatcher(t *testing.T, p smb2.NotifyParams) {
	w := newWire(t, wireLimit)
	w.touch("file")
	w.ok(os.Chown(filepath.Join(w.dir, "file"), uid1, uid1))
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	call, _ := w.park(f, p)
	path := filepath.Join(w.dir, "file")
	appendTo(w, path, "more")
	w.told(call, "MODIFIED file")

	call, _ = w.park(f, p)
	for range 3 {
		file := w.create(tree, smb2.CreateParams{Name: w.path("file"), Access: smb2.AccessListDirectory, Disposition: smb2.DispositionOpen})
		_, err := file.Read(w.ctx, 0, 4)
		w.ok(err)
		w.ok(file.Close(w.ctx))
		_, err = os.ReadFile(path)
		w.ok(err)
	}
	dir := w.open(tree, "")
	_, err := dir.List(w.ctx)
	w.ok(err)
	w.touch("end")
	w.told(call, "ADDED end")

	// An access time that a client sets is told, as everywhere.
	call, _ = w.park(f, p)
	place := place{wire: w, tree: tree}
	w.ok(place.opened(smb2.CreateParams{Name: w.path("file"), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
		return f.SetBasic(w.ctx, smb2.Basic{LastAccess: somewhen})
	}))
	w.told(call, "MODIFIED file")
}

func appendTo(w *wire, path, s string) {
	w.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	w.ok(err)
	_, err = f.WriteString(s)
	w.ok(err)
	w.ok(f.Close())
}

// TestSetAccessTime: an access time that a client sets is told under LAST_ACCESS, once, alone or with others.
func TestSetAccessTime(t *testing.T) {
	begin(t)
	future := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, b := range map[string]smb2.Basic{
		"alone": {LastAccess: future}, "with-write": {LastAccess: future, LastWrite: future},
		"with-attributes": {LastAccess: future, Attributes: smb2.AttributeHidden},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			for _, name := range []string{"file", "dir"} {
				file := w.dir + "/" + name
				if name == "dir" {
					w.mkdir(name)
				} else {
					w.touch(name)
				}
				w.ok(os.Chown(file, uid1, uid1))
			}
			_, tree := w.connect(smb2.Options{})
			f := w.open(tree, "")
			p := smb2.NotifyParams{Filter: smb2.FilterLastAccess | smb2.FilterFileName, Length: 4096}
			place := place{wire: w, tree: tree}
			for _, name := range []string{"file", "dir"} {
				call, _ := w.park(f, p)
				w.ok(place.opened(smb2.CreateParams{Name: w.path(name), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
					return f.SetBasic(w.ctx, b)
				}))
				w.touch("end-" + name)
				// Attributes and times that are set together are two changes: told twice if they were read one by one.
				got := w.records(w.ends(call, smb2.StatusSuccess))
				for got[len(got)-1] != "ADDED end-"+name {
					got = append(got, w.records(w.ends(w.send(f, p), smb2.StatusSuccess))...)
				}
				if got = slices.Compact(got); !slices.Equal(got, []string{"MODIFIED " + name, "ADDED end-" + name}) {
					t.Fatalf("told %q", got)
				}
			}
		})
	}
}

// TestSaveByRename: a file that another client has open, with an oplock or without, is replaced by a rename. Watchers are
// told so, and when the other client closes it nothing happens to what is in its place. Since 7.3 ksmbd does not have a file
// replaced that is open, and asks nobody to close it.
func TestSaveByRename(t *testing.T) {
	begin(t)
	for name, c := range map[string]smb2.CreateParams{
		"open": {}, "oplock": {Oplock: smb2.OplockBatch}, "delete-on-close": {Options: smb2.OptionDeleteOnClose},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			for _, name := range []string{"saved", "target"} {
				w.ok(os.WriteFile(filepath.Join(w.dir, name), []byte(name), 0o666))
				w.ok(os.Chmod(filepath.Join(w.dir, name), 0o666))
			}
			_, holder := w.connect2()
			c.Name, c.Access, c.Disposition = w.path("target"), smb2.AccessMaximum, smb2.DispositionOpen
			held := w.create(holder, c)
			_, tree := w.connect(smb2.Options{})
			f := w.open(tree, "")
			w.arm(f, wireNames())
			p := place{wire: w, tree: tree}
			err := p.opened(smb2.CreateParams{Name: w.path("saved"), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
				return f.Rename(w.ctx, w.path("target"), true)
			})
			if refusesReplacing() {
				if !errors.Is(err, smb2.StatusAccessDenied) {
					t.Errorf("a file that is open is replaced: %v, want ACCESS_DENIED, as stock says", err)
				}
				return
			}
			w.ok(err)
			w.toldInAll(f, wireNames(), "REMOVED target", "RENAMED_OLD_NAME saved", "RENAMED_NEW_NAME target")
			call, _ := w.park(f, wireNames())
			w.ok(held.Close(w.ctx))
			w.touch("end")
			w.told(call, "ADDED end")
			if b, err := os.ReadFile(filepath.Join(w.dir, "target")); string(b) != "saved" {
				t.Errorf("target is %q, %v", b, err)
			}
		})
	}
}

// TestSaveOverLateClose: the Linux client closes a file a second after the program that wrote it has, if it has a lease. Until
// then another client can replace that file by a rename nevertheless.
func TestSaveOverLateClose(t *testing.T) {
	reconfigure(t, leaseOptions(true))
	begin(t)
	const mounted = "/mnt"
	if err := unix.Mount("//127.0.0.1/TEST", mounted, "cifs", 0, "ip=127.0.0.1,username=user,password=pass,nosharesock,vers=3.1.1,closetimeo=30"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := until(long, func() error { return unix.Unmount(mounted, 0) }); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	w.ok(os.WriteFile(filepath.Join(mounted, w.name, "target"), []byte("target"), 0o666))
	w.createFile(tree, "saved")
	if open, err := os.ReadFile("/proc/fs/cifs/open_files"); !bytes.Contains(open, []byte(" target")) {
		t.Fatalf("the mount has closed the file: %v\n%s", err, open)
	}
	w.arm(f, wireNames())
	p := place{wire: w, tree: tree}
	err := p.opened(smb2.CreateParams{Name: w.path("saved"), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
		return f.Rename(w.ctx, w.path("target"), true)
	})
	if refusesReplacing() {
		if !errors.Is(err, smb2.StatusAccessDenied) {
			t.Errorf("a file that is open is replaced: %v, want ACCESS_DENIED, as stock says", err)
		}
		return
	}
	w.ok(err)
	w.toldInAll(f, wireNames(), "REMOVED target", "RENAMED_OLD_NAME saved", "RENAMED_NEW_NAME target")
}

// refusesReplacing says whether ksmbd does: that of 7.3 does not have a file replaced that is open, those of 6.12 and 7.2 do.
func refusesReplacing() bool { return series() != "6.12" && series() != "7.2" }

// series is the kernel's, as "7.3".
func series() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		panic(err)
	}
	return strings.Join(strings.SplitN(unix.ByteSliceToString(uts.Release[:]), ".", 3)[:2], ".")
}

// TestRemovedMeanwhile: the last close of a file that is to be deleted has nothing to delete when the server has done so, not
// even another file of that name. The stock module of 6.12 panics.
func TestRemovedMeanwhile(t *testing.T) {
	begin(t)
	for _, again := range []bool{false, true} {
		w := newWire(t, wireLimit)
		_, tree := w.connect(smb2.Options{})
		path := filepath.Join(w.dir, "file")
		w.touch("file")
		w.ok(os.Chown(path, uid1, uid1))
		held := w.create(tree, smb2.CreateParams{
			Name: w.path("file"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen, Options: smb2.OptionDeleteOnClose,
		})
		f := w.open(tree, "")
		w.arm(f, wireNames())
		w.ok(os.Remove(path))
		want := []string{"REMOVED file"}
		if again {
			w.touch("file")
			want = append(want, "ADDED file")
		}
		w.ok(held.Close(w.ctx))
		w.touch("end")
		w.toldInAll(f, wireNames(), append(want, "ADDED end")...)
		if _, err := os.Stat(path); (err == nil) != again {
			t.Errorf("the file made anew: %v, of what is there: %v", again, err)
		}
	}
}

// TestCaseOfDirectories: a file is renamed and linked into a directory that is named in another case.
func TestCaseOfDirectories(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("Dir")
	w.mkdir("Dir/Sub")
	w.touch("file")
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	all := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 4096}
	w.arm(f, all)
	p := place{wire: w, tree: tree}
	with := func(name string, do func(*smb2.File) error) {
		w.Helper()
		w.ok(p.opened(smb2.CreateParams{Name: w.path(name), Disposition: smb2.DispositionOpen}, do))
	}
	with("file", func(f *smb2.File) error { return f.Rename(w.ctx, w.path(`dIR\sUB\New`), false) })
	w.toldInAll(f, all, "REMOVED file", `ADDED Dir\Sub\New`)
	with(`Dir\Sub\New`, func(f *smb2.File) error { return f.Link(w.ctx, w.path(`DIR\Link`), false) })
	w.told(w.send(f, all), `ADDED Dir\Link`)
	// The name itself is as the client has it.
	with(`dir\Link`, func(f *smb2.File) error { return f.Rename(w.ctx, w.path(`dir\LINK`), false) })
	w.told(w.send(f, all), `RENAMED_OLD_NAME Dir\Link`, `RENAMED_NEW_NAME Dir\LINK`)
}

// TestNoContexts: node-smb2 says where create contexts would be though it has none.
func TestNoContexts(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	f := w.create(tree, smb2.CreateParams{
		Name: w.name, Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory, NoContexts: true,
	})
	call, _ := w.park(f, wireNames())
	w.touch("file")
	w.told(call, "ADDED file")
}

// TestBelowMount: what can be listed of what is mounted in a share is told. Without "crossmnt", which the ksmbd-tools of
// Debian 12 do not have, the root of it cannot, and directories below it can.
func TestBelowMount(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("m")
	point := filepath.Join(w.dir, "m")
	w.ok(command("mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "none", point))
	t.Cleanup(func() {
		if err := command("umount", "-l", point); err != nil {
			t.Error(err)
		}
	})
	w.mkdir("m/sub")
	w.touch("m/sub/old")
	w.mkdir("m/private")
	w.ok(os.Chmod(filepath.Join(point, "private"), 0o700))
	_, tree := w.connect2()
	list := func(name string) []string {
		names, err := w.open(tree, name).List(w.ctx)
		w.ok(err)
		return names
	}
	want := map[string]bool{`ADDED m\sub\new`: true, `REMOVED m\sub\old`: true, "ADDED end": true}
	root, sub := list("m"), list(`m\sub`)
	if !slices.Equal(sub, []string{"old"}) {
		t.Fatalf("listed %q and %q", root, sub)
	}
	if len(root) > 0 { // ksmbd-tools that cross mounts
		want[`ADDED m\hidden`], want[`ADDED m\old`] = true, true
	}
	f := w.open(tree, "")
	p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 4096}
	w.arm(f, p)
	w.touch("m/sub/new")
	w.touch("m/hidden")
	w.touch("m/private/secret")
	w.ok(os.Rename(filepath.Join(point, "sub/old"), filepath.Join(point, "old")))
	w.touch("end")
	got := map[string]bool{}
	for !got["ADDED end"] || len(got) < len(want) {
		for _, r := range w.records(w.ends(w.send(f, p), smb2.StatusSuccess)) {
			got[r] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}

// TestShareAboveMount: the data that a share has is on a filesystem mounted below its path. What can be listed of it is told, to
// who watches the share and to who watches there.
func TestShareAboveMount(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("sub")
	tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, "SRV")
	w.ok(err)
	below := strings.ReplaceAll(strings.TrimPrefix(w.dir, filepath.Dir(mount)+"/"), "/", `\`)
	opened := func(name string) *smb2.File {
		return w.create(tree, smb2.CreateParams{
			Name: name, Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
		})
	}
	listed, err := opened(below).List(w.ctx)
	w.ok(err)
	if !slices.Equal(listed, []string{"sub"}) {
		t.Fatalf("listed %q", listed)
	}
	top, there := opened(""), opened(below)
	p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterNames, Length: 4096}
	calls := [2]*smb2.Call{}
	for _, name := range []string{"new", "sub/deep"} {
		calls[0], _ = w.park(top, p)
		calls[1], _ = w.park(there, p)
		w.touch(name)
		name = strings.ReplaceAll(name, "/", `\`)
		w.told(calls[0], "ADDED "+below+`\`+name)
		w.told(calls[1], "ADDED "+name)
	}
}

// TestStream: one request is told once, what made a stream as that and what wrote to it as that, however the stream was
// opened.
func TestStream(t *testing.T) {
	begin(t)
	for name, disposition := range map[string]uint32{
		"create": smb2.DispositionCreate, "open-if": smb2.DispositionOpenIf, "overwrite-if": smb2.DispositionOverwriteIf,
		"supersede": smb2.DispositionSupersede,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			w.touch("file")
			w.ok(os.Chown(filepath.Join(w.dir, "file"), uid1, uid1))
			_, tree := w.connect(smb2.Options{})
			watch := func(filter smb2.Filter) (*smb2.File, smb2.NotifyParams) {
				f, p := w.open(tree, ""), smb2.NotifyParams{Filter: filter | smb2.FilterFileName, Length: 4096}
				w.arm(f, p)
				return f, p
			}
			made, pMade := watch(smb2.FilterStreamName)
			written, pWritten := watch(smb2.FilterStreamSize | smb2.FilterStreamWrite)
			both, pBoth := watch(smb2.FilterStreamName | smb2.FilterStreamWrite)
			other, pOther := watch(smb2.FilterAttributes | smb2.FilterSize | smb2.FilterLastWrite | smb2.FilterEA | smb2.FilterSecurity)

			p := place{wire: w, tree: tree}
			c := smb2.CreateParams{Name: w.path("file:stream"), Disposition: disposition}
			w.ok(p.opened(c, func(f *smb2.File) error {
				w.told(w.send(made, pMade), "MODIFIED file")
				w.told(w.send(both, pBoth), "MODIFIED file")
				return f.Write(w.ctx, 0, []byte("hello"))
			}))
			w.told(w.send(written, pWritten), "MODIFIED file")
			w.told(w.send(both, pBoth), "MODIFIED file")
			w.touch("end")
			for _, end := range []*smb2.Call{w.send(made, pMade), w.send(written, pWritten), w.send(both, pBoth), w.send(other, pOther)} {
				w.told(end, "ADDED end")
			}
		})
	}
}

// A stream of a directory is a file: it is no directory to watch, and it is removed as a file is, whoever has the directory open.
func TestStreamOfDirectory(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	w.mkdir("dir")
	_, tree := w.connect(smb2.Options{})
	_, other := w.connect2()
	w.create(other, smb2.CreateParams{
		Name: w.path("dir"), Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory, KeepsName: true,
	})
	p := smb2.CreateParams{Name: w.path("dir:stream"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf}
	stream := w.create(tree, p)
	w.refused(stream, wireNames(), smb2.StatusInvalidParameter)
	w.ok(stream.Close(w.ctx))
	p.Access, p.Disposition, p.Options = smb2.AccessDelete, smb2.DispositionOpen, smb2.OptionFile|smb2.OptionDeleteOnClose
	w.ok(w.create(tree, p).Close(w.ctx))
	if _, err := tree.Create(w.ctx, p); !errors.Is(err, smb2.StatusObjectNameNotFound) {
		t.Errorf("removed, and opened again: %v", err)
	}
}

// Who may delete a directory and shares everything refuses nobody to list it, as smbclient does, which does not share deletion.
func TestListedDirectory(t *testing.T) {
	begin(t)
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	_, other := w.connect2()
	p := smb2.CreateParams{Name: w.name, Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}
	w.create(tree, p)
	p.Access, p.KeepsName = wireRead, true
	w.create(other, p)
}
