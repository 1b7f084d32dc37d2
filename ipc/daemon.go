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
	log   *slog.Logger
	open  Opener
	dial  func() (socket, error) // dialSocket but in tests
	asks  chan func()
	ended chan struct{} // closed when Run returns

	// Of the goroutine that serves.
	state   Status // what of it outlives a loop
	stats   *stats
	control control
	loop    *loop                  // nil when not serving
	past    map[Superblock]*worker // that hang

	Policy    Policy       // at first, see SetPolicy
	Once      bool         // fail with ErrNoFamily or ErrVersion rather than wait for another module
	Changed   func(Status) // called when Serving or Waiting may have changed
	Inherited *Handover    // by the last daemon, if it left something
	Leaves    bool         // whether there is to be one of this daemon
	Left      *Handover    // that one, after Run; nil if there is nothing to go on from
}

// NewDaemon returns a Daemon that is yet to Run.
func NewDaemon(log *slog.Logger, open Opener) *Daemon {
	return &Daemon{log: log, open: open, dial: dialSocket, asks: make(chan func()), ended: make(chan struct{}), stats: newStats(),
		past: make(map[Superblock]*worker), Changed: func(Status) {}}
}

// Run serves until ctx is done, which is no error. It is called once.
func (d *Daemon) Run(ctx context.Context) error {
	defer close(d.ended)
	d.control.policy = d.Policy
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
		err := bell.Wait()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			d.log.Debug("doorbell overran") // it said something in any case
		default:
			return fmt.Errorf("listening for ksmbd: %w", err)
		}
		select {
		case rings <- struct{}{}:
		default: // it has rung and nobody looked yet
		}
	}
}

// serve converses with one ksmbd after the other.
func (d *Daemon) serve(ctx context.Context, bell socket, rings <-chan struct{}) error {
	var waiting error // for what
	for {
		err := d.converse(ctx, bell, rings)
		switch {
		case errors.Is(err, errLost):
			d.log.Warn("starting over", "reason", err)
			waiting = nil
			d.change(false, err)
			if !d.pause(ctx, nil, time.After(retryAfter)) {
				return nil
			}
		case errors.Is(err, errHeritage):
			d.log.Info("starting over, clients will list their directories anew", "reason", err)
		case (err == ErrNoFamily || err == ErrVersion) && !d.Once: // another module may be loaded
			if waiting != err {
				d.log.Warn("waiting for ksmbd", "reason", err)
				waiting = err
				d.change(false, err)
			}
			if !d.pause(ctx, rings, nil) {
				return nil
			}
		default:
			return err
		}
	}
}

// pause waits for any of its channels and returns false for that of ctx.
func (d *Daemon) pause(ctx context.Context, rings <-chan struct{}, timer <-chan time.Time) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-rings:
			return true
		case <-timer:
			return true
		case fn := <-d.asks:
			fn()
		}
	}
}

// change takes down whether d serves, and if not, why.
func (d *Daemon) change(serving bool, why error) {
	if d.state.Serving != serving || d.state.Since.IsZero() {
		d.state.Since = time.Now()
	}
	d.state.Serving, d.state.Waiting = serving, ""
	if !serving {
		d.state.Waiting, d.state.Module = why.Error(), ""
	}
	d.Changed(d.state)
}

// converse serves the ksmbd that is loaded until it is not.
func (d *Daemon) converse(ctx context.Context, bell socket, rings <-chan struct{}) error {
	inherited := d.Inherited
	d.Inherited = nil
	defer func() {
		if inherited != nil {
			inherited.Close()
		}
	}()
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
	k := &ksmbd{log: d.log, socket: s, family: family}
	if d.state.Module, err = k.register(); err != nil {
		return err
	}
	d.change(true, nil)
	d.loop = newLoop(d.log, k, d.open)
	d.loop.stats, d.loop.control, d.loop.asks = d.stats, &d.control, d.asks
	d.loop.leaves, d.loop.past = d.Leaves, d.past
	if inherited != nil {
		d.loop.inherit(inherited, family.ID, k.registrations)
		inherited = nil
	}
	defer func() {
		if d.Left = d.loop.left; d.Left != nil {
			d.Left.Family, d.Left.Registrations = family.ID, k.registrations
		}
		d.loop = nil
	}()
	return d.loop.run(ctx, rings)
}
