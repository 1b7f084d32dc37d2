// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"context"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"net"
	"syscall"
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
	Cipher         Cipher // for every message after the session setup
	Credits        uint16 // to ask for while the session is set up

	ClientGUID [16]byte // zero: made up

	// Ticket makes a security token with a Kerberos ticket and gives the key that goes with it: to log on so instead.
	Ticket func() (token, key []byte, err error)

	PreviousSession uint64 // the one that this replaces, MS-SMB2 2.2.5
	ReadBuffer      int    // of the socket, in bytes; 0: the system's
}

// errShort is a response too short for its command.
var errShort = errors.New("short response")

// Dial connects, negotiates and sets up a session, MS-SMB2 3.2.4.2.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	if o.ClientGUID == [16]byte{} {
		rand.Read(o.ClientGUID[:])
	}
	return dial(ctx, addr, o, nil)
}

// Bind connects once more and binds the new connection to c's session, with
// c's options. MS-SMB2 3.2.4.1.7 calls it a channel.
func (c *Conn) Bind(ctx context.Context) (*Conn, error) {
	return dial(ctx, c.nc.RemoteAddr().String(), c.options, c)
}

func dial(ctx context.Context, addr string, o Options, main *Conn) (*Conn, error) {
	if ccm := o.Cipher == AES128CCM; o.Cipher != CipherNone && o.Dialect < Dialect311 && (!ccm || o.Dialect < Dialect300) {
		return nil, fmt.Errorf("dialect %v has no %v", o.Dialect, o.Cipher)
	}
	c, err := Connect(ctx, addr, o)
	if err != nil {
		return nil, err
	}
	if err := c.sessionSetup(ctx, main, c.preauth); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Connect connects and negotiates, and leaves it at that.
func Connect(ctx context.Context, addr string, o Options) (*Conn, error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if o.ReadBuffer > 0 { // before the window is offered
			raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, o.ReadBuffer)
				if err == nil { // so small a window would hardly ever open for segments of loopback's size
					err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1400)
				}
			})
		}
		return err
	}}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := newConn(nc)
	c.options = o
	if c.preauth, err = c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// LogOn sets up the session that the options name, or tries to once more.
func (c *Conn) LogOn(ctx context.Context) error { return c.sessionSetup(ctx, nil, c.preauth) }

func (o *Options) securityMode() uint16 {
	if o.Sign {
		return 2 // SMB2_NEGOTIATE_SIGNING_REQUIRED
	}
	return 1 // SMB2_NEGOTIATE_SIGNING_ENABLED
}

// negotiate gives the preauthentication hash so far, MS-SMB2 2.2.3, 2.2.4.
func (c *Conn) negotiate(ctx context.Context) ([]byte, error) {
	o := c.options
	guid, capabilities := o.ClientGUID, uint32(0x04) // SMB2_GLOBAL_CAP_LARGE_MTU
	switch {
	case o.Dialect <= Dialect202:
		guid, capabilities = [16]byte{}, 0
	case o.Dialect >= Dialect300:
		capabilities |= 0x2a // SMB2_GLOBAL_CAP_LEASING, MULTI_CHANNEL, DIRECTORY_LEASING
	}
	if o.Cipher != CipherNone {
		capabilities |= 0x40 // SMB2_GLOBAL_CAP_ENCRYPTION
	}
	contexts, offset, count := []byte(nil), uint32(0), uint16(0)
	if o.Dialect == Dialect311 {
		offset, count = 104, 1 // header, body, one dialect, aligned to 8
		salt := make([]byte, 32)
		rand.Read(salt)
		preauth := pack(uint16(1), uint16(len(salt)), uint16(1), salt) // SHA-512
		contexts = pack(uint16(0), uint16(1), uint16(len(preauth)), uint32(0), preauth)
		if o.Cipher != CipherNone {
			count = 2
			pad := make([]byte, -(len(contexts)-2)&7)
			contexts = pack(contexts, pad, uint16(2), uint16(4), uint32(0), uint16(1), o.Cipher)
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
	// Before 3.1.1 the server's capability says what it could do.
	if got := agreedCipher(r); got != o.Cipher && (o.Cipher != CipherNone || o.Dialect == Dialect311) {
		return nil, fmt.Errorf("NEGOTIATE: asked for the cipher %v, got %v", o.Cipher, got)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialect, c.maxTransact = o.Dialect, le.Uint32(r.Body[28:])
	return preauthHash(make([]byte, sha512.Size), call.raw, r.raw), nil
}

// agreedCipher looks for the encryption context of a NEGOTIATE response, or
// before 3.1.1 for the capability.
func agreedCipher(r *Response) Cipher {
	if Dialect(le.Uint16(r.Body[4:])) < Dialect311 {
		if le.Uint32(r.Body[24:])&0x40 != 0 {
			return AES128CCM
		}
		return CipherNone
	}
	off := int(le.Uint32(r.Body[60:]))
	for range le.Uint16(r.Body[6:]) {
		if off < headerLen || off > len(r.raw)-12 {
			return CipherNone
		}
		b := r.raw[off:]
		if le.Uint16(b) == 2 && le.Uint16(b[8:]) == 1 {
			return Cipher(le.Uint16(b[10:]))
		}
		off += (8 + int(le.Uint16(b[2:])) + 7) &^ 7
	}
	return CipherNone
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

// sessionSetup logs on, with NTLMv2 without SPNEGO around it or with a ticket, and binds to the session of main if there is
// one.
func (c *Conn) sessionSetup(ctx context.Context, main *Conn, preauth []byte) error {
	o, flags := c.options, uint8(0)
	if main != nil {
		main.mu.Lock()
		c.session, c.binding = main.session, main.keys
		main.mu.Unlock()
		flags = 1 // SMB2_SESSION_FLAG_BINDING
	}
	request := func(token []byte) *Request {
		r := SetupRequest(token)
		r.Credits = o.Credits
		r.Body[2], r.Body[3] = flags, uint8(o.securityMode())
		le.PutUint64(r.Body[16:], o.PreviousSession)
		return r
	}
	logOn := o.Ticket
	if logOn == nil {
		r, call, err := c.roundTrip(ctx, request(ntlmNegotiate()))
		if !errors.Is(err, StatusMoreProcessingRequired) {
			return fmt.Errorf("SESSION_SETUP: no challenge: %w", err)
		}
		preauth = preauthHash(preauth, call.raw, r.raw)
		c.mu.Lock()
		c.session = r.SessionID
		c.mu.Unlock()
		logOn = func() (token, key []byte, err error) { return o.answer(r) }
	}
	token, key, err := logOn()
	if err != nil {
		return err
	}
	r, call, err := c.roundTrip(ctx, request(token))
	if err != nil {
		return err
	}
	k, err := newKeys(o.Dialect, o.Cipher, key, preauthHash(preauth, call.raw))
	if err != nil {
		return err
	}
	if main != nil { // MS-SMB2 3.2.5.3.3: a channel has a signing key of its own, and no more
		k.encrypt, k.decrypt = c.binding.encrypt, c.binding.decrypt
	}
	// MS-SMB2 3.3.5.5.3: with 3.1.1 the last response is always signed.
	if r.Flags&FlagSigned == 0 && (o.Sign || o.Dialect == Dialect311 || main != nil) {
		return errors.New("SESSION_SETUP: the last response is not signed")
	}
	if r.Flags&FlagSigned != 0 && k.signature(r.raw) != r.Signature {
		return errors.New("SESSION_SETUP: wrong signature")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.keys, c.signing, c.binding = r.SessionID, k, o.Sign && o.Cipher == CipherNone, nil
	return nil
}

// answer answers the NTLM challenge in a SESSION_SETUP response.
func (o *Options) answer(r *Response) (token, key []byte, err error) {
	if len(r.Body) < 8 {
		return nil, nil, fmt.Errorf("SESSION_SETUP: %w", errShort)
	}
	off, length := int(le.Uint16(r.Body[4:])), int(le.Uint16(r.Body[6:]))
	if off > len(r.raw) || length > len(r.raw)-off {
		return nil, nil, fmt.Errorf("SESSION_SETUP: %w", errShort)
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	return ntlmAuthenticate(r.raw[off:off+length], o.User, o.Password, nonce, time.Now())
}

// Reauthenticate logs on again with a new ticket, MS-SMB2 3.2.4.2.3: the session goes on, with the keys it has.
func (c *Conn) Reauthenticate(ctx context.Context) error {
	token, _, err := c.options.Ticket()
	if err != nil {
		return err
	}
	_, err = c.Do(ctx, SetupRequest(token))
	return err
}

// SetupRequest is a SESSION_SETUP with a security token, MS-SMB2 2.2.5.
func SetupRequest(token []byte) *Request {
	return &Request{
		Command: SessionSetup,
		Body: pack(uint16(25), uint8(0), uint8(1), uint32(0), uint32(0), uint16(headerLen+24), uint16(len(token)),
			uint64(0), token),
	}
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
