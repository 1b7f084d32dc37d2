// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"ksmbd-notifyd/ipc"
)

// tellEvery bounds how often systemd is told what is served.
const tellEvery = 5 * time.Second

// systemd is told what the daemon does, if it is there, see sd_notify(3).
type systemd struct {
	log  *slog.Logger
	last string // what it was told in words
}

// changed tells that the daemon serves or waits. The first time is after the
// first attempt to register: a daemon that is to serve is ready when it does,
// and one whose ksmbd cannot notify does not hold up the boot.
func (s *systemd) changed(status ipc.Status) {
	s.tell(daemon.SdNotifyReady + "\nSTATUS=" + inWords(status))
}

// run tells what is served now and then, and that the goroutine that serves is
// not stuck: only by its answer the watchdog lives on.
func (s *systemd) run(ctx context.Context, d *ipc.Daemon) {
	defer s.tell(daemon.SdNotifyStopping)
	every := tellEvery
	switch watchdog, err := daemon.SdWatchdogEnabled(false); {
	case os.Getenv("NOTIFY_SOCKET") == "":
		<-ctx.Done()
		return
	case err != nil:
		s.log.Warn("reading the watchdog's time failed", "err", err)
	case watchdog > 0:
		every = min(every, watchdog/2)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		status, err := d.Status(ctx, false)
		if err != nil { // ctx is done
			return
		}
		state := daemon.SdNotifyWatchdog
		if words := inWords(status); words != s.last {
			s.last = words
			state += "\nSTATUS=" + words
		}
		s.tell(state)
	}
}

func (s *systemd) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("telling systemd failed", "err", err)
	}
}

// inWords says in a line what the daemon does.
func inWords(s ipc.Status) string {
	if !s.Serving {
		return "Waiting for ksmbd: " + s.Waiting
	}
	return fmt.Sprintf("Serving ksmbd: %d watches, %d requests pending, %d records told",
		s.Open.Watches, s.Open.Requests, s.Total.Records)
}
