// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// Daemon serves whatever ksmbd is loaded, now and later.
type Daemon struct {
	Log     *slog.Logger
	Group   Group
	Once    bool               // fail with ErrNoFamily rather than wait for one
	Serving func(serving bool) // called when that changes

	dial func() (socket, error) // instead of dialSocket, in tests
}

// Run serves until ctx is done, which is no error.
func (d *Daemon) Run(ctx context.Context) error {
	if d.dial == nil {
		d.dial = dialSocket
	}
	// Two sockets, since waiting for the doorbell blocks all else on one.
	bell, err := d.openBell()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rings := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.listen(ctx, bell, rings) })
	g.Go(func() error {
		defer bell.Close() // ends listen
		defer cancel()     // which then is no error
		return d.serve(ctx, bell, rings)
	})
	return g.Wait()
}

// openBell opens a socket that hears of families that come and go. It is to
// hear ksmbd's doorbell as well, once there is one.
func (d *Daemon) openBell() (socket, error) {
	s, err := d.dial()
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	controller, err := s.GetFamily("nlctrl")
	if err == nil {
		err = joinGroup(s, controller, "notify")
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("listening for families: %w", err)
	}
	return s, nil
}

// listen puts a value in rings whenever the bell says anything. What, does not
// matter: one look too many costs one system call.
func (d *Daemon) listen(ctx context.Context, bell socket, rings chan<- struct{}) error {
	for {
		_, _, err := bell.Receive()
		var errno unix.Errno
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			d.Log.Debug("doorbell overran") // it said something in any case
		case errors.As(err, &errno):
			return fmt.Errorf("listening for ksmbd: %w", err)
		default:
			d.Log.Error("ignoring a message on the doorbell", "err", err)
		}
		select {
		case rings <- struct{}{}:
		default: // it has rung and nobody looked yet
		}
	}
}

// serve converses with one ksmbd after the other.
func (d *Daemon) serve(ctx context.Context, bell socket, rings <-chan struct{}) error {
	waiting := false
	for {
		err := d.converse(ctx, bell, rings)
		switch {
		case errors.Is(err, errLost):
			d.Log.Warn("starting over", "reason", err)
			waiting = false
			d.Serving(false)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryAfter):
			}
		case errors.Is(err, ErrNoFamily) && !d.Once:
			if !waiting {
				d.Log.Warn("waiting for ksmbd", "reason", err)
				waiting = true
				d.Serving(false)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-rings:
			}
		default:
			return err
		}
	}
}

// converse serves the ksmbd that is loaded until it is not.
func (d *Daemon) converse(ctx context.Context, bell socket, rings <-chan struct{}) error {
	s, err := d.dial()
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer s.Close()
	family, err := getFamily(s)
	if err != nil {
		return err
	}
	if err := joinGroup(bell, family, genl.McgrpNotifyd); errors.Is(err, unix.ENOENT) {
		return ErrNoFamily // unloaded just now
	} else if err != nil {
		return err
	}
	k := &ksmbd{log: d.Log, socket: s, family: family}
	if err := k.register(); err != nil {
		return err
	}
	d.Serving(true)
	return Serve(ctx, d.Log, k, rings, d.Group)
}
