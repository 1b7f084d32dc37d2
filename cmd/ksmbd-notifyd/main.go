// SPDX-License-Identifier: GPL-2.0-or-later

// Command ksmbd-notifyd tells ksmbd what changes in the directories that SMB
// clients watch. See ksmbd-notifyd(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/ipc"
)

// version is set by the linker.
var version = "unknown"

const daemonUsage = `Usage: ksmbd-notifyd [OPTION]...
       ksmbd-notifyd status [OPTION]...
       ksmbd-notifyd check [OPTION]...
       ksmbd-notifyd watch [OPTION]... DIR

Tell ksmbd what changes in the directories that SMB clients watch. A command says
what the daemon does, whether the shares of this machine can be watched, or what
a client would be told of DIR ("ksmbd-notifyd COMMAND --help").

  -n, --nodetach[=WAY]  accepted for ksmbd.mountd's sake: always in the foreground
      --once            fail when ksmbd cannot notify, rather than wait for it
      --metrics         offer OpenMetrics on the status socket, as /metrics
  -v, --verbose         log every watch and request; -vv: every change and record too
  -V, --version         show version and exit
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit status, 0 or 1.
func run(args []string, stdout, stderr io.Writer) int {
	var o struct {
		once, metrics, version, help bool
		verbose                      int
	}
	flags := pflag.NewFlagSet("ksmbd-notifyd", pflag.ContinueOnError)
	flags.SetInterspersed(false) // what follows a command is for it
	flags.StringP("nodetach", "n", "", "")
	flags.Lookup("nodetach").NoOptDefVal = "1"
	flags.BoolVar(&o.once, "once", false, "")
	flags.BoolVar(&o.metrics, "metrics", false, "")
	flags.CountVarP(&o.verbose, "verbose", "v", "")
	flags.BoolVarP(&o.version, "version", "V", false, "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	rest := flags.Args()
	o.verbose = min(o.verbose, len(verbosity)-1)
	switch {
	case err != nil:
		return misuse(stderr, err, "ksmbd-notifyd")
	case o.help:
		fmt.Fprint(stdout, daemonUsage)
		return 0
	case o.version:
		fmt.Fprintf(stdout, "ksmbd-notifyd version %s\n", version)
		return 0
	case len(rest) > 0 && rest[0] == "watch":
		return runWatch(rest[1:], o.verbose, stdout, stderr)
	case len(rest) > 0 && rest[0] == "check":
		return runCheck(rest[1:], stdout, stderr)
	case len(rest) > 0 && rest[0] == "status":
		return runStatus(rest[1:], stdout, stderr)
	case len(rest) > 0:
		return misuse(stderr, fmt.Errorf("unexpected argument %q", rest[0]), "ksmbd-notifyd")
	}
	return finish(stderr, serve(stderr, o.verbose, o.once, o.metrics))
}

// misuse says what is wrong with the command line.
func misuse(stderr io.Writer, err error, command string) int {
	fmt.Fprintf(stderr, "ksmbd-notifyd: %v\nTry `%s --help' for more information.\n", err, command)
	return 1
}

// finish says why the program ends unless it was told to.
func finish(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if isJournal(stderr) {
		fmt.Fprint(stderr, "<3>")
	}
	fmt.Fprintf(stderr, "ksmbd-notifyd: %v\n", err)
	return 1
}

// serve is the daemon.
func serve(stderr io.Writer, verbose int, once, metrics bool) error {
	if err := needCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return err
	}
	// One goroutine has all the work: others to wake only delay it.
	runtime.GOMAXPROCS(1)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before anybody knows of us
	defer signal.Stop(hangup)
	level := new(slog.LevelVar)
	level.Set(verbosity[verbose])
	log := newLogger(stderr, level)

	status, err := listen(runtimeDir())
	switch {
	case errors.Is(err, errRunning):
		return err
	case err != nil: // clients do not wait for that
		log.Error("there will be no status", "err", err)
	default:
		defer status.Close()
	}
	systemd := &systemd{log: log, limit: queueLimit()}
	group, err := fanotify.Open(quieter(log))
	if err != nil {
		return err
	}
	defer group.Close()
	d := ipc.NewDaemon(log, ipc.Fanotify(group))
	d.Once = once
	d.Changed = systemd.changed
	d.Inherited, d.Leaves = systemd.inherited(), systemd.isThere()

	var tasks errgroup.Group
	tasks.Go(func() error {
		defer cancel() // the others end with it
		return d.Run(ctx)
	})
	tasks.Go(func() error { systemd.run(ctx, d); return nil })
	tasks.Go(func() error { turn(ctx, hangup, log, level, verbose); return nil })
	if status != nil {
		tasks.Go(func() error { status.serve(ctx, log, d, metrics); return nil })
	}
	err = tasks.Wait()
	if d.Left != nil {
		systemd.store(d.Left)
	}
	return err
}

// turn makes the log more verbose at each SIGHUP, and as it was started after
// the most verbose.
func turn(ctx context.Context, hangup <-chan os.Signal, log *slog.Logger, level *slog.LevelVar, verbose int) {
	for now := verbose; ; {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if now++; now == len(verbosity) {
			now = verbose
		}
		level.Set(verbosity[now])
		log.Info("verbosity was changed", "verbose", now)
	}
}

var capabilityNames = map[int]string{
	unix.CAP_SYS_ADMIN:       "CAP_SYS_ADMIN",
	unix.CAP_NET_ADMIN:       "CAP_NET_ADMIN",
	unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
}

// needCapabilities names the capabilities that the process lacks of those in
// need, in an error.
func needCapabilities(need ...int) error {
	// Version 3 of the call has two words for 64 capabilities.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading own capabilities: %w", err)
	}
	var missing []string
	for _, c := range need {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			missing = append(missing, capabilityNames[c])
		}
	}
	if missing != nil {
		return fmt.Errorf("must be run as root, missing: %s", strings.Join(missing, ", "))
	}
	return nil
}
