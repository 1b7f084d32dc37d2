// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/test/fuzz"
	"ksmbd-notifyd/test/smb2"
)

var specFile = flag.String("spec", "/rig/ksmbd-notify.yaml", "the description of the netlink family")

// TestFuzzNetlink sends what no daemon sends, from a socket that is registered, from others, and from such without
// capabilities, while clients watch. Every request of theirs ends, once.
func TestFuzzNetlink(t *testing.T) {
	spec, err := os.ReadFile(*specFile)
	if err != nil {
		t.Fatal(err)
	}
	family, err := fuzz.ParseFamily(spec)
	if err != nil {
		t.Fatal(err)
	}
	f := newFuzzer(t)
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	id := dialFamily(t).ID
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 3 {
		clients.Go(func() {
			if err := watchOn(ctx, lanes[i], fuzz.Rand(f.seed, uint64(1<<32+i))); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	f.run(3, func(worker int, n uint64) (err error) {
		if worker == 2 {
			withoutCapabilities(t, func() { err = f.netlink(family, id, false, n) })
			return err
		}
		return f.netlink(family, id, worker == 0, n)
	})
	stop()
	clients.Wait()
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	f.healthy()
}

// netlink is a socket, registered or not, and what is sent from it.
func (f *fuzzer) netlink(family *fuzz.Family, id uint16, register bool, n uint64) error {
	r := fuzz.Rand(f.seed, n)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer closeDirectories()
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if r.IntN(3) == 0 { // what one gets must often be given back
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	}
	if register {
		b := attributes(f.T, func(e *netlink.AttributeEncoder) { e.Uint32(genl.ARegisterVersion, genl.ProtocolVersion) })
		m := netlink.Message{Header: netlink.Header{Length: uint32(20 + len(b)), Type: netlink.HeaderType(id), Flags: netlink.Request},
			Data: append([]byte{genl.CmdRegister, genl.FamilyVersion, 0, 0}, b...)}
		if b, err = m.MarshalBinary(); err != nil {
			return err
		}
		if err := unix.Sendto(fd, b, 0, kernel); err != nil {
			return err
		}
	}
	var ids fuzz.IDs
	buf := make([]byte, 1<<17)
	for i := range 50 + r.IntN(1000) {
		b := family.Datagram(r, id, ids)
		f.messages.Add(1)
		if err := unix.Sendto(fd, b, 0, kernel); err != nil && err != unix.EAGAIN && err != unix.ENOBUFS && err != unix.EINVAL &&
			err != unix.EMSGSIZE && err != unix.ENODATA && err != unix.ECONNREFUSED {
			return fmt.Errorf("message %d: %w", i, err)
		}
		for i%3 == 0 {
			size, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			if err != nil || size == 0 {
				break
			}
			ids = numbers(ids, buf[:size])
		}
		if i%32 == 31 && register {
			closeDirectories()
		}
	}
	return nil
}

// numbers adds those of 8 bytes that a datagram carries, in whatever attribute, and keeps the last ones.
func numbers(ids fuzz.IDs, b []byte) fuzz.IDs {
	var walk func(b []byte, depth int)
	walk = func(b []byte, depth int) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			switch {
			case size == 12:
				ids = append(ids, binary.NativeEndian.Uint64(b[4:]))
			case size > 12 && depth < 3:
				walk(b[4:size], depth+1)
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	for len(b) >= 20 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < 20 || size > len(b) {
			break
		}
		walk(b[20:size], 0)
		b = b[min((size+3)&^3, len(b)):]
	}
	return ids[max(0, len(ids)-16):]
}

// closing is held while directories are closed: another thread could open something under the number of one that is closed.
var closing sync.Mutex

// closeDirectories closes what the kernel has opened in this process.
func closeDirectories() {
	closing.Lock()
	defer closing.Unlock()
	for _, fd := range openDirectories() {
		unix.Close(fd)
	}
}

// openDirectories are the directories of the shares that are open in this process. The kernel has opened them for a daemon: the test
// itself has none open.
func openDirectories() (fds []int) {
	const dir = "/proc/self/fd"
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if n, _ := strconv.Atoi(e.Name()); err == nil && n > 2 && strings.HasPrefix(to, mount) {
			fds = append(fds, n)
		}
	}
	return fds
}

// watchOn watches a share until ctx is done: requests pend, are cancelled, end with their handles.
func watchOn(ctx context.Context, lane string, r *rand.Rand) error {
	c, tree, err := connectTo(lane)
	if err != nil {
		return err
	}
	defer c.Close()
	var file *smb2.File
	var calls []*smb2.Call
	for ctx.Err() == nil {
		limit, cancel := context.WithTimeout(context.Background(), 2*long)
		err := func() error {
			if file == nil {
				if file, err = tree.Create(limit, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen,
					Options: smb2.OptionDirectory}); err != nil {
					return err
				}
			}
			call, err := file.Notify(limit, smb2.NotifyParams{Tree: r.IntN(2) == 0, Filter: smb2.FilterAll, Length: 65536 >> r.IntN(16)})
			if err != nil {
				return err
			}
			calls = append(calls, call)
			if r.IntN(3) == 0 {
				name := fmt.Sprint("f", r.IntN(3))
				made, err := tree.Create(limit, smb2.CreateParams{Name: name, Access: smb2.AccessMaximum,
					Disposition: smb2.DispositionOpenIf, Options: smb2.OptionFile | smb2.OptionDeleteOnClose})
				if err != nil {
					return err
				}
				if err := made.Close(limit); err != nil {
					return err
				}
			}
			if len(calls) < 1+r.IntN(8) {
				return nil
			}
			if r.IntN(3) == 0 {
				if err := file.Close(limit); err != nil {
					return err
				}
				file = nil
			} else {
				for _, call := range calls {
					if err := call.Cancel(limit); err != nil {
						return err
					}
				}
			}
			for _, call := range calls {
				if _, err := call.Final(limit); err != nil {
					return err
				}
			}
			calls = nil
			return nil
		}()
		cancel()
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
	return nil
}

// connectTo connects to a share as the first user.
func connectTo(share string) (*smb2.Conn, *smb2.Tree, error) {
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	user, password, _ := strings.Cut(user1, "%")
	c, err := smb2.Dial(ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect311, User: user, Password: password, Credits: 512})
	if err != nil {
		return nil, nil, err
	}
	tree, err := c.TreeConnect(ctx, share)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, tree, nil
}
