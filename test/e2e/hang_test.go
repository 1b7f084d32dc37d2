// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"ksmbd-notifyd/test/smb2"
)

// hanging is a FUSE filesystem that can leave any operation without an answer.
type hanging struct {
	fuse.RawFileSystem
	mu    sync.Mutex
	what  string        // the operation that hangs, "" for none
	until chan struct{} // closed when it does no more
	hung  chan struct{} // has a value when one does
}

// A hanger is a filesystem that can be made not to answer.
type hanger interface {
	hang(what string)
	hangs() <-chan struct{} // has a value when something does
	answer()
}

func (h *hanging) hangs() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hung
}

func (h *hanging) hang(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.what, h.until, h.hung = what, make(chan struct{}), make(chan struct{}, 1)
}

// awaitHang waits until something hangs.
func (h *hanging) awaitHang(t *testing.T) {
	t.Helper()
	select {
	case <-h.hangs():
	case <-time.After(long):
		t.Fatal("ksmbd asks nothing that hangs")
	}
}

// answer has all that hangs answered.
func (h *hanging) answer() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.what != "" {
		h.what = ""
		close(h.until)
	}
}

func (h *hanging) wait(what string) {
	h.mu.Lock()
	until, hung, same := h.until, h.hung, h.what == what
	h.mu.Unlock()
	if !same {
		return
	}
	select {
	case hung <- struct{}{}:
	default:
	}
	<-until // an interrupt does not help
}

func (h *hanging) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.wait("OPENDIR")
	return h.RawFileSystem.OpenDir(cancel, in, out)
}

func (h *hanging) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	h.wait("LOOKUP")
	return h.RawFileSystem.Lookup(cancel, header, name, out)
}

func (h *hanging) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.wait("GETATTR")
	return h.RawFileSystem.GetAttr(cancel, in, out)
}

func (h *hanging) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h.wait("READDIR")
	return h.RawFileSystem.ReadDir(cancel, in, out)
}

func (h *hanging) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h.wait("READDIR")
	return h.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// GetXAttr: ksmbd has the DACL of a share with acl_xattr in this one, which nobody else asks for.
func (h *hanging) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if attr == "security.NTACL" {
		h.wait("GETXATTR")
	}
	return h.RawFileSystem.GetXAttr(cancel, header, attr, dest)
}

func (h *hanging) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	h.wait("STATFS")
	return h.RawFileSystem.StatFs(cancel, in, out)
}

func (h *hanging) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	h.wait("UNLINK")
	return h.RawFileSystem.Unlink(cancel, header, name)
}

// hangingMount is where it is mounted; below that is the share, see shares.
const hangingMount = "/srv/hangs"

// mountHanging mounts one that shows a directory, until the test ends. The kernel may know for so long what attributes
// there are.
func mountHanging(t *testing.T, known time.Duration) *hanging {
	t.Helper()
	under := filepath.Join(mount, "hangs")
	for _, dir := range []string{under, filepath.Join(under, "share")} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	root, err := fs.NewLoopbackRoot(under)
	if err != nil {
		t.Fatal(err)
	}
	h := &hanging{RawFileSystem: fs.NewNodeFS(root, &fs.Options{AttrTimeout: &known})}
	server, err := fuse.NewServer(h, hangingMount, &fuse.MountOptions{AllowOther: true, DirectMount: true, Name: "test", FsName: "test", MaxBackground: 64})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.answer()
		if err := until(long, server.Unmount); err != nil {
			t.Errorf("unmounting what hung: %v", err)
		}
		os.RemoveAll(under)
	})
	return h
}

// toldAfter returns the medians of how long it takes a client to get its PENDING, and to be told of a change.
func (w *wire) toldAfter(f *smb2.File, rounds int) (pending, told time.Duration) {
	w.Helper()
	var pendings, tolds []time.Duration
	for i := range rounds {
		name := fmt.Sprint("f", i)
		start := time.Now()
		call, _ := w.park(f, smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 4096})
		pendings = append(pendings, time.Since(start))
		start = time.Now()
		w.touch(name)
		w.told(call, "ADDED "+name)
		tolds = append(tolds, time.Since(start))
		w.ok(os.Remove(filepath.Join(w.dir, name)))
		w.told(w.send(f, smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 4096}), "REMOVED "+name)
	}
	slices.Sort(pendings)
	slices.Sort(tolds)
	return pendings[rounds/2], tolds[rounds/2]
}

// insertOther loads a module that registers a family of generic netlink, and unloads it.
func insertOther() error {
	if err := command("modprobe", "psample"); err != nil {
		return err
	}
	return command("rmmod", "psample")
}

// TestHangingShare: a share whose filesystem does not answer is silent by itself.
func TestHangingShare(t *testing.T) {
	begin(t)
	for _, what := range []string{"OPENDIR", "GETATTR", "LOOKUP", "READDIR", "STATFS"} {
		t.Run(what, func(t *testing.T) {
			testHang(t, mountHanging(t, 0), "HANGS", filepath.Join(hangingMount, "share"), what)
		})
	}
}

// testHang has a filesystem hang on which there is a share, whose directory is given.
func testHang(t *testing.T, h hanger, share, dir, what string) {
	w := newWire(t, 4*long)
	_, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	aloneP, alone := w.toldAfter(f, 15)
	againP, again := w.toldAfter(f, 15)
	aloneP, alone = max(aloneP, againP), max(alone, again)

	// Of the share that is about to hang, one directory is watched already, and two handles are open.
	dir = filepath.Join(dir, "watched")
	w.ok(os.Mkdir(dir, 0o777))
	w.ok(os.Chmod(dir, 0o777))
	c := w.dial(smb2.Options{})
	hung, err := c.TreeConnect(w.ctx, share)
	w.ok(err)
	openHung := func() *smb2.File {
		return w.create(hung, smb2.CreateParams{Name: "watched", Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
	}
	watched, fresh, other := openHung(), openHung(), openHung()
	first, _ := w.park(watched, wireNames())
	w.ok(os.WriteFile(filepath.Join(dir, "before"), nil, 0o666))
	w.told(first, "ADDED before")
	second, _ := w.park(watched, wireNames())

	h.hang(what)
	answered := false
	defer func() {
		if !answered {
			h.answer()
		}
	}()
	// A new watch of it meets what hangs, if arming a watch asks for that at all.
	third := w.send(fresh, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 4096, Tree: true})
	hangs := false
	select {
	case <-h.hangs():
		hangs = true
	case <-time.After(3 * time.Second):
	}
	t.Logf("%s hangs the daemon: %v", what, hangs)

	pending, told := w.toldAfter(f, 15)
	for range 2 { // an emulated machine has its bad moments; what hangs does so all the time
		againP, again = w.toldAfter(f, 15)
		pending, told = min(pending, againP), min(told, again)
	}
	t.Logf("PENDING after %v, alone %v; told after %v, alone %v", pending, aloneP, told, alone)
	if told > 2*alone+time.Millisecond || pending > 2*aloneP+time.Millisecond {
		t.Errorf("others are told after %v, PENDING after %v; alone %v, %v", told, pending, alone, aloneP)
	}
	_, another := w.connect2() // which is a login
	call, _ := w.park(w.open(another, ""), wireNames())
	w.touch("new")
	w.told(call, "ADDED new")
	w.ok(insertOther())
	// Its own clients are let go after a time that is bounded.
	w.pending(third)
	if hangs {
		if err := until(long, func() error {
			out, err := exec.Command(*daemon, "status").CombinedOutput()
			if err == nil && !strings.Contains(string(out), "has not answered since") {
				err = fmt.Errorf("status says nothing of what hangs:\n%s", out)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}

	start := time.Now()
	w.ok(stopNotifyd())
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	w.ok(startNotifyd())
	call, _ = w.park(w.open(another, ""), wireNames())
	w.touch("after")
	w.told(call, "ADDED after")

	h.answer()
	answered = true
	// What was promised when nobody looked is made up for.
	w.ends(second, smb2.StatusNotifyEnumDir)
	r, err := third.Final(w.ctx)
	w.ok(err)
	if r.Status != smb2.StatusNotifyEnumDir {
		t.Errorf("what was promised while it hung ends with %v", r.Status)
	}
	fourth, _ := w.park(other, wireNames())
	w.ok(os.WriteFile(filepath.Join(dir, "later"), nil, 0o666))
	w.told(fourth, "ADDED later")
}

// TestHangingPermission: a share that hangs when ksmbd asks it what a user may see holds up no response of another share,
// on the same connection as on others.
func TestHangingPermission(t *testing.T) {
	begin(t)
	h := mountHanging(t, 0)
	w := newWire(t, 4*long)
	c, tree := w.connect(smb2.Options{})
	f := w.open(tree, "")
	w.mkdir("below")
	_, alone := w.toldAfter(f, 15)
	_, again := w.toldAfter(f, 15)
	alone = max(alone, again)

	dir := filepath.Join(hangingMount, "share", "watched")
	w.ok(os.MkdirAll(filepath.Join(dir, "sub"), 0o777))
	w.ok(os.Chmod(dir, 0o777))
	hung, err := c.TreeConnect(w.ctx, "HANGSACL")
	w.ok(err)
	var calls []*smb2.Call
	for range 3 {
		watched := w.create(hung, smb2.CreateParams{Name: "watched", Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
		call, _ := w.park(watched, smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 4096, Tree: true})
		calls = append(calls, call)
	}
	h.hang("GETXATTR")
	w.ok(os.WriteFile(filepath.Join(dir, "sub", "x"), nil, 0o666))
	h.awaitHang(t)

	_, told := w.toldAfter(f, 15)
	for range 2 {
		_, again = w.toldAfter(f, 15)
		told = min(told, again)
	}
	t.Logf("told after %v, alone %v", told, alone)
	if told > 2*alone+time.Millisecond {
		t.Errorf("others are told after %v, alone %v", told, alone)
	}
	call, _ := w.park(w.open(tree, ""), smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 4096, Tree: true})
	w.touch("below/new") // which ksmbd asks a filesystem about as well
	w.told(call, `ADDED below\new`)
	healthy := w.tree(c)
	start := time.Now()
	_, err = c.Do(w.ctx, healthy.DisconnectRequest())
	w.ok(err)
	if took := time.Since(start); took > time.Second {
		t.Errorf("TREE_DISCONNECT took %v", took)
	}

	h.answer()
	for _, call := range calls {
		w.told(call, `ADDED sub\x`)
	}
}

// TestHangingLogin: others log in while ksmbd waits for a share that hangs, on behalf of a client that leaves or whose session
// is replaced by another.
func TestHangingLogin(t *testing.T) {
	begin(t)
	replace := func(w *wire, c *smb2.Conn) error {
		user, password, _ := strings.Cut(user1, "%")
		o := smb2.Options{Dialect: smb2.Dialect311, User: user, Password: password, PreviousSession: c.SessionID()}
		go func() {
			if conn, err := smb2.Dial(w.ctx, "127.0.0.1:445", o); err == nil {
				conn.Close()
			}
		}()
		return nil
	}
	end := func(_ *wire, c *smb2.Conn) error { return c.Close() }
	logOff := func(w *wire, c *smb2.Conn) error {
		_, err := c.Send(w.ctx, smb2.LogoffRequest())
		return err
	}
	for name, leave := range map[string]func(*wire, *smb2.Conn) error{"replaced": replace, "gone": end, "logged off": logOff} {
		for _, what := range []string{"LOOKUP", "UNLINK"} {
			t.Run(what+"/"+name, func(t *testing.T) { testHangingLogin(t, what, leave) })
		}
	}
}

func testHangingLogin(t *testing.T, what string, leave func(*wire, *smb2.Conn) error) {
	h := mountHanging(t, 0)
	w := newWire(t, 4*long)
	c := w.dial(smb2.Options{})
	tree, err := c.TreeConnect(w.ctx, "HANGS")
	w.ok(err)
	w.create(tree, smb2.CreateParams{
		Name: "file", Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionDeleteOnClose,
	})
	h.hang(what)
	_, err = c.Send(w.ctx, tree.CreateRequest(smb2.CreateParams{Name: "other", Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen}))
	w.ok(err)
	if what == "LOOKUP" {
		h.awaitHang(t) // else it may leave before that is asked for
	}
	w.ok(leave(w, c))
	if what == "UNLINK" {
		h.awaitHang(t)
	}
	const most = 5 * time.Second
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		start := time.Now()
		other, tree := w.connect2()
		call, _ := w.park(w.open(tree, ""), wireNames())
		w.touch("new")
		w.told(call, "ADDED new")
		w.ok(errors.Join(os.Remove(filepath.Join(w.dir, "new")), other.Close()))
		if took := time.Since(start); took > most {
			t.Fatalf("others log in and are told after %v", took)
		}
	}
}

// TestTimesOfOthers: where a file has been changed behind the kernel's back, as it may be on FUSE, setting one of its times
// leaves the other as it is, also while somebody watches.
func TestTimesOfOthers(t *testing.T) {
	begin(t)
	mountHanging(t, time.Hour)
	w := newWire(t, wireLimit)
	tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, "HANGS")
	w.ok(err)
	call, _ := w.park(w.create(tree, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}),
		smb2.NotifyParams{Filter: smb2.FilterLastAccess, Length: 4096})
	f := w.create(tree, smb2.CreateParams{Name: "f", Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionFile})
	changed := time.Unix(1e9, 0)
	name := filepath.Join(mount, "hangs/share/f")
	w.ok(os.Chtimes(name, time.Time{}, changed))
	w.ok(f.SetBasic(w.ctx, smb2.Basic{LastAccess: time.Unix(1.1e9, 0)}))
	w.told(call, "MODIFIED f")
	info, err := os.Stat(name)
	w.ok(err)
	if !info.ModTime().Equal(changed) {
		t.Errorf("changed at %v, want %v", info.ModTime(), changed)
	}
}
