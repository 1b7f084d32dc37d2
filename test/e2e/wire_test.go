// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

// Tests of single PDUs, with a client that has a say in every one of them. They need nothing but a server with a
// share, so they also run outside of the guest, given this file alone and SMB2_TEST_*:
//
//	SMB2_TEST_ADDR=… SMB2_TEST_DIR=… go test -tags guest -run Wire ./test/e2e/wire_test.go

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// wire is one test: its directory of the share and the time it has.
type wire struct {
	*testing.T
	ctx  context.Context
	name string // of the directory, relative to the share
	dir  string // the same as the server sees it
}

func newWire(t *testing.T, limit time.Duration) *wire {
	return newWireAt(t, limit, wireEnv("SMB2_TEST_DIR", "/srv/fs/share"))
}

// newWireAt gives a test a directory in that of a share.
func newWireAt(t *testing.T, limit time.Duration, dir string) *wire {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	name := strings.ReplaceAll(t.Name(), "/", "-")
	w := &wire{T: t, ctx: ctx, name: name, dir: filepath.Join(dir, name)}
	w.ok(os.RemoveAll(w.dir))
	w.mkdir("")
	t.Cleanup(func() {
		if err := os.RemoveAll(w.dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// wireLimit bounds a test of a few requests, under emulation too.
const wireLimit = 15 * time.Second

func wireEnv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (w *wire) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// mkdir makes a directory on the server that every user may write to.
func (w *wire) mkdir(name string) {
	w.Helper()
	dir := filepath.Join(w.dir, name)
	w.ok(os.Mkdir(dir, 0o777))
	w.ok(os.Chmod(dir, 0o777))
}

// touch creates an empty file on the server.
func (w *wire) touch(name string) {
	w.Helper()
	f, err := os.Create(filepath.Join(w.dir, name))
	w.ok(err)
	w.ok(f.Close())
}

// dial connects as the first user.
func (w *wire) dial(o smb2.Options) *smb2.Conn {
	w.Helper()
	if o.Dialect == 0 {
		o.Dialect = smb2.Dialect311
	}
	if o.User == "" {
		o.User, o.Password = wireEnv("SMB2_TEST_USER", "user"), wireEnv("SMB2_TEST_PASSWORD", "pass")
	}
	o.Credits = 512
	c, err := smb2.Dial(w.ctx, wireEnv("SMB2_TEST_ADDR", "127.0.0.1:445"), o)
	w.ok(err)
	return w.watchOver(c)
}

// bind makes one more channel of a connection's session.
func (w *wire) bind(c *smb2.Conn) *smb2.Conn {
	w.Helper()
	channel, err := c.Bind(w.ctx)
	w.ok(err)
	return w.watchOver(channel)
}

// watchOver closes a connection in the end; one that failed before fails the test.
func (w *wire) watchOver(c *smb2.Conn) *smb2.Conn {
	w.Cleanup(func() {
		if err := c.Err(); err != nil && !errors.Is(err, net.ErrClosed) && !w.Failed() {
			w.Errorf("the connection did not live to the end: %v", err)
		}
		c.Close()
	})
	return c
}

func (w *wire) connect(o smb2.Options) (*smb2.Conn, *smb2.Tree) {
	w.Helper()
	c := w.dial(o)
	return c, w.tree(c)
}

// wireUser2 connects as the second user.
func wireUser2() smb2.Options {
	return smb2.Options{User: wireEnv("SMB2_TEST_USER2", "user2"), Password: wireEnv("SMB2_TEST_PASSWORD2", "pass2")}
}

func (w *wire) connect2() (*smb2.Conn, *smb2.Tree) {
	w.Helper()
	return w.connect(wireUser2())
}

func (w *wire) tree(c *smb2.Conn) *smb2.Tree {
	w.Helper()
	tree, err := c.TreeConnect(w.ctx, wireEnv("SMB2_TEST_SHARE", "TEST"))
	w.ok(err)
	return tree
}

// path is a name of the test's directory as the client sees it.
func (w *wire) path(name string) string { return strings.TrimSuffix(w.name+`\`+name, `\`) }

const wireRead = smb2.AccessListDirectory | smb2.AccessReadAttributes

// open opens a directory of the test's, "" for its own.
func (w *wire) open(tree *smb2.Tree, name string) *smb2.File {
	w.Helper()
	return w.create(tree, smb2.CreateParams{
		Name: w.path(name), Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	})
}

func (w *wire) create(tree *smb2.Tree, p smb2.CreateParams) *smb2.File {
	w.Helper()
	f, err := tree.Create(w.ctx, p)
	w.ok(err)
	return f
}

// createFile creates a file through SMB and leaves it open.
func (w *wire) createFile(tree *smb2.Tree, name string) *smb2.File {
	w.Helper()
	return w.create(tree, smb2.CreateParams{
		Name: w.path(name), Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionFile,
	})
}

// wireNames is what most tests ask for.
func wireNames() smb2.NotifyParams { return smb2.NotifyParams{Filter: smb2.FilterNames, Length: 4096} }

func (w *wire) send(f *smb2.File, p smb2.NotifyParams) *smb2.Call {
	w.Helper()
	call, err := f.Notify(w.ctx, p)
	w.ok(err)
	return call
}

// pending waits for the interim response of a NOTIFY.
func (w *wire) pending(call *smb2.Call) *smb2.Response {
	w.Helper()
	r, err := call.Recv(w.ctx)
	w.ok(err)
	switch {
	case !r.Interim():
		records, _ := r.Records()
		w.Fatalf("%v %v came first, want an interim PENDING", r.Status, records)
	case r.ID == 0:
		w.Fatal("interim response without an AsyncId")
	case r.Credits == 0:
		w.Fatal("interim response grants no credits")
	case len(r.Body) < 8 || r.Body[0] != 9:
		w.Fatalf("interim response with body % x", r.Body)
	}
	return r
}

// park sends a NOTIFY and waits for its interim response.
func (w *wire) park(f *smb2.File, p smb2.NotifyParams) (*smb2.Call, *smb2.Response) {
	w.Helper()
	call := w.send(f, p)
	return call, w.pending(call)
}

// ends waits for the final response, which must carry the status. With an interim one before it, it repeats its ids
// and grants no more credits; without, it is synchronous.
func (w *wire) ends(call *smb2.Call, want smb2.Status) *smb2.Response {
	w.Helper()
	r, err := call.Recv(w.ctx)
	w.ok(err)
	if r.Interim() {
		r = w.endsAfter(call, r)
	}
	if r.Status != want {
		w.Fatalf("%v ends with %v, want %v", call.Command, r.Status, want)
	}
	return r
}

func (w *wire) endsAfter(call *smb2.Call, interim *smb2.Response) *smb2.Response {
	w.Helper()
	r, err := call.Recv(w.ctx)
	w.ok(err)
	if r.Flags&smb2.FlagAsync == 0 || r.ID != interim.ID {
		w.Fatalf("final response has flags %#x, AsyncId %#x, the interim one had %#x, %#x", r.Flags, r.ID, interim.Flags, interim.ID)
	}
	if r.Credits != 0 {
		w.Errorf("final response grants %d credits after the interim one", r.Credits)
	}
	return r
}

// told waits for a NOTIFY to end with exactly these records.
func (w *wire) told(call *smb2.Call, want ...string) *smb2.Response {
	w.Helper()
	r := w.ends(call, smb2.StatusSuccess)
	got := w.records(r)
	if !slices.Equal(got, want) {
		w.Fatalf("told %q, want %q", got, want)
	}
	return r
}

func (w *wire) records(r *smb2.Response) []string {
	w.Helper()
	records, err := r.Records()
	w.ok(err)
	var s []string
	for _, rec := range records {
		s = append(s, rec.String())
	}
	return s
}

// toldInAll sends NOTIFYs until they have brought as many records as wanted, which must be these.
func (w *wire) toldInAll(f *smb2.File, p smb2.NotifyParams, want ...string) {
	w.Helper()
	var got []string
	for len(got) < len(want) {
		got = append(got, w.records(w.ends(w.send(f, p), smb2.StatusSuccess))...)
	}
	if !slices.Equal(got, want) {
		w.Fatalf("told %q, want %q", got, want)
	}
}

// arm makes f a watch that queues, with no request pending.
func (w *wire) arm(f *smb2.File, p smb2.NotifyParams) {
	w.Helper()
	call, interim := w.park(f, p)
	w.ok(f.Conn().CancelAsync(w.ctx, interim.ID))
	if r := w.endsAfter(call, interim); r.Status != smb2.StatusCancelled {
		w.Fatalf("cancelled NOTIFY ends with %v", r.Status)
	}
}

// quiet fails when anything has come that nothing waits for: the client ends the connection then.
func (w *wire) quiet(c *smb2.Conn) {
	w.Helper()
	_, err := c.Do(w.ctx, smb2.EchoRequest())
	w.ok(err)
}

// The session captured from Explorer: the watch moves from one directory to the next.
func TestWireExplorer(t *testing.T) {
	w := newWire(t, wireLimit)
	w.mkdir("dir")
	c, tree := w.connect(smb2.Options{})
	root := w.create(tree, smb2.CreateParams{
		Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	})
	p := smb2.NotifyParams{Filter: smb2.FilterNames | smb2.FilterAttributes | smb2.FilterLastWrite, Length: 32768}
	start := time.Now()
	first, interim := w.park(root, p)
	t.Logf("request to PENDING: %v", time.Since(start))

	notify := tree.Related().NotifyRequest(p)
	notify.Related = true
	calls, err := c.Send(w.ctx, tree.CreateRequest(smb2.CreateParams{
		Name: w.path("dir"), Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	}), notify)
	w.ok(err)
	created := w.ends(calls[0], smb2.StatusSuccess)
	second := w.pending(calls[1])
	if created.Seq > second.Seq {
		t.Error("PENDING came before the CREATE response")
	}

	w.ok(c.CancelAsync(w.ctx, interim.ID))
	if r := w.endsAfter(first, interim); r.Status != smb2.StatusCancelled {
		t.Fatalf("cancelled NOTIFY ends with %v", r.Status)
	}

	start = time.Now()
	w.touch("dir/file1")
	r := w.endsAfter(calls[1], second)
	t.Logf("server-side create to response: %v", time.Since(start))
	if got := w.records(r); r.Status != smb2.StatusSuccess || !slices.Equal(got, []string{"ADDED file1"}) {
		t.Fatalf("told %v %q", r.Status, got)
	}
	w.quiet(c)
}

// A CANCEL by MessageId may come before the interim response, which is sent all the same.
func TestWireEarlyCancel(t *testing.T) {
	for name, o := range map[string]smb2.Options{"plain": {}, "encrypted": {Cipher: smb2.AES128GCM}} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			c, tree := w.connect(o)
			f := w.open(tree, "")
			for i := range 20 {
				call := w.send(f, wireNames())
				w.ok(call.Cancel(w.ctx))
				interim := w.pending(call)
				if r := w.endsAfter(call, interim); r.Status != smb2.StatusCancelled {
					t.Fatalf("cancelled NOTIFY ends with %v", r.Status)
				}
				w.quiet(c)
				name := fmt.Sprint("f", i)
				w.touch(name)
				w.told(w.send(f, wireNames()), "ADDED "+name)
			}
		})
	}
}

// What was answered before a request is in its watch's queue; a fresh watch sees none of it.
func TestWireDrainBeforeServe(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	armed, fresh := w.open(tree, ""), w.open(tree, "")
	w.arm(armed, wireNames())
	var want []string
	for i := range 10 {
		w.ok(w.createFile(tree, fmt.Sprint("f", i)).Close(w.ctx))
		want = append(want, fmt.Sprint("ADDED f", i))
	}
	// Both are on their way before either is answered.
	none, all := w.send(fresh, wireNames()), w.send(armed, wireNames())
	w.told(all, want...)
	w.pending(none)
	w.touch("after")
	w.told(none, "ADDED after")
	w.quiet(c)
}

// The first record completes a pending request; the rest wait for the next.
func TestWireFirstRecord(t *testing.T) {
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	p := smb2.NotifyParams{Filter: smb2.FilterNames | smb2.FilterLastWrite | smb2.FilterSize, Length: 4096}
	call, _ := w.park(f, p)
	file := w.createFile(tree, "file")
	w.ok(file.Write(w.ctx, 0, []byte("x")))
	w.told(call, "ADDED file")
	w.told(w.send(f, p), "MODIFIED file")
}

// CLOSE, TREE_DISCONNECT and LOGOFF end what pends, each at its own time.
func TestWireCleanup(t *testing.T) {
	for _, test := range []struct {
		name    string
		request func(*smb2.File) *smb2.Request
		after   bool // NOTIFY_CLEANUP comes after the response
	}{
		{"close", (*smb2.File).CloseRequest, true},
		{"tree-disconnect", func(f *smb2.File) *smb2.Request { return f.Tree.DisconnectRequest() }, false},
		{"logoff", func(*smb2.File) *smb2.Request { return smb2.LogoffRequest() }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			c, tree := w.connect(smb2.Options{})
			f := w.open(tree, "")
			first, interim1 := w.park(f, wireNames())
			second, interim2 := w.park(f, wireNames())
			r, err := c.Do(w.ctx, test.request(f))
			w.ok(err)
			end1, end2 := w.endsAfter(first, interim1), w.endsAfter(second, interim2)
			for _, end := range []*smb2.Response{end1, end2} {
				if end.Status != smb2.StatusNotifyCleanup {
					t.Errorf("ends with %v", end.Status)
				}
				if (end.Seq > r.Seq) != test.after {
					t.Errorf("NOTIFY_CLEANUP is response %d, that of the %v %d", end.Seq, r.Command, r.Seq)
				}
			}
			if end1.Seq > end2.Seq {
				t.Error("the second request ended first")
			}
		})
	}
}

// refused sends a NOTIFY that must end at once, without an interim response.
func (w *wire) refused(f *smb2.File, p smb2.NotifyParams, want smb2.Status) {
	w.Helper()
	r, err := w.send(f, p).Recv(w.ctx)
	w.ok(err)
	if r.Status != want || r.Flags&smb2.FlagAsync != 0 {
		w.Errorf("answered %v, flags %#x; want %v, synchronous", r.Status, r.Flags, want)
	}
}

func TestWireRefused(t *testing.T) {
	w := newWire(t, wireLimit)
	w.touch("file")
	c, tree := w.connect(smb2.Options{})

	file := w.create(tree, smb2.CreateParams{Name: w.path("file"), Access: wireRead, Disposition: smb2.DispositionOpen})
	w.refused(file, wireNames(), smb2.StatusInvalidParameter)

	blind := w.create(tree, smb2.CreateParams{
		Name: w.name, Access: smb2.AccessReadAttributes, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	})
	w.refused(blind, wireNames(), smb2.StatusAccessDenied)

	dir := w.open(tree, "")
	w.refused(dir, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 65537, Charge: 1}, smb2.StatusInvalidParameter)
	w.ok(dir.Close(w.ctx))
	w.refused(dir, wireNames(), smb2.StatusFileClosed)
	w.quiet(c)
}

// Bits and flags that nobody has defined are accepted.
func TestWireUndefined(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	none, all := w.open(tree, ""), w.open(tree, "")
	silent, interim := w.park(none, smb2.NotifyParams{Filter: 0x80001000, Flags: 0x8000, Length: 4096})
	call, _ := w.park(all, smb2.NotifyParams{Filter: 0xffffffff, Flags: 0xfffe, Length: 4096})
	w.touch("file")
	w.told(call, "ADDED file")
	w.ok(c.CancelAsync(w.ctx, interim.ID))
	if r := w.endsAfter(silent, interim); r.Status != smb2.StatusCancelled {
		t.Errorf("without a defined bit it ends with %v %q", r.Status, w.records(r))
	}
}

// Whatever length a client asks for, odd ones too: what fits is told, for the rest the directory is listed anew, and more
// than the server's MaxTransactSize is refused.
func TestWireLengths(t *testing.T) {
	w := newWire(t, 4*wireLimit)
	c, tree := w.connect(smb2.Options{})
	const need = 12 + 2*2
	most := c.MaxTransact()
	for _, n := range []uint32{0, 1, 11, 12, need - 1, need, need + 1, 4095, 65535, 65536, 65537, 1 << 20, most, most + 1, 8<<20 + 1, 1 << 31, 1<<32 - 1} {
		f := w.open(tree, "")
		p := wireNames()
		p.Length, p.Charge = n, uint16(min((uint64(n)+65535)>>16, 200))
		if n > most {
			w.refused(f, p, smb2.StatusInvalidParameter)
		} else {
			call, _ := w.park(f, p)
			w.touch("ab")
			if n < need {
				w.enumDir(w.ends(call, smb2.StatusNotifyEnumDir))
			} else {
				w.told(call, "ADDED ab")
			}
			w.ok(os.Remove(filepath.Join(w.dir, "ab")))
		}
		w.ok(f.Close(w.ctx))
	}
}

// A handle opened with any access that includes listing the directory may be watched, and no other.
func TestWireAccess(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	for access, may := range map[uint32]bool{
		smb2.AccessMaximum: true, 0x80000000: true, 0x10000000: true, smb2.AccessListDirectory: true, 0x1f01ff: true,
		0x40000000: false, 0x20000000: false, smb2.AccessReadAttributes: false, 0x20: false, 0x2: false, 0x100000: false,
	} {
		f := w.create(tree, smb2.CreateParams{
			Name: w.name, Access: access, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
		})
		if may {
			call, _ := w.park(f, wireNames())
			w.ok(call.Cancel(w.ctx))
			w.ends(call, smb2.StatusCancelled)
		} else {
			w.refused(f, wireNames(), smb2.StatusAccessDenied)
		}
		w.ok(f.Close(w.ctx))
	}
	w.quiet(c)
}

// A pipe is no directory.
func TestWirePipe(t *testing.T) {
	w := newWire(t, wireLimit)
	c := w.dial(smb2.Options{})
	ipc, err := c.TreeConnect(w.ctx, "IPC$")
	w.ok(err)
	const all = 0x12019f
	pipe := w.create(ipc, smb2.CreateParams{Name: "srvsvc", Access: all, Disposition: smb2.DispositionOpen})
	w.refused(pipe, wireNames(), smb2.StatusInvalidParameter)
	w.quiet(c)
}

// The first request says what is watched, until the handle is closed.
func TestWireFirstSays(t *testing.T) {
	w := newWire(t, wireLimit)
	w.mkdir("dir")
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	first, _ := w.park(f, smb2.NotifyParams{Filter: smb2.FilterDirName, Length: 4096})
	second, _ := w.park(f, smb2.NotifyParams{Filter: smb2.FilterAll, Length: 4096, Tree: true})
	w.touch("file")
	w.touch("dir/file")
	w.mkdir("dir/a")
	w.mkdir("b")
	w.told(first, "ADDED b")
	w.touch("file2")
	w.mkdir("dir/c")
	w.mkdir("d")
	w.told(second, "ADDED d")
	w.quiet(c)
}

// CANCEL ends the request that it names, once, whichever of its ids it is; what names none ends none.
func TestWireCancelOne(t *testing.T) {
	for name, o := range map[string]smb2.Options{"plain": {}, "signed": {Sign: true}, "encrypted": {Cipher: smb2.AES128GCM}} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			c, tree := w.connect(o)
			_, bystanders := w.connect2()
			bystander, _ := w.park(w.open(bystanders, ""), wireNames())
			f := w.open(tree, "")
			first, interim := w.park(f, wireNames())
			second, interim2 := w.park(f, wireNames())
			third, _ := w.park(f, wireNames())
			for range 3 {
				w.ok(c.CancelAsync(w.ctx, interim2.ID))
			}
			w.ends(second, smb2.StatusCancelled)
			w.ok(third.Cancel(w.ctx))
			w.ends(third, smb2.StatusCancelled)
			for _, id := range []uint64{0, 1<<64 - 1, interim.ID | 1<<32, interim2.ID} {
				w.ok(c.CancelAsync(w.ctx, id))
			}
			w.ok(c.CancelMessage(w.ctx, second.MessageID))
			w.ok(c.CancelMessage(w.ctx, 1<<40))
			if o.Cipher == smb2.CipherNone && !o.Sign {
				w.ok(c.CancelAs(w.ctx, 1<<20, smb2.FlagAsync, interim.ID))
				w.ok(c.CancelAs(w.ctx, 1<<20, 0, first.MessageID))
			}
			w.quiet(c)
			w.touch("file")
			w.told(first, "ADDED file")
			w.told(bystander, "ADDED file")
			w.quiet(c)
		})
	}
}

// To cancel the first request of a compound leaves the NOTIFY that is its last.
func TestWireCancelFirst(t *testing.T) {
	w := newWire(t, wireLimit)
	w.touch("file")
	w.ok(os.Chmod(filepath.Join(w.dir, "file"), 0o666))
	c, tree := w.connect(smb2.Options{})
	_, holder := w.connect2()
	create := smb2.CreateParams{Name: w.path("file"), Access: smb2.AccessListDirectory, Disposition: smb2.DispositionOpen}
	held := create
	held.Oplock = smb2.OplockBatch
	oplock := w.create(holder, held)

	calls, err := c.Send(w.ctx, tree.CreateRequest(create), w.open(tree, "").NotifyRequest(wireNames()))
	w.ok(err)
	select {
	case <-oplock.Conn().Breaks(): // so CREATE waits
	case <-w.ctx.Done():
		t.Fatal(w.ctx.Err())
	}
	w.ok(calls[0].Cancel(w.ctx))
	w.quiet(c)
	w.ok(oplock.Close(w.ctx))
	w.pending(calls[1])
	w.touch("new")
	w.told(calls[1], "ADDED new")
}

// A successful login over a session that is there changes nothing for what pends on it.
func TestWireLoginAgain(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{Dialect: smb2.Dialect210})
	f := w.open(tree, "")
	call, _ := w.park(f, wireNames())
	w.ok(c.LogOn(w.ctx))
	w.touch("a")
	w.told(call, "ADDED a")
	w.touch("b")
	w.told(w.send(f, wireNames()), "ADDED b")
}

// A session that takes the place of another ends what pends there, and watches anew.
func TestWireReplaced(t *testing.T) {
	for name, o := range map[string]smb2.Options{
		"plain": {Dialect: smb2.Dialect210}, "signed": {Sign: true}, "encrypted": {Cipher: smb2.AES128GCM},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, wireLimit)
			c, tree := w.connect(o)
			f := w.open(tree, "")
			first, _ := w.park(f, wireNames())
			second, _ := w.park(f, wireNames())
			o.PreviousSession = c.SessionID()
			_, tree = w.connect(o)
			w.ends(first, smb2.StatusNotifyCleanup)
			w.ends(second, smb2.StatusNotifyCleanup)
			call, _ := w.park(w.open(tree, ""), wireNames())
			w.touch("file")
			w.told(call, "ADDED file")
		})
	}
}

// A macOS client asks of no file at all.
func TestWireNoFile(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	for range 3 {
		call, interim := w.park(tree.Related(), wireNames())
		if r := w.endsAfter(call, interim); r.Status != smb2.StatusNotifyCleanup {
			t.Errorf("ends with %v", r.Status)
		}
	}
	w.quiet(c)
}

// Whatever else is no file is closed, in a compound too if that is not related.
func TestWireNoSuchFile(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	const none = 1<<64 - 1
	for _, id := range [][2]uint64{
		{0, 0}, {0x1111111111111111, 0x1111111111111111}, {0x7fffffff, 0x7fffffff}, {1 << 41, 1 << 40}, {none, 0}, {0, none},
		{none, 0x7fffffff}, {0xffffffff, 0xffffffff}, {none - 1, none},
	} {
		f := tree.Related()
		binary.LittleEndian.PutUint64(f.ID[:], id[0])
		binary.LittleEndian.PutUint64(f.ID[8:], id[1])
		w.refused(f, wireNames(), smb2.StatusFileClosed)
		missing := smb2.CreateParams{Name: w.path("missing"), Access: wireRead, Disposition: smb2.DispositionOpen}
		calls, err := c.Send(w.ctx, tree.CreateRequest(missing), f.NotifyRequest(wireNames()))
		w.ok(err)
		w.ends(calls[0], smb2.StatusObjectNameNotFound)
		w.ends(calls[1], smb2.StatusFileClosed)
	}
	w.quiet(c)
}

// A file of another session, of another tree of this one, or that was closed is none; over another channel of its session it
// is the same.
func TestWireForeignFile(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	other := w.tree(c)
	_, foreign := w.connect(smb2.Options{})
	f := w.open(tree, "")
	for _, of := range []*smb2.Tree{other, foreign} {
		w.refused(&smb2.File{ID: f.ID, Tree: of}, wireNames(), smb2.StatusFileClosed)
	}
	call, _ := w.park(f.On(w.bind(c)), wireNames())
	w.touch("file")
	w.told(call, "ADDED file")

	closed := w.open(tree, "")
	w.ok(closed.Close(w.ctx))
	w.refused(closed, wireNames(), smb2.StatusFileClosed)
	// Related to the request that closed it.
	notify := tree.Related().NotifyRequest(wireNames())
	notify.Related = true
	calls, err := c.Send(w.ctx, w.open(tree, "").CloseRequest(), notify)
	w.ok(err)
	w.ends(calls[0], smb2.StatusSuccess)
	w.ends(calls[1], smb2.StatusFileClosed)
	w.quiet(c)
}

// What fits to the byte is told, one byte less has the directory listed anew, and the first length is a ceiling.
func TestWireFit(t *testing.T) {
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	const need = 12 + 2*3 + 2 + 12 + 2*2 // "abc", padded to 4, "de"
	for _, test := range []struct {
		first, later uint32
		fits         bool
	}{
		{4096, need, true}, {4096, need - 1, false}, {need, 4096, true}, {need - 1, 4096, false},
	} {
		f := w.open(tree, "")
		p := wireNames()
		p.Length = test.first
		w.arm(f, p)
		p.Length = test.later
		w.touch("abc")
		w.touch("de")
		if call := w.send(f, p); test.fits {
			w.told(call, "ADDED abc", "ADDED de")
		} else {
			w.enumDir(w.ends(call, smb2.StatusNotifyEnumDir))
		}
		// Nothing is left of it, and the watch goes on.
		call, _ := w.park(f, p)
		w.ok(os.Remove(filepath.Join(w.dir, "de")))
		w.told(call, "REMOVED de")
		w.ok(os.Remove(filepath.Join(w.dir, "abc")))
		w.ok(f.Close(w.ctx))
	}
}

// Neighbours that say the same are one.
func TestWireMerge(t *testing.T) {
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	w.touch("a")
	w.touch("b")
	f := w.open(tree, "")
	p := smb2.NotifyParams{Filter: smb2.FilterSize, Length: 4096}
	w.arm(f, p)
	for i, name := range []string{"a", "a", "b", "a", "a"} {
		w.ok(os.Truncate(filepath.Join(w.dir, name), int64(i+1)))
		w.arm(w.open(tree, ""), wireNames()) // the daemon has looked
	}
	w.told(w.send(f, p), "MODIFIED a", "MODIFIED b", "MODIFIED a")
}

// The watched directory is renamed and moved, by the server and through SMB: the watch goes on, and tells nothing of it.
func TestWireMoved(t *testing.T) {
	for _, isTree := range []bool{false, true} {
		t.Run(fmt.Sprintf("tree-%v", isTree), func(t *testing.T) {
			w := newWire(t, wireLimit)
			w.mkdir("dir")
			w.mkdir("dir/sub")
			w.mkdir("other")
			_, tree := w.connect(smb2.Options{})
			f := w.open(tree, "dir")
			p := smb2.NotifyParams{Tree: isTree, Filter: smb2.FilterNames, Length: 4096}
			call, _ := w.park(f, p)
			w.ok(os.Rename(filepath.Join(w.dir, "dir"), filepath.Join(w.dir, "new")))
			w.touch("new/a")
			w.told(call, "ADDED a")
			w.ok(os.Rename(filepath.Join(w.dir, "new"), filepath.Join(w.dir, "other/new")))
			w.touch("other/new/b")
			w.told(w.send(f, p), "ADDED b")
			if isTree {
				w.touch("other/new/sub/c")
				w.told(w.send(f, p), `ADDED sub\c`)
			}
		})
	}
}

// Nothing fits in a buffer of length 0, and the first length is a ceiling.
func TestWireLengthZero(t *testing.T) {
	w := newWire(t, wireLimit)
	_, tree := w.connect(smb2.Options{})
	zero := wireNames()
	zero.Length = 0

	armed := w.open(tree, "")
	w.arm(armed, wireNames())
	w.ok(w.createFile(tree, "a").Close(w.ctx))
	w.enumDir(w.ends(w.send(armed, zero), smb2.StatusNotifyEnumDir))
	w.ok(w.createFile(tree, "b").Close(w.ctx))
	w.told(w.send(armed, wireNames()), "ADDED b")

	fresh := w.open(tree, "")
	for i, p := range []smb2.NotifyParams{zero, wireNames()} {
		call := w.send(fresh, p)
		r, err := call.Recv(w.ctx)
		w.ok(err)
		if r.Interim() { // it may wait for a change, or not
			w.touch(fmt.Sprint("c", i))
			r = w.endsAfter(call, r)
		}
		w.enumDir(r)
	}
}

func (w *wire) enumDir(r *smb2.Response) {
	w.Helper()
	if r.Status != smb2.StatusNotifyEnumDir {
		w.Fatalf("ends with %v, want ENUM_DIR", r.Status)
	}
	if got := w.records(r); len(got) > 0 {
		w.Errorf("ENUM_DIR with records %q", got)
	}
	if len(r.Body) < 9 {
		w.Errorf("ENUM_DIR with a body of %d bytes, want 9", len(r.Body))
	}
}

// NOTIFY in the middle of a compound fails alone; after a failed CREATE it fails as that did.
func TestWireCompound(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	create := smb2.CreateParams{Name: w.name, Access: wireRead, Disposition: smb2.DispositionOpen}
	notify, closing := tree.Related().NotifyRequest(wireNames()), tree.Related().CloseRequest()
	notify.Related, closing.Related = true, true
	statuses := func(want []smb2.Status, reqs ...*smb2.Request) {
		t.Helper()
		calls, err := c.Send(w.ctx, reqs...)
		w.ok(err)
		for i, call := range calls {
			w.ends(call, want[i])
		}
	}
	ok, bad := smb2.StatusSuccess, smb2.StatusInternalError
	statuses([]smb2.Status{ok, bad, ok}, tree.CreateRequest(create), notify, closing)
	f := w.open(tree, "")
	statuses([]smb2.Status{bad, ok}, f.NotifyRequest(wireNames()), f.CloseRequest())

	create.Name = w.path("missing")
	gone := smb2.StatusObjectNameNotFound
	statuses([]smb2.Status{gone, gone}, tree.CreateRequest(create), notify)
	calls, err := c.Send(w.ctx, tree.CreateRequest(create), notify, closing)
	w.ok(err)
	w.ends(calls[0], gone)
	w.ends(calls[1], gone)
	// CLOSE is not ours: since 7.3 it says the same, as on Windows, before that INVALID_PARAMETER.
	_, err = calls[2].Recv(w.ctx)
	w.ok(err)

	// The last one pends, related to those before or not, unless they closed its handle.
	f = w.open(tree, "")
	other := w.createFile(tree, "other")
	calls, err = c.Send(w.ctx, other.CloseRequest(), f.NotifyRequest(wireNames()))
	w.ok(err)
	if closed, interim := w.ends(calls[0], ok), w.pending(calls[1]); closed.Seq > interim.Seq {
		t.Error("PENDING came before the CLOSE response")
	}
	w.touch("file")
	w.told(calls[1], "ADDED file")
	statuses([]smb2.Status{ok, smb2.StatusFileClosed}, f.CloseRequest(), f.NotifyRequest(wireNames()))
	w.quiet(c)
}

// A watch tree covers directories made before and after it, by the server.
func TestWireWatchTree(t *testing.T) {
	w := newWire(t, wireLimit)
	for _, dir := range []string{"a", "a/b", "a/b/c"} {
		w.mkdir(dir)
	}
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	p := wireNames()
	p.Tree = true
	call, _ := w.park(f, p)
	w.touch("a/b/c/old")
	w.told(call, `ADDED a\b\c\old`)

	for _, dir := range []string{"n", "n/m", "n/m/o"} {
		w.mkdir(dir)
	}
	w.touch("n/m/o/new")
	w.toldInAll(f, p, `ADDED n`, `ADDED n\m`, `ADDED n\m\o`, `ADDED n\m\o\new`)
	w.quiet(c)
}

// Deletion of the watched directory ends every request on it at once.
func TestWireDeletePending(t *testing.T) {
	for _, side := range []string{"smb", "server"} {
		t.Run(side, func(t *testing.T) {
			w := newWire(t, wireLimit)
			w.mkdir("dir")
			_, tree := w.connect(smb2.Options{})
			_, tree2 := w.connect2()
			var calls []*smb2.Call
			var files []*smb2.File
			for _, tr := range []*smb2.Tree{tree, tree, tree2} {
				f := w.open(tr, "dir")
				call, _ := w.park(f, wireNames())
				calls, files = append(calls, call), append(files, f)
			}
			if side == "server" {
				w.ok(os.Remove(filepath.Join(w.dir, "dir")))
			} else {
				deleter := w.create(tree2, smb2.CreateParams{
					Name: w.path("dir"), Access: smb2.AccessDelete, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
				})
				w.ok(deleter.Delete(w.ctx)) // and stays open: the disposition alone does it
				files = append(files, deleter)
			}
			for _, call := range calls {
				w.ends(call, smb2.StatusDeletePending)
			}
			for _, f := range files {
				w.ok(f.Close(w.ctx))
			}
		})
	}
}

// Requests of a directory that is to be deleted end at once, and those of one that is not any more go on.
func TestWireUndeleted(t *testing.T) {
	w := newWire(t, wireLimit)
	w.mkdir("dir")
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "dir")
	deleter := w.create(tree, smb2.CreateParams{
		Name: w.path("dir"), Access: smb2.AccessDelete | wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory,
	})
	for range 3 {
		w.ok(deleter.Delete(w.ctx))
		for _, on := range []*smb2.File{f, deleter, f} {
			w.ends(w.send(on, wireNames()), smb2.StatusDeletePending)
		}
		w.ok(deleter.Undelete(w.ctx))
		call, _ := w.park(f, wireNames())
		w.touch("dir/file")
		w.told(call, "ADDED file")
		w.ok(os.Remove(filepath.Join(w.dir, "dir/file")))
		w.told(w.send(f, wireNames()), "REMOVED file")
	}
	w.ok(deleter.Delete(w.ctx))
	w.ok(deleter.Close(w.ctx))
	w.ends(w.send(f, wireNames()), smb2.StatusDeletePending)
}

// A connection that goes away takes its requests with it, and nothing else.
func TestWireDropped(t *testing.T) {
	w := newWire(t, 60*time.Second)
	_, watching := w.connect(smb2.Options{})
	bystander, _ := w.park(w.open(watching, ""), wireNames())
	for i := range 50 {
		c, tree := w.connect(smb2.Options{})
		f := w.open(tree, "")
		for range 5 {
			w.park(f, wireNames())
		}
		w.send(f, wireNames()) // its PENDING may meet the end
		if i%2 == 0 {
			c.Reset()
		} else {
			c.Close()
		}
	}
	c, tree := w.connect(smb2.Options{})
	call, _ := w.park(w.open(tree, ""), wireNames())
	w.touch("file")
	w.told(call, "ADDED file")
	w.told(bystander, "ADDED file")
	w.quiet(c)
}

// Requests on one handle complete first in, first out, with one record each.
func TestWireFIFO(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	calls := make([]*smb2.Call, 64)
	for i := range calls {
		calls[i], _ = w.park(f, wireNames())
	}
	start := time.Now()
	for i := range calls {
		w.touch(fmt.Sprint("f", i))
	}
	last := -1
	for i, call := range calls {
		r := w.told(call, fmt.Sprint("ADDED f", i))
		if r.Seq < last {
			t.Errorf("request %d was answered before the one before it", i)
		}
		last = r.Seq
	}
	t.Logf("%d requests: all answered after %v", len(calls), time.Since(start))
	w.quiet(c)
}

// CLOSE comes while the interim response is on its way, sooner or later: whatever wins, the request ends once, and after
// the CLOSE response.
func TestWireCloseRace(t *testing.T) {
	w := newWire(t, long)
	c, tree := w.connect(smb2.Options{})
	overtaken := 0
	for round := range 300 {
		f := w.open(tree, "")
		call := w.send(f, wireNames())
		if round%3 > 0 { // without a wait the daemon is seldom fast enough
			time.Sleep(time.Duration(round%50) * 100 * time.Microsecond)
		}
		closed, err := c.Do(w.ctx, f.CloseRequest())
		w.ok(err)
		end, err := call.Recv(w.ctx)
		w.ok(err)
		if end.Interim() {
			end = w.endsAfter(call, end)
		}
		switch {
		case end.Status == smb2.StatusFileClosed && end.Flags&smb2.FlagAsync == 0: // ksmbd had CLOSE first
			overtaken++
		case end.Status != smb2.StatusNotifyCleanup:
			t.Fatalf("round %d: ends with %v", round, end.Status)
		case end.Seq < closed.Seq:
			t.Fatalf("round %d: NOTIFY_CLEANUP before the CLOSE response", round)
		}
	}
	if overtaken > 10 {
		t.Errorf("%d of 300 requests came too late", overtaken)
	}
	w.quiet(c)
}

// A change, CANCEL and CLOSE, all at about the same time: one of them wins, and the connection lives.
func TestWireEndRace(t *testing.T) {
	w := newWire(t, long)
	c, tree := w.connect(smb2.Options{})
	ended := map[smb2.Status]int{}
	for round := range 300 {
		f := w.open(tree, "")
		call := w.send(f, wireNames())
		time.Sleep(time.Duration(round%40) * 100 * time.Microsecond)
		changed := make(chan error, 1)
		go func() { changed <- os.WriteFile(filepath.Join(w.dir, fmt.Sprint(round)), nil, 0o644) }()
		if round%2 > 0 {
			w.ok(call.Cancel(w.ctx))
		}
		_, err := c.Do(w.ctx, f.CloseRequest())
		w.ok(err)
		w.ok(<-changed)
		r, err := call.Recv(w.ctx)
		w.ok(err)
		if r.Interim() {
			r = w.endsAfter(call, r)
		}
		ended[r.Status]++
	}
	w.quiet(c)
	t.Logf("ended with %v", ended)
	for status, n := range ended {
		switch status {
		case smb2.StatusSuccess, smb2.StatusCancelled, smb2.StatusNotifyCleanup:
		case smb2.StatusFileClosed: // ksmbd had CLOSE first
			if n > 10 {
				t.Errorf("%d of 300 requests came too late", n)
			}
		default:
			t.Errorf("some ended with %v", status)
		}
	}
}

// A connection may have so many requests pend and no more, and gets them all back.
func TestWireMaxPending(t *testing.T) {
	w := newWire(t, 2*wireLimit)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	calls := make([]*smb2.Call, 511)
	for i := range calls {
		calls[i], _ = w.park(f, wireNames())
	}
	w.refused(f, wireNames(), smb2.StatusInsufficientResources)
	w.ok(f.Close(w.ctx))
	for _, call := range calls {
		w.ends(call, smb2.StatusNotifyCleanup)
	}
	call, _ := w.park(w.open(tree, ""), wireNames())
	w.touch("file")
	w.told(call, "ADDED file")
	w.quiet(c)
}

// Two handles on one directory know nothing of each other.
func TestWireTwoHandles(t *testing.T) {
	w := newWire(t, wireLimit)
	c, tree := w.connect(smb2.Options{})
	a, b := w.open(tree, ""), w.open(tree, "")
	callA, _ := w.park(a, wireNames())
	callB, _ := w.park(b, wireNames())
	w.touch("f1")
	w.told(callA, "ADDED f1")
	w.told(callB, "ADDED f1")

	callA, _ = w.park(a, wireNames())
	w.touch("f2")
	w.told(callA, "ADDED f2")
	callA, _ = w.park(a, wireNames())
	w.touch("f3")
	w.told(callA, "ADDED f3")
	w.told(w.send(b, wireNames()), "ADDED f2", "ADDED f3")

	w.ok(a.Close(w.ctx))
	callB, _ = w.park(b, wireNames())
	w.touch("f4")
	w.told(callB, "ADDED f4")
	w.quiet(c)
}
