// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// Who waits for a FUSE program that is stuck may not be killed, and the process that
// it is in cannot end. So what may be stuck is looked at by a process of its own, for
// which nobody waits.

// whyStuck is why something does not answer, in the same words wherever we tell of it.
const whyStuck = "a FUSE program, a server or a disk is stuck"

var errNoAnswer = errors.New("no answer")

// elsewhere runs a command of ours that is not for people, and returns what it writes
// as JSON, or errNoAnswer when it has written nothing in that time.
func elsewhere[T any](ctx context.Context, limit time.Duration, command ...string) (T, error) {
	type answer struct {
		text T
		err  error
	}
	var none T
	cmd := exec.Command("/proc/self/exe", command...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return none, err
	}
	if err := cmd.Start(); err != nil {
		return none, withoutCall(err)
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		if json.NewDecoder(out).Decode(&a.text) != nil {
			a.err = errors.New("the process for that has ended")
		}
		answers <- a
		cmd.Process.Kill() // what it has begun may not end
		cmd.Wait()
	}()
	select {
	case a := <-answers:
		return a.text, a.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(limit):
		err = errNoAnswer
	}
	cmd.Process.Kill()
	return none, err
}

// place is a directory, and what the filesystem there is.
type place struct{ Path, Kind string }

// The commands by which a directory is looked at, and the mounts below it.
const (
	lookAt    = "look-at"
	lookBelow = "look-below"
)

// runLook is these commands. It writes which places have not answered.
func runLook(command, dir string, stdout, stderr io.Writer) int {
	places := []place{{dir, ""}}
	if command == lookBelow {
		places = placesBelow(dir)
	}
	return finish(stderr, json.NewEncoder(stdout).Encode(unanswered(answerWithin, places)))
}

// placesBelow lists the mounts below a directory that may not answer.
func placesBelow(dir string) (places []place) {
	for _, m := range ipc.Mounts() {
		if p := (place{m.Point, m.Kind}); ipc.MayHang(m.Kind) && m.Point != dir && within(m.Point, dir) && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	return places
}

// unanswered opens each of the places, all at once, and returns those that are not
// open in that time. That they can be opened does not matter.
func unanswered(limit time.Duration, places []place) []place {
	var mu sync.Mutex
	waiting := slices.Clone(places)
	all := make(chan struct{})
	for _, p := range places {
		go func() {
			if fd, err := unix.Open(p.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
			}
			mu.Lock()
			defer mu.Unlock()
			if waiting = slices.DeleteFunc(waiting, func(other place) bool { return other == p }); len(waiting) == 0 {
				close(all)
			}
		}()
	}
	if len(places) > 0 {
		select {
		case <-all:
		case <-time.After(limit):
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(waiting)
}

// answers says that a directory can be opened or not, but fails if it does neither.
func answers(ctx context.Context, dir string) error {
	// The process tells by itself, unless it is stuck before it can.
	silent, err := elsewhere[[]place](ctx, answerWithin+time.Second, lookAt, dir)
	if err == nil && len(silent) > 0 {
		err = errNoAnswer
	}
	switch {
	case errors.Is(err, errNoAnswer):
		err = fmt.Errorf("%s has not answered in %v: %s", printable(dir), answerWithin, whyStuck)
	case err != nil:
		err = fmt.Errorf("looking at %s: %w", printable(shortened(dir)), err)
	}
	return err
}
