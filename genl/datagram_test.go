// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What is appended is what the library takes for a message.
func TestAppendMessage(t *testing.T) {
	b := []byte("before")
	b = Ack{ID: 1, Errno: 2}.Append(AppendMessage(b, 30, CmdAck, 7))
	EndMessage(b, len("before"))
	var m netlink.Message
	if err := m.UnmarshalBinary(b[len("before"):]); err != nil {
		t.Fatal(err)
	}
	if h := m.Header; h.Type != 30 || h.Flags != netlink.Request || h.Sequence != 7 || int(h.Length) != len(b)-len("before") {
		t.Errorf("header %+v", h)
	}
	if !bytes.Equal(m.Data[:4], []byte{CmdAck, FamilyVersion, 0, 0}) {
		t.Errorf("generic header % x", m.Data[:4])
	}
	if a, err := DecodeAck(m.Data[4:]); err != nil || a != (Ack{1, 2}) {
		t.Errorf("ack %+v, %v", a, err)
	}
}

// fromKernel is a message as the kernel makes it.
func fromKernel(kind uint16, flags uint16, seq uint32, body ...[]byte) []byte {
	b := AppendMessage(nil, kind, 0, seq)[:unix.NLMSG_HDRLEN]
	binary.NativeEndian.PutUint16(b[6:], flags)
	b = append(b, bytes.Join(body, nil)...)
	EndMessage(b, 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestNextMessage(t *testing.T) {
	request := Ack{ID: 1}.Append(AppendMessage(nil, 30, CmdAck, 5))
	EndMessage(request, 0)
	enoent := binary.NativeEndian.AppendUint32(nil, ^uint32(unix.ENOENT)+1)
	said := append(appendUint32(nil, errorWords+1, 9), appendString(nil, errorWords, "in words\x00")...) // after another
	empty := appendHeader(nil, 0, errorWords+1)
	reply := []byte{CmdNext, 1, 0, 0, 4, 0, 1, 0}
	b := bytes.Join([][]byte{
		fromKernel(unix.NLMSG_ERROR, 0, 5, enoent, request),
		fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 6, enoent, request, said),
		fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, 7, enoent, request[:unix.NLMSG_HDRLEN], said),
		fromKernel(30, 0, 8, reply),
		fromKernel(unix.NLMSG_ERROR, unix.NLM_F_CAPPED, 9, enoent, request[:unix.NLMSG_HDRLEN]),
		fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, 10, enoent, request[:unix.NLMSG_HDRLEN], empty, append(appendHeader(nil, 3, errorWords), "end"...)),
		fromKernel(unix.NLMSG_MIN_TYPE, 0, 11, reply[:unix.GENL_HDRLEN]),
	}, nil)
	for i, want := range []Message{
		{Seq: 5, Errno: unix.ENOENT},
		{Seq: 6, Errno: unix.ENOENT, Words: "in words"},
		{Seq: 7, Errno: unix.ENOENT, Words: "in words"},
		{Seq: 8, Reply: true, Cmd: CmdNext, Data: reply[4:]},
		{Seq: 9, Errno: unix.ENOENT},
		{Seq: 10, Errno: unix.ENOENT, Words: "end"},
		{Seq: 11, Reply: true, Cmd: CmdNext},
	} {
		var m Message
		var err error
		m, b, err = NextMessage(b)
		if err != nil || m.Seq != want.Seq || m.Errno != want.Errno || m.Words != want.Words || m.Reply != want.Reply || m.Cmd != want.Cmd || !bytes.Equal(m.Data, want.Data) {
			t.Errorf("message %d: %+v, %v, want %+v", i, m, err, want)
		}
	}
	if len(b) != 0 {
		t.Errorf("% x is left", b)
	}
}

func TestNextMessageMalformed(t *testing.T) {
	good := fromKernel(30, 0, 8, make([]byte, 4))
	for what, b := range map[string][]byte{
		"less than a header":           good[:unix.NLMSG_HDRLEN-1],
		"less than it says":            good[:len(good)-1],
		"no length":                    make([]byte, len(good)),
		"a reply without its header":   fromKernel(30, 0, 8, make([]byte, 3)),
		"an error without its request": fromKernel(unix.NLMSG_ERROR, 0, 8, make([]byte, 4)),
		"something else":               fromKernel(unix.NLMSG_DONE, 0, 8, make([]byte, 4)),
	} {
		if m, _, err := NextMessage(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", what, m, err)
		}
	}
	// Words that have no end are none.
	for _, said := range [][]byte{{1, 2, 3}, appendHeader(nil, 100, errorWords), appendHeader(nil, -4, errorWords)} {
		b := fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, 7, make([]byte, 4+unix.NLMSG_HDRLEN), said)
		if m, _, err := NextMessage(b); err != nil || m.Words != "" {
			t.Errorf("% x: %+v, %v", said, m, err)
		}
	}
}

// What is cut short, or says that it ends before it does, is malformed or has no words, and is not read beyond its end.
func TestNextMessageCutShort(t *testing.T) {
	message := fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, 7, make([]byte, 4+unix.NLMSG_HDRLEN), append(appendHeader(nil, 5, errorWords), "words"...))
	size := int(binary.NativeEndian.Uint32(message)) // the last message of a datagram need not be padded
	for n := range len(message) {
		cut := slices.Clip(bytes.Clone(message[:n]))
		if m, rest, err := NextMessage(cut); (n >= size) != (err == nil && m.Words == "words") || len(rest) > 0 {
			t.Errorf("%d bytes: %+v, %v, % x is left", n, m, err, rest)
		}
		if n < unix.NLMSG_HDRLEN {
			continue
		}
		EndMessage(cut, 0)
		if m, _, err := NextMessage(cut); (n >= 4+2*unix.NLMSG_HDRLEN) != (err == nil) || n < size && m.Words != "" {
			t.Errorf("as %d bytes: %+v, %v", n, m, err)
		}
	}
}

func FuzzNextMessage(f *testing.F) {
	f.Add(fromKernel(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 6, make([]byte, 40)))
	f.Add(fromKernel(30, 0, 8, make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			_, rest, err := NextMessage(b)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
		}
	})
}
