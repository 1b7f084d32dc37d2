// SPDX-License-Identifier: GPL-2.0-or-later

// Command ksmbd-notifyd tells ksmbd what changes in the directories that SMB
// clients watch. See ksmbd-notifyd(8).
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/ipc"
)

// version is set by the linker.
var version = "unknown"

const daemonUsage = `Usage: ksmbd-notifyd [OPTION]...
       ksmbd-notifyd watch [OPTION]... DIR

Tell ksmbd what changes in the directories that SMB clients watch, or print
what a client would be told of DIR ("ksmbd-notifyd watch --help").

  -n, --nodetach[=WAY]  accepted for ksmbd.mountd's sake: always in the foreground
      --once            fail when ksmbd cannot notify, rather than wait for it
  -v, --verbose         log every watch, request, event and record
  -V, --version         show version and exit
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit status, 0 or 1.
func run(args []string, stdout, stderr io.Writer) int {
	var o struct{ once, verbose, version, help bool }
	flags := pflag.NewFlagSet("ksmbd-notifyd", pflag.ContinueOnError)
	flags.SetInterspersed(false) // what follows "watch" is for it
	flags.StringP("nodetach", "n", "", "")
	flags.Lookup("nodetach").NoOptDefVal = "1"
	flags.BoolVar(&o.once, "once", false, "")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "")
	flags.BoolVarP(&o.version, "version", "V", false, "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	rest := flags.Args()
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
	case len(rest) > 0:
		return misuse(stderr, fmt.Errorf("unexpected argument %q", rest[0]), "ksmbd-notifyd")
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	return finish(stderr, serve(newLogger(stderr, level), o.once))
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
	fmt.Fprintf(stderr, "ksmbd-notifyd: %v\n", err)
	return 1
}

// serve is the daemon.
func serve(log *slog.Logger, once bool) error {
	if err := needCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return err
	}
	// One goroutine has all the work: others to wake only delay it.
	runtime.GOMAXPROCS(1)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	group, err := fanotify.Open(log)
	if err != nil {
		return err
	}
	defer group.Close()

	d := ipc.Daemon{Log: log, Group: ipc.Fanotify(group), Once: once, Serving: func(serving bool) {
		if serving {
			notify(log, daemon.SdNotifyReady+"\nSTATUS=Serving ksmbd")
		} else {
			notify(log, "STATUS=Waiting for ksmbd")
		}
	}}
	defer context.AfterFunc(ctx, func() { notify(log, daemon.SdNotifyStopping) })()
	return d.Run(ctx)
}

// notify tells systemd, if it is there, see sd_notify(3).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd failed", "err", err)
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
