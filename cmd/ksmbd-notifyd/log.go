// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// verbosity has the levels that no -v, one and two of them stand for.
var verbosity = [...]slog.Level{slog.LevelInfo, slog.LevelDebug, ipc.LevelTrace}

// Of lines with the same message only so many are written in so long, unless
// they are for debugging: what goes wrong with one watch may with thousands.
const (
	maxBurst   = 5
	burstEvery = 10 * time.Second
)

// newLogger returns a logger that writes lines for people: time and a level
// word, the message, key=value pairs. The journal has a time and a level of its
// own, see sd-daemon(3).
func newLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	o := &output{w: w, journal: isJournal(w), bursts: make(map[string]*burst)}
	pairs := slog.NewTextHandler(&o.line, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return slog.New(handler{pairs, o})
}

// isJournal says whether w is the journal, see JOURNAL_STREAM in systemd.exec(5).
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	var st unix.Stat_t
	return ok && unix.Fstat(int(f.Fd()), &st) == nil &&
		os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// output is what all handlers made of one share.
type output struct {
	mu      sync.Mutex
	line    bytes.Buffer
	w       io.Writer
	journal bool
	bursts  map[string]*burst // by message
}

// burst counts the lines of one message since a time.
type burst struct {
	since   time.Time
	lines   int
	omitted int
}

// omit says whether the line of r is one too many; if not, it adds to r what
// was omitted before and what may be from here on.
func (o *output) omit(r *slog.Record) bool {
	if r.Level <= slog.LevelDebug {
		return false
	}
	b := o.bursts[r.Message]
	if b == nil {
		b = new(burst)
		o.bursts[r.Message] = b
	}
	if r.Time.Sub(b.since) >= burstEvery {
		b.since, b.lines = r.Time, 0
	}
	if b.lines++; b.lines > maxBurst {
		b.omitted++
		return true
	}
	if b.omitted > 0 {
		r.AddAttrs(slog.Int("omitted", b.omitted))
		b.omitted = 0
	}
	if b.lines == maxBurst {
		r.AddAttrs(slog.String("more", "omitted for "+burstEvery.String()))
	}
	return false
}

// priority has the number of each level in syslog(3).
func priority(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 4
	case level >= slog.LevelInfo:
		return 6
	}
	return 7
}

// handler writes what comes before the pairs, which it leaves to another.
type handler struct {
	slog.Handler
	out *output
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	if h.out.omit(&r) || h.out.journal && r.Level == ipc.LevelTrace && ofJournal(r) {
		return nil
	}
	line := &h.out.line
	line.Reset()
	switch {
	case h.out.journal:
		fmt.Fprintf(line, "<%d>", priority(r.Level))
	case r.Level == ipc.LevelTrace:
		line.WriteString(r.Time.Format(timeStamp) + "trace: ")
	default:
		line.WriteString(r.Time.Format(timeStamp) + strings.ToLower(r.Level.String()) + ": ")
	}
	line.WriteString(r.Message + " ")
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.w.Write(append(bytes.TrimRight(line.Bytes(), " \n"), '\n'))
	return err
}

// ofJournal says whether a line tells of what writing the journal has changed. It
// would change it again, on and on.
func ofJournal(r slog.Record) (yes bool) {
	r.Attrs(func(a slog.Attr) bool {
		for _, dir := range []string{"/var/log/journal", "/run/log/journal"} {
			yes = yes || (a.Key == "path" || a.Key == "from") && within(path.Clean(a.Value.String()), dir)
		}
		return !yes
	})
	return yes
}

const timeStamp = time.DateTime + ".000 "

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.out}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.out}
}

// quieter returns log for a part whose debugging is only for -vv.
func quieter(log *slog.Logger) *slog.Logger { return slog.New(lower{log.Handler()}) }

// lower is a handler of which debugging is below debugging.
type lower struct{ slog.Handler }

func lowered(level slog.Level) slog.Level {
	if level == slog.LevelDebug {
		return ipc.LevelTrace
	}
	return level
}

func (h lower) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, lowered(level))
}

func (h lower) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lowered(r.Level)
	return h.Handler.Handle(ctx, r)
}
