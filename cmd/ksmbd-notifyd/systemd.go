// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// tellEvery bounds how often systemd is told what is served.
const tellEvery = 5 * time.Second

// systemd is told what the daemon does, if it is there, see sd_notify(3).
type systemd struct {
	log   *slog.Logger
	root  string // where /sys is
	limit string // of the fanotify queue
	last  string // what it was told in words
}

// changed tells that the daemon serves or waits. The first time is after the
// first attempt to register: a daemon that is to serve is ready when it does,
// and one whose ksmbd cannot notify does not hold up the boot.
func (s *systemd) changed(status ipc.Status) {
	s.tell(daemon.SdNotifyReady + "\nSTATUS=" + s.inWords(status))
}

// run tells what is served now and then, and that the goroutine that serves is
// not stuck: only by its answer the watchdog lives on.
func (s *systemd) run(ctx context.Context, d *ipc.Daemon) {
	defer s.tell(daemon.SdNotifyStopping)
	every := tellEvery
	switch watchdog, err := daemon.SdWatchdogEnabled(false); {
	case !s.isThere():
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
		if words := s.inWords(status); words != s.last {
			s.last = words
			state += "\nSTATUS=" + words
		}
		s.tell(state)
	}
}

func (s *systemd) isThere() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

func (s *systemd) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("telling systemd failed", "err", err)
	}
}

// The names of what systemd keeps for the next daemon, see FDSTORE in sd_notify(3):
// the queues, with a number each, and what was watched in them. Versions that do
// not know each other's watches know no such file.
const (
	storedQueue   = "fanotify."
	storedWatches = "watches.2"
)

// store has systemd keep h for the daemon that it starts next, if it does.
func (s *systemd) store(h *ipc.Handover) {
	defer h.Close()
	watches, err := encode(h, s.limit)
	if err == nil {
		defer watches.Close()
		for i, part := range h.Parts {
			if err == nil {
				err = s.keep(storedQueue+strconv.Itoa(i), part.Queue)
			}
		}
	}
	if err == nil {
		err = s.keep(storedWatches, watches)
	}
	if err != nil {
		s.log.Warn("leaving watches to the next daemon failed", "err", err)
	}
}

// stored is what of a Handover is in a file, and the limit that its queues have
// had since they were opened.
type stored struct {
	Limit         string
	Family        uint16
	Registrations uint32
	Parts         []storedPart
}

type storedPart struct {
	ipc.Superblock
	Watches map[uint64]ipc.Left
}

// encode puts h in a file of the memory's, since of the disk none is needed.
func encode(h *ipc.Handover, limit string) (*os.File, error) {
	fd, err := unix.MemfdCreate(storedWatches, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating a memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), storedWatches)
	all := stored{Limit: limit, Family: h.Family, Registrations: h.Registrations}
	for _, part := range h.Parts {
		all.Parts = append(all.Parts, storedPart{part.Superblock, part.Watches})
	}
	if err := gob.NewEncoder(f).Encode(all); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *systemd) keep(name string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendmsg(fd, []byte("FDSTORE=1\nFDNAME="+name), unix.UnixRights(int(f.Fd())), &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}, 0)
}

// inherited returns what the last daemon left to this one, nil for nothing.
func (s *systemd) inherited() *ipc.Handover {
	named := make(map[string]*os.File)
	files := activation.Files(true)
	if len(files) == 0 {
		return nil
	}
	for _, f := range files {
		named[f.Name()] = f
		s.tell("FDSTOREREMOVE=1\nFDNAME=" + f.Name())
	}
	h, err := decode(named, s.limit)
	for _, f := range files {
		if h == nil || !slices.ContainsFunc(h.Parts, func(part ipc.Part) bool { return part.Queue == f }) {
			f.Close()
		}
	}
	if err != nil {
		s.log.Info("starting over, clients will list their directories anew", "reason", err)
		return nil
	}
	return h
}

// decode puts together what store has left.
func decode(files map[string]*os.File, limit string) (*ipc.Handover, error) {
	f := files[storedWatches]
	if f == nil {
		return nil, errors.New("the last daemon left nothing that this one knows")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	var all stored
	if err := gob.NewDecoder(f).Decode(&all); err != nil {
		return nil, fmt.Errorf("reading what the last daemon left: %w", err)
	}
	if all.Limit != limit {
		return nil, errors.New("fs.fanotify.max_queued_events was changed")
	}
	h := &ipc.Handover{Family: all.Family, Registrations: all.Registrations}
	for i, part := range all.Parts {
		queue := files[storedQueue+strconv.Itoa(i)]
		if queue == nil || len(files) != len(all.Parts)+1 { // or they may be of two daemons
			return nil, errors.New("the last daemon left watches without a queue, or queues without watches")
		}
		h.Parts = append(h.Parts, ipc.Part{Superblock: part.Superblock, Queue: queue, Watches: part.Watches})
	}
	return h, nil
}

// limitFile is, below the root, what limits the fanotify queues that are opened.
const limitFile = "proc/sys/fs/fanotify/max_queued_events"

func queueLimit() string {
	limit, _ := os.ReadFile("/" + limitFile) // what cannot be read does not change either
	return string(limit)
}

// inWords says in a line what the daemon does.
func (d *systemd) inWords(s ipc.Status) string {
	switch {
	case !s.Serving:
		return "Waiting for ksmbd: " + s.Waiting
	case serverState(d.root) != serverRuns:
		return "Ready to serve ksmbd, which does not run"
	}
	return fmt.Sprintf("Serving ksmbd: %d watches, %d requests pending, %d records told",
		s.Open.Watches, s.Open.Requests, s.Total.Records)
}
