// SPDX-License-Identifier: GPL-2.0-or-later

package fuzz

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// corpus has a line for each PDU: its name and its bytes in hexadecimal, in
// parts, of which one that ends in *n is there n times.
//
//go:embed testdata/smb.txt
var corpus string

// PDU is one frame as a client sends it.
type PDU struct {
	Name string
	Data []byte
}

// PDUs are those of the corpus: what smbclient, cifs.ko and smbtorture send,
// and what has found a fault.
func PDUs() ([]PDU, error) {
	var pdus []PDU
	for line := range strings.Lines(corpus) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Fields(line)
		var data []byte
		for _, part := range parts[1:] {
			text, times, repeated := strings.Cut(part, "*")
			b, err := hex.DecodeString(text)
			n := 1
			if repeated && err == nil {
				n, err = strconv.Atoi(times)
			}
			if err != nil {
				return nil, fmt.Errorf("corpus: %s: %w", parts[0], err)
			}
			data = append(data, bytes.Repeat(b, n)...)
		}
		if len(data) < 4 {
			return nil, fmt.Errorf("corpus: %s: %d bytes", parts[0], len(data))
		}
		pdus = append(pdus, PDU{parts[0], data})
	}
	return pdus, nil
}

// Session is what of a connection the PDUs of the corpus are made to fit.
type Session struct {
	ID        uint64
	Tree      uint32
	Files     [][16]byte // open ones, a watched directory among them
	MessageID uint64     // the next
}

// Offsets in the SMB2 header, MS-SMB2 2.2.1, and its length.
const (
	chargeAt      = 6
	commandAt     = 12
	creditsAt     = 14
	flagsAt       = 16
	nextAt        = 20
	messageAt     = 24
	treeAt        = 36
	sessionAt     = 40
	signatureAt   = 48
	smb2HeaderLen = 64
)

// Commands that the package names.
const (
	cmdSetup  = 1
	cmdLock   = 10
	cmdCancel = 12
	cmdNotify = 15
)

const (
	flagAsync   = 2
	flagRelated = 4
	flagSigned  = 8
)

// fileAt is where a command's body has its FileId.
var fileAt = map[uint16]int{6: 8, 7: 8, 8: 16, 9: 16, 10: 8, 11: 8, 14: 8, 15: 8, 16: 24, 17: 16, 18: 8}

func isSMB2(b []byte) bool { return len(b) >= smb2HeaderLen && string(b[:4]) == "\xfeSMB" }

// each calls do for every request of a compound that stays in bounds.
func each(b []byte, do func(b []byte)) {
	for isSMB2(b) {
		do(b)
		next := le.Uint32(b[nextAt:])
		if next < smb2HeaderLen || uint64(next) > uint64(len(b)) {
			return
		}
		b = b[next:]
	}
}

// fit gives a PDU the ids of s: it is then what a client of that session
// could send.
func (s *Session) fit(r *rand.Rand, b []byte) {
	each(b, func(b []byte) {
		flags := le.Uint32(b[flagsAt:]) &^ flagSigned
		le.PutUint32(b[flagsAt:], flags)
		clear(b[signatureAt:smb2HeaderLen])
		command := le.Uint16(b[commandAt:])
		if command == cmdSetup && !one(r, 16) {
			// ksmbd makes a user that it knows wait for 5 s after a wrong password.
			copy(b[smb2HeaderLen:], bytes.ReplaceAll(b[smb2HeaderLen:], []byte("u\x00s\x00e\x00r\x00"), []byte("u\x00s\x00e\x00x\x00")))
		}
		if command != cmdCancel {
			le.PutUint64(b[messageAt:], s.MessageID)
			s.MessageID += uint64(max(le.Uint16(b[chargeAt:]), 1))
		} else if s.MessageID > 0 {
			le.PutUint64(b[messageAt:], s.MessageID-1-uint64(r.IntN(int(min(s.MessageID, 4)))))
		}
		if s.ID != 0 && flags&flagRelated == 0 {
			le.PutUint64(b[sessionAt:], s.ID)
			if flags&flagAsync == 0 {
				le.PutUint32(b[treeAt:], s.Tree)
			}
		}
		at, ok := fileAt[command]
		if ok && len(s.Files) > 0 && len(b) >= smb2HeaderLen+at+16 && flags&flagRelated == 0 && !one(r, 8) {
			f := pick(r, s.Files)
			copy(b[smb2HeaderLen+at:], f[:])
		}
		if le.Uint16(b[creditsAt:]) < 16 {
			le.PutUint16(b[creditsAt:], 16)
		}
	})
}

// choose picks a PDU: every command is as likely as every other, however many
// PDUs the corpus has of it. What ends or delays a session is rare in one.
func (s *Session) choose(r *rand.Rand, pdus []PDU) PDU {
	command := uint16(r.IntN(20)) // 19 is what is not SMB2
	if s.ID != 0 && (command <= 4 && command != 3 || command == 19) && !one(r, 20) {
		command = cmdNotify // else the session would soon have ended
	}
	var of []PDU
	for _, p := range pdus {
		if isSMB2(p.Data) && le.Uint16(p.Data[commandAt:]) == command || command == 19 && !isSMB2(p.Data) {
			of = append(of, p)
		}
	}
	if len(of) == 0 {
		of = pdus
	}
	p := pick(r, of)
	for len(p.Data) > large && !one(r, 64) {
		p = pick(r, of)
	}
	return p
}

// large is what takes so long to send that it is rarely chosen.
const large = 64 << 10

// Frames is what is sent for one step: frames, and whether the last one's
// length is a lie, after which the connection makes no sense any more.
type Frames struct {
	What  string
	Data  [][]byte
	Short int // the last frame is so many bytes shorter than its length says
}

// Whole is a PDU of the corpus as it is, but for the ids of s.
func (s *Session) Whole(r *rand.Rand, p PDU) Frames {
	b := append([]byte(nil), p.Data...)
	s.fit(r, b)
	return Frames{What: p.Name, Data: [][]byte{b}}
}

// Step makes the next thing to send.
func (s *Session) Step(r *rand.Rand, pdus []PDU) Frames {
	switch n := r.IntN(100); {
	case n < 3:
		return s.cancels(r)
	case n < 4:
		return s.chain(r)
	case n < 12:
		return s.compound(r, pdus)
	}
	f := s.Whole(r, s.choose(r, pdus))
	if one(r, 6) {
		if one(r, 2) {
			f.Data = append(f.Data, append([]byte(nil), f.Data[0]...))
		}
		return f
	}
	for range 1 + r.IntN(3) {
		f.Data[0] = s.mutate(r, f.Data[0])
	}
	if one(r, 400) {
		f.Short = 1 + r.IntN(2000)
	}
	return f
}

// mutate changes a PDU, in place where it can.
func (s *Session) mutate(r *rand.Rand, b []byte) []byte {
	if !isSMB2(b) {
		switch r.IntN(5) {
		case 0:
			put(r, b)
		case 1:
			flip(r, b)
		case 2:
			b = b[:r.IntN(len(b)+1)]
		case 3:
			b = grow(r, b)
		case 4: // another command of SMB1
			if len(b) > 4 {
				b[4] = byte(r.Uint32())
			}
		}
		return b
	}
	// One request of a compound, up to its end.
	var starts []int
	each(b, func(at []byte) { starts = append(starts, len(b)-len(at)) })
	q := b[pick(r, starts):]
	switch r.IntN(14) {
	case 0, 1, 2, 3, 4:
		put(r, q[smb2HeaderLen:])
	case 5:
		flip(r, q[smb2HeaderLen:])
	case 6:
		b = b[:r.IntN(len(b)+1)]
	case 7:
		b = grow(r, b)
	case 8:
		le.PutUint16(q[commandAt:], uint16(r.IntN(21)))
	case 9:
		le.PutUint32(q[nextAt:], uint32(number(r, len(q))))
	case 10:
		le.PutUint32(q[flagsAt:], le.Uint32(q[flagsAt:])^1<<r.IntN(5))
	case 11:
		le.PutUint16(q[chargeAt:], uint16(number(r, 64)))
	case 12:
		put(r, q[chargeAt:signatureAt])
	case 13:
		if one(r, 20) {
			put(r, q[:smb2HeaderLen])
		} else if at, ok := fileAt[le.Uint16(q[commandAt:])]; ok && len(q) >= smb2HeaderLen+at+16 {
			for i := range 16 {
				q[smb2HeaderLen+at+i] = 0xff
			}
		}
	}
	return b
}

func grow(r *rand.Rand, b []byte) []byte {
	more := make([]byte, 1+r.IntN(300))
	for i := range more {
		more[i] = byte(r.Uint32())
	}
	return append(b, more...)
}

// compound joins PDUs, and what joins them may be wrong.
func (s *Session) compound(r *rand.Rand, pdus []PDU) Frames {
	f := Frames{What: "compound of"}
	var all []byte
	n := 2 + r.IntN(4)
	for i := range n {
		p := s.choose(r, pdus)
		if one(r, 4) { // the kernel part's own command, after the others
			for _, c := range pdus {
				if isSMB2(c.Data) && le.Uint16(c.Data[commandAt:]) == cmdNotify {
					p = c
					break
				}
			}
		}
		if !isSMB2(p.Data) {
			continue
		}
		f.What += " " + p.Name
		b := append([]byte(nil), p.Data...)
		s.fit(r, b)
		if one(r, 3) {
			b = s.mutate(r, b)
			if !isSMB2(b) {
				continue
			}
		}
		if i > 0 && !one(r, 4) {
			le.PutUint32(b[flagsAt:], le.Uint32(b[flagsAt:])|flagRelated)
			if one(r, 2) {
				le.PutUint64(b[sessionAt:], ^uint64(0))
				le.PutUint32(b[treeAt:], ^uint32(0))
			}
			if at, ok := fileAt[le.Uint16(b[commandAt:])]; ok && len(b) >= smb2HeaderLen+at+16 && !one(r, 3) {
				copy(b[smb2HeaderLen+at:], strings.Repeat("\xff", 16))
			}
		}
		if i < n-1 {
			b = append(b, make([]byte, -len(b)&7)...)
			next := uint32(len(b))
			if one(r, 12) {
				next = uint32(number(r, len(b)))
			}
			le.PutUint32(b[nextAt:], next)
		}
		all = append(all, b...)
	}
	if len(all) == 0 {
		all = s.notify(r)
	}
	f.Data = [][]byte{all}
	return f
}

// request is a request of the session with a body.
func (s *Session) request(command uint16, body []byte) []byte {
	b := make([]byte, smb2HeaderLen, smb2HeaderLen+len(body))
	copy(b, "\xfeSMB")
	le.PutUint16(b[4:], smb2HeaderLen)
	le.PutUint16(b[chargeAt:], 1)
	le.PutUint16(b[commandAt:], command)
	le.PutUint16(b[creditsAt:], 16)
	le.PutUint64(b[messageAt:], s.MessageID)
	le.PutUint32(b[treeAt:], s.Tree)
	le.PutUint64(b[sessionAt:], s.ID)
	if command != cmdCancel {
		s.MessageID++
	}
	return append(b, body...)
}

// notify asks for the changes of a file of the session, or of none.
func (s *Session) notify(r *rand.Rand) []byte {
	body := make([]byte, 32)
	le.PutUint16(body, 32)
	le.PutUint16(body[2:], uint16(r.IntN(2)))
	le.PutUint32(body[4:], uint32(min(number(r, 4096), 65536)))
	if len(s.Files) > 0 {
		f := pick(r, s.Files)
		copy(body[8:], f[:])
	}
	le.PutUint32(body[24:], uint32(r.IntN(0x1000)))
	return s.request(cmdNotify, body)
}

// cancels are NOTIFYs and CANCELs of them in any order: before, twice, by
// AsyncId, of something else.
func (s *Session) cancels(r *rand.Rand) Frames {
	f := Frames{What: "cancels"}
	for range 1 + r.IntN(4) {
		id := s.MessageID
		notify := s.notify(r)
		cancel := s.request(cmdCancel, []byte{4, 0, 0, 0})
		switch r.IntN(4) {
		case 0:
			le.PutUint32(cancel[flagsAt:], flagAsync)
			le.PutUint64(cancel[treeAt-4:], uint64(r.IntN(8)))
		case 1:
			le.PutUint64(cancel[messageAt:], 0)
		default:
			le.PutUint64(cancel[messageAt:], id)
		}
		order := [][]byte{notify, cancel}
		if one(r, 3) {
			order = [][]byte{cancel, notify}
		}
		if one(r, 4) {
			order = append(order, cancel)
		}
		f.Data = append(f.Data, order...)
	}
	return f
}

// chain is a request that may wait, a LOCK, in front of requests that are
// closer to each other than they are long, and a CANCEL that looks for one.
func (s *Session) chain(r *rand.Rand) Frames {
	lock := make([]byte, 48)
	le.PutUint16(lock, 48)
	le.PutUint16(lock[2:], 1)
	if len(s.Files) > 0 {
		f := pick(r, s.Files)
		copy(lock[8:], f[:])
	}
	le.PutUint64(lock[24:], uint64(r.IntN(4)))
	le.PutUint64(lock[32:], uint64(1+r.IntN(4)))
	le.PutUint32(lock[40:], pick(r, []uint32{1, 2, 4, 0x11, 0x12}))
	b := s.request(cmdLock, lock)
	next := uint32(len(b))
	if one(r, 4) {
		next = uint32(number(r, 4096))
	}
	le.PutUint32(b[nextAt:], next)

	step := 8 << r.IntN(4)
	head := len(b)
	b = append(b, make([]byte, (64+r.IntN(2048))*step)...)
	for at := head; at+smb2HeaderLen <= len(b); at += step {
		copy(b[at:], "\xfeSMB")
		le.PutUint32(b[at+nextAt:], uint32(step))
	}
	cancel := s.request(cmdCancel, []byte{4, 0, 0, 0})
	le.PutUint64(cancel[messageAt:], number(r, 64))
	return Frames{What: "chain", Data: [][]byte{b, cancel}}
}
