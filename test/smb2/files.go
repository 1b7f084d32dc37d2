// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// Access rights, MS-SMB2 2.2.13.1.
const (
	AccessListDirectory  uint32 = 0x00000001 // FILE_READ_DATA of a file
	AccessReadAttributes uint32 = 0x00000080
	AccessDelete         uint32 = 0x00010000
	AccessMaximum        uint32 = 0x02000000
)

// CreateDisposition and CreateOptions, MS-SMB2 2.2.13.
const (
	DispositionSupersede   uint32 = 0
	DispositionOpen        uint32 = 1
	DispositionCreate      uint32 = 2
	DispositionOpenIf      uint32 = 3
	DispositionOverwrite   uint32 = 4
	DispositionOverwriteIf uint32 = 5
	OptionDirectory        uint32 = 0x01
	OptionFile             uint32 = 0x40
	OptionDeleteOnClose    uint32 = 0x1000
)

// RequestedOplockLevel, MS-SMB2 2.2.13. OplockLease goes with a lease context.
const (
	OplockBatch uint8 = 0x09
	OplockLease uint8 = 0xff
)

// CreateParams are those of a CREATE request. Everything is shared, if it does not say otherwise.
type CreateParams struct {
	Name        string // relative to the share, with backslashes; empty is its root
	Access      uint32 // and AccessDelete with OptionDeleteOnClose, as MS-FSA 2.1.5.1 demands
	Disposition uint32
	Options     uint32
	Oplock      uint8
	KeepsName   bool   // deletion and renaming are not shared
	Attributes  uint32 // of what is created, MS-FSCC 2.6
	Contexts    []Context
	NoContexts  bool // an offset of contexts, of a length of 0
}

// AllocationContext reserves room for a new file, MS-SMB2 2.2.13.2.6.
func AllocationContext(n uint64) Context { return Context{"AlSi", pack(n)} }

// EAContext gives a new file an extended attribute, MS-SMB2 2.2.13.2.1.
func EAContext(name, value string) Context { return Context{"ExtA", fullEA(name, value)} }

// SDContext gives a new file a DACL, MS-SMB2 2.2.13.2.2.
func SDContext(aces ...ACE) Context { return Context{"SecD", descriptor(aces)} }

// Context is a create context, MS-SMB2 2.2.13.2.
type Context struct {
	Name string // four characters
	Data []byte
}

// LeaseContext asks for a lease to cache what is read and to keep the
// handle, MS-SMB2 2.2.13.2.10.
func LeaseContext(key [16]byte) Context {
	return Context{"RqLs", pack(key, uint32(3), uint32(0), uint64(0), [16]byte{}, uint16(1), uint16(0))}
}

// DurableContext asks for a durable handle, MS-SMB2 2.2.13.2.11.
func DurableContext(guid [16]byte) Context {
	return Context{"DH2Q", pack(uint32(60000), uint32(0), uint64(0), guid)}
}

// ReconnectContext asks for a durable handle again, MS-SMB2 2.2.13.2.12.
func (f *File) ReconnectContext(guid [16]byte) Context {
	return Context{"DH2C", pack(f.ID, guid, uint32(0))}
}

func encodeContexts(contexts []Context) []byte {
	var b []byte
	for i, c := range contexts {
		one := pack(uint32(0), uint16(16), uint16(4), uint16(0), uint16(24), uint32(len(c.Data)), []byte(c.Name), uint32(0), c.Data)
		if i < len(contexts)-1 {
			one = append(one, make([]byte, -len(one)&7)...)
			le.PutUint32(one, uint32(len(one)))
		}
		b = append(b, one...)
	}
	return b
}

// CreateRequest is a CREATE, MS-SMB2 2.2.13.
func (t *Tree) CreateRequest(p CreateParams) *Request {
	name := utf16le(p.Name)
	nameLen := uint16(len(name))
	if nameLen == 0 {
		name = make([]byte, 8) // the body has a variable part, always
	}
	contexts, contextOff := encodeContexts(p.Contexts), uint32(0)
	if len(contexts) > 0 {
		name = append(name, make([]byte, -len(name)&7)...)
		contextOff = uint32(headerLen + 56 + len(name))
	} else if p.NoContexts {
		contextOff = uint32(headerLen + 56 + len(name))
	}
	const impersonation, shareDelete = 2, 4
	share := uint32(7)
	if p.KeepsName {
		share &^= shareDelete
	}
	access := p.Access
	if p.Options&OptionDeleteOnClose != 0 {
		access |= AccessDelete
	}
	return &Request{
		Command: Create,
		TreeID:  t.ID,
		Body: pack(uint16(57), uint8(0), p.Oplock, uint32(impersonation), uint64(0), uint64(0), access, p.Attributes,
			share, p.Disposition, p.Options, uint16(headerLen+56), nameLen, contextOff, uint32(len(contexts)),
			name, contexts),
	}
}

// File is an open file or directory.
type File struct {
	ID   [16]byte
	Tree *Tree
}

// Conn is the connection of the file's tree.
func (f *File) Conn() *Conn { return f.Tree.conn }

// On is the same tree over another channel of its session.
func (t *Tree) On(c *Conn) *Tree { return &Tree{ID: t.ID, conn: c} }

// On is the same file over another channel of its session.
func (f *File) On(c *Conn) *File { return &File{ID: f.ID, Tree: f.Tree.On(c)} }

// Related stands for the file of the request before, in a related compound.
func (t *Tree) Related() *File {
	f := &File{Tree: t}
	for i := range f.ID {
		f.ID[i] = 0xff
	}
	return f
}

// Granted says whether a CREATE response carries a context of that name.
func (r *Response) Granted(context string) bool {
	return len(r.Body) > 88 && bytes.Contains(r.Body[88:], []byte(context))
}

// Created is the file that a CREATE response opened.
func (t *Tree) Created(r *Response) (*File, error) {
	if len(r.Body) < 80 {
		return nil, fmt.Errorf("CREATE: %w", errShort)
	}
	return &File{ID: [16]byte(r.Body[64:]), Tree: t}, nil
}

// Create opens or creates a file or directory.
func (t *Tree) Create(ctx context.Context, p CreateParams) (*File, error) {
	r, err := t.conn.Do(ctx, t.CreateRequest(p))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	return t.Created(r)
}

// CloseRequest is a CLOSE.
func (f *File) CloseRequest() *Request {
	return &Request{Command: Close, TreeID: f.Tree.ID, Body: pack(uint16(24), uint16(0), uint32(0), f.ID)}
}

// do sends one request for the file and waits for its final response.
func (f *File) do(ctx context.Context, cmd Command, body []byte) (*Response, error) {
	return f.Tree.conn.Do(ctx, &Request{Command: cmd, TreeID: f.Tree.ID, Body: body})
}

// Close closes the handle.
func (f *File) Close(ctx context.Context) error {
	_, err := f.Tree.conn.Do(ctx, f.CloseRequest())
	return err
}

// Write writes data at an offset in bytes, MS-SMB2 2.2.21.
func (f *File) Write(ctx context.Context, offset uint64, data []byte) error {
	_, err := f.do(ctx, Write, pack(uint16(49), uint16(headerLen+48), uint32(len(data)), offset, f.ID,
		uint32(0), uint32(0), uint32(0), uint32(0), data))
	return err
}

// Read reads up to n bytes at an offset, MS-SMB2 2.2.19.
func (f *File) Read(ctx context.Context, offset uint64, n uint32) ([]byte, error) {
	r, err := f.do(ctx, Read, pack(uint16(49), uint16(0), n, offset, f.ID,
		uint32(0), uint32(0), uint32(0), uint32(0), uint8(0)))
	if err != nil {
		return nil, err
	}
	if len(r.Body) < 16 {
		return nil, fmt.Errorf("READ: %w", errShort)
	}
	off, length := int(r.Body[2]), int(le.Uint32(r.Body[4:]))
	if off > len(r.raw) || length > len(r.raw)-off {
		return nil, fmt.Errorf("READ: %w", errShort)
	}
	return r.raw[off : off+length], nil
}

// Delete sets the delete disposition, MS-FSCC 2.4.11.
func (f *File) Delete(ctx context.Context) error { return f.setFile(ctx, 13, []byte{1}) }

// Undelete clears it.
func (f *File) Undelete(ctx context.Context) error { return f.setFile(ctx, 13, []byte{0}) }

// Flush has what was written reach the disk, MS-SMB2 2.2.17.
func (f *File) Flush(ctx context.Context) error {
	_, err := f.do(ctx, Flush, pack(uint16(24), uint16(0), uint32(0), f.ID))
	return err
}

// control has a control code done, MS-SMB2 2.2.31, and gives its output.
func (f *File) control(ctx context.Context, code uint32, in []byte) ([]byte, error) {
	r, err := f.do(ctx, Ioctl, pack(uint16(57), uint16(0), code, f.ID, uint32(headerLen+56), uint32(len(in)), uint32(0),
		uint32(0), uint32(0), uint32(4096), uint32(1), uint32(0), in))
	if err != nil {
		return nil, err
	}
	if len(r.Body) < 40 {
		return nil, fmt.Errorf("IOCTL: %w", errShort)
	}
	off, length := int(le.Uint32(r.Body[32:])), int(le.Uint32(r.Body[36:]))
	if off > len(r.raw) || length > len(r.raw)-off {
		return nil, fmt.Errorf("IOCTL: %w", errShort)
	}
	return r.raw[off : off+length], nil
}

// SetSparse sets or clears FILE_ATTRIBUTE_SPARSE_FILE, MS-FSCC 2.3.69.
func (f *File) SetSparse(ctx context.Context, sparse bool) error {
	_, err := f.control(ctx, 0x900c4, pack(sparse))
	return err
}

// Zero fills a range with zeros, its bounds in bytes, MS-FSCC 2.3.71.
func (f *File) Zero(ctx context.Context, from, to uint64) error {
	_, err := f.control(ctx, 0x980c8, pack(from, to))
	return err
}

// Copy has the server copy n bytes from the beginning of another file to that of this one,
// MS-SMB2 3.3.5.15.6.
func (f *File) Copy(ctx context.Context, from *File, n uint32) error {
	key, err := from.control(ctx, 0x140078, nil)
	if err != nil {
		return err
	}
	if len(key) < 24 {
		return fmt.Errorf("resume key: %w", errShort)
	}
	_, err = f.control(ctx, 0x1440f2, pack(key[:24], uint32(1), uint32(0), uint64(0), uint64(0), n, uint32(0)))
	return err
}

// Query asks for a file information class, MS-SMB2 2.2.37.
func (f *File) Query(ctx context.Context, class uint8) error {
	_, err := f.do(ctx, QueryInfo, pack(uint16(41), uint8(1), class, uint32(4096), uint16(0), uint16(0), uint32(0), uint32(0),
		uint32(0), f.ID))
	return err
}

// Rename renames to a name relative to the share, MS-FSCC 2.4.37.2.
func (f *File) Rename(ctx context.Context, name string, replace bool) error {
	return f.setFile(ctx, 10, target(name, replace))
}

// Link makes a hard link, its name relative to the share, MS-FSCC 2.4.21.2.
func (f *File) Link(ctx context.Context, name string, replace bool) error {
	return f.setFile(ctx, 11, target(name, replace))
}

func target(name string, replace bool) []byte {
	n := utf16le(name)
	return pack(replace, [7]byte{}, uint64(0), uint32(len(n)), n)
}

// Basic is FileBasicInformation, MS-FSCC 2.4.7. What is zero stays as it is.
type Basic struct {
	Creation, LastAccess, LastWrite, Change time.Time
	Attributes                              uint32
}

// File attributes, MS-FSCC 2.6.
const (
	AttributeHidden  uint32 = 0x02
	AttributeArchive uint32 = 0x20
)

// SetBasic sets times and attributes.
func (f *File) SetBasic(ctx context.Context, b Basic) error {
	var info []byte
	for _, t := range []time.Time{b.Creation, b.LastAccess, b.LastWrite, b.Change} {
		var v uint64
		if !t.IsZero() {
			v = filetime(t)
		}
		info = append(info, pack(v)...)
	}
	return f.setFile(ctx, 4, append(info, pack(b.Attributes, uint32(0))...))
}

// SetSize sets the end of the file in bytes, MS-FSCC 2.4.13.
func (f *File) SetSize(ctx context.Context, n uint64) error { return f.setFile(ctx, 20, pack(n)) }

// SetAllocation sets how many bytes are reserved for the file, MS-FSCC 2.4.4.
func (f *File) SetAllocation(ctx context.Context, n uint64) error { return f.setFile(ctx, 19, pack(n)) }

// SetEA sets an extended attribute, MS-FSCC 2.4.15.
func (f *File) SetEA(ctx context.Context, name, value string) error {
	return f.setFile(ctx, 15, fullEA(name, value))
}

// fullEA is FileFullEaInformation of one attribute.
func fullEA(name, value string) []byte {
	return pack(uint32(0), uint8(0), uint8(len(name)), uint16(len(value)), []byte(name), uint8(0), []byte(value))
}

// ACE is an access that a DACL allows, MS-DTYP 2.4.4.2.
type ACE struct {
	SID  []byte // see SID
	Mask uint32
}

// SID is a security identifier, MS-DTYP 2.4.2.2.
func SID(authority uint8, sub ...uint32) []byte {
	return pack(uint8(1), uint8(len(sub)), [5]byte{}, authority, sub)
}

// SetDACL sets the discretionary access control list.
func (f *File) SetDACL(ctx context.Context, aces ...ACE) error {
	const infoSecurity, dacl = 3, 4
	return f.setInfo(ctx, infoSecurity, 0, dacl, descriptor(aces))
}

// descriptor is a security descriptor with a DACL, MS-DTYP 2.4.5, 2.4.6.
func descriptor(aces []ACE) []byte {
	var list []byte
	for _, a := range aces {
		list = append(list, pack(uint8(0), uint8(3), uint16(8+len(a.SID)), a.Mask, a.SID)...) // allowed, inherited by all
	}
	acl := pack(uint8(2), uint8(0), uint16(8+len(list)), uint16(len(aces)), uint16(0), list)
	const present, protected, relative = 0x0004, 0x1000, 0x8000
	return pack(uint8(1), uint8(0), uint16(present|protected|relative), uint32(0), uint32(0), uint32(0), uint32(20), acl)
}

// setFile sets a file information class.
func (f *File) setFile(ctx context.Context, class uint8, info []byte) error {
	return f.setInfo(ctx, 1, class, 0, info)
}

// setInfo is a SET_INFO, MS-SMB2 2.2.39.
func (f *File) setInfo(ctx context.Context, kind, class uint8, additional uint32, info []byte) error {
	_, err := f.do(ctx, SetInfo, pack(uint16(33), kind, class, uint32(len(info)), uint16(headerLen+32),
		uint16(0), additional, f.ID, info))
	return err
}

// List gives the names in a directory as QUERY_DIRECTORY shows them, without
// "." and "..", MS-SMB2 2.2.33 and MS-FSCC 2.4.33.
func (f *File) List(ctx context.Context) ([]string, error) {
	const namesInformation, length = 12, 65536
	flags := uint8(1) // SMB2_RESTART_SCANS, in the first
	var names []string
	for ; ; flags = 0 {
		pattern := utf16le("*")
		r, err := f.do(ctx, QueryDirectory, pack(uint16(33), uint8(namesInformation), flags, uint32(0), f.ID,
			uint16(headerLen+32), uint16(len(pattern)), uint32(length), pattern))
		if errors.Is(err, StatusNoMoreFiles) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		if len(r.Body) < 8 {
			return nil, fmt.Errorf("QUERY_DIRECTORY: %w", errShort)
		}
		off, n := int(le.Uint16(r.Body[2:])), int(le.Uint32(r.Body[4:]))
		if off > len(r.raw) || n > len(r.raw)-off {
			return nil, fmt.Errorf("QUERY_DIRECTORY: %w", errShort)
		}
		for b := r.raw[off : off+n]; ; {
			if len(b) < 12 || int(le.Uint32(b[8:])) > len(b)-12 || int(le.Uint32(b)) > len(b) {
				return nil, fmt.Errorf("QUERY_DIRECTORY: %w", errShort)
			}
			if s := fromUTF16(b[12 : 12+le.Uint32(b[8:])]); s != "." && s != ".." {
				names = append(names, s)
			}
			next := le.Uint32(b)
			if next == 0 {
				break
			}
			b = b[next:]
		}
	}
}
