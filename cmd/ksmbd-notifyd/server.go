// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// server is the daemon.
type server struct {
	file    string // with settings
	verbose int    // how many -v there are, whatever the settings
	once    bool

	log    *slog.Logger
	level  *slog.LevelVar
	daemon *ipc.Daemon
}

func (s *server) serve(stderr io.Writer) error {
	if err := needs(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return err
	}
	settings, err := readSettings(s.file)
	if err != nil {
		return err
	}
	// Its goroutines work one after the other: processors to wake only delay them.
	runtime.GOMAXPROCS(1)
	// Near the memory that it may have it collects garbage more often, before it is killed. GOMEMLIMIT may say less.
	debug.SetMemoryLimit(min(debug.SetMemoryLimit(-1), int64(ipc.Memory()/4*3)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before anybody knows of us
	defer signal.Stop(hangup)
	s.level = new(slog.LevelVar)
	s.setLevel(settings)
	s.log = newLogger(stderr, s.level)

	open := opener(stderr, s.log)
	if err := tryFanotify(open); err != nil {
		return err
	}
	status, err := listen(runtimeDir())
	switch {
	case errors.Is(err, errRunning):
		return err
	case err != nil: // clients do not wait for that
		s.log.Error("there is no status, it is tried again", "every", statusRetry, "err", err)
	}
	systemd := &systemd{log: s.log, root: "/", limit: queueLimit()}
	s.daemon = ipc.NewDaemon(s.log, open)
	s.daemon.Once = s.once
	s.daemon.Policy = settings.policy
	s.daemon.Changed = systemd.changed
	s.daemon.Inherited, s.daemon.Leaves = systemd.inherited(), systemd.isThere()

	var tasks errgroup.Group
	tasks.Go(func() error {
		defer cancel() // the others end with it
		return s.daemon.Run(ctx)
	})
	tasks.Go(func() error { systemd.run(ctx, s.daemon); return nil })
	tasks.Go(func() error { s.reload(ctx, hangup); return nil })
	tasks.Go(func() error { status = s.answer(ctx, status); return nil })
	err = tasks.Wait()
	if status != nil { // until now no other daemon starts
		status.Close()
	}
	if s.daemon.Left != nil {
		systemd.store(s.daemon.Left)
	}
	return err
}

// statusRetry is after what time it is tried again to open the status socket.
const statusRetry = 10 * time.Second

// answer answers those who ask for status until ctx is done. There may be no socket yet. It
// returns the one that there is then, for the caller to close.
func (s *server) answer(ctx context.Context, status *statusSocket) *statusSocket {
	for status == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusRetry):
		}
		var err error
		if status, err = listen(runtimeDir()); err == nil {
			s.log.Info("there is status now")
		}
	}
	status.serve(ctx, s.log, s.daemon)
	return status
}

// reload follows the settings anew at each SIGHUP. Those that are not in order
// change nothing.
func (s *server) reload(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		settings, err := readSettings(s.file)
		if err != nil {
			s.log.Error("the settings stay as they are", "reason", err)
			continue
		}
		s.setLevel(settings)
		if err := s.daemon.SetPolicy(ctx, settings.policy); err != nil {
			return // it ends
		}
		s.log.Info("settings were read", "file", s.file, "verbose", max(s.verbose, settings.verbose), "restrictions", settings.policy.String())
	}
}

func (s *server) setLevel(settings settings) {
	s.level.Set(verbosity[max(s.verbose, settings.verbose)])
}

// serveGroup is the command by which the daemon starts itself for a filesystem that
// may hang. It is not for people.
const serveGroup = "serve-group"

// opener opens the groups of the daemon.
func opener(stderr io.Writer, log *slog.Logger) ipc.Opener {
	here := ipc.OpenFanotify(quieter(log))
	elsewhere := ipc.OpenProcess(func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", serveGroup)
		cmd.Stderr = stderr
		return cmd
	})
	return func(fs ipc.Superblock) (ipc.Group, error) {
		if ipc.MayHang(fs.Type) {
			return elsewhere(fs)
		}
		return here(fs)
	}
}

// runGroup is that command. It ends with the daemon, and not before.
func runGroup(stderr io.Writer) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	runtime.GOMAXPROCS(1)
	log := newLogger(stderr, new(slog.LevelVar))
	return ipc.ServeGroup(os.NewFile(3, "calls"), os.NewFile(4, "wakes"), ipc.OpenFanotify(quieter(log)))
}

// tryFanotify fails if there is none: before a client needs it.
func tryFanotify(open ipc.Opener) error {
	group, err := open(ipc.Superblock{})
	if err != nil {
		return err
	}
	return group.Close()
}
