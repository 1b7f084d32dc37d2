// SPDX-License-Identifier: GPL-2.0-or-later

// Command ksmbd-notifyd tells ksmbd what changes in the directories that SMB
// clients watch. See ksmbd-notifyd(8).
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "unknown"

const daemonUsage = `Usage: ksmbd-notifyd [OPTION]...
       ksmbd-notifyd status [OPTION]...
       ksmbd-notifyd check [OPTION]...
       ksmbd-notifyd trace [OPTION]... [SHARE|DIR]
       ksmbd-notifyd watch [OPTION]... DIR
       ksmbd-notifyd metrics [OPTION]...

Tell ksmbd what changes in the directories that SMB clients watch. A command says
what the daemon does, whether the shares of this machine can be watched, what is
done for the clients of SHARE just now, what a client would be told of DIR, or
offers numbers to Prometheus ("ksmbd-notifyd COMMAND --help").

  -n, --nodetach[=WAY]  accepted for ksmbd.mountd's sake: always in the foreground
      --settings=CONF   settings, instead of /etc/ksmbd/ksmbd-notifyd.conf
  -t, --test            only say whether the settings are in order
      --once            fail when ksmbd cannot notify, rather than wait for it
  -v, --verbose         log every watch and request; -vv: every change and record too
  -V, --version         show version and exit
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit status, 0 or 1.
func run(args []string, stdout, stderr io.Writer) int {
	var o struct {
		once, test, version, help bool
		verbose                   int
		settings                  string
	}
	flags := pflag.NewFlagSet("ksmbd-notifyd", pflag.ContinueOnError)
	flags.SetInterspersed(false) // what follows a command is for it
	flags.StringP("nodetach", "n", "", "")
	flags.Lookup("nodetach").NoOptDefVal = "1"
	flags.StringVar(&o.settings, "settings", settingsFile, "")
	flags.BoolVarP(&o.test, "test", "t", false, "")
	flags.BoolVar(&o.once, "once", false, "")
	flags.Bool("metrics", false, "") // once it took this to have them on the status socket
	flags.CountVarP(&o.verbose, "verbose", "v", "")
	flags.BoolVarP(&o.version, "version", "V", false, "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	if err := enoughFiles(); err != nil {
		return finish(stderr, err)
	}
	err := flags.Parse(args)
	rest := flags.Args()
	if err == nil {
		err = misplaced(flags)
	}
	o.verbose = min(o.verbose, len(verbosity)-1)
	switch {
	case err != nil:
		return misuse(stderr, err, "ksmbd-notifyd")
	case o.help:
		return say(stdout, stderr, daemonUsage)
	case o.version:
		return say(stdout, stderr, fmt.Sprintf("ksmbd-notifyd version %s\n", version))
	case len(rest) > 0 && rest[0] == "watch":
		return runWatch(rest[1:], o.verbose, stdout, stderr)
	case len(rest) > 0 && rest[0] == "check":
		return runCheck(rest[1:], stdout, stderr)
	case len(rest) == 1 && rest[0] == serveGroup:
		return finish(stderr, runGroup(stderr))
	case len(rest) == 3 && rest[0] == tryOne:
		return runTry(rest[1], rest[2], stdout, stderr)
	case len(rest) == 2 && (rest[0] == lookAt || rest[0] == lookBelow):
		return runLook(rest[0], rest[1], stdout, stderr)
	case len(rest) > 0 && rest[0] == "status":
		return runStatus(rest[1:], stdout, stderr)
	case len(rest) > 0 && rest[0] == "trace":
		return runTrace(rest[1:], stdout, stderr)
	case len(rest) > 0 && rest[0] == "metrics":
		return runMetrics(rest[1:], stdout, stderr)
	case len(rest) > 0:
		return misuse(stderr, fmt.Errorf("unexpected argument %q", rest[0]), "ksmbd-notifyd")
	}
	s := &server{file: o.settings, verbose: o.verbose, once: o.once}
	if o.test {
		_, err := readSettings(o.settings)
		return finish(stderr, err)
	}
	return finish(stderr, s.serve(stderr))
}

// misplaced says which option stands before a command, where it would mean nothing.
func misplaced(flags *pflag.FlagSet) (err error) {
	command := flags.Arg(0)
	if !slices.Contains([]string{"status", "check", "trace", "watch", "metrics"}, command) || flags.Changed("help") || flags.Changed("version") {
		return nil
	}
	flags.Visit(func(f *pflag.Flag) {
		if f.Name != "verbose" || command != "watch" {
			err = fmt.Errorf("--%s is the daemon's: options of %s come after it", f.Name, command)
		}
	})
	return err
}

// enoughFiles says whether so few files may be open that Go itself cannot begin,
// which then ends the program with all that it did. What is short later is told.
func enoughFiles() error {
	const few = 32 // check has the most, for those that try shares
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < few {
		return fmt.Errorf("only %d files may be open, it takes %d: ulimit -n, or LimitNOFILE of the service", limit.Cur, few)
	}
	return nil
}

// say writes what was asked for.
func say(stdout, stderr io.Writer, text string) int {
	_, err := io.WriteString(stdout, text)
	return finish(stderr, unwritten(err))
}

// unwritten says why something could not be written, if it could not.
func unwritten(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("writing: %w", withoutCall(err))
}

// misuse says what is wrong with the command line.
func misuse(stderr io.Writer, err error, command string) int {
	text := ofGo.ReplaceAllString(err.Error(), "")
	fmt.Fprintf(stderr, "ksmbd-notifyd: %s\nTry `%s --help' for more information.\n", visible(text), command)
	return 1
}

// ofGo is what a message about an option says of Go's own functions.
var ofGo = regexp.MustCompile(`strconv\.\w+: parsing "(?:[^"\\]|\\.)*": `)

// finish says why the program ends unless it was told to.
func finish(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if isJournal(stderr) {
		fmt.Fprint(stderr, "<3>")
	}
	fmt.Fprintf(stderr, "ksmbd-notifyd: %s\n", visible(err.Error()))
	return 1
}

var capabilityNames = map[int]string{
	unix.CAP_SYS_ADMIN:       "CAP_SYS_ADMIN",
	unix.CAP_NET_ADMIN:       "CAP_NET_ADMIN",
	unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
}

// needs says what is missing of what most commands take: /proc, and capabilities.
func needs(capabilities ...int) error {
	if _, err := os.Stat("/proc/self"); err != nil {
		return errors.New("there is no /proc here: mount -t proc proc /proc")
	}
	// Version 3 of the call has two words for 64 capabilities.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading own capabilities: %w", err)
	}
	var missing []string
	for _, c := range capabilities {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			missing = append(missing, capabilityNames[c])
		}
	}
	if missing != nil {
		return fmt.Errorf("must be run as root, missing: %s", strings.Join(missing, ", "))
	}
	return nil
}
