// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// begin gives a test an empty share, and a daemon in case the test before has failed without one.
func begin(t *testing.T) {
	t.Helper()
	mark(t.Name())
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	if err := clean(share); err != nil {
		t.Fatal(err)
	}
}

func startWatch(t *testing.T, sub, user string, args ...string) *watcher {
	t.Helper()
	w, err := watch(sub, user, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// step is a change, in words of whoever makes it, and what the client is to be told of it.
type step struct {
	do   string
	told []string // a leading '?' marks what may be missing
}

// runSteps has the server make the changes.
func runSteps(t *testing.T, w *watcher, steps []step) {
	t.Helper()
	runStepsBy(t, w, steps, func(do string) error { return command("sh", "-c", do) })
}

func runStepsBy(t *testing.T, w *watcher, steps []step, by func(do string) error) {
	t.Helper()
	for _, s := range steps {
		if err := by(s.do); err != nil {
			t.Fatal(err)
		}
		got, err := w.told()
		if err != nil {
			t.Fatalf("%s: %v", s.do, err)
		}
		if !matches(got, s.told) {
			t.Errorf("%s: told %q, want %q", s.do, got, s.told)
		}
	}
}

// matches compares records with those wanted, equal neighbours taken as one: whether two changes of one file
// are told together depends on whether a request was pending.
func matches(got []record, want []string) bool {
	got = slices.Compact(slices.Clone(got))
	for _, w := range want {
		name, optional := strings.CutPrefix(w, "?")
		if len(got) > 0 && got[0].String() == name {
			got = got[1:]
		} else if !optional {
			return false
		}
	}
	return len(got) == 0
}

// touch sets the times too, which is a change of its own.
var sequence = []step{
	{"touch f", []string{"added f", "?modified f"}},
	{"echo x > f", []string{"modified f"}},
	{"mv f g", []string{"old name f", "new name g"}},
	{"mkdir d", []string{"added d"}},
	{"mv g d/", []string{"removed g", "added d/g"}},
	{"mv d/g .", []string{"removed d/g", "added g"}},
	{"rm g", []string{"removed g"}},
	{"rmdir d", []string{"removed d"}},
}

func TestServerSideChanges(t *testing.T) {
	begin(t)
	runSteps(t, startWatch(t, "", user1), sequence)
}

// TestColdDirectory changes files in a directory that the kernel has forgotten in between: on vfat it has another file
// handle after that.
func TestColdDirectory(t *testing.T) {
	begin(t)
	if err := command("mkdir", "-p", "d/e"); err != nil {
		t.Fatal(err)
	}
	runSteps(t, startWatch(t, "", user1), []step{
		{"touch d/e/f", []string{"added d/e/f", "?modified d/e/f"}},
		{"echo 2 > /proc/sys/vm/drop_caches; touch d/e/g", []string{"added d/e/g", "?modified d/e/g"}},
		{"echo 2 > /proc/sys/vm/drop_caches; mv d/e/f d/f", []string{"removed d/e/f", "added d/f"}},
		{"echo 2 > /proc/sys/vm/drop_caches; mv d/e d/h", []string{"old name d/e", "new name d/h"}},
		{"echo 2 > /proc/sys/vm/drop_caches; rm d/h/g", []string{"removed d/h/g"}},
		{"echo 2 > /proc/sys/vm/drop_caches; rmdir d/h", []string{"removed d/h"}},
	})
}

func TestProtectedSessions(t *testing.T) {
	for _, protection := range []string{"sign", "encrypt"} {
		t.Run(protection, func(t *testing.T) {
			begin(t)
			runSteps(t, startWatch(t, "", user1, "--client-protection="+protection), sequence)
		})
	}
}

// TestWatchTree changes files three levels down in directories made before the watch and after it.
func TestWatchTree(t *testing.T) {
	begin(t)
	if err := command("mkdir", "-p", "old/two/three"); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, "", user1)
	runSteps(t, w, []step{
		{"echo x > old/two/three/f", []string{"added old/two/three/f", "modified old/two/three/f"}},
		{"mkdir -p new/two", []string{"added new", "added new/two"}},
		{"mkdir new/two/three", []string{"added new/two/three"}},
		{"echo x > new/two/three/f", []string{"added new/two/three/f", "modified new/two/three/f"}},
		{"mv new/two/three/f old/two/g", []string{"removed new/two/three/f", "added old/two/g"}},
		{"mv old/two moved", []string{"removed old/two", "added moved"}},
		{"echo y > moved/three/f", []string{"modified moved/three/f"}},
		{"rm moved/three/f", []string{"removed moved/three/f"}},
	})
}

// TestSecondClient has another user's client make the changes.
func TestSecondClient(t *testing.T) {
	begin(t)
	w := startWatch(t, "", user1)
	local := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(local, []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	runStepsBy(t, w, []step{
		{"put " + local + " a", []string{"added a", "?modified a"}},
		{"rename a b", []string{"old name a", "new name b", "?modified b"}},
		{"mkdir d", []string{"added d"}},
		{`rename b d\b`, []string{"removed b", "added d/b", "?modified d/b"}},
		{`del d\b`, []string{"removed d/b"}},
		{"rmdir d", []string{"removed d"}},
	}, func(do string) error { return smbclient(user2, do) })
}

// TestManyFiles makes more files than fit a response: each must be told, or that the directory must be read again.
func TestManyFiles(t *testing.T) {
	begin(t)
	w := startWatch(t, "", user1)
	const n = 500
	if err := command("sh", "-c", fmt.Sprintf("for i in $(seq %d); do : > file-$i; done", n)); err != nil {
		t.Fatal(err)
	}
	got, err := w.told()
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(got, record{action: enumDir}) {
		return
	}
	added := 0
	for _, r := range got {
		if r.action == "added" {
			added++
		}
	}
	if added != n {
		t.Errorf("told of %d of %d files, and not to read the directory again", added, n)
	}
}

// TestConnect proves the harness: a client can write, read, move and delete, with and without protection.
func TestConnect(t *testing.T) {
	for _, args := range [][]string{nil, {"--client-protection=sign"}, {"--client-protection=encrypt"}, {"-m", "SMB2_10"}} {
		t.Run(strings.Join(append([]string{"default"}, args...), " "), func(t *testing.T) {
			begin(t)
			dir := t.TempDir()
			local, back := filepath.Join(dir, "local"), filepath.Join(dir, "back")
			if err := os.WriteFile(local, []byte("hello\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := smbclient(user1, fmt.Sprintf("put %s f; mkdir d; rename f d\\g; get d\\g %s; del d\\g; rmdir d", local, back), args...); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(back); err != nil || string(got) != "hello\n" {
				t.Errorf("read back %q, %v", got, err)
			}
		})
	}
}
