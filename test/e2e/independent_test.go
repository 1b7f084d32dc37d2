// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// independent are clients that others wrote, made to ask as clients in the field do, see test/clients. Debian's libsmb2 exports
// no function that asks for notifications, and smbprotocol is not among its packages. Nor does gio monitor ask a server: the
// smb back end of GVfs has no monitors.
var independent = []struct {
	as      string // who asks so
	program string
	filter  uint32
	length  int // of the buffer, in bytes
	tree    bool
}{
	{"node-smb2", "watch.js", 0xfff, 64 << 10, true}, // as it always asks
	{".NET", "watch.py", 0x13, 8 << 10, true},
	{"Java", "watch.py", 0x15f, 16 << 10, false},
	{"Node.js, watchdog", "watch.py", 0x17f, 4 << 10, false},
	{"watchdog, recursive", "watch.py", 0x17f, 64 << 10, true},
	{"foobar2000", "watch.py", 0x1b, 64 << 10, true},
	{"parcel", "watch.py", 0x1f, 1 << 20, true},
	{"all bits", "watch.py", 0xfff, 1 << 20, true},
}

// clientsRoot is where test/clients/fetch.sh has them, a root of its own.
const clientsRoot = "/opt/clients"

// enterClientsRoot makes that root complete, for as long as the test runs.
func enterClientsRoot(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"proc", "dev", "sys", "run", "etc/ksmbd"} {
		to := filepath.Join(clientsRoot, dir)
		if err := unix.Mount("/"+dir, to, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("%s: %v: these clients come with make test-clients", to, err)
		}
		t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
	}
	for _, program := range []string{"watch.py", "watch.js"} {
		if err := command("cp", "/rig/"+program, clientsRoot+"/bin/"); err != nil {
			t.Fatal(err)
		}
	}
}

// spec is what a program of test/clients is to ask for.
func spec(filter uint32, length int, tree bool) string {
	return fmt.Sprintf("%#x:%d:%d", filter, length, map[bool]int{true: 1}[tree])
}

// TestIndependentClients: each is told of what is done on the server and by another client, record by record, and asks
// again; what comes while it is stopped is told in full where its buffer takes it, and else it lists anew and goes on.
func TestIndependentClients(t *testing.T) {
	enterClientsRoot(t)
	for _, c := range independent {
		t.Run(c.as, func(t *testing.T) {
			begin(t)
			if err := os.Mkdir(filepath.Join(share, "watched"), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(share, "watched"), 0o777); err != nil {
				t.Fatal(err)
			}
			args := []string{clientsRoot, "/bin/" + c.program, "TEST", "user%pass", "watched"}
			if c.program != "watch.js" {
				args = append(args, spec(c.filter, c.length, c.tree))
			}
			w, err := startProgram("watched", "chroot", args...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.close)
			if _, err := w.sync(); err != nil {
				t.Fatal(err)
			}
			independentSteps(t, w, c.tree)

			const burst = 1000
			name := func(i int) string { return fmt.Sprintf("one-of-many-%03d", i) }
			need := burst * (12 + 2*len(name(0)))
			if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i := range burst {
				want = append(want, "added "+name(i))
				err = errors.Join(err, os.WriteFile(filepath.Join(w.dir, name(i)), nil, 0o666))
			}
			if err = errors.Join(err, w.cmd.Process.Signal(syscall.SIGCONT)); err != nil {
				t.Fatal(err)
			}
			got, err := w.told()
			if err != nil {
				t.Fatal(err)
			}
			lost := slices.ContainsFunc(got, func(r record) bool { return r.action == enumDir })
			switch fits := need <= c.length; {
			case fits && !matches(got, want):
				t.Errorf("of %d bytes in a buffer of %d told %d records, the last is %v", need, c.length, len(got), got[len(got)-1:])
			case need > 2*c.length && !lost: // one for the request that pended, one for the rest
				t.Errorf("%d bytes do not fit in two buffers of %d, told %d records and no ENUM_DIR", need, c.length, len(got))
			}
			runSteps(t, w, []step{{"rm " + w.dir + "/one-of-many-007", []string{"removed one-of-many-007"}}})
		})
	}
}

func independentSteps(t *testing.T, w *watcher, tree bool) {
	t.Helper()
	below := func(told ...string) []string {
		if !tree {
			return nil
		}
		return told
	}
	at := func(do string) string { return strings.ReplaceAll(do, "@", w.dir+"/") }
	runSteps(t, w, []step{
		{at("touch @a"), []string{"added a"}},
		{at("echo x >> @a"), []string{"modified a"}},
		{at("cat @a > /dev/null"), nil},
		{at("mv @a @b"), []string{"old name a", "new name b"}},
		{at("mkdir @dir"), []string{"added dir"}},
		{at("touch @dir/deep"), below("added dir/deep")},
		{at("mv @b @dir/b"), append([]string{"removed b"}, below("added dir/b")...)},
		{at("rm -r @dir"), append(below("?removed dir/b", "?removed dir/deep", "?removed dir/b"), "removed dir")},
	})
	bySMB := func(do string) error { return smbclient(user2, "cd watched; "+do) }
	runStepsBy(t, w, []step{
		{"put /etc/passwd c", []string{"added c", "modified c"}},
		{"rename c d", []string{"old name c", "new name d"}},
		{"mkdir sub", []string{"added sub"}},
		{"put /etc/passwd sub/e", below("added sub/e", "modified sub/e")},
		{"del d", []string{"removed d"}},
	}, bySMB)
}

// TestIndependentMatrix: whatever filter and buffer a client asks with, it is told of each kind of change what the filter lets
// through, once, and of no other. They all watch at the same time, with impacket, and ask again.
func TestIndependentMatrix(t *testing.T) {
	begin(t)
	enterClientsRoot(t)
	w := newWire(t, 15*long)
	w.mkdir("watched")
	_, tree := w.connect(smb2.Options{})
	p := place{wire: w, tree: tree}
	p.prepare()

	type watching struct {
		filter smb2.Filter
		tree   bool
		told   []string
	}
	all := map[string]*watching{}
	args := []string{clientsRoot, "/bin/watch.py", "TEST", "user%pass", w.name + "/watched"}
	for i, filter := range []uint32{0x13, 0x15f, 0x17f, 0x1b, 0xfff} {
		for j, length := range []int{4 << 10, 8 << 10, 16 << 10, 64 << 10, 1 << 20} {
			isTree := (i+j)%2 > 0
			args = append(args, spec(filter, length, isTree))
			all[spec(filter, length, isTree)] = &watching{filter: smb2.Filter(filter), tree: isTree}
		}
	}
	client, err := startProgram(w.name+"/watched", "chroot", args...)
	w.ok(err)
	t.Cleanup(client.close)

	// sync makes a file and waits until all are told of it; at first of any, made again and again: before its first request
	// nobody is told anything.
	marks := 0
	sync := func(first bool) {
		t.Helper()
		var name string
		mark := func() {
			marks++
			name = fmt.Sprint("mark-", marks)
			w.ok(os.WriteFile(p.at(name), nil, 0o666))
		}
		mark()
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for seen := map[string]bool{}; len(seen) < len(all); {
			select {
			case line, ok := <-client.lines:
				as, what, _ := strings.Cut(line, " ")
				if !ok || all[as] == nil {
					t.Fatalf("the client says %q", line)
				}
				r, err := parse(what)
				w.ok(err)
				switch {
				case r.name == name, first && strings.HasPrefix(r.name, "mark-"):
					seen[as] = true
				case !strings.HasPrefix(r.name, "mark-"):
					all[as].told = append(all[as].told, r.String())
				}
			case <-again.C:
				if first {
					mark()
				}
			case <-w.ctx.Done():
				t.Fatalf("%d of %d are told of %s", len(seen), len(all), name)
			}
		}
	}
	sync(true)
	sync(false)

	bySMB, onServer := operations()
	for _, step := range []struct {
		name string
		do   operation
		want []told
	}{
		{"create", bySMB["create"], []told{{"added new", anyName}}},
		{"write", onServer["write"], []told{{"modified file", contents}}},
		{"write by SMB", bySMB["write"], []told{{"modified file", contents}}},
		{"read", func(p place) error { _, err := os.ReadFile(p.at("file")); return err }, nil},
		{"set last access", bySMB["set last access"], []told{{"modified file", smb2.FilterLastAccess}}},
		{"set hidden", bySMB["set hidden"], []told{{"modified file", attribute}}},
		{"set EA", bySMB["set EA"], []told{{"modified file", smb2.FilterEA}}},
		{"set DACL", bySMB["set DACL"], []told{{"modified file", smb2.FilterSecurity}}},
		{"chmod", onServer["chmod dir"], []told{{"modified dir", smb2.FilterAll &^ (anyName | smb2.FilterSize)}}},
		{"write below", func(p place) error { return os.WriteFile(p.at("other/victim"), []byte("x"), 0o666) },
			[]told{{"modified other/victim", contents}}},
		{"move", bySMB["move"], []told{{"removed file", anyName}, {"added other/file", anyName}}},
		{"rename", func(p place) error { return os.Rename(p.at("victim"), p.at("renamed")) },
			[]told{{"old name victim", anyName}, {"new name renamed", anyName}}},
		{"rmdir", bySMB["rmdir"], []told{{"removed dir", anyName}}},
		{"delete", func(p place) error { return os.Remove(p.at("renamed")) }, []told{{"removed renamed", anyName}}},
	} {
		w.ok(step.do(p))
		sync(false)
		for as, v := range all {
			var want []string
			for _, record := range step.want {
				if record.by&v.filter != 0 && (v.tree || !strings.Contains(record.record, "/")) {
					want = append(want, record.record)
				}
			}
			// Whether two writes of one request are told in one response is a matter of time.
			if got := slices.Compact(v.told); !slices.Equal(got, want) {
				t.Errorf("%s: %s: told %q, want %q", step.name, as, got, want)
			}
			v.told = nil
		}
	}
}
