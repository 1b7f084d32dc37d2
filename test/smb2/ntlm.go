// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"crypto/hmac"
	"crypto/md5"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/md4"
)

// NTLMSSP flags, MS-NLMP 2.2.2.5: Unicode, request target, sign, NTLM, always
// sign, extended session security, target info, 128 and 56 bits. Without key
// exchange the session key is the base key itself.
const ntlmFlags uint32 = 0x01 | 0x04 | 0x10 | 0x200 | 0x8000 | 0x80000 | 0x800000 | 0x20000000 | 0x80000000

const ntlmSignature = "NTLMSSP\x00"

// ntlmNegotiate is the NEGOTIATE_MESSAGE, MS-NLMP 2.2.1.1.
func ntlmNegotiate() []byte {
	return pack([]byte(ntlmSignature), uint32(1), ntlmFlags, uint64(0), uint64(0))
}

// ntlmAuthenticate answers a CHALLENGE_MESSAGE with an AUTHENTICATE_MESSAGE of
// a user without a domain, and gives the session key. MS-NLMP 2.2.1.2, 2.2.1.3.
func ntlmAuthenticate(challenge []byte, user, password string, nonce [8]byte, now time.Time) (msg, key []byte, err error) {
	if len(challenge) < 48 || string(challenge[:8]) != ntlmSignature || le.Uint32(challenge[8:]) != 2 {
		return nil, nil, errors.New("no NTLM challenge")
	}
	infoLen, infoOff := int(le.Uint16(challenge[40:])), int(le.Uint32(challenge[44:]))
	if infoOff > len(challenge) || infoLen > len(challenge)-infoOff {
		return nil, nil, errors.New("NTLM challenge: target info outside of the message")
	}
	response, key := ntlmV2(user, password, "", [8]byte(challenge[24:]), nonce, filetime(now), challenge[infoOff:infoOff+infoLen])

	const fixed = 64
	var fields, payload []byte
	for _, f := range [][]byte{make([]byte, 24), response, nil, utf16le(user), nil, nil} { // LM, NT, domain, user, workstation, key
		fields = append(fields, pack(uint16(len(f)), uint16(len(f)), uint32(fixed+len(payload)))...)
		payload = append(payload, f...)
	}
	msg = pack([]byte(ntlmSignature), uint32(3), fields, ntlmFlags, payload)
	return msg, key, nil
}

// ntlmV2 is the NTLMv2 response and the session base key, MS-NLMP 3.3.2.
func ntlmV2(user, password, domain string, challenge, nonce [8]byte, time uint64, targetInfo []byte) (response, key []byte) {
	h := md4.New()
	h.Write(utf16le(password))
	owf := hmacMD5(h.Sum(nil), utf16le(strings.ToUpper(user)+domain))
	temp := pack([]byte{1, 1, 0, 0, 0, 0, 0, 0}, time, nonce, uint32(0), targetInfo, uint32(0))
	proof := hmacMD5(owf, challenge[:], temp)
	return append(proof, temp...), hmacMD5(owf, proof)
}

func hmacMD5(key []byte, data ...[]byte) []byte {
	m := hmac.New(md5.New, key)
	for _, d := range data {
		m.Write(d)
	}
	return m.Sum(nil)
}

// filetime is t in units of 100 ns since 1601, MS-DTYP 2.3.3.
func filetime(t time.Time) uint64 {
	return uint64(t.UnixNano()/100 + 116444736000000000)
}

func utf16le(s string) []byte {
	return pack(utf16.Encode([]rune(s)))
}

// fromUTF16 decodes a name. Half of a surrogate pair is kept apart from all
// else that it could be.
func fromUTF16(b []byte) string {
	var s []byte
	for len(b) >= 2 {
		r := rune(le.Uint16(b))
		b = b[2:]
		if utf16.IsSurrogate(r) {
			pair := utf8.RuneError
			if len(b) >= 2 {
				pair = utf16.DecodeRune(r, rune(le.Uint16(b)))
			}
			if pair == utf8.RuneError {
				s = fmt.Appendf(s, "{half %04x}", r)
				continue
			}
			r, b = pair, b[2:]
		}
		s = utf8.AppendRune(s, r)
	}
	return string(s)
}
