// SPDX-License-Identifier: GPL-2.0-or-later

// Package ipc is the conversation with ksmbd: registration, watches and
// requests, what each watch queues, and the completion of requests with change
// records.
//
// Threads: one goroutine, that of Serve, owns the fanotify group and all
// watches, so nothing is locked. Two more only wait and wake it: one for the
// group to become readable, one for ksmbd's doorbell.
package ipc
