// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"ksmbd-notifyd/genl"
)

// control is what the administrator wants of a Daemon. It outlives a loop.
type control struct {
	mu      sync.Mutex
	policy  Policy
	tracers []*Tracer
}

func (c *control) admits(item genl.Item, others int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy.admits(item, others)
}

// full says whether so many watches are too many for a user.
func (c *control) full(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy.UserWatches > 0 && n > c.policy.UserWatches
}

// clientKiB returns what may wait for a client, in KiB, 0 for no bound of its own.
func (c *control) clientKiB() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy.ClientKiB
}

func (c *control) tells(share string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy.Tells(share)
}

// Policy says what clients may have watched. The zero Policy lets them watch all.
type Policy struct {
	Off         bool            `json:"off"`              // no changes are told at all, but in Shares
	Shares      map[string]bool `json:"shares,omitempty"` // whether changes are told, by FoldShare of the share's name
	UserWatches int             `json:"user_watches"`     // that a user may have open at once, 0 for any number
	ClientKiB   int             `json:"client_kib"`       // of records that may wait for a client, 0 for no bound of its own
}

// String says in words what a Policy restricts, "" for nothing.
func (p *Policy) String() string {
	var but, words []string
	for share, tells := range p.Shares {
		if tells == p.Off {
			but = append(but, share)
		}
	}
	slices.Sort(but)
	switch {
	case p.Off && but != nil:
		words = append(words, "change notify is off but in "+strings.Join(but, ", "))
	case p.Off:
		words = append(words, "change notify is off")
	case but != nil:
		words = append(words, "change notify is off in "+strings.Join(but, ", "))
	}
	if p.UserWatches > 0 {
		words = append(words, fmt.Sprintf("a user may have %d watches", p.UserWatches))
	}
	if p.ClientKiB > 0 {
		words = append(words, fmt.Sprintf("%d KiB of records may wait for a client", p.ClientKiB))
	}
	return strings.Join(words, "; ")
}

// FoldShare returns what all spellings of a share's name have in common: ksmbd and
// ksmbd-tools compare names without their case, and with letters apart from what is
// above and below them, which is also how ksmbd has the name.
func FoldShare(name string) string {
	if isASCII(name) || !utf8.ValidString(name) {
		return strings.ToLower(name)
	}
	return norm.NFD.String(cases.Fold().String(norm.NFD.String(name)))
}

// isASCII says that of a name as most are: what there is to know of all others' case and
// parts takes longer.
func isASCII(name string) bool {
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Tells says whether changes in a share are told.
func (p *Policy) Tells(share string) bool {
	if len(p.Shares) == 0 {
		return !p.Off
	}
	tells, known := p.Shares[FoldShare(share)]
	return tells || !known && !p.Off
}

// errOff has ksmbd answer STATUS_NOT_IMPLEMENTED, as it does without this project
// and as Samba does with "change notify = no".
var errOff error = &worded{"change notify is off here", unix.ECANCELED}

// admits says why a watch may not be, if it may not. The user has so many others.
func (p *Policy) admits(item genl.Item, others int) error {
	switch {
	case !p.Tells(item.Share):
		return errOff
	case p.UserWatches > 0 && others >= p.UserWatches:
		return &worded{fmt.Sprintf("the user has %d watches already, and the settings allow no more", others), unix.ENOSPC}
	}
	return nil
}

// SetPolicy has d follow another policy from now on. Clients that watch where
// changes are no longer told list their directories anew, and are refused when
// they ask again. It fails when ctx is done first.
func (d *Daemon) SetPolicy(ctx context.Context, p Policy) error {
	return d.do(ctx, func() {
		d.control.mu.Lock()
		d.control.policy = p
		d.control.mu.Unlock()
		d.eachWatch(func(l *worker, w *watch) {
			if !p.Tells(w.about.Share) {
				l.lose(w, turnedOff)
			}
		})
	})
}

// eachNow calls fn for each watch.
func (d *Daemon) eachNow(fn func(*watch)) {
	if d.loop == nil {
		return
	}
	d.loop.each(func(l *worker) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, w := range l.watches {
			fn(w)
		}
	})
}

// eachWatch has the workers call fn for each watch, when they get to it.
func (d *Daemon) eachWatch(fn func(*worker, *watch)) {
	if d.loop == nil {
		return
	}
	d.loop.each(func(l *worker) {
		l.post(func() error {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, w := range l.watches {
				fn(l, w)
			}
			return nil
		})
	})
}

// maxTracers bounds what those who look on cost.
const maxTracers = 4

// ErrTracers: so many look on already.
var ErrTracers = errors.New("as many traces are followed as can be")

// A Tracer hears of watches what the log has of them at LevelTrace.
type Tracer struct {
	Lines   chan string   // of the log, without a level; what is not read in time is dropped
	Dropped atomic.Uint64 // how many were
	Watches int           // that it heard of at first
	about   func(WatchStatus) bool
	below   string // changes elsewhere are left out
}

// TraceTime is the format of the time that each line begins with.
const TraceTime = time.DateTime + ".000"

// Trace tells t of all watches that about picks, until stop is called, but only of
// changes in and below the directory, if that is not "". Nobody waits for who reads
// the lines. It fails when ctx is done first.
func (d *Daemon) Trace(ctx context.Context, directory string, about func(WatchStatus) bool) (t *Tracer, stop func(), err error) {
	t = &Tracer{Lines: make(chan string, 1024), about: about, below: directory}
	retrace := func() {
		d.eachNow(func(w *watch) { w.log = d.control.logger(d.log, w.about) })
	}
	failed := d.do(ctx, func() {
		d.control.mu.Lock()
		if len(d.control.tracers) == maxTracers {
			err = ErrTracers
		} else {
			d.control.tracers = append(d.control.tracers, t)
		}
		d.control.mu.Unlock()
		retrace()
		d.eachNow(func(w *watch) {
			if about(w.about) {
				t.Watches++
			}
		})
	})
	stop = func() {
		d.do(context.Background(), func() {
			d.control.mu.Lock()
			d.control.tracers = slices.DeleteFunc(slices.Clone(d.control.tracers), func(other *Tracer) bool { return other == t })
			d.control.mu.Unlock()
			retrace()
		})
	}
	if err = errors.Join(failed, err); err != nil {
		return nil, nil, err
	}
	return t, stop, nil
}

// logger returns log for what concerns a watch, of which tracers may hear too.
func (c *control) logger(log *slog.Logger, about WatchStatus) *slog.Logger {
	c.mu.Lock()
	tracers := c.tracers
	c.mu.Unlock()
	handler := log.Handler()
	for _, t := range tracers {
		if t.about(about) {
			handler = traced{handler, t}
		}
	}
	return slog.New(handler)
}

// traced is a handler to which a tracer listens.
type traced struct {
	slog.Handler
	t *Tracer
}

func (h traced) Enabled(context.Context, slog.Level) bool { return true }

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if r.Level != LevelTrace || h.t.below == "" || concerns(r, h.t.below) {
		h.tell(ctx, r)
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// concerns says whether a line is about something in or below a directory.
func concerns(r slog.Record, dir string) (yes bool) {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "path" || a.Key == "from" {
			path := a.Value.String()
			yes = yes || path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
		}
		return true
	})
	return yes
}

func (h traced) tell(ctx context.Context, r slog.Record) {
	var line bytes.Buffer
	line.WriteString(r.Time.Format(TraceTime) + " " + r.Message + " ")
	slog.NewTextHandler(&line, &slog.HandlerOptions{
		Level: LevelTrace,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	}).Handle(ctx, r) // a Buffer takes all
	select {
	case h.t.Lines <- strings.TrimSuffix(line.String(), "\n"):
	default:
		h.t.Dropped.Add(1)
	}
}
