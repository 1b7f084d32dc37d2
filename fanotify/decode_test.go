// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// capturedEvents is what a kernel 6.18 wrote for one script on ext4, in little
// endian, and events.txt how it reads. -update captures anew.
const capturedEvents = "testdata/events.bin"

const capture = `
	mkdir w/d
	touch w/f
	watch -r .
	hold
	touch w/g
	write w/f
	chmod w/f 600
	chmod w/d 700
	ln w/f w/l
	rm w/l
	mv w/f w/d/f
	mv w/d w/e
	rm w/e/f
	rmdir w/e
`

const spdx = "# SPDX-License-Identifier: GPL-2.0-or-later\n"

func TestDecodeCaptured(t *testing.T) {
	const bin, txt = capturedEvents, "testdata/events.txt"
	if *update {
		s := &script{t: t, dir: mountTest(t, "ext4"), hold: true}
		for line := range strings.Lines(capture) {
			if args := strings.Fields(line); len(args) > 0 {
				if err := s.run(args); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.g.read(s.g.queues[0]); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(bin, s.g.queues[0].buf, 0o644) // on a little-endian machine
		os.WriteFile(txt, []byte(spdx+render(t, s.g.queues[0].buf)), 0o644)
		s.g.Close()
	}
	buf := captured(t)
	want, err := os.ReadFile(txt)
	if err != nil {
		t.Fatal(err)
	}
	if got := render(t, buf); spdx+got != string(want) {
		t.Errorf("decoded:\n%swant:\n%s", got, want)
	}
}

// captured returns capturedEvents as a kernel of this byte order would have
// written them.
func captured(t testing.TB) []byte {
	t.Helper()
	buf, err := os.ReadFile(capturedEvents)
	if err != nil {
		t.Fatal(err)
	}
	return hostOrder(buf)
}

// hostOrder turns events from little endian into the byte order of this
// machine, in place. The bytes of a handle have no order that anyone
// but their filesystem knows.
func hostOrder(buf []byte) []byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return buf
	}
	for rest := buf; len(rest) > 0; {
		size := int(binary.LittleEndian.Uint32(rest))
		for _, field := range [][2]int{{0, 4}, {6, 8}, {8, 16}, {16, 20}, {20, 24}} {
			slices.Reverse(rest[field[0]:field[1]])
		}
		for info := rest[metadataLen:size]; len(info) > 0; {
			n := int(binary.LittleEndian.Uint16(info[2:]))
			for _, field := range [][2]int{{2, 4}, {4, 12}, {12, 16}, {16, 20}} {
				slices.Reverse(info[field[0]:field[1]])
			}
			info = info[n:]
		}
		rest = rest[size:]
	}
	return buf
}

func render(t *testing.T, buf []byte) string {
	var s strings.Builder
	for len(buf) > 0 {
		var e event
		n, err := e.decode(buf)
		if err != nil {
			t.Fatal(err)
		}
		s.WriteString(e.String() + "\n")
		buf = buf[n:]
	}
	return s.String()
}

// encode writes an event as the kernel does. A record with name nil has none.
func encode(mask uint64, fsid uint64, infos ...info) []byte {
	buf := make([]byte, metadataLen)
	for _, i := range infos {
		b := binary.NativeEndian.AppendUint64([]byte{i.kind, 0, 0, 0}, fsid)
		b = append(b, i.handle...)
		if i.name != "" {
			b = append(b, i.name...)
			b = append(b, 0)
		}
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		binary.NativeEndian.PutUint16(b[2:], uint16(len(b)))
		buf = append(buf, b...)
	}
	binary.NativeEndian.PutUint32(buf, uint32(len(buf)))
	buf[4] = unix.FANOTIFY_METADATA_VERSION
	binary.NativeEndian.PutUint16(buf[6:], metadataLen)
	binary.NativeEndian.PutUint64(buf[8:], mask)
	return buf
}

type info struct {
	kind   byte
	handle handle
	name   string
}

var testHandle = append(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 4), 1), "abcd"...)

func TestDecodeMalformed(t *testing.T) {
	good := encode(unix.FAN_CREATE, 7, info{unix.FAN_EVENT_INFO_TYPE_DFID_NAME, testHandle, "name"})
	put16, put32 := binary.NativeEndian.PutUint16, binary.NativeEndian.PutUint32
	const infoAt = metadataLen
	for _, c := range []struct {
		what  string
		spoil func([]byte) []byte
	}{
		{"nothing", func(b []byte) []byte { return nil }},
		{"short header", func(b []byte) []byte { return b[:metadataLen-1] }},
		{"another version", func(b []byte) []byte { b[4]++; return b }},
		{"longer than the buffer", func(b []byte) []byte { put32(b, uint32(len(b)+1)); return b }},
		{"as long as 32 bits say", func(b []byte) []byte { put32(b, 1<<32-1); return b }},
		{"shorter than its header", func(b []byte) []byte { put32(b, metadataLen-1); return b }},
		{"header too short", func(b []byte) []byte { put16(b[6:], metadataLen-1); return b }},
		{"record cut short", func(b []byte) []byte { put32(b, infoAt+2); return b }},
		{"record of no length", func(b []byte) []byte { put16(b[infoAt+2:], 0); return b }},
		{"record longer than the event", func(b []byte) []byte { put16(b[infoAt+2:], uint16(len(b)-infoAt+1)); return b }},
		{"record without a handle", func(b []byte) []byte {
			put32(b, infoAt+infoLen)
			put16(b[infoAt+2:], infoLen)
			return b
		}},
		{"handle longer than its record", func(b []byte) []byte { put32(b[infoAt+infoLen:], 0xff000004); return b }},
		{"name without its end", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte{0, 0, 0, 0}, []byte{1, 1, 1, 1}) }},
		{"empty name", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("name"), make([]byte, 4)) }},
	} {
		var e event
		if _, err := e.decode(c.spoil(bytes.Clone(good))); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	var e event
	if n, err := e.decode(append(good, "rest"...)); err != nil || n != len(good) || string(e.at.name) != "name" {
		t.Errorf("good event: %d, %v, %v", n, err, &e)
	}
}

func TestEventString(t *testing.T) {
	var e event
	if _, err := e.decode(encode(unix.FAN_CREATE|unix.FAN_ONDIR|1<<40, 7,
		info{unix.FAN_EVENT_INFO_TYPE_DFID_NAME, testHandle, "a\nb"}, info{unix.FAN_EVENT_INFO_TYPE_FID, testHandle, ""},
		info{unix.FAN_EVENT_INFO_TYPE_PIDFD, nil, ""})); err != nil {
		t.Fatal(err)
	}
	const want = `CREATE|ONDIR|0x10000000000 dir=61626364/"a\nb" fid=61626364 fsid=7 pid=0`
	if got := e.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	for buf := captured(f); len(buf) > 0; {
		var e event
		n, err := e.decode(buf)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(buf[:n])
		buf = buf[n:]
	}
	f.Fuzz(func(t *testing.T, buf []byte) {
		var e event
		n, err := e.decode(buf)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Error(err)
			}
			return
		}
		if n < metadataLen || n > len(buf) {
			t.Errorf("length %d of %d bytes", n, len(buf))
		}
		_ = e.String()
	})
}

func BenchmarkDecode(b *testing.B) {
	buf := captured(b)
	b.ReportAllocs()
	var e event
	for off := 0; b.Loop(); {
		n, err := e.decode(buf[off:])
		if err != nil {
			b.Fatal(err)
		}
		if off += n; off == len(buf) {
			off = 0
		}
	}
}
