// SPDX-License-Identifier: GPL-2.0-or-later

// Package packaging has only tests: of what a distribution installs beside the
// daemon.
package packaging

import (
	"os/exec"
	"strings"
	"testing"
)

// What the daemon is left to do is little.
func TestUnitSecurity(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	out, err := exec.Command(path, "security", "--offline=true", "--threshold=20", "--no-pager", "ksmbd-notifyd.service").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Overall exposure level") {
		t.Errorf("%v: %s", err, out)
	}
}

// Lines that systemd does not understand it would ignore. That the programs and
// the manual are not installed here is no matter.
func TestUnitVerify(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	out, _ := exec.Command(path, "verify", "--man=no", "./ksmbd-notifyd.service").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "ksmbd-notifyd.service") && !strings.Contains(line, "is not executable") {
			t.Error(line)
		}
	}
}

// Which other manuals are installed here is no matter.
func TestManPage(t *testing.T) {
	path, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not installed")
	}
	out, _ := exec.Command(path, "-Tlint", "-Wstyle", "ksmbd-notifyd.8").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "referenced manual not found") && !strings.Contains(line, "mandoc.db") {
			t.Error(line)
		}
	}
}
