// SPDX-License-Identifier: GPL-2.0-or-later

package fuzz

import (
	"bytes"
	"os"
	"testing"
)

// TestReplay: a seed and the number of a case give the same input again, and each of them another one.
func TestReplay(t *testing.T) {
	pdus, err := PDUs()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile("../../genl/ksmbd-notify.yaml")
	if err != nil {
		t.Fatal(err)
	}
	family, err := ParseFamily(spec)
	if err != nil {
		t.Fatal(err)
	}
	make := func(seed, n uint64) []byte {
		r, s := Rand(seed, n), &Session{ID: 1, Tree: 2, Files: [][16]byte{{3}, {4}}, MessageID: 5}
		var all []byte
		for range 200 {
			all = append(all, bytes.Join(s.Step(r, pdus).Data, nil)...)
			all = append(all, family.Datagram(r, 30, IDs{1, 2})...)
		}
		return all
	}
	a := make(1, 1)
	if !bytes.Equal(a, make(1, 1)) {
		t.Error("the same seed and case make something else")
	}
	if bytes.Equal(a, make(1, 2)) || bytes.Equal(a, make(2, 1)) {
		t.Error("other seeds or cases make the same")
	}
}

// TestCorpus: there is a PDU of each of SMB2's commands, and of SMB1.
func TestCorpus(t *testing.T) {
	pdus, err := PDUs()
	if err != nil {
		t.Fatal(err)
	}
	var smb1 bool
	var commands [19]bool
	for _, p := range pdus {
		smb1 = smb1 || bytes.HasPrefix(p.Data, []byte("\xffSMB"))
		each(p.Data, func(b []byte) {
			if c := le.Uint16(b[commandAt:]); int(c) < len(commands) {
				commands[c] = true
			}
		})
	}
	if !smb1 {
		t.Error("no PDU of SMB1")
	}
	for c, there := range commands {
		if !there {
			t.Errorf("no PDU of command %d", c)
		}
	}
}
