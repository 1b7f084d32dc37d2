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

// sessions are of every dialect that ksmbd speaks, and of every way to protect one.
var sessions = []smb2.Options{
	{Dialect: smb2.Dialect210},
	{Dialect: smb2.Dialect210, Sign: true},
	{Dialect: smb2.Dialect300, Sign: true},
	{Dialect: smb2.Dialect300, Cipher: smb2.AES128CCM},
	{Dialect: smb2.Dialect302, Sign: true},
	{Dialect: smb2.Dialect302, Cipher: smb2.AES128CCM},
	{Dialect: smb2.Dialect311, Sign: true},
	{Dialect: smb2.Dialect311, Cipher: smb2.AES128CCM},
	{Dialect: smb2.Dialect311, Cipher: smb2.AES128GCM},
	{Dialect: smb2.Dialect311, Cipher: smb2.AES256CCM},
	{Dialect: smb2.Dialect311, Cipher: smb2.AES256GCM},
}

// protected checks the protection of a response to a request that was parked.
func (w *wire) protected(o smb2.Options, r *smb2.Response) {
	w.Helper()
	switch {
	case o.Cipher != smb2.CipherNone && !r.Encrypted:
		w.Errorf("%v %v is not encrypted", r.Command, r.Status)
	case o.Sign && !r.Signed && !r.Interim(): // MS-SMB2 3.3.4.1.1 leaves an interim response unsigned
		w.Errorf("%v %v is not signed", r.Command, r.Status)
	}
}

// TestMicrosoft has the change-notify cases of Microsoft's file server test suite, in each session, and a compound.
func TestMicrosoft(t *testing.T) {
	watched := func(filter smb2.Filter) smb2.NotifyParams {
		return smb2.NotifyParams{Tree: true, Filter: filter, Length: 4096}
	}
	future := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	type env struct {
		*wire
		conn *smb2.Conn
		tree *smb2.Tree
		o    smb2.Options
	}
	// A change under a watch tree with one filter bit: the response comes and tells it. There is a file before.
	type change struct {
		name   string
		filter smb2.Filter
		do     func(e env) error
		told   string
	}
	file := func(e env, name string) *smb2.File {
		return e.create(e.tree, smb2.CreateParams{Name: e.path(name), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf})
	}
	basic := func(b smb2.Basic) func(env) error {
		return func(e env) error { return file(e, "file").SetBasic(e.ctx, b) }
	}
	changes := []change{
		{"file-name", smb2.FilterFileName, func(e env) error { return file(e, "new").Close(e.ctx) }, "ADDED new"},
		{"dir-name", smb2.FilterDirName, func(e env) error {
			return e.create(e.tree, smb2.CreateParams{
				Name: e.path("dir"), Access: wireRead, Disposition: smb2.DispositionCreate, Options: smb2.OptionDirectory,
			}).Close(e.ctx)
		}, "ADDED dir"},
		{"attributes", smb2.FilterAttributes, basic(smb2.Basic{Attributes: smb2.AttributeHidden}), "MODIFIED file"},
		{"size", smb2.FilterSize, func(e env) error { return file(e, "file").SetSize(e.ctx, 4096) }, "MODIFIED file"},
		{"last-access", smb2.FilterLastAccess, basic(smb2.Basic{LastAccess: future}), "MODIFIED file"},
		{"last-write", smb2.FilterLastWrite, basic(smb2.Basic{LastWrite: future}), "MODIFIED file"},
		{"creation", smb2.FilterCreation, basic(smb2.Basic{Creation: future}), "MODIFIED file"},
		{"ea", smb2.FilterEA, func(e env) error { return file(e, "file").SetEA(e.ctx, "TEST", "value") }, "MODIFIED file"},
		{"security", smb2.FilterSecurity, func(e env) error {
			return file(e, "file").SetDACL(e.ctx, smb2.ACE{SID: smb2.SID(1, 0), Mask: 0x1f01ff}) // everyone, everything
		}, "MODIFIED file"},
		{"stream-name", smb2.FilterStreamName, func(e env) error { return file(e, "file:stream").Close(e.ctx) }, "MODIFIED file"},
		{"stream-size", smb2.FilterStreamSize, func(e env) error { return file(e, "file:there").Write(e.ctx, 5, []byte("more")) }, "MODIFIED file"},
		{"stream-write", smb2.FilterStreamWrite, func(e env) error { return file(e, "file:there").Write(e.ctx, 0, []byte("other")) }, "MODIFIED file"},
	}
	cases := map[string]func(e env){
		"close": func(e env) {
			f := e.open(e.tree, "")
			call, interim := e.park(f, watched(smb2.FilterAll))
			closed, err := e.conn.Do(e.ctx, f.CloseRequest())
			e.ok(err)
			end := e.endsAfter(call, interim)
			if end.Status != smb2.StatusNotifyCleanup || end.Seq < closed.Seq {
				e.Errorf("ends with %v as response %d, that of CLOSE is %d", end.Status, end.Seq, closed.Seq)
			}
			e.protected(e.o, interim)
			e.protected(e.o, end)
		},
		"no-directory": func(e env) {
			f := e.create(e.tree, smb2.CreateParams{Name: e.path("file"), Access: wireRead, Disposition: smb2.DispositionOpen})
			e.refused(f, watched(smb2.FilterAll), smb2.StatusInvalidParameter)
		},
		"max-transact": func(e env) {
			f := e.open(e.tree, "")
			p := watched(smb2.FilterAll)
			p.Length = e.conn.MaxTransact() + 1
			e.refused(f, p, smb2.StatusInvalidParameter)
			p.Length-- // the longest that there may be
			call, _ := e.park(f, p)
			e.touch("new")
			e.told(call, "ADDED new")
		},
		"no-list-directory": func(e env) {
			f := e.create(e.tree, smb2.CreateParams{
				Name: e.name, Access: smb2.AccessReadAttributes, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
			})
			e.refused(f, watched(smb2.FilterAll), smb2.StatusAccessDenied)
		},
		"cancel": func(e env) {
			call, interim := e.park(e.open(e.tree, ""), watched(smb2.FilterAll))
			e.ok(e.conn.CancelAsync(e.ctx, interim.ID))
			end := e.endsAfter(call, interim)
			if end.Status != smb2.StatusCancelled {
				e.Errorf("ends with %v", end.Status)
			}
			e.protected(e.o, interim)
			e.protected(e.o, end)
		},
		"compound": func(e env) {
			notify := e.tree.Related().NotifyRequest(watched(smb2.FilterAll))
			notify.Related = true
			calls, err := e.conn.Send(e.ctx, e.tree.CreateRequest(smb2.CreateParams{
				Name: e.name, Access: wireRead, Disposition: smb2.DispositionOpen,
			}), notify)
			e.ok(err)
			e.protected(e.o, e.ends(calls[0], smb2.StatusSuccess))
			interim := e.pending(calls[1])
			e.touch("new")
			e.protected(e.o, interim)
			e.protected(e.o, e.told(calls[1], "ADDED new"))
		},
	}
	for _, o := range sessions {
		name := o.Dialect.String()
		if o.Sign {
			name += "-signed"
		}
		if o.Cipher != smb2.CipherNone {
			name = fmt.Sprintf("%s-%v", name, o.Cipher)
		}
		t.Run(name, func(t *testing.T) {
			begin(t)
			conn, tree := newWire(t, wireLimit).connect(o)
			with := func(t *testing.T) env {
				e := env{newWire(t, wireLimit), conn, tree, o}
				e.touch("file")
				e.ok(os.Chown(filepath.Join(e.dir, "file"), uid1, uid1))
				return e
			}
			for _, c := range changes {
				t.Run(c.name, func(t *testing.T) {
					e := with(t)
					e.ok(file(e, "file:there").Write(e.ctx, 0, []byte("hello")))
					call, interim := e.park(e.open(tree, ""), watched(c.filter))
					e.ok(c.do(e))
					e.protected(o, interim)
					e.protected(o, e.told(call, c.told))
				})
			}
			for name, do := range cases {
				t.Run(name, func(t *testing.T) { do(with(t)) })
			}
		})
	}
	t.Run("2.0.2", func(t *testing.T) {
		w := newWire(t, wireLimit)
		if _, err := smb2.Dial(w.ctx, wireEnv("SMB2_TEST_ADDR", "127.0.0.1:445"), smb2.Options{Dialect: smb2.Dialect202}); err == nil {
			t.Error("ksmbd speaks 2.0.2 now: it belongs among the sessions")
		}
	})
}
