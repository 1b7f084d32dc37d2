// SPDX-License-Identifier: GPL-2.0-or-later

//go:build small

package main

import (
	"net/http"

	"ksmbd-notifyd/ipc"
)

const hasMetrics = false

func metricsHandler(*ipc.Daemon) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, errSmall.Error(), http.StatusNotImplemented)
	})
}
