// SPDX-License-Identifier: GPL-2.0-or-later

//go:build !small

package main

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ksmbd-notifyd/ipc"
)

const hasMetrics = true

// metrics says in OpenMetrics what the daemon does, when asked.
type metrics struct {
	daemon *ipc.Daemon

	mu     sync.Mutex
	asked  time.Time // when status was
	status ipc.Status
	err    error
}

// askEvery bounds how often whoever can reach the metrics disturbs the goroutine
// that serves.
const askEvery = time.Second

func (m *metrics) ask() (ipc.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.asked) < askEvery {
		return m.status, m.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	m.status, m.err = m.daemon.Status(ctx, false)
	m.asked = time.Now()
	return m.status, m.err
}

// metric describes one of them.
func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ksmbd_notifyd_"+name, help, labels, nil)
}

var (
	metricInfo           = metric("info", "Releases of the daemon and of the ksmbd module.", "version", "module")
	metricServing        = metric("serving", "Whether the daemon is registered with ksmbd.")
	metricRunning        = metric("ksmbd_running", "Whether ksmbd serves clients.")
	metricWatches        = metric("watches", "Open watches.", "tree")
	metricPending        = metric("requests_pending", "Requests of clients that wait for changes.")
	metricQueued         = metric("queued_bytes", "Change records that wait for a request, as they take in clients' buffers.")
	metricRequests       = metric("requests_total", "Requests taken.")
	metricResponses      = metric("responses_total", "Requests answered.", "with")
	metricRecords        = metric("records_total", "Change records told.")
	metricOpened         = metric("watches_opened_total", "Watches opened.")
	metricRefused        = metric("watches_refused_total", "Watches that could not be armed.")
	metricOverflows      = metric("overflows_total", "Times that a watch lost records, of which its client is told.")
	metricQueueOverflows = metric("queue_overflows_total", "Times that the fanotify queue overflowed.")

	metricShareRecords   = metric("share_records_total", "Change records told to clients of a share.", "share")
	metricShareEnumDirs  = metric("share_enum_dirs_total", "Times that clients of a share were told to list a directory anew.", "share")
	metricShareOverflows = metric("share_overflows_total", "Times that a watch in a share lost records.", "share")
	metricLatency        = metric("latency_seconds",
		"From when a change could be read until ksmbd took the answer with it, the wait for the client's next request included.", "share")
)

// Describe implements prometheus.Collector. It says nothing: what there is shows
// when it is collected.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	s, err := m.ask()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(metricServing, unserved(err))
		return
	}
	now := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	total := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	now(metricInfo, 1, version, strings.ToValidUTF8(s.Module, "\ufffd"))
	now(metricServing, asNumber(s.Serving))
	now(metricRunning, asNumber(serverState("/") == serverRuns))
	now(metricWatches, s.Open.Trees, "yes")
	now(metricWatches, s.Open.Watches-s.Open.Trees, "no")
	now(metricPending, s.Open.Requests)
	now(metricQueued, s.Open.QueuedBytes)
	total(metricRequests, s.Total.Requests)
	total(metricResponses, s.Total.Responses-s.Total.EnumDirs-s.Total.DeletePendings, "records")
	total(metricResponses, s.Total.EnumDirs, "enum-dir")
	total(metricResponses, s.Total.DeletePendings, "delete-pending")
	total(metricRecords, s.Total.Records)
	total(metricOpened, s.Total.Watches)
	total(metricRefused, s.Total.Refused)
	total(metricOverflows, s.Total.Overflows)
	total(metricQueueOverflows, s.Total.QueueOverflows)
	for name, share := range byLabel(s.Shares) {
		total(metricShareRecords, share.Records, name)
		total(metricShareEnumDirs, share.EnumDirs, name)
		total(metricShareOverflows, share.Overflows, name)
		count, buckets := uint64(0), make(map[float64]uint64)
		for i, n := range share.Latency.Counts {
			if count += n; i < len(ipc.LatencyBounds) {
				buckets[ipc.LatencyBounds[i].Seconds()] = count
			}
		}
		ch <- prometheus.MustNewConstHistogram(metricLatency, count, share.Latency.Seconds, buckets, name)
	}
}

// byLabel returns what was done for shares by the labels of their metrics. Of a label that is not UTF-8, or
// that two of them have, nobody would get any metrics.
func byLabel(shares []ipc.ShareStatus) map[string]ipc.ShareStatus {
	all := make(map[string]ipc.ShareStatus)
	for _, share := range shares {
		name := strings.ToValidUTF8(cmp.Or(share.Share, "?"), "\ufffd") // see ipc.ShareStatus
		sum := all[name]
		sum.Records += share.Records
		sum.EnumDirs += share.EnumDirs
		sum.Overflows += share.Overflows
		sum.Latency.Seconds += share.Latency.Seconds
		for i, n := range share.Latency.Counts {
			sum.Latency.Counts[i] += n
		}
		all[name] = sum
	}
	return all
}

func asNumber(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// metricsHandler gives them.
func metricsHandler(d *ipc.Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&metrics{daemon: d})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true, DisableCompression: true})
}
