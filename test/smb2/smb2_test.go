// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Who sends on a connection that the server has closed is told that, and not that it is closed here.
func TestDropped(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	here, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(here)
	defer c.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	<-c.done
	if err := c.writeBytes(t.Context(), []byte{0}); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want %v", err, io.EOF)
	}
}

// MS-NLMP 4.2.4 has the example.
func TestNTLMv2(t *testing.T) {
	info := unhex(t, "02000c0044006f006d00610069006e0001000c005300650072007600650072000000"+"0000")
	challenge := [8]byte(unhex(t, "0123456789abcdef"))
	nonce := [8]byte(unhex(t, "aaaaaaaaaaaaaaaa"))
	response, key := ntlmV2("User", "Password", "Domain", challenge, nonce, 0, info)
	if want := unhex(t, "68cd0ab851e51c96aabc927bebef6a1c"); !bytes.HasPrefix(response, want) {
		t.Errorf("proof % x, want % x", response[:16], want)
	}
	if want := unhex(t, "8de40ccadbc14a82f15cb0ad0de95ca3"); !bytes.Equal(key, want) {
		t.Errorf("key % x, want % x", key, want)
	}
}

// RFC 4493, section 4.
func TestCMAC(t *testing.T) {
	block, err := aes.NewCipher(unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	if err != nil {
		t.Fatal(err)
	}
	msg := unhex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"+
		"30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710")
	for n, want := range map[int]string{
		0:  "bb1d6929e95937287fa37d129b756746",
		16: "070a16b46b4d4144f79bdd9dd04a287c",
		40: "dfa66747de9ae63030ca32611497c827",
		64: "51f0bebf7e3b9d92fc49741779363cfe",
	} {
		if got := cmac(block, msg[:n]); !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%d bytes: % x, want %s", n, got, want)
		}
	}
}

// The vectors are those that Python's cryptography gives: RFC 3610 has none with these lengths.
func TestCCM(t *testing.T) {
	count := func(from, to byte) (b []byte) {
		for ; from < to; from++ {
			b = append(b, from)
		}
		return b
	}
	nonce, plain := count(16, 27), count(100, 140)
	for _, test := range []struct {
		key, aad []byte
		want     string
	}{
		{count(0, 16), count(0, 32), "280a1bbca8d43bc0e261870c5212ecdd551dae2e37a40094963df87c1d7950698d4ff23dcbcbe5eb891485c317a784816c414c8014008011"},
		{count(0, 32), nil, "433b89ff27af776103141cca920fa7ef57a6b90604eed758dd2ff26edb43113723921baf0297a8ebb822115fe3f20bd2f65c6751d586b8a0"},
	} {
		block, err := aes.NewCipher(test.key)
		if err != nil {
			t.Fatal(err)
		}
		got := ccm{block}.Seal(nil, nonce, plain, test.aad)
		if !bytes.Equal(got, unhex(t, test.want)) {
			t.Errorf("%d bits: % x", 8*len(test.key), got)
		}
		if back, err := (ccm{block}).Open(nil, nonce, got, test.aad); err != nil || !bytes.Equal(back, plain) {
			t.Errorf("%d bits: back % x, %v", 8*len(test.key), back, err)
		}
		got[0]++
		if _, err := (ccm{block}).Open(nil, nonce, got, test.aad); err == nil {
			t.Error("opened what was changed")
		}
	}
}

// entry is one FILE_NOTIFY_INFORMATION with its padding.
func entry(next uint32, action Action, name string, pad int) []byte {
	n := utf16le(name)
	return pack(next, uint32(action), uint32(len(n)), n, make([]byte, pad))
}

func TestDecodeRecords(t *testing.T) {
	two := pack(entry(16, RenamedOldName, "a", 2), entry(0, RenamedNewName, `d\ü😀`, 0))
	for _, test := range []struct {
		name string
		in   []byte
		want []Record
		fail bool
	}{
		{"two", two, []Record{{RenamedOldName, "a"}, {RenamedNewName, `d\ü😀`}}, false},
		{"empty", nil, nil, true},
		{"short", two[:11], nil, true},
		{"name cut off", two[:len(two)-1], nil, true},
		{"no name", entry(0, Added, "", 0), nil, true},
		{"misaligned", pack(entry(18, Added, "a", 4), entry(0, Added, "b", 0)), nil, true},
		{"overlap", pack(entry(12, Added, "a", 2), entry(0, Added, "b", 0)), nil, true},
		{"next outside", entry(1<<31, Added, "a", 2), nil, true},
	} {
		got, err := DecodeRecords(test.in)
		if (err != nil) != test.fail || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", test.name, got, err)
		}
	}
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add(pack(entry(16, Added, "a", 2), entry(0, Removed, "bc", 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := DecodeRecords(b)
		if err == nil && len(records) > len(b)/14 {
			t.Errorf("%d records in %d bytes", len(records), len(b))
		}
	})
}
