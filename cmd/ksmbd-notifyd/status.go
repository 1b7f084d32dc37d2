// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

const statusUsage = `Usage: ksmbd-notifyd status [OPTION]...

Say what the daemon does: whether it serves ksmbd, which directories are watched,
by whom and how, and what was told and lost so far.

  -j, --json            one JSON object
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

// answerWithin is how long the goroutine that serves may take to say what it
// does before it counts as stuck.
const answerWithin = 5 * time.Second

var errRunning = errors.New("another ksmbd-notifyd is running, there can be one: systemctl status ksmbd-notifyd")

// runtimeDir returns the directory of the status socket. systemd may give several.
func runtimeDir() string {
	first, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	return cmp.Or(first, filepath.Join(runDir("/"), "ksmbd-notifyd"))
}

// runDir returns where a system keeps what lasts until it boots. OpenWrt has no /run.
func runDir(root string) string {
	dir := filepath.Join(root, "run")
	if _, err := os.Stat(dir); err != nil {
		return filepath.Join(root, "var/run")
	}
	return dir
}

const socketName = "socket"

// report is what /status gives.
type report struct {
	Version string    `json:"version"`
	Kernel  string    `json:"kernel"`
	Started time.Time `json:"started"`
	Server  string    `json:"server"` // ksmbd's state in its own word, such as running; "" without one
	ipc.Status
}

// statusSocket is where the daemon says what it does, in HTTP.
type statusSocket struct {
	dir *os.File // locked
	net.Listener
}

// listen opens the status socket in dir, which is made unless it is there, and which
// nobody else may enter. errRunning says that another daemon has it.
func listen(dir string) (*statusSocket, error) {
	made := os.Mkdir(dir, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return nil, made
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s := &statusSocket{dir: f}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		err = errRunning
	}
	if err == nil && made == nil {
		err = f.Chmod(0o700) // whatever the umask
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fmt.Errorf("%s is somebody else's, or others than its owner may enter it: have it of mode 700 and our own, or name another RUNTIME_DIRECTORY", dir)
	}
	path := filepath.Join(dir, socketName)
	if err == nil {
		os.Remove(path) // of a daemon that was killed
		s.Listener, err = net.Listen("unix", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *statusSocket) Close() error {
	return errors.Join(s.Listener.Close(), s.dir.Close())
}

// serve answers until ctx is done.
func (s *statusSocket) serve(ctx context.Context, log *slog.Logger, d *ipc.Daemon) {
	server := http.Server{Handler: handlers(d), ReadHeaderTimeout: answerWithin, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(s.Listener); !errors.Is(err, http.ErrServerClosed) {
		log.Error("there is no status any more", "err", err)
	}
}

func handlers(d *ipc.Daemon) http.Handler {
	started := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
		defer cancel()
		status, err := d.Status(ctx, true)
		if err != nil {
			http.Error(w, unserved(err).Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		e.Encode(report{version, kernelRelease(), started, serverState("/"), status}) // fails when nobody reads it any more
	})
	mux.HandleFunc("GET /trace", tracing(d))
	mux.Handle("GET /metrics", metricsHandler(d))
	return mux
}

// unserved says in our words why what serves has not done what it was asked for.
func unserved(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the daemon is stuck: it does not answer in %v: systemctl restart ksmbd-notifyd", answerWithin)
	}
	return err
}

// serverRuns is the state of a server that ksmbd.mountd has started.
const serverRuns = "running"

// serverState returns what ksmbd says of itself below root.
func serverState(root string) string {
	// The format's version, the state, the port, ...
	stats, _ := os.ReadFile(filepath.Join(root, "sys/class/ksmbd-control/stats"))
	if f := strings.Fields(string(stats)); len(f) > 1 {
		return f[1]
	}
	return ""
}

// kernelRelease returns that of the running kernel.
func kernelRelease() string {
	var uts unix.Utsname
	unix.Uname(&uts) // cannot fail
	return unix.ByteSliceToString(uts.Release[:])
}

// runStatus is the command "status".
func runStatus(args []string, stdout, stderr io.Writer) int {
	var o struct{ json, help bool }
	flags := pflag.NewFlagSet("status", pflag.ContinueOnError)
	flags.BoolVarP(&o.json, "json", "j", false, "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && o.help:
		return say(stdout, stderr, statusUsage)
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd status")
	}
	body, err := get(runtimeDir(), "/status")
	if err == nil && o.json {
		_, err = stdout.Write(visibleJSON(body))
		err = unwritten(err)
	} else if err == nil {
		var r *report
		if r, err = readReport(body); err == nil {
			err = unwritten(r.print(stdout))
		}
	}
	return finish(stderr, err)
}

// errOther: what is asked, and what the answer looks like, may differ between releases.
var errOther = errors.New("the daemon that runs is of another release, and does not understand this: systemctl restart ksmbd-notifyd")

// readReport returns what /status gave.
func readReport(body []byte) (*report, error) {
	r := new(report)
	if json.Unmarshal(body, r) != nil || r.Version == "" {
		return nil, errOther
	}
	return r, nil
}

// get asks the daemon whose socket is in dir.
func get(dir, what string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), mostOfAnswer)
	defer cancel()
	answer, err := open(ctx, dir, what, "")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, noStatus(err)
	}
	return text, nil
}

// mostOfAnswer is how long the daemon may take for an answer, or for the beginning of one.
const mostOfAnswer = 2 * answerWithin

// noStatus says in our words why the daemon gave no answer.
func noStatus(err error) error {
	timeout := net.Error(nil)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the daemon does not answer in %v: systemctl restart ksmbd-notifyd", mostOfAnswer)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return errors.New("the daemon has ended: systemctl status ksmbd-notifyd")
	}
	return fmt.Errorf("asking the daemon: %w", err)
}

// open asks the daemon whose socket is in dir, until ctx is done, for an answer of a
// type. The caller closes its body.
func open(ctx context.Context, dir, what, accept string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: mostOfAnswer,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, socketName))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ksmbd-notifyd"+what, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	answer, err := client.Do(request)
	switch {
	case errors.Is(err, unix.EACCES):
		return nil, errors.New("the daemon's status is for root only")
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, errors.New("the daemon does not run: systemctl enable --now ksmbd-notifyd")
	case err != nil:
		return nil, noStatus(errors.Unwrap(err))
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		if answer.StatusCode == http.StatusNotFound {
			return nil, errOther
		}
		why, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
		return nil, cmp.Or(err, errors.New(strings.TrimSpace(string(why))))
	}
	return answer, nil
}

// print says for people what the daemon does.
func (r *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				t.Write([]byte{'\t'})
			}
			io.WriteString(t, visible(fmt.Sprint(c)))
		}
		t.Write([]byte{'\n'})
	}
	if r.Serving {
		if r.Server == serverRuns {
			row("state", "serving ksmbd since "+stamp(r.Since))
		} else {
			row("state", "ready to serve since "+stamp(r.Since)+", but ksmbd does not run: systemctl start ksmbd")
		}
		row("module", fmt.Sprintf("%s, kernel %s", cmp.Or(r.Module, "unknown"), r.Kernel))
	} else {
		row("state", "waiting since "+stamp(r.Since)+": "+r.Waiting)
		row("module", "none that can notify, kernel "+r.Kernel)
	}
	row("daemon", fmt.Sprintf("%s, running since %s", r.Version, stamp(r.Started)))
	if off := r.Policy.String(); off != "" {
		row("settings", off)
	}
	row("watches", fmt.Sprintf("%d open, %d with all that is below; %d so far, %d refused",
		r.Open.Watches, r.Open.Trees, r.Total.Watches, r.Total.Refused))
	row("requests", fmt.Sprintf("%d pending; %d so far, %d answered", r.Open.Requests, r.Total.Requests, r.Total.Responses))
	row("records", fmt.Sprintf("%d bytes queued; %d told", r.Open.QueuedBytes, r.Total.Records))
	lost := fmt.Sprintf("%d of watches, %d of the fanotify queue", r.Total.Overflows, r.Total.QueueOverflows)
	if l := r.LastOverflow; l != nil {
		lost += fmt.Sprintf("; the last at %s in %s: %s", stamp(l.Time), printable(l.Directory), l.Reason)
	}
	row("overflows", lost)
	row("ENUM_DIR", fmt.Sprintf("%d told", r.Total.EnumDirs))
	t.Flush()

	if len(r.Filesystems) > 0 {
		row()
		row("FILESYSTEM", "DEVICE", "STRATEGY", "WATCHES", "TOLD")
		for _, f := range r.Filesystems {
			told := "all changes"
			if f.MountOnly {
				told = "only what goes through this mount"
			}
			if f.Stuck != nil {
				told = fmt.Sprintf("nothing: has not answered since %s: %s", stamp(f.Stuck.Since), printable(f.Stuck.What))
			}
			row(f.Type, f.Device, f.Strategy, f.Watches, told)
		}
		t.Flush()
	}
	if len(r.Watches) > 0 {
		row()
		row("DIRECTORY", "TREE", "USER", "SHARE", "SINCE", "PENDING", "QUEUED", "OVERFLOWS", "FILTER")
		for _, s := range r.Watches {
			queued, filter, tree := strconv.Itoa(s.Queued), s.Filter, "no"
			if s.Overflowed {
				queued = "lost" // the next answer says to list anew
			}
			if filter == ipc.All.String() {
				filter = "all"
			}
			if s.Tree {
				tree = "yes"
			}
			row(printable(s.Directory), tree, printable(s.User), printable(s.Share), stamp(s.Since), s.Pending, queued, s.Overflows, filter)
		}
		t.Flush()
	}
	if n := len(r.Incidents); n > 0 {
		row()
		row("INCIDENT", "LAST", "TIMES", "DIRECTORY", "USER", "SHARE", "REASON")
		for _, i := range r.Incidents[max(0, n-shownIncidents):] {
			row(i.Kind, stamp(i.Last), i.Count, dash(i.Directory), dash(i.User), dash(i.Share), i.Reason)
		}
	}
	return t.Flush()
}

// shownIncidents of those that there are are shown to people.
const shownIncidents = 10

// dash stands for what there is not.
func dash(s string) string { return printable(cmp.Or(s, "-")) }

func stamp(t time.Time) string { return t.Local().Format(time.DateTime) }

// visible writes out what would end its line or have a terminal do something. Who
// mounts a FUSE filesystem chooses the name of its type, for one.
func visible(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		c := text[:n]
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
			c = strconv.Quote(c)
			c = c[1 : len(c)-1]
		}
		b.WriteString(c)
		text = text[n:]
	}
	return b.String()
}

// visibleJSON does so in JSON, where only what is below the blank is written out already.
func visibleJSON(text []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(text) {
		if r < 0x7f || strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, "\\u%04x", unit)
		}
	}
	return b.Bytes()
}

// printable quotes what would end its line or move the cursor.
func printable(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` || strings.HasSuffix(name, " ") {
		return q
	}
	return name
}
