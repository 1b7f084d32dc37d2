// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/netutil"
)

const metricsUsage = `Usage: ksmbd-notifyd metrics [OPTION]...

Offer the numbers of the daemon as /metrics at the address that the settings have,
for Prometheus. It needs no powers but to reach the daemon's socket.

      --settings=CONF   settings, instead of /etc/ksmbd/ksmbd-notifyd.conf
  -h, --help            show this help and exit

See ksmbd-notifyd(8) for more details.
`

// errSmall: the library that has numbers in Prometheus' form is a quarter of the program, and routers have little room.
var errSmall = errors.New("this is the small build, which has no metrics: ksmbd-notifyd status --json has the same numbers")

// maxScrapers bounds the connections.
const maxScrapers = 8

// runMetrics is the command "metrics". It is a process of its own, since the daemon
// can do much and is to hear nothing from the network.
func runMetrics(args []string, stdout, stderr io.Writer) int {
	flags := pflag.NewFlagSet("metrics", pflag.ContinueOnError)
	file := flags.String("settings", settingsFile, "")
	help := flags.BoolP("help", "h", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && *help:
		return say(stdout, stderr, metricsUsage)
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		return misuse(stderr, err, "ksmbd-notifyd metrics")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	settings, err := readSettings(*file)
	if err == nil && !hasMetrics {
		err = errSmall
	}
	if err == nil {
		err = export(ctx, settings.metrics, runtimeDir())
	}
	return finish(stderr, err)
}

// export offers the metrics of the daemon whose socket is in dir until ctx is done,
// which is no error.
func export(ctx context.Context, address, dir string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("offering metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*answerWithin)
		defer cancel()
		answer, err := open(ctx, dir, r.URL.Path, r.Header.Get("Accept"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer answer.Body.Close()
		w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
		io.Copy(w, answer.Body) // fails when nobody reads it any more
	})
	server := http.Server{Handler: mux, ReadTimeout: answerWithin, WriteTimeout: 4 * answerWithin, IdleTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(netutil.LimitListener(l, maxScrapers)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("offering metrics: %w", err)
	}
	return nil
}
