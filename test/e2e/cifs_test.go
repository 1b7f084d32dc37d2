// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// cifsNotify has the Linux client watch a directory as a tree, once after the other, and prints the records. It ends
// with an error.
func cifsNotify(dir string, out io.Writer) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const (
		ioctl  = 0xc009cf0b // CIFS_IOC_NOTIFY_INFO, fs/smb/client/cifs_ioctl.h
		header = 9          // filter, watch tree, length of what follows; packed
	)
	for {
		info := make([]byte, header+4096)
		binary.NativeEndian.PutUint32(info, uint32(smb2.FilterAll))
		info[4] = 1
		binary.NativeEndian.PutUint32(info[5:], uint32(len(info)-header))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctl, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
			return fmt.Errorf("CIFS_IOC_NOTIFY_INFO: %w", errno)
		}
		records, err := smb2.DecodeRecords(info[header : header+binary.NativeEndian.Uint32(info[5:])])
		if err != nil {
			return err
		}
		for _, r := range records {
			fmt.Fprintln(out, r)
		}
	}
}

// cifsWatcher is a process that watches through a mount, for only a process can be killed while it waits.
type cifsWatcher struct {
	cmd   *exec.Cmd
	lines chan string // closed when it ends
}

func startCIFSWatcher(t *testing.T, dir string) *cifsWatcher {
	t.Helper()
	w := &cifsWatcher{exec.Command(os.Args[0], "-cifs-notify", dir), make(chan string, 64)}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = w.cmd.Stdout
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			w.lines <- s.Text()
		}
		close(w.lines)
	}()
	t.Cleanup(func() { w.kill(t) })
	return w
}

// told makes new files in dir until the watcher is told of one: nobody can see when its request pends.
func (w *cifsWatcher) told(t *testing.T, dir, as string) {
	t.Helper()
	made := 0
	err := until(long, func() error {
		made++
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", made)), nil, 0o666); err != nil {
			return err
		}
		for timeout := time.After(500 * time.Millisecond); ; {
			select {
			case line, ok := <-w.lines:
				if line == fmt.Sprintf("ADDED %sf%d", as, made) {
					return nil
				}
				if !ok {
					return errors.New("the watcher ended")
				}
				t.Logf("told %q", line) // a file before it
			case <-timeout:
				return errors.New("not told of a new file")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *cifsWatcher) kill(t *testing.T) {
	t.Helper()
	if w.cmd.ProcessState != nil {
		return
	}
	w.cmd.Process.Kill()
	timer := time.AfterFunc(long, func() { panic("a killed watcher does not end") })
	defer timer.Stop()
	for range w.lines {
	}
	w.cmd.Wait()
}

// TestLinuxClient: cifs.ko gets the records, and a watch that is open hinders no unmount.
func TestLinuxClient(t *testing.T) {
	for _, options := range []string{"vers=2.1", "vers=3.0", "vers=3.1.1", "vers=3.1.1,seal"} {
		t.Run(options, func(t *testing.T) {
			begin(t)
			const dir = "/mnt"
			deep := filepath.Join(share, "a/b")
			if err := os.MkdirAll(deep, 0o777); err != nil {
				t.Fatal(err)
			}
			before := connections(t)
			mountCIFS := func() {
				t.Helper()
				err := unix.Mount("//127.0.0.1/TEST", dir, "cifs", 0, "ip=127.0.0.1,username=user,password=pass,nosharesock,"+options)
				if err != nil {
					t.Fatal(err)
				}
			}
			gone := func() {
				t.Helper()
				err := until(long, func() error {
					if n := connections(t); n > before {
						return fmt.Errorf("ksmbd has %d connections, it had %d", n, before)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}

			// The watcher is killed, then the share is unmounted.
			mountCIFS()
			w := startCIFSWatcher(t, dir)
			w.told(t, share, "")
			w.told(t, deep, `a\b\`)
			w.kill(t)
			if err := until(long, func() error { return unix.Unmount(dir, 0) }); err != nil {
				t.Fatalf("unmounting: %v", err)
			}
			gone()

			// The share is unmounted, and the watcher waits on.
			mountCIFS()
			w = startCIFSWatcher(t, dir)
			w.told(t, share, "")
			start := time.Now()
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Fatalf("unmounting: %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("unmounting took %v", took)
			}
			w.kill(t)
			gone()
		})
	}
}
