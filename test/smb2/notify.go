// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"context"
	"errors"
	"fmt"
)

// Filter is a CompletionFilter, MS-SMB2 2.2.35.
type Filter uint32

const (
	FilterFileName    Filter = 0x001
	FilterDirName     Filter = 0x002
	FilterAttributes  Filter = 0x004
	FilterSize        Filter = 0x008
	FilterLastWrite   Filter = 0x010
	FilterLastAccess  Filter = 0x020
	FilterCreation    Filter = 0x040
	FilterEA          Filter = 0x080
	FilterSecurity    Filter = 0x100
	FilterStreamName  Filter = 0x200
	FilterStreamSize  Filter = 0x400
	FilterStreamWrite Filter = 0x800
	FilterNames              = FilterFileName | FilterDirName
	FilterAll         Filter = 0xfff
)

// Action is what happened to a name, MS-FSCC 2.7.1.
type Action uint32

const (
	Added          Action = 1
	Removed        Action = 2
	Modified       Action = 3
	RenamedOldName Action = 4
	RenamedNewName Action = 5
)

func (a Action) String() string {
	names := [...]string{Added: "ADDED", Removed: "REMOVED", Modified: "MODIFIED", RenamedOldName: "RENAMED_OLD_NAME",
		RenamedNewName: "RENAMED_NEW_NAME"}
	if a >= Added && int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprintf("action %d", uint32(a))
}

// Record is one FILE_NOTIFY_INFORMATION: a name relative to the watched
// directory, with backslashes as on the wire.
type Record struct {
	Action Action
	Name   string
}

func (r Record) String() string { return r.Action.String() + " " + r.Name }

// NotifyParams are those of a CHANGE_NOTIFY request, MS-SMB2 2.2.35.
type NotifyParams struct {
	Tree   bool
	Flags  uint16 // other ones
	Filter Filter
	Length uint32 // of the output buffer, in bytes
	Charge uint16 // 0: what Length needs
}

// NotifyRequest is a CHANGE_NOTIFY for f.
func (f *File) NotifyRequest(p NotifyParams) *Request {
	flags := p.Flags
	if p.Tree {
		flags |= 1
	}
	if p.Charge == 0 && p.Length > 0 && f.Tree.conn.dialect > Dialect202 {
		p.Charge = uint16((p.Length-1)/65536 + 1)
	}
	return &Request{
		Command: ChangeNotify,
		TreeID:  f.Tree.ID,
		Charge:  p.Charge,
		Credits: p.Charge,
		Body:    pack(uint16(32), flags, p.Length, f.ID, uint32(p.Filter), uint32(0)),
	}
}

// Notify sends a CHANGE_NOTIFY and waits for nothing.
func (f *File) Notify(ctx context.Context, p NotifyParams) (*Call, error) {
	calls, err := f.Tree.conn.Send(ctx, f.NotifyRequest(p))
	if err != nil {
		return nil, err
	}
	return calls[0], nil
}

// Records decodes the response of a CHANGE_NOTIFY, MS-SMB2 2.2.36.
func (r *Response) Records() ([]Record, error) {
	b := r.Body
	if len(b) < 8 || le.Uint16(b) != 9 {
		return nil, errors.New("no CHANGE_NOTIFY response")
	}
	off, length := int(le.Uint16(b[2:]))-headerLen, int(le.Uint32(b[4:]))
	if length == 0 {
		return nil, nil
	}
	if off < 8 || off > len(b) || length > len(b)-off {
		return nil, errors.New("CHANGE_NOTIFY response: buffer outside of the message")
	}
	return DecodeRecords(b[off : off+length])
}

// DecodeRecords decodes a list of FILE_NOTIFY_INFORMATION, MS-FSCC 2.7.1, and
// fails on whatever a strict client could stumble over.
func DecodeRecords(b []byte) ([]Record, error) {
	var records []Record
	for {
		if len(b) < 12 {
			return nil, fmt.Errorf("change record %d: short", len(records))
		}
		next, nameLen := int(le.Uint32(b)), int(le.Uint32(b[8:]))
		if nameLen == 0 || nameLen%2 != 0 || nameLen > len(b)-12 {
			return nil, fmt.Errorf("change record %d: name of %d bytes", len(records), nameLen)
		}
		records = append(records, Record{Action(le.Uint32(b[4:])), fromUTF16(b[12 : 12+nameLen])})
		if next == 0 {
			return records, nil
		}
		if next%4 != 0 || next < 12+nameLen || next > len(b) {
			return nil, fmt.Errorf("change record %d: next entry at %d", len(records)-1, next)
		}
		b = b[next:]
	}
}
