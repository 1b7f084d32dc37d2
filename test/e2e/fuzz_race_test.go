// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ksmbd-notifyd/test/fuzz"
	"ksmbd-notifyd/test/smb2"
)

// TestFuzzRaces has clients watch the same directories and end their requests in every way there is, all at once, while
// the daemon stops, dies and comes back and directories come and go. Whatever wins, on a connection that lives every
// request ends, and once.
func TestFuzzRaces(t *testing.T) {
	f := newFuzzer(t)
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		if err := f.upset(ctx); err != nil {
			t.Errorf("the daemon: %v", err)
		}
	})
	others.Go(func() { comeAndGo(ctx, fuzz.Rand(f.seed, 1<<33)) })
	f.run(6, func(_ int, n uint64) error { return f.race(n) })
	stop()
	others.Wait()
	t.Logf("%d of %d clients were dropped", f.dropped.Load(), f.next.Load())
	if f.dropped.Load() > f.next.Load()/4 {
		t.Error("these are too many")
	}
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	if err := empty(sharePath(lanes[0])); err != nil {
		t.Error(err)
	}
	f.healthy()
}

// upset has the daemon wait, end, die and hand over to another.
func (f *fuzzer) upset(ctx context.Context) error {
	r := fuzz.Rand(f.seed, 1<<32)
	for ctx.Err() == nil {
		pause(ctx, time.Duration(r.IntN(3000))*time.Millisecond)
		var err error
		switch r.IntN(4) {
		case 0:
			daemon := server.notifyd.cmd.Process
			err = daemon.Signal(syscall.SIGSTOP)
			pause(ctx, time.Duration(r.IntN(4000))*time.Millisecond)
			err = errors.Join(err, daemon.Signal(syscall.SIGCONT))
		case 1:
			err = killNotifyd()
		case 2:
			err = stopNotifyd()
		case 3:
			err = restartNotifyd(func() error { return nil })
		}
		pause(ctx, time.Duration(r.IntN(300))*time.Millisecond)
		if err = errors.Join(err, startNotifyd()); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// comeAndGo makes, renames and removes directories and files on the server.
func comeAndGo(ctx context.Context, r *rand.Rand) {
	name := func() string {
		return filepath.Join(sharePath(lanes[0]), fmt.Sprint("d", r.IntN(4)), strings.Repeat("x", r.IntN(3)))
	}
	for ctx.Err() == nil {
		// Each of these may fail: the name is there, or is not.
		switch r.IntN(8) {
		case 0:
			os.RemoveAll(name())
		case 1:
			os.Rename(name(), name())
		case 2, 3:
			os.WriteFile(name(), nil, 0o666)
		default:
			d := name()
			os.Mkdir(d, 0o777)
			os.Chmod(d, 0o777)
		}
		pause(ctx, time.Duration(r.IntN(4))*time.Millisecond)
	}
}

// racer is one client, on one channel or two.
type racer struct {
	*rand.Rand
	ctx   context.Context
	conn  *smb2.Conn
	other *smb2.Conn // a second channel
	tree  *smb2.Tree
	files []*smb2.File
	calls []*smb2.Call
	gone  bool // the session has ended
	guid  [16]byte
	login time.Duration // the longest
}

func (f *fuzzer) race(n uint64) error {
	// A session that replaces another waits for what that has running, for two minutes.
	ctx, cancel := context.WithTimeout(f.Context(), 8*long)
	defer cancel()
	c := &racer{Rand: fuzz.Rand(f.seed, n), ctx: ctx}
	le64(c.guid[:], c.Uint64())
	err := c.dial(0)
	if err == nil && !c.gone {
		for range 10 + c.IntN(60) {
			f.messages.Add(1)
			if err = c.step(); err != nil || c.gone {
				break
			}
		}
	}
	if err == nil {
		err = c.settle()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		f.dropped.Add(1) // ksmbd's answer to a session that is gone
		err, c.gone = nil, true
	}
	for _, conn := range []*smb2.Conn{c.conn, c.other} {
		if conn == nil {
			continue
		}
		if broken := conn.Err(); broken != nil && !errors.Is(broken, net.ErrClosed) && err == nil && !c.gone {
			err = broken
		}
		if c.IntN(2) == 0 {
			conn.Close()
		} else {
			conn.Reset()
		}
	}
	if err != nil {
		return fmt.Errorf("%w; a login took %v", err, c.login)
	}
	return nil
}

func le64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

// refusal says whether err is no more than the server's refusal, which is an answer.
func refusal(err error) bool {
	var s smb2.Status
	return errors.As(err, &s)
}

func (c *racer) dial(previous uint64) error {
	start := time.Now()
	defer func() { c.login = max(c.login, time.Since(start)) }()
	user, password, _ := strings.Cut(user1, "%")
	o := smb2.Options{Dialect: smb2.Dialect311, User: user, Password: password, Credits: 512, ClientGUID: c.guid, PreviousSession: previous}
	if c.IntN(4) == 0 {
		o.Cipher = smb2.AES128GCM
	}
	conn, err := smb2.Dial(c.ctx, "127.0.0.1:445", o)
	if err != nil {
		return err
	}
	if c.conn != nil {
		c.conn.Close()
	}
	if c.other != nil {
		c.other.Close()
	}
	c.conn, c.other, c.files, c.calls = conn, nil, nil, nil
	tree, err := conn.TreeConnect(c.ctx, lanes[0])
	// The end of the session before may have taken this one with it; the stock module then answers in any form.
	if err != nil && c.ctx.Err() == nil {
		c.gone = true
		return nil
	}
	c.tree = tree
	return err
}

// do sends a request and waits for its answer, whatever that is.
func (c *racer) do(conn *smb2.Conn, req *smb2.Request) error {
	_, err := conn.Do(c.ctx, req)
	if refusal(err) {
		return nil
	}
	return err
}

func (c *racer) step() error {
	conn := c.conn
	if c.other != nil && c.IntN(2) == 0 {
		conn = c.other
	}
	switch n := c.IntN(40); {
	case n < 6 || len(c.files) == 0:
		return c.open(c.tree.On(conn), smb2.CreateParams{})
	case n < 20:
		file := c.files[c.IntN(len(c.files))].On(conn)
		call, err := file.Notify(c.ctx, smb2.NotifyParams{Tree: c.IntN(2) == 0, Filter: smb2.FilterAll, Length: uint32(c.IntN(5000))})
		if err != nil {
			return err
		}
		c.calls = append(c.calls, call)
		if c.IntN(4) == 0 {
			return call.Cancel(c.ctx)
		}
	case n < 26 && len(c.calls) > 0:
		if call := c.calls[c.IntN(len(c.calls))]; call.Conn().Err() == nil { // its channel is still there
			return call.Cancel(c.ctx)
		}
	case n < 27:
		return conn.CancelAsync(c.ctx, uint64(c.IntN(20)))
	case n < 31:
		i := c.IntN(len(c.files))
		req := c.files[i].CloseRequest()
		c.files = append(c.files[:i], c.files[i+1:]...)
		if c.IntN(2) == 0 { // and wait for nothing
			calls, err := conn.Send(c.ctx, req)
			c.calls = append(c.calls, calls...)
			return err
		}
		return c.do(conn, req)
	case n < 33: // a file that goes again
		return c.open(c.tree.On(conn), smb2.CreateParams{Options: smb2.OptionFile | smb2.OptionDeleteOnClose})
	case n < 34: // a directory that others watch goes
		return c.open(c.tree.On(conn), smb2.CreateParams{Options: smb2.OptionDirectory | smb2.OptionDeleteOnClose})
	case n < 35 && c.other == nil:
		channel, err := c.conn.Bind(c.ctx)
		if refusal(err) {
			return nil
		}
		c.other = channel
		return err
	case n < 36 && c.other != nil:
		c.other.Reset()
		c.other = nil
	case n < 37:
		return c.disconnect(conn)
	case n < 38:
		return c.durable()
	case n < 39:
		return c.leave(conn)
	}
	return nil
}

// open opens a directory, or what p says.
func (c *racer) open(tree *smb2.Tree, p smb2.CreateParams) error {
	if p.Options == 0 {
		p.Options = smb2.OptionDirectory
	}
	p.Name = fmt.Sprint("d", c.IntN(4))
	if p.Options&smb2.OptionFile != 0 {
		p.Name += fmt.Sprint(`\f`, c.IntN(3))
	} else if c.IntN(4) == 0 {
		p.Name = ""
	}
	p.Access, p.Disposition = smb2.AccessMaximum, smb2.DispositionOpenIf
	if p.Name == "" {
		p.Options &^= smb2.OptionDeleteOnClose
	}
	file, err := tree.Create(c.ctx, p)
	if refusal(err) {
		return nil
	}
	if err == nil {
		c.files = append(c.files, file)
	}
	return err
}

// disconnect leaves the share, what pends with it, and comes back.
func (c *racer) disconnect(conn *smb2.Conn) error {
	if err := c.do(conn, c.tree.DisconnectRequest()); err != nil {
		return err
	}
	c.files = nil
	tree, err := conn.TreeConnect(c.ctx, lanes[0])
	// The session may be gone, as in dial. And where ksmbd.mountd takes more than two seconds, the answer's signature is wrong.
	if err != nil && c.ctx.Err() == nil {
		c.gone = true
		return nil
	}
	if err == nil {
		c.tree = tree.On(c.conn)
	}
	return err
}

// durable opens a directory and asks for it to last, loses the connection with a request that pends, and has it again.
func (c *racer) durable() error {
	p := smb2.CreateParams{Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpenIf, Options: smb2.OptionDirectory,
		Name: fmt.Sprint("d", c.IntN(4)), Oplock: smb2.OplockLease}
	var guid, key [16]byte
	le64(guid[:], c.Uint64())
	le64(key[:], c.Uint64())
	p.Contexts = []smb2.Context{smb2.LeaseContext(key), smb2.DurableContext(guid)}
	file, err := c.tree.Create(c.ctx, p)
	if refusal(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := file.Notify(c.ctx, smb2.NotifyParams{Filter: smb2.FilterAll, Length: 4096}); err != nil {
		return err
	}
	session := c.conn.SessionID()
	if c.IntN(2) == 0 {
		c.conn.Reset()
		session *= uint64(c.IntN(2))
	}
	if err := c.dial(session); err != nil || c.gone {
		return err
	}
	p.Contexts = []smb2.Context{file.ReconnectContext(guid), smb2.LeaseContext(key)}
	again, err := c.tree.Create(c.ctx, p)
	if refusal(err) {
		return nil
	}
	if err == nil {
		c.files = append(c.files, again)
	}
	return err
}

// leave ends the session: by LOGOFF, by credentials that are none, by a reset of a connection, or by the end of a client
// that never reads what it is told.
func (c *racer) leave(conn *smb2.Conn) error {
	c.gone = true
	switch c.IntN(3) {
	case 0:
		return c.do(conn, smb2.LogoffRequest())
	case 1:
		c.do(conn, smb2.SetupRequest(make([]byte, 64))) // the server may drop the connection
		return nil
	}
	return conn.Reset()
}

// settle has everything end that has not yet: then nothing may pend.
func (c *racer) settle() error {
	if c.gone {
		return nil
	}
	for _, file := range c.files {
		if err := c.do(c.conn, file.CloseRequest()); err != nil {
			return err
		}
	}
	for _, call := range c.calls {
		if call.Conn().Err() != nil {
			continue
		}
		if _, err := call.Final(c.ctx); err != nil && call.Conn().Err() == nil {
			return fmt.Errorf("after all its handles were closed: %w", err)
		}
	}
	return c.do(c.conn, smb2.EchoRequest())
}
