// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"context"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"net"
	"time"
)

// Dialect is an SMB2 dialect revision, MS-SMB2 2.2.3.
type Dialect uint16

const (
	Dialect202 Dialect = 0x0202
	Dialect210 Dialect = 0x0210
	Dialect300 Dialect = 0x0300
	Dialect302 Dialect = 0x0302
	Dialect311 Dialect = 0x0311
)

func (d Dialect) String() string { return fmt.Sprintf("%d.%d.%d", d>>8, d>>4&15, d&15) }

// Options say how a connection is made.
type Options struct {
	Dialect        Dialect // the only one offered
	User, Password string
	Sign           bool   // sign every message, and demand it
	Encrypt        bool   // AES-128-GCM, every message after the session setup; 3.1.1 only
	Credits        uint16 // to ask for while the session is set up
}

// errShort is a response too short for its command.
var errShort = errors.New("short response")

// Dial connects, negotiates and sets up a session, MS-SMB2 3.2.4.2.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	if o.Encrypt && o.Dialect != Dialect311 {
		return nil, errors.New("encryption needs dialect 3.1.1")
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := newConn(nc)
	preauth, err := c.negotiate(ctx, o)
	if err == nil {
		err = c.sessionSetup(ctx, o, preauth)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (o *Options) securityMode() uint16 {
	if o.Sign {
		return 2 // SMB2_NEGOTIATE_SIGNING_REQUIRED
	}
	return 1 // SMB2_NEGOTIATE_SIGNING_ENABLED
}

// negotiate gives the preauthentication hash so far, MS-SMB2 2.2.3, 2.2.4.
func (c *Conn) negotiate(ctx context.Context, o Options) ([]byte, error) {
	var guid [16]byte
	var capabilities uint32
	if o.Dialect > Dialect202 {
		rand.Read(guid[:])
		capabilities = 0x04 // SMB2_GLOBAL_CAP_LARGE_MTU
	}
	if o.Encrypt {
		capabilities |= 0x40 // SMB2_GLOBAL_CAP_ENCRYPTION
	}
	contexts, offset, count := []byte(nil), uint32(0), uint16(0)
	if o.Dialect == Dialect311 {
		offset, count = 104, 1 // header, body, one dialect, aligned to 8
		salt := make([]byte, 32)
		rand.Read(salt)
		preauth := pack(uint16(1), uint16(len(salt)), uint16(1), salt) // SHA-512
		contexts = pack(uint16(0), uint16(1), uint16(len(preauth)), uint32(0), preauth)
		if o.Encrypt {
			count = 2
			pad := make([]byte, -(len(contexts)-2)&7)
			contexts = pack(contexts, pad, uint16(2), uint16(4), uint32(0), uint16(1), uint16(2)) // AES-128-GCM
		}
	}
	r, call, err := c.roundTrip(ctx, &Request{
		Command: Negotiate,
		Body: pack(uint16(36), uint16(1), o.securityMode(), uint16(0), capabilities, guid, offset, count, uint16(0),
			uint16(o.Dialect), contexts),
	})
	if err != nil {
		return nil, err
	}
	if len(r.Body) < 64 {
		return nil, fmt.Errorf("NEGOTIATE: %w", errShort)
	}
	if got := Dialect(le.Uint16(r.Body[4:])); got != o.Dialect {
		return nil, fmt.Errorf("NEGOTIATE: asked for %v, got %v", o.Dialect, got)
	}
	if o.Encrypt && !agreedGCM(r) {
		return nil, errors.New("NEGOTIATE: the server does not agree to AES-128-GCM")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialect, c.maxTransact = o.Dialect, le.Uint32(r.Body[28:])
	return preauthHash(make([]byte, sha512.Size), call.raw, r.raw), nil
}

// agreedGCM looks for the encryption context of a NEGOTIATE response.
func agreedGCM(r *Response) bool {
	off := int(le.Uint32(r.Body[60:]))
	for range le.Uint16(r.Body[6:]) {
		if off < headerLen || off > len(r.raw)-12 {
			return false
		}
		b := r.raw[off:]
		if le.Uint16(b) == 2 {
			return le.Uint16(b[8:]) == 1 && le.Uint16(b[10:]) == 2
		}
		off += (8 + int(le.Uint16(b[2:])) + 7) &^ 7
	}
	return false
}

// preauthHash adds messages to the hash of MS-SMB2 3.1.4.4.1.
func preauthHash(hash []byte, messages ...[]byte) []byte {
	for _, m := range messages {
		h := sha512.New()
		h.Write(hash)
		h.Write(m)
		hash = h.Sum(nil)
	}
	return hash
}

// sessionSetup logs on with NTLMv2, without SPNEGO around it.
func (c *Conn) sessionSetup(ctx context.Context, o Options, preauth []byte) error {
	request := func(token []byte) *Request {
		return &Request{
			Command: SessionSetup,
			Credits: o.Credits,
			Body: pack(uint16(25), uint8(0), uint8(o.securityMode()), uint32(0), uint32(0), uint16(headerLen+24),
				uint16(len(token)), uint64(0), token),
		}
	}
	r, call, err := c.roundTrip(ctx, request(ntlmNegotiate()))
	if !errors.Is(err, StatusMoreProcessingRequired) {
		return fmt.Errorf("SESSION_SETUP: no challenge: %w", err)
	}
	preauth = preauthHash(preauth, call.raw, r.raw)
	if len(r.Body) < 8 {
		return fmt.Errorf("SESSION_SETUP: %w", errShort)
	}
	off, length := int(le.Uint16(r.Body[4:])), int(le.Uint16(r.Body[6:]))
	if off > len(r.raw) || length > len(r.raw)-off {
		return fmt.Errorf("SESSION_SETUP: %w", errShort)
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	token, key, err := ntlmAuthenticate(r.raw[off:off+length], o.User, o.Password, nonce, time.Now())
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.session = r.SessionID
	c.mu.Unlock()
	if r, call, err = c.roundTrip(ctx, request(token)); err != nil {
		return err
	}
	k, err := newKeys(o.Dialect, o.Encrypt, key, preauthHash(preauth, call.raw))
	if err != nil {
		return err
	}
	// MS-SMB2 3.3.5.5.3: with 3.1.1 the last response is always signed.
	if r.Flags&FlagSigned == 0 && (o.Sign || o.Dialect == Dialect311) {
		return errors.New("SESSION_SETUP: the last response is not signed")
	}
	if r.Flags&FlagSigned != 0 && k.signature(r.raw) != r.Signature {
		return errors.New("SESSION_SETUP: wrong signature")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys, c.signing = k, o.Sign && !o.Encrypt
	return nil
}

// roundTrip sends one request and waits for its final response. A status other
// than SUCCESS is an error, and the response is there all the same.
func (c *Conn) roundTrip(ctx context.Context, req *Request) (*Response, *Call, error) {
	calls, err := c.Send(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	r, err := calls[0].Final(ctx)
	if err != nil {
		return nil, nil, err
	}
	if r.Status != StatusSuccess {
		return r, calls[0], fmt.Errorf("%v: %w", req.Command, r.Status)
	}
	return r, calls[0], nil
}

// Do sends one request and waits for its final response. A status other than
// SUCCESS is an error.
func (c *Conn) Do(ctx context.Context, req *Request) (*Response, error) {
	r, _, err := c.roundTrip(ctx, req)
	return r, err
}

// EchoRequest is an ECHO.
func EchoRequest() *Request { return &Request{Command: Echo, Body: pack(uint16(4), uint16(0))} }

// LogoffRequest is a LOGOFF.
func LogoffRequest() *Request { return &Request{Command: Logoff, Body: pack(uint16(4), uint16(0))} }

// Tree is a connected share.
type Tree struct {
	ID   uint32
	conn *Conn
}

// TreeConnect connects a share, MS-SMB2 2.2.9.
func (c *Conn) TreeConnect(ctx context.Context, share string) (*Tree, error) {
	host, _, err := net.SplitHostPort(c.nc.RemoteAddr().String())
	if err != nil {
		return nil, err
	}
	path := utf16le(`\\` + host + `\` + share)
	r, err := c.Do(ctx, &Request{
		Command: TreeConnect,
		Body:    pack(uint16(9), uint16(0), uint16(headerLen+8), uint16(len(path)), path),
	})
	if err != nil {
		return nil, err
	}
	return &Tree{ID: uint32(r.ID >> 32), conn: c}, nil
}

// DisconnectRequest is a TREE_DISCONNECT.
func (t *Tree) DisconnectRequest() *Request {
	return &Request{Command: TreeDisconnect, TreeID: t.ID, Body: pack(uint16(4), uint16(0))}
}

// Access rights, MS-SMB2 2.2.13.1.
const (
	AccessListDirectory  uint32 = 0x00000001 // FILE_READ_DATA of a file
	AccessReadAttributes uint32 = 0x00000080
	AccessDelete         uint32 = 0x00010000
	AccessMaximum        uint32 = 0x02000000
)

// CreateDisposition and CreateOptions, MS-SMB2 2.2.13.
const (
	DispositionOpen   uint32 = 1
	DispositionCreate uint32 = 2
	OptionDirectory   uint32 = 0x01
	OptionFile        uint32 = 0x40
)

// CreateParams are those of a CREATE request. Everything is shared.
type CreateParams struct {
	Name        string // relative to the share, with backslashes; empty is its root
	Access      uint32
	Disposition uint32
	Options     uint32
}

// CreateRequest is a CREATE, MS-SMB2 2.2.13.
func (t *Tree) CreateRequest(p CreateParams) *Request {
	name := utf16le(p.Name)
	nameLen := uint16(len(name))
	if nameLen == 0 {
		name = make([]byte, 8) // the body has a variable part, always
	}
	const impersonation, share = 2, 7
	return &Request{
		Command: Create,
		TreeID:  t.ID,
		Body: pack(uint16(57), uint8(0), uint8(0), uint32(impersonation), uint64(0), uint64(0), p.Access, uint32(0),
			uint32(share), p.Disposition, p.Options, uint16(headerLen+56), nameLen, uint32(0), uint32(0), name),
	}
}

// File is an open file or directory.
type File struct {
	ID   [16]byte
	Tree *Tree
}

// Conn is the connection of the file's tree.
func (f *File) Conn() *Conn { return f.Tree.conn }

// Related stands for the file of the request before, in a related compound.
func (t *Tree) Related() *File {
	f := &File{Tree: t}
	for i := range f.ID {
		f.ID[i] = 0xff
	}
	return f
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
func (f *File) Delete(ctx context.Context) error { return f.setInfo(ctx, 13, []byte{1}) }

// Rename renames to a name relative to the share, MS-FSCC 2.4.37.2.
func (f *File) Rename(ctx context.Context, name string, replace bool) error {
	n := utf16le(name)
	return f.setInfo(ctx, 10, pack(replace, [7]byte{}, uint64(0), uint32(len(n)), n))
}

// setInfo sets a file information class, MS-SMB2 2.2.39.
func (f *File) setInfo(ctx context.Context, class uint8, info []byte) error {
	_, err := f.do(ctx, SetInfo, pack(uint16(33), uint8(1), class, uint32(len(info)), uint16(headerLen+32),
		uint16(0), uint32(0), f.ID, info))
	return err
}
