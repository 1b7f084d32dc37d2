// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// What is said and told all the time is put together and taken apart here, with
// no allocations: a datagram of many messages, see netlink(7).

const (
	headerLen  = unix.NLMSG_HDRLEN + unix.GENL_HDRLEN
	attrLen    = 4 // of struct nlattr
	attrTypes  = 1<<14 - 1
	errorWords = 1 // NLMSGERR_ATTR_MSG
)

func align(n int) int { return (n + 3) &^ 3 }

// AppendMessage appends the headers of a request to b. What follows them is to
// be appended, and then EndMessage called.
func AppendMessage(b []byte, family uint16, cmd uint8, seq uint32) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0) // from this socket
	return append(b, cmd, FamilyVersion, 0, 0)
}

// EndMessage ends the message that begins at start in b.
func EndMessage(b []byte, start int) {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
}

// Message is one of a datagram that the kernel has sent.
type Message struct {
	Seq   uint32     // of the request that it answers
	Errno unix.Errno // of an error; 0 is an acknowledgement
	Words string     // of the error
	Reply bool       // it is no error
	Cmd   uint8      // of a reply
	Data  []byte     // attributes of a reply
}

// NextMessage returns the first message of b, and what is after it.
func NextMessage(b []byte) (m Message, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, fmt.Errorf("%w: a header of %d bytes", ErrMalformed, len(b))
	}
	size := int(binary.NativeEndian.Uint32(b))
	if size < unix.NLMSG_HDRLEN || size > len(b) {
		return m, nil, fmt.Errorf("%w: %d bytes of %d", ErrMalformed, len(b), size)
	}
	kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
	m.Seq = binary.NativeEndian.Uint32(b[8:])
	body := b[unix.NLMSG_HDRLEN:size]
	rest = b[min(align(size), len(b)):]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4+unix.NLMSG_HDRLEN:
		m.Errno = unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		m.Words = words(body[4:], flags&unix.NLM_F_CAPPED != 0)
	case kind >= unix.NLMSG_MIN_TYPE && len(body) >= unix.GENL_HDRLEN:
		m.Reply, m.Cmd, m.Data = true, body[0], body[unix.GENL_HDRLEN:]
	default:
		err = fmt.Errorf("%w: %d bytes of type %d", ErrMalformed, len(body), kind)
	}
	return m, rest, err
}

// words returns what the kernel says of an error, if anything, after the request that it
// brings back, or after its header alone.
func words(request []byte, capped bool) string {
	at := unix.NLMSG_HDRLEN
	if !capped {
		at = align(int(min(binary.NativeEndian.Uint32(request), uint32(len(request)))))
	}
	for at+attrLen <= len(request) {
		size := int(binary.NativeEndian.Uint16(request[at:]))
		if size < attrLen || at+size > len(request) {
			break
		}
		if binary.NativeEndian.Uint16(request[at+2:])&attrTypes == errorWords {
			return unix.ByteSliceToString(request[at+attrLen : at+size])
		}
		at += align(size)
	}
	return ""
}

// attr is one of those that rest begins with, after next.
type attr struct {
	rest []byte
	kind int
	data []byte
	err  error // the first
}

// next goes on to the next attribute. It returns false if there is none, or an error.
func (a *attr) next() bool {
	if len(a.rest) == 0 || a.err != nil {
		return false
	}
	if len(a.rest) < attrLen {
		a.fail(fmt.Errorf("%w: an attribute's header of %d bytes", ErrMalformed, len(a.rest)))
		return false
	}
	size := int(binary.NativeEndian.Uint16(a.rest))
	if size < attrLen || size > len(a.rest) {
		a.fail(fmt.Errorf("%w: an attribute of %d in %d bytes", ErrMalformed, size, len(a.rest)))
		return false
	}
	a.kind = int(binary.NativeEndian.Uint16(a.rest[2:]) & attrTypes)
	a.data, a.rest = a.rest[attrLen:size:size], a.rest[min(align(size), len(a.rest)):]
	return true
}

func (a *attr) fail(err error) { a.err = cmp.Or(a.err, err) }

// is says whether the attribute has so many bytes, or else fails.
func (a *attr) is(size int) bool {
	if len(a.data) != size {
		a.fail(fmt.Errorf("%w: attribute %d of %d bytes", ErrMalformed, a.kind, len(a.data)))
	}
	return len(a.data) == size
}

func (a *attr) uint32() uint32 {
	if !a.is(4) {
		return 0
	}
	return binary.NativeEndian.Uint32(a.data)
}

func (a *attr) int32() int32 { return int32(a.uint32()) }

func (a *attr) uint64() uint64 {
	if !a.is(8) {
		return 0
	}
	return binary.NativeEndian.Uint64(a.data)
}

func (a *attr) flag() bool { return a.is(0) }

// string returns a string, which the kernel ends with a 0.
func (a *attr) string() string { return unix.ByteSliceToString(a.data) }

func putHeader(b []byte, size, kind uint16) {
	binary.NativeEndian.PutUint16(b, size)
	binary.NativeEndian.PutUint16(b[2:], kind)
}

func appendHeader(b []byte, size, kind int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+size))
	return binary.NativeEndian.AppendUint16(b, uint16(kind))
}

func appendUint32(b []byte, kind int, v uint32) []byte {
	return binary.NativeEndian.AppendUint32(appendHeader(b, 4, kind), v)
}

func appendUint64(b []byte, kind int, v uint64) []byte {
	return binary.NativeEndian.AppendUint64(appendHeader(b, 8, kind), v)
}

func appendString(b []byte, kind int, s string) []byte {
	b = append(appendHeader(b, len(s), kind), s...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
