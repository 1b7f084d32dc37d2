// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// status is what of the daemon's JSON the tests look at.
type status struct {
	Serving bool
	Module  string
	Open    struct {
		QueuedBytes int `json:"queued_bytes"`
	}
	Total struct {
		Records, Responses int
	}
	Watches []struct {
		Directory, User, Share, Filter, Filesystem, Strategy string
		Tree                                                 bool
		Pending                                              int
		Since                                                time.Time
	}
}

func readStatus() (s status, err error) {
	out, err := exec.Command(*daemon, "status", "--json").Output()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// TestStatus: whose watch is where, from when the client has it until it goes.
func TestStatus(t *testing.T) {
	begin(t)
	started := time.Now().Add(-time.Second)
	w := startWatch(t, "", user1)
	s, err := readStatus()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Serving || s.Module == "" || s.Total.Records == 0 || s.Total.Responses == 0 || len(s.Watches) != 1 {
		t.Fatalf("status %+v", s)
	}
	// ksmbd folds the names of shares.
	if d := s.Watches[0]; d.Directory != share || d.User != "user" || d.Share != "test" || !d.Tree || d.Filesystem != *fsType ||
		d.Strategy == "" || !strings.HasPrefix(d.Filter, "file-name,dir-name,") || d.Since.Before(started) {
		t.Errorf("watch %+v", d)
	}
	out, err := exec.Command(*daemon, "status").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "serving ksmbd since") || !strings.Contains(string(out), share+"  yes ") {
		t.Errorf("for people: %v\n%s", err, out)
	}
	t.Logf("status:\n%s", out)

	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: func(_, _ string) (net.Conn, error) {
		return net.Dial("unix", "/run/ksmbd-notifyd/socket")
	}}}
	answer, err := client.Get("http://localhost/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil || !strings.Contains(string(metrics), "\nksmbd_notifyd_serving 1\n") ||
		!strings.Contains(string(metrics), "\nksmbd_notifyd_watches{tree=\"yes\"} 1\n") {
		t.Errorf("metrics: %v\n%s", err, metrics)
	}

	w.close()
	err = until(long, func() error {
		s, err := readStatus()
		if err == nil && len(s.Watches) > 0 {
			err = fmt.Errorf("%d watches are left", len(s.Watches))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command(*daemon, "status").CombinedOutput()
	if want := "ksmbd-notifyd: the daemon does not run: systemctl enable --now ksmbd-notifyd\n"; err == nil || string(out) != want {
		t.Errorf("without a daemon: %v, %q", err, out)
	}
}

// TestCheck: what is well and what is not, on a server that the tests change.
func TestCheck(t *testing.T) {
	begin(t)
	check := func() (string, error) {
		out, err := exec.Command(*daemon, "check").CombinedOutput()
		return string(out), err
	}
	has := func(out, want string) {
		t.Helper()
		if !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, err := check()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("check:\n%s", out)
	has(out, "ok    kernel    ")
	// The module on the disk is the distribution's own.
	has(out, "note  module    loaded and notifies, but the next boot takes the stock one, ")
	has(out, "ok    ksmbd     runs\n")
	has(out, "ok    daemon    serves ksmbd, ")
	has(out, "ok    share     TEST: "+share+", "+*fsType+": all changes are told, by a filesystem mark\n")

	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
	if err := stopMountd(); err != nil {
		t.Fatal(err)
	}
	out, err = check()
	if err == nil {
		t.Errorf("all is well without ksmbd:\n%s", out)
	}
	has(out, "FAIL  ksmbd     does not run: systemctl start ksmbd\n")
	has(out, "FAIL  daemon    the daemon does not run: systemctl enable --now ksmbd-notifyd\n")
	has(out, "note  share     OFF: "+sharePath(offShare)+": change notify is off, and no changes are told\n")
	if err := startNotifyd(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(*daemon, "status").CombinedOutput(); err != nil ||
		!strings.HasPrefix(string(out), "state      ready to serve since ") {
		t.Errorf("after ksmbd.control -s: %v\n%s", err, out)
	}
	if err := startMountd(); err != nil {
		t.Fatal(err)
	}
}
