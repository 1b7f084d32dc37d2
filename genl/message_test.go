// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
)

func encode(t testing.TB, m interface{ Encode() ([]byte, error) }) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatalf("encoding %+v: %v", m, err)
	}
	return b
}

var items = []Item{
	{Type: ItemTypeWatch, WatchID: 1, FD: 7, Filter: 0xfff, BufferLength: 4096, User: "user", Share: "TEST",
		Device: 0x801, Filesystem: "fuse.sshfs", Client: 5},
	{Type: ItemTypeWatch, WatchID: 1 << 63, FD: 0, Tree: true, Rescan: true},
	{Type: ItemTypeRequest, WatchID: 1, RequestID: 2, FD: -1, BufferLength: 1 << 20},
	{Type: ItemTypeCancel, WatchID: 1, RequestID: 2, FD: -1},
	{Type: ItemTypeUnwatch, WatchID: 1, FD: -1},
}

var completes = []Complete{
	{RequestID: 1, Status: StatusEnumDir},
	{RequestID: 1, Status: StatusDeletePending},
	{RequestID: 1 << 63, Records: []Record{{Action: ActionAdded, Name: "a"}}},
	{RequestID: 2, Records: []Record{
		{ActionRenamedOldName, "d/" + strings.Repeat("x", MaxName-2), "\x04\x00\x00\x00\x01\x00\x00\x00inode"},
		{ActionRenamedNewName, "\xff\xfe not UTF-8 \u65e5\u672c", ""},
	}},
}

var causes = []Causes{
	{},
	{Lost: 3, Causes: []Cause{{Thread: 1, Filter: 4, File: "f"}, {Thread: 2, File: "handle", Begun: 1, Ended: 1 << 40}}},
}

func TestRoundTrip(t *testing.T) {
	for _, want := range items {
		if got, err := DecodeItem(encode(t, want)); err != nil || got != want {
			t.Errorf("item %+v came back as %+v, %v", want, got, err)
		}
	}
	for _, want := range completes {
		if got, err := DecodeComplete(encode(t, want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("complete %+v came back as %+v, %v", want, got, err)
		}
	}
	for _, want := range causes {
		if got, err := DecodeCauses(encode(t, want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("causes %+v came back as %+v, %v", want, got, err)
		}
	}
	for _, want := range []Register{{Version: 1}, {1, 8 << 20, 2000, "1.0", 7}} {
		if got, err := DecodeRegister(encode(t, want)); err != nil || got != want {
			t.Errorf("register %+v came back as %+v, %v", want, got, err)
		}
	}
	for _, want := range []Ack{{ID: 3}, {ID: 1 << 63, Errno: 28}} {
		if got, err := DecodeAck(encode(t, want)); err != nil || got != want {
			t.Errorf("ack %+v came back as %+v, %v", want, got, err)
		}
	}
	for _, want := range [][]Item{nil, items} {
		b, err := EncodeItems(want, len(want) > 1)
		if err != nil {
			t.Fatal(err)
		}
		if got, all, err := DecodeItems(b); err != nil || all != (len(want) > 1) || !reflect.DeepEqual(got, want) {
			t.Errorf("items %+v came back as %+v, %v", want, got, err)
		}
	}
}

// A malformed item among others costs itself.
func TestDecodeItemsMalformed(t *testing.T) {
	ae := netlink.NewAttributeEncoder()
	for i, item := range [][]byte{encode(t, items[0]), {1, 2, 3}, encode(t, Item{Type: ItemTypeCancel, FD: -1}), encode(t, items[4])} {
		if i == 2 {
			item = append(item, appendUint32(nil, AItemFD, 9)...)
		}
		ae.Bytes(AItemsItem|netlink.Nested, item)
	}
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := DecodeItems(b)
	if want := []Item{items[0], {FD: -1}, {FD: 9}, items[4]}; !errors.Is(err, ErrMalformed) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// What is told all the time takes no memory to say.
func TestAppendDoesNotAllocate(t *testing.T) {
	b := make([]byte, 0, 1<<14)
	if n := testing.AllocsPerRun(100, func() {
		b = AppendMessage(b[:0], 30, CmdComplete, 1)
		b, _ = completes[3].Append(b)
		EndMessage(b, 0)
		start := len(b)
		b = Ack{ID: 1}.Append(AppendMessage(b, 30, CmdAck, 2))
		EndMessage(b, start)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The wire as the kernel's side reads it, written out by hand.
func TestEncodeBytes(t *testing.T) {
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }
	attr := func(length, typ uint16, data ...[]byte) []byte {
		b := binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, length), typ)
		return append(b, bytes.Join(data, nil)...)
	}
	want := bytes.Join([][]byte{
		attr(12, 2, u64(9)), // request-id
		attr(20, 4|0x8000, attr(8, 1, u32(1)), attr(6, 2, []byte("ab\x00\x00"))),
	}, nil)
	got := encode(t, Complete{RequestID: 9, Records: []Record{{Action: ActionAdded, Name: "ab"}}})
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestCompleteOf4MiB(t *testing.T) {
	want := Complete{RequestID: 1}
	for size := 0; size < 4<<20; size += MaxName {
		want.Records = append(want.Records, Record{Action: ActionModified, Name: strings.Repeat("n", MaxName)})
	}
	b := encode(t, want)
	if len(b) < 4<<20 {
		t.Fatalf("only %d bytes", len(b))
	}
	if got, err := DecodeComplete(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d records came back as %d, %v", len(want.Records), len(got.Records), err)
	}
}

func TestEncodeInvalidName(t *testing.T) {
	for _, name := range []string{"", "\x00a", "a\x00b", strings.Repeat("x", MaxName+1), strings.Repeat("x", 1<<17)} {
		m := Complete{RequestID: 1, Records: []Record{{Action: ActionAdded, Name: name}}}
		if _, err := m.Encode(); err == nil {
			t.Errorf("name of %d bytes was encoded", len(name))
		}
	}
	for _, r := range []Record{{Name: "d/a"}, {Name: "a", Directory: "d"}} {
		if b, err := (Complete{RequestID: 1, Records: []Record{r}}).Append([]byte("before")); err == nil || string(b) != "before" {
			t.Errorf("%+v: %q, %v", r, b, err)
		}
	}
	if _, err := EncodeItems([]Item{{Type: ItemTypeWatch, User: strings.Repeat("x", 1<<16)}}, true); err == nil {
		t.Error("a user's name that no attribute takes was encoded")
	}
}

func TestDecodeItemMalformed(t *testing.T) {
	build := func(fn func(ae *netlink.AttributeEncoder)) []byte {
		ae := netlink.NewAttributeEncoder()
		fn(ae)
		b, err := ae.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, test := range []struct {
		name string
		b    []byte
		fd   int
	}{
		{"empty", nil, -1},
		{"cut short", []byte{8, 0, 2}, -1},
		{"length beyond the end", []byte{12, 0, 2, 0, 1, 0, 0, 0}, -1},
		{"no type, with fd", build(func(ae *netlink.AttributeEncoder) { ae.Int32(AItemFD, 9) }), 9},
		{"type of two bytes, then fd", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint16(AItemType, 1)
			ae.Int32(AItemFD, 9)
		}), 9},
		{"unknown type, with fd", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, 99)
			ae.Int32(AItemFD, 9)
		}), 9},
		{"watch without id", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeWatch))
			ae.Int32(AItemFD, 9)
			ae.Uint32(AItemCompletionFilter, 1)
			ae.Uint32(AItemBufferLength, 1)
			ae.Uint32(AItemDevice, 1)
		}), 9},
		{"watch with negative fd", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeWatch))
			ae.Uint64(AItemWatchID, 1)
			ae.Int32(AItemFD, -9)
			ae.Uint32(AItemCompletionFilter, 1)
			ae.Uint32(AItemBufferLength, 1)
		}), -1},
		{"watch without fd", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeWatch))
			ae.Uint64(AItemWatchID, 1)
			ae.Uint32(AItemCompletionFilter, 1)
			ae.Uint32(AItemBufferLength, 1)
		}), -1},
		{"cancel with fd", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeCancel))
			ae.Uint64(AItemRequestID, 1)
			ae.Int32(AItemFD, 9)
		}), 9},
		{"request without watch", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeRequest))
			ae.Uint64(AItemRequestID, 1)
			ae.Uint32(AItemBufferLength, 1)
		}), -1},
		{"flag with a value", build(func(ae *netlink.AttributeEncoder) {
			ae.Uint32(AItemType, uint32(ItemTypeUnwatch))
			ae.Uint64(AItemWatchID, 1)
			ae.Uint32(AItemRescan, 1)
		}), -1},
	} {
		got, err := DecodeItem(test.b)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: error %v", test.name, err)
		}
		if want := (Item{FD: test.fd}); got != want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, want)
		}
	}
}

// An attribute that a later kernel may add is not an error.
func TestDecodeUnknownAttribute(t *testing.T) {
	ae := netlink.NewAttributeEncoder()
	ae.String(63, "new")
	ae.String(200, "newer")
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range items {
		if got, err := DecodeItem(append(bytes.Clone(b), encode(t, want)...)); err != nil || got != want {
			t.Errorf("item %+v came back as %+v, %v", want, got, err)
		}
	}
}

func TestDecodeCompleteMalformed(t *testing.T) {
	for _, m := range []Complete{
		{RequestID: 1},
		{RequestID: 1, Status: StatusEnumDir, Records: []Record{{Action: ActionAdded, Name: "a"}}},
	} {
		if _, err := DecodeComplete(encode(t, m)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: error %v", m, err)
		}
	}
	record := appendString(appendUint32(nil, ARecordAction, 1), ARecordName, "d/a") // whose directory is missing
	if _, err := DecodeComplete(appendString(appendUint64(nil, ACompleteRequestID, 1), ACompleteRecord, string(record))); !errors.Is(err, ErrMalformed) {
		t.Errorf("a name without its directory: %v", err)
	}
}

// What has no end, or lacks what it must have, is not taken for anything.
func TestDecodeMalformed(t *testing.T) {
	for what, decode := range map[string]func([]byte) error{
		"register": func(b []byte) error { _, err := DecodeRegister(b); return err },
		"ack":      func(b []byte) error { _, err := DecodeAck(b); return err },
		"causes": func(b []byte) error {
			if len(b) == 0 { // of which there may be none
				b = appendString(nil, ACausesCause, "")
			}
			_, err := DecodeCauses(b)
			return err
		},
		"items": func(b []byte) error {
			if len(b) == 0 {
				b = appendString(nil, AItemsItem, "")
			}
			_, _, err := DecodeItems(b)
			return err
		},
	} {
		for _, b := range [][]byte{nil, {1, 2, 3}, {9, 0, 1, 0}} {
			if err := decode(b); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s of % x: %v", what, b, err)
			}
		}
	}
}

// What is cut short anywhere is malformed, or says less, and is not read beyond its end.
func TestDecodeCutShort(t *testing.T) {
	all, err := EncodeItems(items, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{all, encode(t, items[0]), encode(t, completes[3]), encode(t, causes[1]), encode(t, Ack{1, 2}), encode(t, Register{1, 2, 3, "4", 5})} {
		for n := range len(b) {
			cut := slices.Clip(bytes.Clone(b[:n]))
			_, itemErr := DecodeItem(cut)
			_, _, itemsErr := DecodeItems(cut)
			_, completeErr := DecodeComplete(cut)
			_, causesErr := DecodeCauses(cut)
			_, ackErr := DecodeAck(cut)
			_, registerErr := DecodeRegister(cut)
			for _, err := range []error{itemErr, itemsErr, completeErr, causesErr, ackErr, registerErr} {
				if err != nil && !errors.Is(err, ErrMalformed) {
					t.Errorf("%d of %d bytes: %v", n, len(b), err)
				}
			}
		}
	}
	if _, err := DecodeAck(appendUint32(nil, AAckID, 1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an id of 4 bytes: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, test := range []struct {
		got  fmt.Stringer
		want string
	}{
		{ItemTypeWatch, "watch"}, {ItemTypeUnwatch, "unwatch"}, {ItemType(0), "unknown(0)"}, {ItemType(5), "unknown(5)"},
		{ActionAdded, "ADDED"}, {ActionRenamedNewName, "RENAMED_NEW_NAME"}, {Action(6), "unknown(6)"},
		{StatusEnumDir, "ENUM_DIR"}, {StatusDeletePending, "DELETE_PENDING"}, {Status(3), "unknown(3)"},
	} {
		if got := test.got.String(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// Decoding never panics, and what it accepts comes back from encoding.
func fuzz[M interface{ Encode() ([]byte, error) }](f *testing.F, decode func([]byte) (M, error)) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error is not ErrMalformed: %v", err)
			}
			return
		}
		again, err := decode(encode(t, m))
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v came back as %+v, %v", m, again, err)
		}
	})
}

func FuzzDecodeItem(f *testing.F) {
	for _, m := range items {
		f.Add(encode(f, m))
	}
	// Fields that do not belong to the type are decoded but not encoded.
	fuzz(f, func(b []byte) (Item, error) {
		m, err := DecodeItem(b)
		if err != nil {
			return m, err
		}
		n := Item{Type: m.Type, FD: m.FD}
		switch m.Type {
		case ItemTypeWatch:
			n = m
			n.RequestID = 0
		case ItemTypeRequest:
			n.WatchID, n.RequestID, n.BufferLength = m.WatchID, m.RequestID, m.BufferLength
		case ItemTypeCancel:
			n.WatchID, n.RequestID = m.WatchID, m.RequestID
		case ItemTypeUnwatch:
			n.WatchID = m.WatchID
		}
		return n, nil
	})
}

func FuzzDecodeCauses(f *testing.F) {
	f.Add(encode(f, causes[1]))
	fuzz(f, DecodeCauses)
}

func FuzzDecodeRegister(f *testing.F) {
	f.Add(encode(f, Register{1, 2, 3, "4", 5}))
	fuzz(f, DecodeRegister)
}

func FuzzDecodeAck(f *testing.F) {
	f.Add(encode(f, Ack{1, 2}))
	fuzz(f, DecodeAck)
}

func FuzzDecodeComplete(f *testing.F) {
	for _, m := range completes {
		f.Add(encode(f, m))
	}
	fuzz(f, DecodeComplete)
}
