// SPDX-License-Identifier: GPL-2.0-or-later

// Package raw has the system calls that are made for each change, of which none waits for
// anything. So the runtime is not told that a call begins: after a pause it would wake the
// thread that looks for calls which take long, and that costs more than the call.
package raw

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read is read(2), of a file that is O_NONBLOCK.
func Read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(n, errno)
}

// EpollReady is epoll_wait(2) without waiting.
func EpollReady(epoll int, events []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	return result(n, errno)
}

// EpollModify is epoll_ctl(2) with EPOLL_CTL_MOD.
func EpollModify(epoll, fd int, event *unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_MOD, uintptr(fd), uintptr(unsafe.Pointer(event)), 0, 0)
	_, err := result(0, errno)
	return err
}

// Send sends a datagram to the kernel by netlink(7). What the kernel does with it is done
// before this returns, and so must not wait either: as long as it did, the runtime could not
// collect garbage, and the whole program would wait.
func Send(fd int, b []byte) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&kernel)), unix.SizeofSockaddrNetlink)
	_, err := result(0, errno)
	return err
}

var kernel = unix.RawSockaddrNetlink{Family: unix.AF_NETLINK}

// Recv receives a datagram, without waiting, and returns its length, which may be more
// than b has room for.
func Recv(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	return result(n, errno)
}

func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
