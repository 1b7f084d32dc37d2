// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// independent are clients that others wrote, made to ask as clients in the field do, see test/clients.
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

// TestIndependentClients: each is told of what is done on the server and by another client, record by record, and asks
// again; what comes while it is stopped is told in full where its buffer takes it, and else it lists anew and goes on.
func TestIndependentClients(t *testing.T) {
	for _, dir := range []string{"proc", "dev"} {
		to := filepath.Join(clientsRoot, dir)
		if err := unix.Mount("/"+dir, to, "", unix.MS_BIND, ""); err != nil {
			t.Fatalf("%s: %v: these clients come with make test-clients", to, err)
		}
		defer unix.Unmount(to, unix.MNT_DETACH)
	}
	for _, program := range []string{"watch.py", "watch.js"} {
		if err := command("cp", "/rig/"+program, clientsRoot+"/bin/"); err != nil {
			t.Fatal(err)
		}
	}
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
			if c.program == "watch.py" {
				args = append(args, fmt.Sprintf("%#x", c.filter), strconv.Itoa(c.length), map[bool]string{true: "1", false: "0"}[c.tree])
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

			const burst = 300
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
			case !fits && !lost:
				t.Errorf("%d bytes do not fit in a buffer of %d, told %d records and no ENUM_DIR", need, c.length, len(got))
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
