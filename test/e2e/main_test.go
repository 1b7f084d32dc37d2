// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

// Package e2e is what runs inside the test guest, as root: a real ksmbd serves a share on loopback, ksmbd-notifyd
// answers its change notifications, and real clients watch it. test/guest boots the guest.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
)

var (
	module  = flag.String("module", "/rig/ksmbd.ko", "kernel module to load; stock: the distribution's own")
	daemon  = flag.String("daemon", "/rig/ksmbd-notifyd", "ksmbd-notifyd to start; empty: none")
	fsType  = flag.String("fs", "tmpfs", "file system of the share: tmpfs, ext4, xfs, btrfs, vfat, overlay")
	cifsDir = flag.String("cifs-notify", "", "only watch a directory of a mounted share")
	quiet   = flag.Bool("quiet", false, "the daemon logs no more than users have it log: what is measured is not logging")
	demo    = flag.Bool("demo", false, "only show side by side what is done and what a client is told")

	smbtorture = flag.String("smbtorture", "smbtorture", "Samba's smbtorture")
	leases     = flag.Bool("leases", false, "clients get leases, and durable handles where ksmbd-tools knows them")
	requests   = flag.Int("requests", 10000, "how many requests TestCredits makes")
	tries      = flag.Int("tries", 10, "how often each smbtorture test that must pass is run")
	slow       = flag.Int("slow", 10, "how often those that take minutes are")
	regression = flag.String("regression", ".", "names of the smbtorture tests to record, a regular expression")
	baseline   = flag.String("baseline", "", "what was recorded with the stock module, to compare ours with")
	benchForm  = flag.String("bench-smb", "", "only measure ours beside smbd: short or full")
	benchParts = flag.String("bench-parts", "", "only those parts of it, a regular expression")
	benchClock = flag.String("bench-clock", "", "what there is to say of time there")
	benchTimes = flag.Int("bench-rounds", 5, "in so many rounds")
	benchPlain = flag.Bool("bench-stock", false, "only measure what our module costs those that watch nothing")
	recordTo   = flag.String("record", "", "only run smbtorture tests and record in this file which pass")
)

// results is the directory that the guest hands back to the host.
const results = "/out"

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runMain(m))
}

func runMain(m *testing.M) (code int) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	if *cifsDir != "" {
		fail(cifsNotify(*cifsDir, os.Stdout))
		return
	}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" { // the daemon's, if it was built so
		if err := errors.Join(os.MkdirAll(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
			fail(err)
			return
		}
	}
	// Before anything is started, so that what it stops is whatever was.
	defer func() {
		if err := tearDown(); err != nil {
			fail(err)
		}
	}()
	if err := forgetLeaks(); err != nil {
		fail(err)
	}
	if err := setUp(); err != nil {
		fail(err)
		return
	}
	switch {
	case *demo:
		if err := showDemo(os.Stdout); err != nil {
			fail(err)
		}
	case *benchForm != "":
		if err := benchSMB(*benchForm, *benchTimes, os.Stdout); err != nil {
			fail(err)
		}
	case *benchPlain:
		if err := benchStock(*benchTimes, os.Stdout); err != nil {
			fail(err)
		}
	case *recordTo != "":
		if err := recordRegression(*recordTo); err != nil {
			fail(err)
		}
	default:
		code = m.Run()
	}
	return
}
