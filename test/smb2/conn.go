// SPDX-License-Identifier: GPL-2.0-or-later

// Package smb2 is a small SMB2 client for tests that need a say in every
// message: several requests in one compound, an answer that comes in two
// parts, a CANCEL that is faster than the interim response, the credits of
// each header. It is strict: a response that nothing waits for, a second
// interim or final one, a wrong signature end the connection with an error.
//
// One goroutine a connection reads, sorts the responses by MessageId and ends
// with Close. Everything else may be called from any goroutine; every wait
// takes a context.
package smb2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"
)

// Request is one request of a PDU. MessageId, session and signature come from
// the connection.
type Request struct {
	Command Command
	TreeID  uint32
	Charge  uint16 // 0 means 1
	Credits uint16 // to ask for; 0 means 1
	Related bool   // takes session, tree and file of the request before it in the PDU
	Body    []byte
}

// Response is one response of a PDU.
type Response struct {
	Header
	Body      []byte
	Seq       int  // number of the response on its connection, in order of arrival
	Frame     int  // number of the PDU
	Signed    bool // and verified
	Encrypted bool

	raw []byte
}

// Interim says whether it is the interim response of an asynchronous request.
func (r *Response) Interim() bool {
	return r.Status == StatusPending && r.Flags&FlagAsync != 0
}

// Call is a request that was sent.
type Call struct {
	MessageID uint64
	Command   Command

	conn      *Conn
	raw       []byte
	responses chan *Response // an interim one and a final one: never full
	interim   bool           // has come; guarded by conn.mu
}

// Conn is the connection that the request was sent on.
func (c *Call) Conn() *Conn { return c.conn }

// Answered says whether the final response has come, be it received or not.
func (c *Call) Answered() bool {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	return c.conn.calls[c.MessageID] != c
}

// Recv waits for the call's next response, interim or final.
func (c *Call) Recv(ctx context.Context) (*Response, error) {
	var err error
	select {
	case r := <-c.responses:
		return r, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.conn.done:
		err = c.conn.err
	}
	select { // what came before counts
	case r := <-c.responses:
		return r, nil
	default:
		return nil, fmt.Errorf("waiting for %v, message %d: %w", c.Command, c.MessageID, err)
	}
}

// Final waits for the call's final response.
func (c *Call) Final(ctx context.Context) (*Response, error) {
	r, err := c.Recv(ctx)
	if err == nil && r.Interim() {
		r, err = c.Recv(ctx)
	}
	return r, err
}

// Cancel sends a CANCEL by MessageId, MS-SMB2 3.2.4.24. It has no response.
func (c *Call) Cancel(ctx context.Context) error {
	return c.conn.cancel(ctx, Header{MessageID: c.MessageID})
}

// Conn is a connection with at most one session.
type Conn struct {
	nc          net.Conn
	options     Options
	dialect     Dialect
	maxTransact uint32
	preauth     []byte // the hash of MS-SMB2 3.1.4.4.1, up to the session's setup

	sending sync.Mutex // keeps MessageIds in the order of the socket

	mu      sync.Mutex // guards what follows
	nextID  uint64
	credits int
	calls   map[uint64]*Call
	session uint64
	keys    *keys
	binding *keys // of the session that the connection is being bound to
	signing bool
	raw     *Raw       // takes what comes, see Conn.Raw
	stalled bool       // reads nothing any more, see Conn.Stall
	paused  bool       // reads nothing for a while, see Conn.Pause
	reads   bool       // is about to take the next response, or has ended
	turned  *sync.Cond // one of these two has changed

	breaks  chan *Response
	closing sync.Once
	closed  chan struct{} // by this side
	done    chan struct{} // closed when the reader has ended
	err     error         // why; set before done is closed
}

func newConn(nc net.Conn) *Conn {
	c := &Conn{nc: nc, credits: 1, calls: make(map[uint64]*Call), breaks: make(chan *Response, maxBreaks),
		closed: make(chan struct{}), done: make(chan struct{})}
	c.turned = sync.NewCond(&c.mu)
	go c.read()
	return c
}

// maxBreaks is how many notifications of OPLOCK_BREAK may wait to be looked at.
const maxBreaks = 16

// Breaks are the server's notifications that an oplock or a lease is to be given up, MS-SMB2 2.2.23. Nothing answers them
// by itself.
func (c *Conn) Breaks() <-chan *Response { return c.breaks }

// Close drops the TCP connection with no word to the server and waits for the
// reader. Calls still pending fail.
func (c *Conn) Close() error {
	err := c.nc.Close()
	c.closing.Do(func() { close(c.closed) })
	<-c.done
	return err
}

// Stall has the connection read nothing any more until it is closed.
func (c *Conn) Stall() {
	c.mu.Lock()
	c.stalled = true
	c.mu.Unlock()
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// Pause has nothing read after the response that comes next, until resume is called.
func (c *Conn) Pause() (resume func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.reads { // else that would not be read either
		c.turned.Wait()
	}
	c.paused = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.paused = false
		c.turned.Broadcast()
	}
}

// Reset is Close, with a TCP reset.
func (c *Conn) Reset() error {
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	return c.Close()
}

// Err is nil while the connection works.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Credits is what the server has granted and no request has used.
func (c *Conn) Credits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.credits
}

// SessionID is that of the connection's session, or 0.
func (c *Conn) SessionID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// MaxTransact is the server's MaxTransactSize in bytes.
func (c *Conn) MaxTransact() uint32 { return c.maxTransact }

// Send sends all requests in one PDU, as a compound where there are several.
func (c *Conn) Send(ctx context.Context, reqs ...*Request) ([]*Call, error) {
	c.sending.Lock()
	defer c.sending.Unlock()
	calls, headers, err := c.register(reqs)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	k, session, signing := c.keys, c.session, c.signing
	if c.binding != nil {
		k, signing = &keys{mac: c.binding.mac}, true
	}
	c.mu.Unlock()

	var frame []byte
	for i, r := range reqs {
		h, pad := headers[i], 0
		if i < len(reqs)-1 {
			pad = -len(r.Body) & 7
			h.NextCommand = uint32(headerLen + len(r.Body) + pad)
		}
		msg := pack(h.encode(), r.Body, make([]byte, pad))
		// MS-SMB2 3.2.4.1.1: with 3.1.1 a TREE_CONNECT is always signed.
		if k != nil && k.encrypt == nil && (signing || c.dialect == Dialect311 && r.Command == TreeConnect) {
			k.sign(msg)
		}
		calls[i].raw = msg
		frame = append(frame, msg...)
	}
	if k != nil && k.encrypt != nil {
		frame = k.seal(session, frame)
	}
	if err := c.write(ctx, frame); err != nil {
		return nil, fmt.Errorf("sending %v: %w", reqs[0].Command, err)
	}
	return calls, nil
}

// register makes the calls and headers of a PDU and takes their credits.
func (c *Conn) register(reqs []*Request) ([]*Call, []Header, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	charge := 0
	for _, r := range reqs {
		charge += int(max(r.Charge, 1))
	}
	if charge > c.credits {
		return nil, nil, fmt.Errorf("sending %v: needs %d credits, has %d", reqs[0].Command, charge, c.credits)
	}
	c.credits -= charge
	calls, headers := make([]*Call, len(reqs)), make([]Header, len(reqs))
	for i, r := range reqs {
		h := Header{
			CreditCharge: max(r.Charge, 1),
			Command:      r.Command,
			Credits:      max(r.Credits, 1),
			MessageID:    c.nextID,
			ID:           uint64(r.TreeID) << 32,
			SessionID:    c.session,
		}
		c.nextID += uint64(h.CreditCharge)
		if c.dialect <= Dialect202 { // also before the negotiation
			h.CreditCharge = 0
		}
		if r.Related {
			h.Flags, h.ID, h.SessionID = FlagRelated, 0xffffffff<<32, ^uint64(0)
		}
		headers[i] = h
		calls[i] = &Call{MessageID: h.MessageID, Command: r.Command, conn: c, responses: make(chan *Response, 2)}
		c.calls[h.MessageID] = calls[i]
	}
	return calls, headers, nil
}

// NextID is the MessageId that the next request will have.
func (c *Conn) NextID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nextID
}

// CancelMessage sends a CANCEL of a request by its MessageId, which need not be sent yet.
func (c *Conn) CancelMessage(ctx context.Context, id uint64) error {
	return c.cancel(ctx, Header{MessageID: id})
}

// CancelAsync sends a CANCEL by AsyncId, MS-SMB2 3.2.4.24. It has no response.
func (c *Conn) CancelAsync(ctx context.Context, id uint64) error {
	return c.cancel(ctx, Header{Flags: FlagAsync, ID: id})
}

// CancelAs sends a CANCEL by AsyncId, or by MessageId without FlagAsync, in the name of a session.
func (c *Conn) CancelAs(ctx context.Context, session uint64, flags Flags, id uint64) error {
	h := Header{SessionID: session, Flags: flags, MessageID: id}
	if flags&FlagAsync != 0 {
		h.MessageID, h.ID = 0, id
	}
	return c.cancel(ctx, h)
}

// cancel sends a CANCEL: it takes no MessageId and no credit of its own. Without a session it is the connection's.
func (c *Conn) cancel(ctx context.Context, h Header) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.mu.Lock()
	k, signing := c.keys, c.signing
	h.Command = Cancel
	if h.SessionID == 0 {
		h.SessionID = c.session
	}
	c.mu.Unlock()
	frame := pack(h.encode(), uint16(4), uint16(0))
	switch {
	case k != nil && k.encrypt != nil:
		frame = k.seal(h.SessionID, frame)
	case signing:
		k.sign(frame)
	}
	if err := c.write(ctx, frame); err != nil {
		return fmt.Errorf("sending CANCEL: %w", err)
	}
	return nil
}

// write sends one frame; c.sending is held. A failed write leaves half a frame
// behind, so it ends the connection.
func (c *Conn) write(ctx context.Context, frame []byte) error {
	// Direct TCP transport: a zero byte and 24 bits of length, MS-SMB2 2.1.
	return c.writeBytes(ctx, append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
}

// writeBytes sends bytes that need not be a frame.
func (c *Conn) writeBytes(ctx context.Context, b []byte) error {
	deadline, _ := ctx.Deadline() // none: no limit but the context's end
	if err := c.nc.SetWriteDeadline(deadline); err != nil {
		return c.ended(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { c.nc.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := c.nc.Write(b)
	if err != nil {
		c.nc.Close()
	}
	return c.ended(ctx, err)
}

// ended returns why the reader has closed the connection, if that is what err comes of.
func (c *Conn) ended(ctx context.Context, err error) error {
	if !errors.Is(err, net.ErrClosed) {
		return err
	}
	c.mu.Lock()
	stalled := c.stalled // the reader goes on until this side closes
	c.mu.Unlock()
	if stalled {
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return err
	}
}

// read takes responses until the connection ends.
func (c *Conn) read() {
	defer close(c.done)
	defer c.nc.Close()
	for frame, seq := 0, 0; ; frame++ {
		c.mu.Lock()
		for c.paused {
			c.turned.Wait()
		}
		c.reads = true
		c.turned.Broadcast()
		c.mu.Unlock()
		var prefix [4]byte
		_, err := io.ReadFull(c.nc, prefix[:])
		b := make([]byte, binary.BigEndian.Uint32(prefix[:])&0xffffff)
		if err == nil {
			_, err = io.ReadFull(c.nc, b)
		}
		c.mu.Lock()
		raw := c.raw
		c.reads = err != nil
		c.mu.Unlock()
		if err == nil && raw != nil {
			raw.take(b)
			continue
		}
		var responses []*Response
		if err == nil {
			responses, err = c.split(b)
		}
		for i := 0; err == nil && i < len(responses); i++ {
			responses[i].Frame, responses[i].Seq = frame, seq
			err = c.deliver(responses[i])
			seq++
		}
		if err != nil {
			c.mu.Lock()
			stalled := c.stalled
			c.mu.Unlock()
			if stalled {
				<-c.closed
			}
			c.err = fmt.Errorf("frame %d: %w", frame, err)
			return
		}
	}
}

// split decrypts a frame, takes it apart and verifies what is signed.
func (c *Conn) split(b []byte) ([]*Response, error) {
	c.mu.Lock()
	k := c.keys
	c.mu.Unlock()
	encrypted := bytes.HasPrefix(b, []byte("\xfdSMB"))
	if encrypted {
		var err error
		if b, err = k.open(b); err != nil {
			return nil, fmt.Errorf("decrypting: %w", err)
		}
	}
	var responses []*Response
	for more := true; more; {
		h, err := decodeHeader(b)
		if err != nil {
			return nil, err
		}
		msg := b
		if more = h.NextCommand != 0; more {
			if h.NextCommand < headerLen || h.NextCommand%8 != 0 || uint64(h.NextCommand) > uint64(len(b)) {
				return nil, fmt.Errorf("%v: next command at %d", h.Command, h.NextCommand)
			}
			msg, b = b[:h.NextCommand], b[h.NextCommand:]
		}
		r := &Response{Header: h, Body: msg[headerLen:], Encrypted: encrypted, raw: msg}
		// The last SESSION_SETUP is signed with a key that it makes: verified there.
		// ksmbd knows no key of a session that is gone, and says that it is with the flag all the same.
		if h.Flags&FlagSigned != 0 && k != nil && h.Status != StatusUserSessionDeleted {
			if k.signature(msg) != h.Signature {
				return nil, fmt.Errorf("%v, message %d, %v: wrong signature", h.Command, h.MessageID, h.Status)
			}
			r.Signed = true
		}
		responses = append(responses, r)
	}
	return responses, nil
}

// deliver hands a response to its call.
func (c *Conn) deliver(r *Response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[r.MessageID]
	switch {
	case r.Flags&FlagServerToRedir == 0:
		return fmt.Errorf("%v, message %d: not a response", r.Command, r.MessageID)
	case r.Command == OplockBreak && r.MessageID == math.MaxUint64:
		select {
		case c.breaks <- r:
			return nil
		default:
			return fmt.Errorf("%d notifications of %v that nobody looks at", maxBreaks, r.Command)
		}
	case r.Command == Cancel && r.Status == StatusUserSessionDeleted:
		return nil // ksmbd looks for the session before it looks at the command
	case call == nil:
		return fmt.Errorf("%v, message %d, %v: nothing waits for it", r.Command, r.MessageID, r.Status)
	case call.Command != r.Command:
		return fmt.Errorf("%v, message %d, %v: answers a %v", r.Command, r.MessageID, r.Status, call.Command)
	case r.Command == ChangeNotify && r.SessionID != c.session: // whatever a related request said
		return fmt.Errorf("%v, message %d: of session %#x", r.Command, r.MessageID, r.SessionID)
	case !r.Interim():
		delete(c.calls, r.MessageID)
	case call.interim:
		return fmt.Errorf("%v, message %d: a second interim response", r.Command, r.MessageID)
	default:
		call.interim = true
	}
	c.credits += int(r.Header.Credits)
	call.responses <- r
	return nil
}
