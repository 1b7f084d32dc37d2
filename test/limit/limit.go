// SPDX-License-Identifier: GPL-2.0-or-later

// Package limit has tests run out of things.
package limit

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Files has no more than n files be opened, until it is undone; with -1 none, though others are
// closed.
func Files(t testing.TB, n int) (undo func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	set := func(to unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &to); err != nil {
			t.Fatal(err)
		}
	}
	few := was
	few.Cur = 0
	var fds []int // the lowest that are free
	for range n + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		few.Cur = uint64(fd)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	set(few)
	return func() { set(was) }
}
