// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ksmbd-notifyd/ipc"
)

// metrics says in OpenMetrics what the daemon does, when asked.
type metrics struct{ *ipc.Daemon }

// metric describes one of them.
func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ksmbd_notifyd_"+name, help, labels, nil)
}

var (
	metricInfo           = metric("info", "Releases of the daemon and of the ksmbd module.", "version", "module")
	metricServing        = metric("serving", "Whether the daemon is registered with ksmbd.")
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
)

// Describe implements prometheus.Collector. It says nothing: what there is shows
// when it is collected.
func (m metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	s, err := m.Status(ctx, false)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(metricServing, err)
		return
	}
	now := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	total := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	serving := 0
	if s.Serving {
		serving = 1
	}
	now(metricInfo, 1, version, s.Module)
	now(metricServing, serving)
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
}

// metricsHandler gives them.
func metricsHandler(d *ipc.Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics{d})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true, DisableCompression: true})
}
