// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ksmbd-notifyd/test/smb2"
)

// What clients can have the daemon and the kernel keep for them, in KiB. README names both.
const (
	maxDaemon = 160 << 10
	maxKernel = 96 << 10
)

// daemonMemory is that which the daemon has and has had at the most, in KiB.
func daemonMemory() (now, most int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", server.notifyd.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for name, value := range map[string]*int{"VmRSS:": &now, "VmHWM:": &most} {
		_, rest, _ := bytes.Cut(status, []byte(name))
		if _, err := fmt.Sscan(string(rest), value); err != nil {
			return 0, 0, fmt.Errorf("%s %w", name, err)
		}
	}
	return now, most, nil
}

// TestHoarders: clients that have much to be told and do not ask, and then ask and do not read, cost a bounded amount of memory,
// and others are told by name. When they have gone, so has that.
func TestHoarders(t *testing.T) {
	server.quiet = true // a line for each record of each watch would be what costs most
	t.Cleanup(func() { server.quiet = false })
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	p := newPatient(t)
	const conns, each, length = 20, 5, 1 << 20
	dir := sharePath(lanes[2])
	daemon, _, err := daemonMemory()
	p.ok(err)
	before := int(available())
	// In the kernel, since the beginning.
	kernel := func() (int, error) {
		now, _, err := daemonMemory()
		return before - int(available()) - (now - daemon), err
	}
	all, files := make([]*smb2.Conn, conns), make([]*smb2.File, conns*each)
	p.many(conns, func(i int) error {
		c, err := smb2.Dial(p.ctx, "127.0.0.1:445", smb2.Options{Dialect: smb2.Dialect311, User: "user", Password: "pass", Credits: 512, ReadBuffer: 2048})
		if err != nil {
			return err
		}
		all[i] = c
		tree, err := c.TreeConnect(p.ctx, lanes[2])
		for j := 0; err == nil && j < each; j++ {
			var file *smb2.File
			if file, err = tree.Create(p.ctx, smb2.CreateParams{Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory}); err != nil {
				break
			}
			files[i*each+j] = file
			var call *smb2.Call
			if call, err = file.Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: length, Tree: j%2 == 0}); err != nil {
				break
			}
			if _, err = call.Recv(p.ctx); err == nil {
				err = call.Cancel(p.ctx)
			}
		}
		return err
	})
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for i := range 2500 { // of names that take 400 bytes, and so 100 MB for all of them
		name := filepath.Join(dir, fmt.Sprintf("%0200d", i))
		p.ok(os.WriteFile(name, nil, 0o666))
	}
	p.measure(0) // all that is in the daemon's queues
	s, err := readStatus()
	p.ok(err)
	_, most, err := daemonMemory()
	p.ok(err)
	t.Logf("%d watches hoard %d KiB of records, the daemon has had %d KiB at the most", conns*each, s.Open.QueuedBytes>>10, most)
	if s.Open.QueuedBytes < 32<<20 || s.Open.QueuedBytes > 64<<20 {
		t.Errorf("%d bytes are queued, of 64 MiB that may be", s.Open.QueuedBytes)
	}
	if most > maxDaemon {
		t.Errorf("the daemon has had %d KiB, of %d", most, maxDaemon)
	}

	for _, c := range all {
		c.Stall()
	}
	p.many(len(files), func(i int) error {
		_, err := files[i].Notify(p.ctx, smb2.NotifyParams{Filter: smb2.FilterNames, Length: length, Tree: i%each%2 == 0})
		return err
	})
	p.measure(time.Second)
	unread, err := kernel()
	p.ok(err)
	t.Logf("asked for, and not read: %d KiB more in the kernel", unread)
	if unread > maxKernel {
		t.Errorf("the kernel has %d KiB more, of %d", unread, maxKernel)
	}

	p.end(all)
	p.ok(empty(dir))
	p.ok(until(long, func() error {
		s, err := readStatus()
		left, err2 := kernel()
		if err == nil && (s.Open.QueuedBytes > 0 || left > 16<<10) {
			err = fmt.Errorf("%d bytes are queued, and the kernel has %d KiB more", s.Open.QueuedBytes, left)
		}
		return errors.Join(err, err2)
	}))
}
