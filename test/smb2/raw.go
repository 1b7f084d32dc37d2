// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
)

// Raw sends bytes of any kind on a connection and takes whatever comes back.
// Where there is a session, its ids are for use in what is sent.
type Raw struct {
	SessionID uint64

	conn    *Conn
	answers chan uint64 // MessageIds of ECHOs that were answered, see Sync
	echoes  uint64

	frames int    // taken; guarded by conn.mu, as what follows
	last   []byte // the beginning of the last of them
}

// syncID is where the MessageIds of Sync begin: far from all others.
const syncID = 1 << 48

// DialRaw connects and says nothing.
func DialRaw(ctx context.Context, addr string) (*Raw, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newConn(nc).Raw(), nil
}

// Raw gives up all that a client knows of its connection: calls that pend
// have no answer any more.
func (c *Conn) Raw() *Raw {
	r := &Raw{conn: c, answers: make(chan uint64, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.SessionID = c.session
	c.raw = r
	return r
}

// Write sends one frame, its length before it.
func (r *Raw) Write(ctx context.Context, frame []byte) error { return r.conn.write(ctx, frame) }

// WriteBytes sends bytes as they are, in no frame.
func (r *Raw) WriteBytes(ctx context.Context, b []byte) error {
	r.conn.sending.Lock()
	defer r.conn.sending.Unlock()
	return r.conn.writeBytes(ctx, b)
}

// Seal encrypts a frame if the connection encrypts.
func (r *Raw) Seal(frame []byte) []byte {
	r.conn.mu.Lock()
	k := r.conn.keys
	r.conn.mu.Unlock()
	if k == nil || k.encrypt == nil {
		return frame
	}
	return k.seal(r.SessionID, frame)
}

// Close drops the connection with no word to the server.
func (r *Raw) Close() error { return r.conn.Close() }

// Closed says whether the server has dropped the connection.
func (r *Raw) Closed() bool { return r.conn.Err() != nil }

// Sync waits until the server has answered an ECHO, with whatever status, or
// dropped the connection. An error means that it did neither.
func (r *Raw) Sync(ctx context.Context) error {
	r.echoes++
	id := syncID + r.echoes
	h := Header{Command: Echo, CreditCharge: 1, Credits: 64, MessageID: id, SessionID: r.SessionID}
	if r.Write(ctx, r.Seal(pack(h.encode(), uint16(4), uint16(0)))) != nil && ctx.Err() == nil {
		return nil
	}
	for {
		select {
		case got := <-r.answers:
			if got == id {
				return nil
			}
		case <-r.conn.done:
			return nil
		case <-ctx.Done():
			r.conn.mu.Lock()
			defer r.conn.mu.Unlock()
			return fmt.Errorf("%v: no answer to an ECHO, and the connection lives; the last of %d frames was % x: %w",
				r.conn.nc.LocalAddr(), r.frames, r.last, ctx.Err())
		}
	}
}

// take looks only for the answers that Sync waits for.
func (r *Raw) take(b []byte) {
	r.conn.mu.Lock()
	r.frames, r.last = r.frames+1, b[:min(len(b), headerLen)]
	r.conn.mu.Unlock()
	if bytes.HasPrefix(b, []byte("\xfdSMB")) {
		r.conn.mu.Lock()
		k := r.conn.keys
		r.conn.mu.Unlock()
		if k == nil || k.decrypt == nil {
			return
		}
		var err error
		if b, err = k.open(b); err != nil {
			return
		}
	}
	if len(b) < headerLen {
		return
	}
	id := binary.LittleEndian.Uint64(b[24:])
	if id <= syncID || Command(le.Uint16(b[12:])) != Echo {
		return
	}
	select {
	case r.answers <- id:
	case <-r.answers: // nobody waits for the one before any more
		r.answers <- id
	}
}
