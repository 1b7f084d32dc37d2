// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/ipc"
)

const watchUsage = `Usage: ksmbd-notifyd watch [OPTION]... DIR

Print the change records that an SMB client would get for DIR. Takes no ksmbd.
Says on standard error when it watches, ends with an error when DIR is removed.

  -r, --recursive       watch all directories below DIR too
  -f, --filter=LIST     completion filter, parted by commas: file-name, dir-name,
                        attributes, size, last-write, last-access, creation, ea,
                        security, stream-name, stream-size, stream-write, all
                        (default: all)
  -j, --json            one object a line: {"action":"ADDED","name":"rel/path"};
                        bytes that are not UTF-8 come as U+FFFD
  -v, --verbose         log every request; -vv: every change and record too
  -h, --help            show this help and exit

Actions: ADDED, REMOVED, MODIFIED, RENAMED_OLD_NAME, RENAMED_NEW_NAME, and
ENUM_DIR when records were lost and DIR is to be listed anew.

See ksmbd-notifyd(8) for more details.
`

// watchBuffer is the buffer of the client that we stand for, in bytes. It takes
// what fanotify queues by default, 16384 events, with names of usual length.
const watchBuffer = 1 << 20

// runWatch is the command "watch".
func runWatch(args []string, verbose int, stdout, stderr io.Writer) int {
	var o struct {
		recursive, json, help bool
		filter                string
	}
	flags := pflag.NewFlagSet("watch", pflag.ContinueOnError)
	flags.BoolVarP(&o.recursive, "recursive", "r", false, "")
	flags.StringVarP(&o.filter, "filter", "f", ipc.All.String(), "")
	flags.BoolVarP(&o.json, "json", "j", false, "")
	flags.CountVarP(&verbose, "verbose", "v", "")
	flags.BoolVarP(&o.help, "help", "h", false, "")
	err := flags.Parse(args)
	var filter ipc.Filter
	if err == nil {
		filter, err = ipc.ParseFilter(o.filter)
	}
	switch {
	case err != nil:
	case o.help:
		return say(stdout, stderr, watchUsage)
	case flags.Arg(0) == "":
		err = errors.New("no directory given")
	case flags.NArg() > 1:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(1))
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd watch")
	}

	level := slog.LevelError
	if verbose > 0 {
		level = verbosity[min(verbose, len(verbosity)-1)]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	return finish(stderr, watch(ctx, newLogger(stderr, level), &client{
		dir: flags.Arg(0), tree: o.recursive, filter: filter, json: o.json, colors: hasColors(stdout), out: stdout, msg: stderr,
	}))
}

// hasColors says whether w is a terminal whose user wants colours, see
// https://no-color.org.
func hasColors(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// color returns what makes a terminal write in an action's colour.
func color(action string) string {
	switch action {
	case genl.ActionAdded.String():
		return "\x1b[32m" // green
	case genl.ActionRemoved.String():
		return "\x1b[31m" // red
	case genl.ActionModified.String():
		return "\x1b[33m" // yellow
	case genl.StatusEnumDir.String():
		return "\x1b[35m" // magenta
	}
	return "\x1b[36m" // cyan: a rename
}

// watch lets c watch until ctx is done, which is no error.
func watch(ctx context.Context, log *slog.Logger, c *client) error {
	if err := needs(unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return err
	}
	if err := answers(ctx, c.dir); err != nil {
		if ctx.Err() != nil {
			err = nil // it was told to end
		}
		return err
	}
	open := opener(c.msg, log)
	if err := tryFanotify(open); err != nil {
		return err
	}
	c.bell = make(chan struct{}, 1)
	return ipc.Serve(ctx, log, c, c.bell, open)
}

// client is an ipc.Kernel without ksmbd: it has one client that watches one
// directory and sends a request whenever the last was answered.
type client struct {
	dir    string
	tree   bool
	filter ipc.Filter
	json   bool
	colors bool
	out    io.Writer // records
	msg    io.Writer // messages

	bell    chan struct{} // has a value when Next is to be called
	mu      sync.Mutex    // of what follows
	next    uint64        // how many items were handed out
	pending bool          // a request is
	armed   bool          // said so
	end     error         // why nothing more comes
}

// Next implements ipc.Kernel.
func (c *client) Next() (items []genl.Item, more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	item := genl.Item{WatchID: 1, FD: -1, BufferLength: watchBuffer}
	switch {
	case c.end != nil:
		return nil, false, c.end
	case c.next == 0:
		fd, err := unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", c.dir, err)
		}
		item.Type = genl.ItemTypeWatch
		item.FD, item.Filter, item.Tree = fd, uint32(c.filter), c.tree
		item.Filesystem = kindOf(fd)
	case !c.pending:
		item.Type = genl.ItemTypeRequest
		item.RequestID = c.next
		c.pending = true
	default:
		return nil, false, nil
	}
	c.next++
	return []genl.Item{item}, true, nil
}

// kindOf returns the type of the filesystem that a directory is on.
func kindOf(fd int) string {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return "?"
	}
	dir := os.NewFile(uintptr(dup), "")
	defer dir.Close()
	kind, _ := ipc.FilesystemOf(dir)
	return kind
}

// Ack implements ipc.Kernel.
func (c *client) Ack(_ uint64, errno unix.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.end != nil:
	case errno != 0:
		c.end = fmt.Errorf("%s cannot be watched: %w", c.dir, errno)
		select {
		case c.bell <- struct{}{}:
		default:
		}
	case !c.armed: // the watch goes first
		c.armed = true
		fmt.Fprintf(c.msg, "watching %s\n", visible(c.dir))
	}
}

// Flush implements ipc.Kernel.
func (c *client) Flush() {}

// Causes implements ipc.Kernel: there are no SMB requests.
func (c *client) Causes() (genl.Causes, error) { return genl.Causes{}, nil }

// Complete implements ipc.Kernel.
func (c *client) Complete(completions []ipc.Completion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.bell <- struct{}{}: // the next request
	default:
	}
	for _, done := range completions {
		var b bytes.Buffer
		switch {
		case done.Status == genl.StatusDeletePending:
			c.end = fmt.Errorf("%s was removed", c.dir)
			return
		case done.Status != 0:
			c.print(&b, done.Status.String(), "")
		}
		for _, r := range done.Records {
			c.print(&b, r.Action.String(), r.Name)
		}
		c.answered(b.Bytes())
	}
}

// answered writes lines at once. There is no other output to fall back on when
// that fails.
func (c *client) answered(lines []byte) {
	if _, err := c.out.Write(lines); err != nil {
		c.end = unwritten(err)
	}
	c.pending = false
}

// print adds a record's line to b.
func (c *client) print(b *bytes.Buffer, action, name string) {
	if c.json {
		var object bytes.Buffer
		e := json.NewEncoder(&object)
		e.SetEscapeHTML(false)
		e.Encode(struct {
			Action string `json:"action"`
			Name   string `json:"name"`
		}{action, name}) // neither a Buffer nor a string can fail
		b.Write(visibleJSON(object.Bytes()))
		return
	}
	line := strings.TrimRight(fmt.Sprintf("%-16s  %s", action, printable(name)), " ")
	if c.colors {
		line = color(action) + line[:len(action)] + "\x1b[0m" + line[len(action):]
	}
	b.WriteString(line + "\n")
}
