// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reloadNotifyd has the daemon read other settings, and returns when it has.
func reloadNotifyd(text string) error {
	if err := os.WriteFile(settingsFile, []byte(text), 0o644); err != nil {
		return err
	}
	read := func() int {
		log, _ := os.ReadFile(filepath.Join(results, "notifyd.log"))
		return strings.Count(string(log), "settings were read")
	}
	before := read()
	if err := server.notifyd.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return until(long, func() error {
		if read() == before {
			return errors.New("the settings were not read")
		}
		return nil
	})
}

// TestNotifyOff: a share where changes are not told answers as if it could not, and others go on. What is watched when
// that becomes so ends. smbtorture's change_notify_disabled is among TestTorture's.
func TestNotifyOff(t *testing.T) {
	begin(t)
	refused := func(share string) {
		t.Helper()
		// smbclient's notify ends with the status.
		out, err := exec.Command("timeout", "20", "smbclient", "//127.0.0.1/"+share, "-U", user1, "-c", `notify ""`).CombinedOutput()
		if !strings.Contains(string(out), "NT_STATUS_NOT_IMPLEMENTED") {
			t.Errorf("%s: %v: %s", share, err, out)
		}
	}
	refused(offShare)
	refused(offToo)
	w := startWatch(t, "", user1)
	runSteps(t, w, sequence)

	if err := reloadNotifyd("[test]\nchange notify = no\n"); err != nil {
		t.Fatal(err)
	}
	err := until(long, func() error {
		s, err := readStatus()
		if err == nil && len(s.Watches) > 0 {
			err = fmt.Errorf("%d watches are left", len(s.Watches))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	refused("TEST")
	if err := reloadNotifyd(settings); err != nil {
		t.Fatal(err)
	}
	w.close()
	runSteps(t, startWatch(t, "", user1), sequence)
	refused(offShare)

	// One user's watches end at the limit, another's do not.
	if err := reloadNotifyd("[global]\nmax watches per user = 1\n"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("timeout", "20", "smbclient", "//127.0.0.1/TEST", "-U", user1, "-c", `notify ""`).CombinedOutput()
	if !strings.Contains(string(out), "NT_STATUS_INSUFFICIENT_RESOURCES") {
		t.Errorf("one watch too many: %v: %s", err, out)
	}
	runSteps(t, startWatch(t, "", user2), sequence)
	if err := reloadNotifyd(settings); err != nil {
		t.Fatal(err)
	}
}

// TestTrace: what is done for one share can be followed, and the log of -vv has nothing of what nobody watches.
func TestTrace(t *testing.T) {
	begin(t)
	cmd := exec.Command(*daemon, "trace", "TEST")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*long, func() { cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasSuffix(lines.Text(), " following 0 watches, and those to come") {
		t.Fatalf("it begins with %q, %v", lines.Text(), lines.Err())
	}
	w := startWatch(t, "", user1)
	elsewhere, here := filepath.Join(mount, "nobody-watches-this"), filepath.Join(share, "somebody-watches-this")
	for _, name := range []string{elsewhere, here} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(name)
	}
	if _, err := w.told(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&got, lines.Text())
		if strings.Contains(lines.Text(), "record ") && strings.Contains(lines.Text(), "action=ADDED name=somebody-watches-this path="+here) {
			cmd.Process.Signal(syscall.SIGINT)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	for _, want := range []string{" watch watch=", " user=user share=test\n", " request request=", " change watch=", " op=create path=" + here + " ", " complete request="} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("%q is not in\n%s", want, &got)
		}
	}
	log, err := os.ReadFile(filepath.Join(results, "notifyd.log"))
	if err != nil || !strings.Contains(string(log), "path="+here) || strings.Contains(string(log), "nobody-watches-this") {
		t.Errorf("the log has not what it should: %v", err)
	}
}

// checkedShares returns what check says of each share of a configuration, and what it says of the whole.
func checkedShares(conf string) (shares []string, whole string, err error) {
	out, _ := exec.Command(*daemon, "check", "--json", "--config="+conf).Output() // exits with 1, since something is missing
	var answer struct {
		Lines []struct{ Verdict, Subject, Text string }
	}
	err = json.Unmarshal(out, &answer)
	for _, l := range answer.Lines {
		switch l.Subject {
		case "share":
			shares = append(shares, l.Text)
		case "shares":
			whole = l.Verdict + " " + l.Text
		}
	}
	return shares, whole, err
}

// TestCheckReadsAsTools: ksmbd.addshare writes down what ksmbd-tools have read of a configuration.
func TestCheckReadsAsTools(t *testing.T) {
	begin(t)
	conf, _, _ := toolOptions()
	for _, test := range []string{
		"[a]\npath = /nowhere/a ; my disk\n",
		"[a]\n\tpath=/nowhere/a # mine\n\tcomment = ; none\n",
		"[DUP]\ncomment = c\n[dup]\npath = /nowhere/x\n[Dup]\npath = /nowhere/y\n",
		"[a]\npath = /nowhere/a \t\n[b] ; b\npath =\npath = /nowhere/b=\n",
		"[a] b\npath = /nowhere/a\n",
		"[a]\r\npath = /nowhere/a\r\n",
		"[a]\npath = /nowhere/a",
		"[a]\nthis is no setting\n",
		"path = /nowhere/a\n[a]\n",
		"[a\npath = /nowhere/a\n",
		"; [b]\n# [c]\n [a]\n path = /nowhere/%(a)s\\\n",
		"[a]\npath = /nowhere/\"a\" 'b'\n",
		"[Ärger]\npath = /nowhere/ä\n[ärger]\npath = /nowhere/b\n",
		"[A\u0308rger]\npath = /nowhere/ä\n[\u00e4rger]\npath = /nowhere/b\n[Straße]\npath = /nowhere/c\n[STRASSE]\npath = /nowhere/d\n",
		"\ufeff[a]\npath = /nowhere/a\n",
		"[a]\npath = /nowhere/" + strings.Repeat("a", 2000) + "\n",
	} {
		file := filepath.Join(t.TempDir(), "ksmbd.conf")
		if err := os.WriteFile(file, []byte(test), 0o644); err != nil {
			t.Fatal(err)
		}
		got, whole, err := checkedShares(file)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-a", "zz", "-o", "path = /nowhere", conf, file}
		if conf == "-C" { // 3.5
			args = []string{"-a", "-o", "path = /nowhere", "-P", passwdDB, conf, file, "zz"}
		}
		if out, err := exec.Command("ksmbd.addshare", args...).CombinedOutput(); err != nil {
			if !strings.HasPrefix(whole, "FAIL reading "+file+": line ") {
				t.Errorf("%q: ksmbd-tools refuse it: %v: %s; check says %q, %q", test, err, out, whole, got)
			}
			continue
		}
		written, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		name := ""
		for line := range strings.Lines(string(written)) {
			line = strings.Trim(line, "\n")
			if strings.HasPrefix(line, "[") {
				name = strings.Trim(line, "[]")
			}
			if path, ok := strings.CutPrefix(line, "\tpath = "); ok && name != "zz" {
				path = strings.TrimRight(path, "/") // as the kernel does
				want = append(want, name+": "+asPrinted(path)+": ")
			}
		}
		ok := len(got) == len(want) && len(want) > 0
		for _, w := range want {
			found := false
			for _, g := range got {
				found = found || strings.HasPrefix(g, w)
			}
			ok = ok && found
		}
		if !ok {
			t.Errorf("%q: ksmbd-tools have %q, check %q, %q", test, want, got, whole)
		}
	}
}

// asPrinted is how check prints a path.
func asPrinted(path string) string {
	if q := strconv.Quote(path); q != `"`+path+`"` || strings.HasSuffix(path, " ") {
		return q
	}
	return path
}

// TestCheckSharesAsServed: a share that check says FAIL of cannot be used, and one that it says ok of can.
func TestCheckSharesAsServed(t *testing.T) {
	begin(t)
	link := filepath.Join(mount, "link")
	if err := os.Symlink(share, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	served := []struct{ name, path string }{
		{"PLAIN", share}, {"SLASHES", "/" + share + "//"}, {"LINK", link}, {"THROUGH", link + "/../share"}, {"COMMENT", share + " ; mine"},
		{"RELATIVE", share[1:]}, {"GONE", share + "/gone"}, {"FILE", "/etc/passwd"},
	}
	conf := ksmbdConf()
	for _, s := range served {
		conf += fmt.Sprintf("[%s]\n\tpath = %s\n\tread only = no\n", s.name, s.path)
	}
	restart := func(conf string) {
		t.Helper()
		if err := errors.Join(stopMountd(), os.WriteFile(confFile, []byte(conf), 0o644), startMountd()); err != nil {
			t.Fatal(err)
		}
	}
	restart(conf)
	defer restart(ksmbdConf())
	out, _ := exec.Command(*daemon, "check").CombinedOutput()
	for _, s := range served {
		list, err := exec.Command("smbclient", "//127.0.0.1/"+s.name, "-U", user1, "-c", "ls").CombinedOutput()
		verdict := ""
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "  share     "+s.name+": ") {
				verdict = line
			}
		}
		if works := err == nil; works != strings.HasPrefix(verdict, "ok ") {
			t.Errorf("%s = %s: check says %q, the client: %v: %s", s.name, s.path, verdict, err, list)
		}
	}
}
