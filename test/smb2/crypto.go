// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// keys are those of a session.
type keys struct {
	mac              func(msg []byte) []byte
	encrypt, decrypt cipher.AEAD // nil unless the connection agreed on encryption
}

// Cipher is an encryption algorithm, MS-SMB2 2.2.3.1.2.
type Cipher uint16

const (
	CipherNone Cipher = iota
	AES128CCM         // the only one of 3.0 and 3.0.2
	AES128GCM
	AES256CCM
	AES256GCM
)

func (c Cipher) String() string {
	return [...]string{"none", "AES-128-CCM", "AES-128-GCM", "AES-256-CCM", "AES-256-GCM"}[c]
}

// newKeys derives a session's keys, MS-SMB2 3.1.4.1, 3.1.4.2, 3.2.5.3.3.
// preauth is the preauthentication hash of 3.1.1.
func newKeys(d Dialect, c Cipher, session, preauth []byte) (*keys, error) {
	if d < Dialect300 {
		return &keys{mac: func(msg []byte) []byte {
			m := hmac.New(sha256.New, session)
			m.Write(msg)
			return m.Sum(nil)[:16]
		}}, nil
	}
	sign := [2]string{"SMB2AESCMAC\x00", "SmbSign\x00"}
	out := [2]string{"SMB2AESCCM\x00", "ServerIn \x00"}
	in := [2]string{"SMB2AESCCM\x00", "ServerOut\x00"}
	if d == Dialect311 {
		hash := string(preauth)
		sign = [2]string{"SMBSigningKey\x00", hash}
		out = [2]string{"SMBC2SCipherKey\x00", hash}
		in = [2]string{"SMBS2CCipherKey\x00", hash}
	}
	block, err := aes.NewCipher(kdf(session, sign, 128))
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	k := &keys{mac: func(msg []byte) []byte { return cmac(block, msg) }}
	if c == CipherNone {
		return k, nil
	}
	if k.encrypt, err = c.aead(session, out); err != nil {
		return nil, err
	}
	k.decrypt, err = c.aead(session, in)
	return k, err
}

// kdf is SP800-108 in counter mode with HMAC-SHA256, for a label, a context
// and a key length in bits of at most 256.
func kdf(key []byte, purpose [2]string, bits uint32) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte{0, 0, 0, 1})
	m.Write([]byte(purpose[0]))
	m.Write([]byte{0})
	m.Write([]byte(purpose[1]))
	m.Write(binary.BigEndian.AppendUint32(nil, bits))
	return m.Sum(nil)[:bits/8]
}

func (c Cipher) aead(session []byte, purpose [2]string) (cipher.AEAD, error) {
	bits := uint32(128)
	if c == AES256CCM || c == AES256GCM {
		bits = 256
	}
	block, err := aes.NewCipher(kdf(session, purpose, bits))
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	if c == AES128GCM || c == AES256GCM {
		return cipher.NewGCM(block)
	}
	return ccm{block}, nil
}

// ccm is AES-CCM, RFC 3610, with the nonce of 11 bytes and the tag of 16 that
// MS-SMB2 2.2.41 asks for. The additional data is shorter than 0xff00 bytes.
type ccm struct{ cipher.Block }

func (ccm) NonceSize() int { return 11 }
func (ccm) Overhead() int  { return 16 }

func (c ccm) Seal(dst, nonce, plain, aad []byte) []byte {
	mac := c.mac(nonce, plain, aad)
	return append(append(dst, c.xor(nonce, 1, plain)...), c.xor(nonce, 0, mac)...)
}

func (c ccm) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 16 {
		return nil, errors.New("short message")
	}
	plain, tag := c.xor(nonce, 1, sealed[:len(sealed)-16]), sealed[len(sealed)-16:]
	if !hmac.Equal(c.xor(nonce, 0, c.mac(nonce, plain, aad)), tag) {
		return nil, errors.New("message authentication failed")
	}
	return append(dst, plain...), nil
}

// xor is the counter mode, from a counter on.
func (c ccm) xor(nonce []byte, counter uint32, b []byte) []byte {
	iv := binary.BigEndian.AppendUint32(append([]byte{3}, nonce...), counter)
	out := make([]byte, len(b))
	cipher.NewCTR(c.Block, iv).XORKeyStream(out, b)
	return out
}

func (c ccm) mac(nonce, plain, aad []byte) []byte {
	flags := byte(0x3b) // a tag of 16 bytes, a length of 4
	if len(aad) > 0 {
		flags |= 0x40
		aad = append(binary.BigEndian.AppendUint16(nil, uint16(len(aad))), aad...)
	}
	b := binary.BigEndian.AppendUint32(append([]byte{flags}, nonce...), uint32(len(plain)))
	for _, part := range [][]byte{aad, plain} {
		b = append(b, part...)
		b = append(b, make([]byte, -len(part)&15)...)
	}
	out := make([]byte, len(b))
	cipher.NewCBCEncrypter(c.Block, make([]byte, 16)).CryptBlocks(out, b)
	return out[len(out)-16:]
}

// cmac is AES-CMAC, RFC 4493.
func cmac(block cipher.Block, msg []byte) []byte {
	const size = aes.BlockSize
	double := func(b []byte) []byte {
		r := make([]byte, size)
		var carry byte
		for i := size - 1; i >= 0; i-- {
			r[i] = b[i]<<1 | carry
			carry = b[i] >> 7
		}
		r[size-1] ^= 0x87 * carry
		return r
	}
	xor := func(dst, src []byte) {
		for i := range src {
			dst[i] ^= src[i]
		}
	}
	zero := make([]byte, size)
	block.Encrypt(zero, zero)
	last := double(zero)
	mac := make([]byte, size)
	for ; len(msg) > size; msg = msg[size:] {
		xor(mac, msg[:size])
		block.Encrypt(mac, mac)
	}
	if len(msg) < size {
		last = double(last)
		last[len(msg)] ^= 0x80
	}
	xor(last, msg)
	xor(mac, last)
	block.Encrypt(mac, mac)
	return mac
}

// signature is that of msg, one whole message of a compound with its padding.
func (k *keys) signature(msg []byte) [16]byte {
	m := append([]byte(nil), msg...)
	clear(m[48:64])
	return [16]byte(k.mac(m))
}

// sign sets msg's flag and signature.
func (k *keys) sign(msg []byte) {
	le.PutUint32(msg[16:], le.Uint32(msg[16:])|uint32(FlagSigned))
	s := k.signature(msg)
	copy(msg[48:], s[:])
}

// transformLen is the length of the SMB2 TRANSFORM_HEADER, MS-SMB2 2.2.41.
const transformLen = 52

// seal wraps a frame for a session.
func (k *keys) seal(session uint64, frame []byte) []byte {
	nonce := make([]byte, 16)
	rand.Read(nonce[:k.encrypt.NonceSize()])
	aad := pack(nonce, uint32(len(frame)), uint16(0), uint16(1), session)
	sealed := k.encrypt.Seal(nil, nonce[:k.encrypt.NonceSize()], frame, aad)
	tag := sealed[len(frame):]
	return pack([]byte("\xfdSMB"), tag, aad, sealed[:len(frame)])
}

// open unwraps what seal made, on the other side.
func (k *keys) open(frame []byte) ([]byte, error) {
	if k == nil || k.decrypt == nil {
		return nil, errors.New("encrypted, but there is no key")
	}
	if len(frame) < transformLen {
		return nil, errors.New("short transform header")
	}
	nonce := frame[20 : 20+k.decrypt.NonceSize()]
	sealed := append(append([]byte(nil), frame[transformLen:]...), frame[4:20]...)
	return k.decrypt.Open(nil, nonce, sealed, frame[20:transformLen])
}
