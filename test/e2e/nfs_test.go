// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// nfsMount is where the guest mounts what it exports itself; below that is the share, see shares.
const (
	nfsMount  = "/srv/nfs"
	nfsExport = "/srv/export"
	nfsServer = "127.0.0.1:2049"
)

// nfs is a mount of NFS whose server can be made not to answer: all it is asked, and says, passes here.
type nfs struct {
	mu    sync.Mutex
	until chan struct{} // closed when the server answers
	hung  chan struct{} // has a value when it is asked something and does not
}

func (n *nfs) hang(string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.until = make(chan struct{})
}

func (n *nfs) answer() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.until:
	default:
		close(n.until)
	}
}

func (n *nfs) hangs() <-chan struct{} { return n.hung }

// pass passes on what is asked, or said.
func (n *nfs) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 1<<16)
	for {
		size, err := from.Read(b)
		if err != nil {
			return
		}
		n.mu.Lock()
		until := n.until
		n.mu.Unlock()
		select {
		case <-until:
		default:
			select {
			case n.hung <- struct{}{}:
			default:
			}
			<-until
		}
		if _, err := to.Write(b[:size]); err != nil {
			return
		}
	}
}

// mountNFS exports a directory, as exportfs and rpc.nfsd do, and mounts it until the test ends.
func mountNFS(t *testing.T) *nfs {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	say := func(file, format string, args ...any) {
		t.Helper()
		ok(os.WriteFile(file, []byte(fmt.Sprintf(format, args...)), 0))
	}
	ok(command("modprobe", "nfsd"))
	for _, dir := range []string{nfsMount, nfsExport} {
		ok(os.MkdirAll(dir, 0o755))
	}
	ok(unix.Mount("none", nfsExport, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() {
		if err := until(long, func() error { return unix.Unmount(nfsExport, 0) }); err != nil {
			t.Errorf("unmounting what was exported: %v", err)
		}
	})
	share := filepath.Join(nfsExport, "share")
	ok(errors.Join(os.Mkdir(share, 0o777), os.Chmod(share, 0o777)))

	const control, caches = "/proc/fs/nfsd/", "/proc/net/rpc/"
	if _, err := os.Stat(control + "threads"); err != nil {
		ok(unix.Mount("none", control, "nfsd", 0, ""))
	}
	later := time.Now().Add(time.Hour).Unix()
	const flags = 0x2000 | 0x400 | 2 // the root, whole, for any port, as root too
	say(caches+"auth.unix.ip/channel", "nfsd 127.0.0.1 %d guest\n", later)
	say(caches+"nfsd.export/channel", "guest %s %d %d 65534 65534 0\n", nfsExport, later, flags)
	say(caches+"nfsd.fh/channel", `guest 1 \x00000000 %d %s`+"\n", later, nfsExport)
	say(control+"versions", "-3 +4\n")
	const grace = 10 // seconds in which files are opened only for clients of before
	say(control+"nfsv4gracetime", "%d\n", grace)
	say(control+"portlist", "tcp 2049\n")
	say(control+"threads", "4\n")
	t.Cleanup(func() {
		say(control+"threads", "0\n")
		for _, cache := range []string{"nfsd.fh", "nfsd.export", "auth.unix.ip"} {
			say(caches+cache+"/flush", "%d\n", later)
		}
	})
	time.Sleep((grace + 1) * time.Second)

	n := &nfs{until: make(chan struct{}), hung: make(chan struct{}, 1)}
	n.answer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", nfsServer)
			if err != nil {
				client.Close()
				continue
			}
			go n.pass(server, client)
			go n.pass(client, server)
		}
	}()
	ok(unix.Mount("127.0.0.1:/", nfsMount, "nfs4", 0, fmt.Sprintf("vers=4.1,proto=tcp,port=%d,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,hard",
		l.Addr().(*net.TCPAddr).Port)))
	t.Cleanup(func() {
		n.answer()
		if err := until(long, func() error { return unix.Unmount(nfsMount, 0) }); err != nil {
			t.Errorf("unmounting NFS: %v", err)
		}
	})
	return n
}

// TestHangingNFS: a share on NFS tells what changes through its mount, and one whose server does not answer is silent by
// itself.
func TestHangingNFS(t *testing.T) {
	begin(t)
	n := mountNFS(t)
	w := newWire(t, long)
	tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, "NFS")
	w.ok(err)
	dir := filepath.Join(nfsMount, "share")
	f := w.create(tree, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
	call, _ := w.park(f, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 4096, Tree: true})
	w.ok(os.Mkdir(filepath.Join(dir, "d"), 0o777))
	w.told(call, "ADDED d")
	call, _ = w.park(f, smb2.NotifyParams{Filter: smb2.FilterNames, Length: 4096, Tree: true})
	w.ok(os.WriteFile(filepath.Join(dir, "d", "f"), nil, 0o666))
	w.told(call, `ADDED d\f`)
	w.ok(f.Close(w.ctx))
	testHang(t, n, "NFS", dir, "NFS")
}
