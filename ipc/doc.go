// SPDX-License-Identifier: GPL-2.0-or-later

// Package ipc is the conversation with ksmbd: registration, watches and
// requests, what each watch queues, and the completion of requests with change
// records.
//
// Threads: the goroutine of Serve fetches what ksmbd has queued, and waits for no
// other. That of a worker owns the fanotify group of one filesystem and the watches
// there; it sleeps in one place, for the group to become readable and for what there is
// to do. One more waits for ksmbd's doorbell.
package ipc
