// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/mdlayher/netlink"
)

// MaxName is the longest name of a record, in bytes.
const MaxName = 4095

// ErrMalformed is what every decoder's errors wrap.
var ErrMalformed = errors.New("malformed message")

// Register makes the sender the daemon. The request carries only Version.
type Register struct {
	Version         uint32
	MaxBufferLength uint32 // bytes, of any watch or request
	AckTimeout      uint32 // milliseconds
	Release         string // of the module, for people
	Registrations   uint32 // of all daemons so far, 0 from older modules
}

// Item is one of those that next hands out. Which fields count depends on Type,
// see the spec.
type Item struct {
	Type         ItemType
	WatchID      uint64
	RequestID    uint64
	FD           int // of the watched directory, -1 if there is none
	Filter       uint32
	Tree         bool
	Rescan       bool
	BufferLength uint32 // bytes
	User, Share  string // whose watch it is and where, for people
	Device       uint32 // the superblock that the directory is in, as st_dev
	Filesystem   string // its type
	Client       uint64 // one of those that have watches
}

// Ack says that an item has been handled.
type Ack struct {
	ID    uint64 // of the watch or request
	Errno uint32 // 0, or positive: its watch is not armed
}

// Record is one change record.
type Record struct {
	Action    Action
	Name      string // relative to the watched directory, bytes as the filesystem has them
	Directory string // with a "/" in Name: the directory that it is in, a struct file_handle
}

// Complete ends a request, with records or with a status.
type Complete struct {
	RequestID uint64
	Status    Status // 0 with records
	Records   []Record
}

// Causes is what SMB requests have changed of files' metadata.
type Causes struct {
	Lost   int64 // those that ended until then are missing, ns of CLOCK_MONOTONIC
	Causes []Cause
}

// Cause says what a request has changed of a file.
type Cause struct {
	Thread       int32
	Filter       uint32 // completion filter
	File         string // a struct file_handle
	Begun, Ended int64  // between which it did, ns of CLOCK_MONOTONIC
}

// Encode returns m's attributes.
func (m Register) Encode() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(ARegisterVersion, m.Version)
	if m.MaxBufferLength != 0 {
		ae.Uint32(ARegisterMaxBufferLength, m.MaxBufferLength)
	}
	if m.AckTimeout != 0 {
		ae.Uint32(ARegisterAckTimeout, m.AckTimeout)
	}
	if m.Release != "" {
		ae.String(ARegisterRelease, m.Release)
	}
	if m.Registrations != 0 {
		ae.Uint32(ARegisterRegistrations, m.Registrations)
	}
	return ae.Encode()
}

// DecodeRegister decodes the attributes of a register request or reply.
func DecodeRegister(b []byte) (Register, error) {
	var m Register
	_, err := decode(b, 1<<ARegisterVersion, func(a *attr) {
		switch a.kind {
		case ARegisterVersion:
			m.Version = a.uint32()
		case ARegisterMaxBufferLength:
			m.MaxBufferLength = a.uint32()
		case ARegisterAckTimeout:
			m.AckTimeout = a.uint32()
		case ARegisterRelease:
			m.Release = a.string()
		case ARegisterRegistrations:
			m.Registrations = a.uint32()
		}
	})
	if err != nil {
		return Register{}, fmt.Errorf("register: %w", err)
	}
	return m, nil
}

// Encode returns m's attributes, those that go with its type.
func (m Item) Encode() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(AItemType, uint32(m.Type))
	ae.Uint64(AItemWatchID, m.WatchID)
	if m.Type == ItemTypeRequest || m.Type == ItemTypeCancel {
		ae.Uint64(AItemRequestID, m.RequestID)
	}
	if m.Type == ItemTypeWatch {
		ae.Int32(AItemFD, int32(m.FD))
		ae.Uint32(AItemCompletionFilter, m.Filter)
		ae.Flag(AItemWatchTree, m.Tree)
		ae.Flag(AItemRescan, m.Rescan)
		ae.String(AItemUser, m.User)
		ae.String(AItemShare, m.Share)
		ae.Uint32(AItemDevice, m.Device)
		ae.String(AItemFilesystem, m.Filesystem)
		ae.Uint64(AItemClient, m.Client)
	}
	if m.Type == ItemTypeWatch || m.Type == ItemTypeRequest {
		ae.Uint32(AItemBufferLength, m.BufferLength)
	}
	return ae.Encode()
}

// itemNeeds has the attributes that an item of each type must have, FD aside.
var itemNeeds = map[ItemType]set{
	ItemTypeWatch:   1<<AItemWatchID | 1<<AItemCompletionFilter | 1<<AItemBufferLength | 1<<AItemDevice,
	ItemTypeRequest: 1<<AItemWatchID | 1<<AItemRequestID | 1<<AItemBufferLength,
	ItemTypeCancel:  1<<AItemWatchID | 1<<AItemRequestID,
	ItemTypeUnwatch: 1 << AItemWatchID,
}

// EncodeItems returns the attributes of a reply to next.
func EncodeItems(items []Item, all bool) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	for _, m := range items {
		b, err := m.Encode()
		if err != nil {
			return nil, err
		}
		ae.Bytes(AItemsItem|netlink.Nested, b)
	}
	ae.Flag(AItemsAll, all)
	return ae.Encode()
}

// DecodeItems decodes the attributes of a reply to next. The caller owns the FD
// of every item that has one, also when there is an error. An item that is
// malformed is an error and has Type 0; nothing but its FD counts then. Without all
// there may be more.
func DecodeItems(b []byte) (items []Item, all bool, err error) {
	var malformed error
	_, err = decode(b, 0, func(a *attr) {
		switch a.kind {
		case AItemsItem:
			item, err := DecodeItem(a.data)
			items = append(items, item)
			malformed = errors.Join(malformed, err)
		case AItemsAll:
			all = a.flag()
		}
	})
	return items, all, errors.Join(malformed, err)
}

// DecodeItem decodes the attributes of an item. Its FD is the caller's whenever
// it is not -1, also when there is an error.
func DecodeItem(b []byte) (Item, error) {
	m := Item{FD: -1}
	seen, err := decode(b, 1<<AItemType, func(a *attr) {
		switch a.kind {
		case AItemType:
			m.Type = ItemType(a.uint32())
		case AItemWatchID:
			m.WatchID = a.uint64()
		case AItemRequestID:
			m.RequestID = a.uint64()
		case AItemFD:
			m.FD = max(-1, int(a.int32()))
		case AItemCompletionFilter:
			m.Filter = a.uint32()
		case AItemWatchTree:
			m.Tree = a.flag()
		case AItemRescan:
			m.Rescan = a.flag()
		case AItemBufferLength:
			m.BufferLength = a.uint32()
		case AItemUser:
			m.User = a.string()
		case AItemShare:
			m.Share = a.string()
		case AItemDevice:
			m.Device = a.uint32()
		case AItemFilesystem:
			m.Filesystem = a.string()
		case AItemClient:
			m.Client = a.uint64()
		}
	})
	needs, known := itemNeeds[m.Type]
	switch {
	case err != nil:
	case !known:
		err = fmt.Errorf("%w: type %v", ErrMalformed, m.Type)
	case (m.FD >= 0) != (m.Type == ItemTypeWatch):
		err = fmt.Errorf("%w: file descriptor %d", ErrMalformed, m.FD)
	default:
		err = seen.need(needs)
	}
	if err != nil {
		return Item{FD: findFD(b)}, fmt.Errorf("item: %w", err)
	}
	return m, nil
}

// findFD returns the file descriptor of a malformed item, or -1. Whatever else
// is wrong with the item, the kernel may have installed it.
func findFD(b []byte) int {
	fd := -1
	for a := (attr{rest: b}); a.next(); {
		if a.kind == AItemFD {
			fd = max(-1, int(a.int32()))
		}
	}
	return fd
}

// Encode returns m's attributes.
func (m Ack) Encode() ([]byte, error) { return m.Append(nil), nil }

// Append appends m's attributes to b.
func (m Ack) Append(b []byte) []byte {
	b = appendUint64(b, AAckID, m.ID)
	if m.Errno != 0 {
		b = appendUint32(b, AAckErrno, m.Errno)
	}
	return b
}

// DecodeAck decodes the attributes of ack.
func DecodeAck(b []byte) (Ack, error) {
	var m Ack
	_, err := decode(b, 1<<AAckID, func(a *attr) {
		switch a.kind {
		case AAckID:
			m.ID = a.uint64()
		case AAckErrno:
			m.Errno = a.uint32()
		}
	})
	if err != nil {
		return Ack{}, fmt.Errorf("ack: %w", err)
	}
	return m, nil
}

// Encode returns m's attributes. It fails if a record's name is not one that
// the spec allows.
func (m Complete) Encode() ([]byte, error) { return m.Append(nil) }

// Append appends m's attributes to b. It fails, and returns b as it was, if a
// record's name is not one that the spec allows.
func (m Complete) Append(b []byte) ([]byte, error) {
	start := len(b)
	b = appendUint64(b, ACompleteRequestID, m.RequestID)
	if m.Status != 0 {
		b = appendUint32(b, ACompleteStatus, uint32(m.Status))
	}
	for _, r := range m.Records {
		if err := r.check(); err != nil {
			return b[:start], fmt.Errorf("complete: %w", err)
		}
		nest := len(b)
		b = appendUint32(append(b, 0, 0, 0, 0), ARecordAction, uint32(r.Action))
		b = appendString(b, ARecordName, r.Name)
		if r.Directory != "" {
			b = appendString(b, ARecordDirectory, r.Directory)
		}
		putHeader(b[nest:], uint16(len(b)-nest), ACompleteRecord|netlink.Nested)
	}
	return b, nil
}

func (r Record) check() error {
	if !ValidName(r.Name) {
		return fmt.Errorf("invalid name %.100q", r.Name)
	}
	if strings.Contains(r.Name, "/") != (r.Directory != "") {
		return fmt.Errorf("name %.100q and directory % x do not go together", r.Name, r.Directory)
	}
	return nil
}

// ValidName reports whether a record can carry the name.
func ValidName(name string) bool {
	return name != "" && len(name) <= MaxName && strings.IndexByte(name, 0) < 0
}

// DecodeComplete decodes the attributes of complete.
func DecodeComplete(b []byte) (Complete, error) {
	var m Complete
	_, err := decode(b, 1<<ACompleteRequestID, func(a *attr) {
		switch a.kind {
		case ACompleteRequestID:
			m.RequestID = a.uint64()
		case ACompleteStatus:
			m.Status = Status(a.uint32())
		case ACompleteRecord:
			r, err := decodeRecord(a.data)
			m.Records = append(m.Records, r)
			a.fail(err)
		}
	})
	if err == nil && (m.Status == 0) == (len(m.Records) == 0) {
		err = fmt.Errorf("%w: not either records or a status", ErrMalformed)
	}
	if err != nil {
		return Complete{}, fmt.Errorf("complete: %w", err)
	}
	return m, nil
}

func decodeRecord(b []byte) (Record, error) {
	var r Record
	_, err := decode(b, 1<<ARecordAction|1<<ARecordName, func(a *attr) {
		switch a.kind {
		case ARecordAction:
			r.Action = Action(a.uint32())
		case ARecordName:
			r.Name = string(a.data)
		case ARecordDirectory:
			r.Directory = string(a.data)
		}
	})
	if err == nil {
		if err = r.check(); err != nil {
			err = fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	return r, err
}

// Encode returns m's attributes.
func (m Causes) Encode() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	if m.Lost != 0 {
		ae.Uint64(ACausesLost, uint64(m.Lost))
	}
	for _, c := range m.Causes {
		ae.Nested(ACausesCause, func(ae *netlink.AttributeEncoder) error {
			ae.Uint32(ACauseThread, uint32(c.Thread))
			ae.Uint32(ACauseCompletionFilter, c.Filter)
			ae.Bytes(ACauseFile, []byte(c.File))
			ae.Uint64(ACauseBegun, uint64(c.Begun))
			ae.Uint64(ACauseEnded, uint64(c.Ended))
			return nil
		})
	}
	return ae.Encode()
}

// DecodeCauses decodes the attributes of causes.
func DecodeCauses(b []byte) (Causes, error) {
	var m Causes
	_, err := decode(b, 0, func(a *attr) {
		switch a.kind {
		case ACausesLost:
			m.Lost = int64(a.uint64())
		case ACausesCause:
			c, err := decodeCause(a.data)
			m.Causes = append(m.Causes, c)
			a.fail(err)
		}
	})
	if err != nil {
		return Causes{}, fmt.Errorf("causes: %w", err)
	}
	return m, nil
}

func decodeCause(b []byte) (Cause, error) {
	var c Cause
	_, err := decode(b, 1<<ACauseThread|1<<ACauseCompletionFilter|1<<ACauseFile|1<<ACauseBegun|1<<ACauseEnded, func(a *attr) {
		switch a.kind {
		case ACauseThread:
			c.Thread = int32(a.uint32())
		case ACauseCompletionFilter:
			c.Filter = a.uint32()
		case ACauseFile:
			c.File = string(a.data)
		case ACauseBegun:
			c.Begun = int64(a.uint64())
		case ACauseEnded:
			c.Ended = int64(a.uint64())
		}
	})
	return c, err
}

// set is a set of attribute types. All are small numbers.
type set uint64

func (s set) need(need set) error {
	if missing := need &^ s; missing != 0 {
		return fmt.Errorf("%w: attribute %d is missing", ErrMalformed, bits.TrailingZeros64(uint64(missing)))
	}
	return nil
}

// decode calls fn for each attribute of b and returns which there were; those
// in need must be there.
func decode(b []byte, need set, fn func(*attr)) (set, error) {
	var seen set
	a := attr{rest: b}
	for a.next() {
		seen |= 1 << a.kind
		fn(&a)
	}
	if a.err != nil {
		return 0, a.err
	}
	return seen, seen.need(need)
}
