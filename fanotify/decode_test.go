// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testdata/events.bin is what a kernel 6.18 wrote for one script on ext4, and
// events.txt how it reads. -update captures anew.
const capture = `
	mkdir w/d
	touch w/f
	watch -r -o create,delete,rename,modify,attrib,access .
	hold
	touch w/g
	write w/f
	chmod w/f 600
	chmod w/d 700
	list w/d
	ln w/f w/l
	rm w/l
	mv w/f w/d/f
	mv w/d w/e
	rm w/e/f
	rmdir w/e
`

const spdx = "# SPDX-License-Identifier: GPL-2.0-or-later\n"

func TestDecodeCaptured(t *testing.T) {
	const bin, txt = "testdata/events.bin", "testdata/events.txt"
	if *update {
		s := &script{t: t, dir: mountTest(t, "ext4"), hold: true}
		for line := range strings.Lines(capture) {
			if args := strings.Fields(line); len(args) > 0 {
				if err := s.run(args); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.g.read(); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(bin, s.g.buf, 0o644)
		os.WriteFile(txt, []byte(spdx+render(t, s.g.buf)), 0o644)
		s.g.Close()
	}
	buf, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(txt)
	if err != nil {
		t.Fatal(err)
	}
	if got := render(t, buf); spdx+got != string(want) {
		t.Errorf("decoded:\n%swant:\n%s", got, want)
	}
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

var testHandle = handle{4, 0, 0, 0, 1, 0, 0, 0, 'a', 'b', 'c', 'd'}

func TestDecodeMalformed(t *testing.T) {
	good := encode(unix.FAN_CREATE, 7, info{unix.FAN_EVENT_INFO_TYPE_DFID_NAME, testHandle, "name"})
	for _, c := range []struct {
		what  string
		spoil func([]byte) []byte
	}{
		{"nothing", func(b []byte) []byte { return nil }},
		{"short header", func(b []byte) []byte { return b[:metadataLen-1] }},
		{"another version", func(b []byte) []byte { b[4]++; return b }},
		{"longer than the buffer", func(b []byte) []byte { b[0]++; return b }},
		{"shorter than its header", func(b []byte) []byte { b[0] = metadataLen - 1; return b }},
		{"header too short", func(b []byte) []byte { b[6]--; return b }},
		{"record of no length", func(b []byte) []byte { b[metadataLen+2] = 0; return b }},
		{"record longer than the event", func(b []byte) []byte { b[metadataLen+2]++; return b }},
		{"record without a handle", func(b []byte) []byte { b[0], b[metadataLen+2] = metadataLen+infoLen, infoLen; return b }},
		{"handle longer than its record", func(b []byte) []byte { b[metadataLen+infoLen+3] = 0xff; return b }},
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
	buf, err := os.ReadFile(filepath.Join("testdata", "events.bin"))
	if err != nil {
		f.Fatal(err)
	}
	for len(buf) > 0 {
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
	buf, err := os.ReadFile("testdata/events.bin")
	if err != nil {
		b.Fatal(err)
	}
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
