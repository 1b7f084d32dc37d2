// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// What a client changes is told as that and as nothing else, whatever comes just before and after it.

var somewhen = time.Date(2020, 2, 2, 0, 0, 0, 0, time.UTC)

// onlyTold waits for the records, and for nothing else to be told after them.
func (w *wire) onlyTold(f *smb2.File, call *smb2.Call, p smb2.NotifyParams, want ...string) {
	w.Helper()
	w.touch("end")
	got := w.records(w.ends(call, smb2.StatusSuccess))
	for got[len(got)-1] != "ADDED end" {
		got = append(got, w.records(w.ends(w.send(f, p), smb2.StatusSuccess))...)
	}
	if want = append(want, "ADDED end"); fmt.Sprint(got) != fmt.Sprint(want) {
		w.Fatalf("told %q, want %q", got, want)
	}
}

// TestCauseOfLogin: to log in changes no file, nor does to do so again in the same session.
func TestCauseOfLogin(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	w.touch("file")
	w.ok(os.Chown(filepath.Join(w.dir, "file"), uid1, uid1))
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	p := smb2.NotifyParams{Filter: smb2.FilterSecurity | smb2.FilterFileName, Length: 4096}
	call, _ := w.park(f, p)
	for range 4 {
		c, tree := w.connect(smb2.Options{Dialect: smb2.Dialect210}) // nothing is signed with keys that change
		file := w.create(tree, smb2.CreateParams{Name: w.path("file"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen})
		w.ok(file.SetBasic(w.ctx, smb2.Basic{Creation: somewhen}))
		w.ok(c.LogOn(w.ctx))
		w.ok(file.SetBasic(w.ctx, smb2.Basic{LastWrite: somewhen}))
		w.ok(file.Close(w.ctx))
		c.Close()
	}
	w.onlyTold(f, call, p)
}

// TestCauseOfCreate: what a file has from the beginning, its ACL too, is told by its ADDED.
func TestCauseOfCreate(t *testing.T) {
	for _, share := range []string{"TEST", "ACL"} {
		t.Run(share, func(t *testing.T) {
			begin(t)
			w := newWireAt(t, long, sharePath(share))
			c := w.dial(smb2.Options{})
			tree, err := c.TreeConnect(w.ctx, share)
			w.ok(err)
			f := w.open(tree, "")
			p := smb2.NotifyParams{Filter: smb2.FilterAll, Length: 4096}
			call, _ := w.park(f, p)
			w.ok(w.createFile(tree, "new").Close(w.ctx))
			dir := w.create(tree, smb2.CreateParams{
				Name: w.path("dir"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionDirectory,
			})
			w.ok(dir.Close(w.ctx))
			w.onlyTold(f, call, p, "ADDED new", "ADDED dir")
		})
	}
}

// TestCausesMerged: a write, and what else is changed about it, are each told, in whatever order they come and however
// fast.
func TestCausesMerged(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	w.touch("file")
	w.ok(os.Chown(filepath.Join(w.dir, "file"), uid1, uid1))
	c, tree := w.connect(smb2.Options{})
	file := w.create(tree, smb2.CreateParams{Name: w.path("file"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen})
	f := w.open(tree, "")
	write := func() { w.ok(file.Write(w.ctx, 0, []byte("x"))) }
	creation := func() { w.ok(file.SetBasic(w.ctx, smb2.Basic{Creation: somewhen})) }
	lastWrite := func() { w.ok(file.SetBasic(w.ctx, smb2.Basic{LastWrite: somewhen})) }
	for i, test := range []struct {
		filter smb2.Filter
		told   bool
		do     []func()
	}{
		{smb2.FilterSize, true, []func(){write, creation}},
		{smb2.FilterSize, true, []func(){creation, write}},
		{smb2.FilterSize, true, []func(){lastWrite, write}},
		{smb2.FilterSize, false, []func(){lastWrite, creation}},
		{smb2.FilterLastWrite, true, []func(){creation, lastWrite}},
		{smb2.FilterLastWrite, true, []func(){lastWrite}},
		{smb2.FilterLastWrite, false, []func(){creation}},
		{smb2.FilterCreation, true, []func(){write, lastWrite, creation}},
		{smb2.FilterCreation, false, []func(){write, lastWrite}},
		{smb2.FilterSecurity, false, []func(){write, lastWrite, creation}},
	} {
		w.ok(f.Close(w.ctx))
		f = w.open(tree, "")
		p := smb2.NotifyParams{Filter: test.filter | smb2.FilterDirName, Length: 4096}
		call, _ := w.park(f, p)
		for _, do := range test.do {
			do()
		}
		w.mkdir(fmt.Sprint("end", i))
		got := w.records(w.ends(call, smb2.StatusSuccess))
		if told := got[0] == "MODIFIED file"; told != test.told {
			t.Errorf("test %d: told %q", i, got)
		}
	}
	w.quiet(c)
}
