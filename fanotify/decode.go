// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// errMalformed says that a buffer is not what fanotify(7) describes.
var errMalformed = errors.New("malformed fanotify event")

// Sizes of struct fanotify_event_metadata, struct fanotify_event_info_fid up
// to its handle, and struct file_handle up to its bytes (linux/fanotify.h).
const (
	metadataLen     = 24
	infoLen         = 12
	handleHeaderLen = 8
)

// A handle is a struct file_handle as it stands in an info record: length,
// type and bytes. It names an object for as long as its filesystem lives.
type handle []byte

// A record is the part of an info record that says where: a directory and a
// name in it. The name "." stands for the directory itself.
type record struct {
	dir  handle
	name []byte
}

// An event is one fanotify event. Its slices point into the buffer it was
// decoded from.
type event struct {
	mask     uint64
	pid      int32
	fsid     uint64 // of all its records
	at       record // DFID_NAME: where it happened
	old, new record // OLD_DFID_NAME, NEW_DFID_NAME: the sides of a rename
	fid      handle // FID: what it happened to
}

// eventHeader reads the metadata of the event at the start of buf: the
// event's length, where its info records begin, and its mask.
func eventHeader(buf []byte) (size, infos int, mask uint64, err error) {
	if len(buf) < metadataLen {
		return 0, 0, 0, fmt.Errorf("%w: %d bytes", errMalformed, len(buf))
	}
	size = int(binary.NativeEndian.Uint32(buf))
	infos = int(binary.NativeEndian.Uint16(buf[6:]))
	switch {
	case buf[4] != unix.FANOTIFY_METADATA_VERSION:
		return 0, 0, 0, fmt.Errorf("%w: version %d", errMalformed, buf[4])
	case infos < metadataLen || size < infos || size > len(buf):
		return 0, 0, 0, fmt.Errorf("%w: header of %d, length %d, in %d bytes", errMalformed, infos, size, len(buf))
	}
	return size, infos, binary.NativeEndian.Uint64(buf[8:]), nil
}

// eventThread returns who did it, of an event that eventHeader has read.
func eventThread(buf []byte) int32 { return int32(binary.NativeEndian.Uint32(buf[20:])) }

// decode reads the event at the start of buf and returns its length. Info
// records of unknown type are skipped. See fanotify(7).
func (e *event) decode(buf []byte) (int, error) {
	size, infos, mask, err := eventHeader(buf)
	if err != nil {
		return 0, err
	}
	*e = event{mask: mask, pid: eventThread(buf)}
	for info := buf[infos:size]; len(info) > 0; {
		n, err := e.decodeInfo(info)
		if err != nil {
			return 0, err
		}
		info = info[n:]
	}
	return size, nil
}

// decodeInfo reads the info record at the start of buf and returns its length.
func (e *event) decodeInfo(buf []byte) (int, error) {
	if len(buf) < 4 {
		return 0, fmt.Errorf("%w: info record of %d bytes", errMalformed, len(buf))
	}
	size := int(binary.NativeEndian.Uint16(buf[2:]))
	if size < 4 || size > len(buf) {
		return 0, fmt.Errorf("%w: info record of %d in %d bytes", errMalformed, size, len(buf))
	}
	var at *record
	var named bool
	switch buf[0] {
	case unix.FAN_EVENT_INFO_TYPE_DFID_NAME:
		at, named = &e.at, true
	case unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
		at, named = &e.old, true
	case unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
		at, named = &e.new, true
	case unix.FAN_EVENT_INFO_TYPE_FID, unix.FAN_EVENT_INFO_TYPE_DFID: // which without a name says nothing of where
		at = &record{}
	default:
		return size, nil
	}
	if size < infoLen+handleHeaderLen {
		return 0, fmt.Errorf("%w: info record of %d bytes has no handle", errMalformed, size)
	}
	body := buf[infoLen:size]
	n := binary.NativeEndian.Uint32(body)
	if uint64(n) > uint64(len(body)-handleHeaderLen) {
		return 0, fmt.Errorf("%w: handle of %d in %d bytes", errMalformed, n, len(body))
	}
	end := handleHeaderLen + int(n)
	at.dir = body[:end:end]
	if named {
		name, _, ok := bytes.Cut(body[end:], []byte{0})
		if !ok || len(name) == 0 {
			return 0, fmt.Errorf("%w: name without its end", errMalformed)
		}
		at.name = name[:len(name):len(name)]
	} else if buf[0] == unix.FAN_EVENT_INFO_TYPE_FID {
		e.fid = at.dir
	}
	e.fsid = binary.NativeEndian.Uint64(buf[4:])
	return size, nil
}

// maskNames has the bits of an event's mask under fanotify(7)'s names, less
// their prefix.
var maskNames = []struct {
	bit  uint64
	name string
}{
	{unix.FAN_ACCESS, "ACCESS"}, {unix.FAN_MODIFY, "MODIFY"}, {unix.FAN_ATTRIB, "ATTRIB"},
	{unix.FAN_CLOSE_WRITE, "CLOSE_WRITE"}, {unix.FAN_CLOSE_NOWRITE, "CLOSE_NOWRITE"}, {unix.FAN_OPEN, "OPEN"},
	{unix.FAN_MOVED_FROM, "MOVED_FROM"}, {unix.FAN_MOVED_TO, "MOVED_TO"}, {unix.FAN_CREATE, "CREATE"},
	{unix.FAN_DELETE, "DELETE"}, {unix.FAN_DELETE_SELF, "DELETE_SELF"}, {unix.FAN_MOVE_SELF, "MOVE_SELF"},
	{unix.FAN_OPEN_EXEC, "OPEN_EXEC"}, {unix.FAN_Q_OVERFLOW, "Q_OVERFLOW"}, {unix.FAN_FS_ERROR, "FS_ERROR"},
	{unix.FAN_RENAME, "RENAME"}, {unix.FAN_EVENT_ON_CHILD, "EVENT_ON_CHILD"}, {unix.FAN_ONDIR, "ONDIR"},
}

// maskString writes a mask as names; bits without one follow in hex.
func maskString(mask uint64) string {
	var s []string
	for _, m := range maskNames {
		if mask&m.bit != 0 {
			s = append(s, m.name)
			mask &^= m.bit
		}
	}
	if mask != 0 || s == nil {
		s = append(s, fmt.Sprintf("%#x", mask))
	}
	return strings.Join(s, "|")
}

// String renders the event in one line: mask, then the records in kernel
// order, handles as their bytes in hex.
func (e *event) String() string {
	var s strings.Builder
	s.WriteString(maskString(e.mask))
	for _, r := range []struct {
		kind string
		record
	}{{"old", e.old}, {"new", e.new}, {"dir", e.at}, {"fid", record{dir: e.fid}}} {
		if r.dir == nil {
			continue
		}
		fmt.Fprintf(&s, " %s=%x", r.kind, []byte(r.dir[handleHeaderLen:]))
		if r.name != nil {
			fmt.Fprintf(&s, "/%q", r.name)
		}
	}
	fmt.Fprintf(&s, " fsid=%x pid=%d", e.fsid, e.pid)
	return s.String()
}
