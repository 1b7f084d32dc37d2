// SPDX-License-Identifier: GPL-2.0-or-later

//go:build !small

package main

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ksmbd-notifyd/ipc"
)

// running is a daemon that waits for ksmbd.
func running(t *testing.T) *ipc.Daemon {
	d := ipc.NewDaemon(slog.New(slog.DiscardHandler), nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestMetrics(t *testing.T) {
	d := running(t)
	ask := func(h http.Handler) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		return answer
	}
	a := ask(handlers(d))
	if a.Code != http.StatusOK || !strings.HasPrefix(a.Header().Get("Content-Type"), "application/openmetrics-text;") {
		t.Fatalf("%d, %q: %s", a.Code, a.Header(), a.Body)
	}
	body := a.Body.String()
	for _, want := range []string{
		`ksmbd_notifyd_info{module="",version="unknown"} 1.0`, `ksmbd_notifyd_serving 0.0`, `ksmbd_notifyd_watches{tree="yes"} 0.0`,
		`ksmbd_notifyd_responses_total{with="enum-dir"} 0.0`, `ksmbd_notifyd_records_total 0.0`, `# EOF`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("%s is not in\n%s", want, body)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^ksmbd_notifyd_`).FindAllString(body, -1)); n != 16 {
		t.Errorf("%d samples in\n%s", n, body)
	}
	problems, err := testutil.CollectAndLint(&metrics{daemon: d})
	if err != nil || problems != nil {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// Who asks for metrics of a daemon that is stuck is told so.
func TestMetricsOfStuckDaemon(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&metrics{asked: time.Now().Add(time.Hour), err: context.DeadlineExceeded})
	if _, err := registry.Gather(); err == nil || !strings.Contains(err.Error(), "the daemon is stuck: it does not answer in 5s") {
		t.Errorf("error %v", err)
	}
}

// For one label that is not UTF-8, or twice there, the library refuses all metrics.
func TestMetricsOfOddShares(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&metrics{asked: time.Now().Add(time.Hour), status: ipc.Status{
		Module: "\xff", Shares: []ipc.ShareStatus{{Share: "\xff\"\n", Records: 1}, {Share: "\xfe\"\n", Records: 2}, {Share: "%s{}\x00"}, {}, {Share: "?"}},
	}})
	all, err := registry.Gather()
	if err != nil || len(all) < 10 {
		t.Errorf("%d, %v", len(all), err)
	}
	told := make(map[string]float64)
	for _, family := range all {
		if family.GetName() == "ksmbd_notifyd_share_records_total" {
			for _, m := range family.GetMetric() {
				told[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if want := map[string]float64{"\ufffd\"\n": 3, "%s{}\x00": 0, "?": 0}; !maps.Equal(told, want) {
		t.Errorf("records by share: %v, want %v", told, want)
	}
}
