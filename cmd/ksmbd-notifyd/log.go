// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// newLogger returns a logger that writes lines for people: a level word, the
// message, key=value pairs. Time comes first, unless the journal adds its own.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	o := &output{w: w, stamp: os.Getenv("JOURNAL_STREAM") == ""}
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

// output is what all handlers made of one share.
type output struct {
	mu    sync.Mutex
	line  bytes.Buffer
	w     io.Writer
	stamp bool
}

// handler writes what comes before the pairs, which it leaves to another.
type handler struct {
	slog.Handler
	out *output
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	line := &h.out.line
	line.Reset()
	if h.out.stamp {
		line.WriteString(r.Time.Format(time.DateTime + ".000 "))
	}
	line.WriteString(strings.ToLower(r.Level.String()) + ": " + r.Message + " ")
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.w.Write(append(bytes.TrimRight(line.Bytes(), " \n"), '\n'))
	return err
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.out}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.out}
}
