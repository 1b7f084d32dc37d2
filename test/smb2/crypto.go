// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// keys are those of a session.
type keys struct {
	mac              func(msg []byte) []byte
	encrypt, decrypt cipher.AEAD // nil unless the connection agreed on encryption
}

// newKeys derives a session's keys, MS-SMB2 3.1.4.1, 3.1.4.2, 3.2.5.3.3.
// preauth is the preauthentication hash of 3.1.1.
func newKeys(d Dialect, encrypt bool, session, preauth []byte) (*keys, error) {
	if d < Dialect300 {
		return &keys{mac: func(msg []byte) []byte {
			m := hmac.New(sha256.New, session)
			m.Write(msg)
			return m.Sum(nil)[:16]
		}}, nil
	}
	label, context := "SMB2AESCMAC\x00", []byte("SmbSign\x00")
	if d == Dialect311 {
		label, context = "SMBSigningKey\x00", preauth
	}
	block, err := aes.NewCipher(kdf(session, label, context))
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	k := &keys{mac: func(msg []byte) []byte { return cmac(block, msg) }}
	if !encrypt {
		return k, nil
	}
	if k.encrypt, err = gcm(kdf(session, "SMBC2SCipherKey\x00", preauth)); err != nil {
		return nil, err
	}
	k.decrypt, err = gcm(kdf(session, "SMBS2CCipherKey\x00", preauth))
	return k, err
}

// kdf is SP800-108 in counter mode with HMAC-SHA256, 128 bits long.
func kdf(key []byte, label string, context []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte{0, 0, 0, 1})
	m.Write([]byte(label))
	m.Write([]byte{0})
	m.Write(context)
	m.Write([]byte{0, 0, 0, 128})
	return m.Sum(nil)[:16]
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	return cipher.NewGCM(block)
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
