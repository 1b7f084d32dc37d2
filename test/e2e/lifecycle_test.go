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
	"testing"
	"time"
)

// TestSecondDaemon: one daemon at a time; another says so in one line.
func TestSecondDaemon(t *testing.T) {
	begin(t)
	startWatch(t, "", user1) // the first one answers, so it is registered
	cmd := exec.Command(*daemon, "-n")
	timer := time.AfterFunc(long, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit status %d (%v), want 1", code, err)
	}
	if lines := strings.Count(string(out), "\n"); lines != 1 {
		t.Errorf("said %d lines, want 1: %s", lines, out)
	}
}

// TestDaemonRestart ends the daemon in the middle of changes, by a signal it can and one it cannot catch, and as systemd does.
// Every file made meanwhile must be told, or that the directory must be read again.
func TestDaemonRestart(t *testing.T) {
	begin(t)
	w := startWatch(t, "", user1)
	stop := func() error { return errors.Join(stopNotifyd(), startNotifyd()) }
	kill := func() error { return errors.Join(killNotifyd(), startNotifyd()) }
	restart := func() error { return restartNotifyd(func() error { return nil }) }
	for round, again := range []func() error{stop, kill, restart, stop, kill, restart} {
		const n = 60
		name := func(i int) string { return fmt.Sprintf("round-%d-file-%d", round, i) }
		made := make(chan error, 1)
		half := make(chan struct{})
		go func() {
			var err error
			for i := 0; i < n && err == nil; i++ {
				if i == n/2 {
					close(half)
				}
				err = os.WriteFile(filepath.Join(share, name(i)), nil, 0o644)
			}
			made <- err
		}()
		<-half
		if err := again(); err != nil {
			t.Fatal(err)
		}
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		got, err := w.told()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if slices.Contains(got, record{action: enumDir}) {
			continue
		}
		for i := range n {
			if r := (record{"added", name(i)}); !slices.Contains(got, r) {
				t.Errorf("round %d: not told: %v", round, r)
			}
		}
	}
}

// TestHandover: a daemon that systemd restarts goes on where the last one ended. Clients are told what happened when there
// was none, and need not list their directories anew unless something was mounted there.
func TestHandover(t *testing.T) {
	begin(t)
	if err := os.Mkdir(filepath.Join(share, "below"), 0o777); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(share, "below"))
	w, below := startWatch(t, "", user1), startWatch(t, "below", user2)
	tells := func(w *watcher, want ...record) {
		t.Helper()
		got, err := w.told()
		if err != nil {
			t.Fatal(err)
		}
		if *fsType == "overlay" { // its queue has a mark for each directory, and is not handed over
			want = []record{{action: enumDir}}
		}
		if slices.Contains(got, record{action: enumDir}) != (len(want) == 1 && want[0].action == enumDir) {
			t.Errorf("told %v", got)
		}
		for _, r := range want {
			if !slices.Contains(got, r) {
				t.Errorf("not told %v: %v", r, got)
			}
		}
	}
	for round := range 3 {
		name := func(what string, i int) string { return fmt.Sprintf("%s-%d-%d", what, round, i) }
		var want []record
		err := restartNotifyd(func() error {
			for i := range round * 2 { // nothing happens in the first, and smbclient's buffer takes that of the last
				path := filepath.Join(share, name("file", i))
				if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Rename(path, filepath.Join(share, "below", name("in", i)))); err != nil {
					return err
				}
				want = append(want, record{"added", name("file", i)}, record{"removed", name("file", i)}, record{"added", "below/" + name("in", i)})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		tells(w, want...)
		tells(below)
	}

	// A daemon that knows nothing of handovers comes and goes: what it has told is not told again.
	err := restartNotifyd(func() error { return errors.Join(startNotifyd(), stopNotifyd()) })
	if err != nil {
		t.Fatal(err)
	}
	tells(w, record{action: enumDir})
	tells(below, record{action: enumDir})

	err = restartNotifyd(func() error { return command("mount", "-t", "tmpfs", "none", filepath.Join(share, "below")) })
	if err != nil {
		t.Fatal(err)
	}
	tells(w, record{action: enumDir})
	if err := restartNotifyd(func() error { return command("umount", filepath.Join(share, "below")) }); err != nil {
		t.Fatal(err)
	}
	tells(w, record{action: enumDir})
	tells(below, record{action: enumDir}) // of the mount, which left none as it was
}

func killNotifyd() error {
	if err := server.notifyd.cmd.Process.Kill(); err != nil {
		return err
	}
	server.notifyd.wait()
	server.notifyd = nil
	return nil
}

// TestNoDaemon: requests pend without a daemon, and are answered once there is one.
func TestNoDaemon(t *testing.T) {
	begin(t)
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	w, err := startWatcher("", user1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var got []record
	if err := w.mark(3*time.Second, &got); err == nil || len(got) > 0 {
		t.Errorf("told %v, %v without a daemon", got, err)
	}
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sync(); err != nil {
		t.Fatal(err)
	}
	runSteps(t, w, sequence)
}

// TestModuleReload unloads ksmbd under a running daemon and loads it again.
func TestModuleReload(t *testing.T) {
	for range 2 {
		begin(t)
		w := startWatch(t, "", user1)
		runSteps(t, w, sequence)
		if err := stopMountd(); err != nil {
			t.Fatal(err)
		}
		if err := unloadModule(); err != nil {
			t.Fatal(err)
		}
		w.close()
		if err := loadModule(); err != nil {
			t.Fatal(err)
		}
		if err := startMountd(); err != nil {
			t.Fatal(err)
		}
	}
	runSteps(t, startWatch(t, "", user1), sequence)
}
