// SPDX-License-Identifier: GPL-2.0-or-later

// Package fuzz makes input that no well-behaved client and no daemon sends:
// PDUs after those of real clients, and netlink messages after the family's
// description. It only makes them; test/e2e sends them to a real ksmbd.
// The same random source gives the same input.
package fuzz

import (
	"encoding/binary"
	"math/rand/v2"
)

// Rand is the source of case n under a seed.
func Rand(seed, n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }

// one is true once in n times.
func one(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

var le = binary.LittleEndian

// number is a value at which bounds tend to be wrong, for something of which
// there are n.
func number(r *rand.Rand, n int) uint64 {
	switch r.IntN(12) {
	case 0:
		return uint64(r.IntN(9))
	case 1, 2:
		return uint64(n) + uint64(r.IntN(17)) - 8
	case 3:
		return 1 << r.IntN(64)
	case 4:
		return 1<<r.IntN(64) - 1
	case 5:
		return ^uint64(0) - uint64(r.IntN(64))
	case 6:
		return 0x7fffffff + uint64(r.IntN(3)) - 1
	case 7:
		return 0xffff + uint64(r.IntN(3)) - 1
	case 8, 9:
		return uint64(r.IntN(n + 1))
	case 10:
		return uint64(8 * r.IntN(n/8+2))
	}
	return r.Uint64()
}

// put overwrites some bytes of b with a number, little-endian, at a place
// that is a multiple of its width.
func put(r *rand.Rand, b []byte) {
	width := 1 << r.IntN(4)
	if len(b) < width {
		return
	}
	at := r.IntN(len(b)/width) * width
	var v [8]byte
	le.PutUint64(v[:], number(r, len(b)))
	copy(b[at:at+width], v[:])
}

// flip changes a few bits of b.
func flip(r *rand.Rand, b []byte) {
	for range 1 + r.IntN(4) {
		if len(b) > 0 {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
	}
}
