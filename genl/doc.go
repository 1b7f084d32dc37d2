// SPDX-License-Identifier: GPL-2.0-or-later

// Package genl is the wire between ksmbd and ksmbd-notifyd: the constants of
// the generic netlink family that ksmbd-notify.yaml describes, and the pure
// encoding and decoding of its messages. It opens no sockets.
package genl

//go:generate go test -run TestProtocolDoc -update .
