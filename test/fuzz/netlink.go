// SPDX-License-Identifier: GPL-2.0-or-later

package fuzz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/goccy/go-yaml"
)

// Family is what of a family's description, a YNL spec, messages are made
// after: operations and attributes of any description will do.
type Family struct {
	ops  []operation
	sets map[string][]attribute
}

type operation struct {
	command uint8
	set     string
}

type attribute struct {
	number uint16
	kind   string // as the spec has it: u32, nest, ...
	enum   []uint64
	nested string
}

// ParseFamily reads a YNL spec.
func ParseFamily(spec []byte) (*Family, error) {
	var s struct {
		Definitions []struct {
			Name    string
			Entries []struct{ Value uint64 }
		}
		AttributeSets []struct {
			Name       string
			Attributes []struct {
				Name, Type, Enum string
				Value            *uint16
				Nested           string `yaml:"nested-attributes"`
			}
		} `yaml:"attribute-sets"`
		Operations struct {
			List []struct {
				Name  string
				Value *uint8
				Set   string `yaml:"attribute-set"`
			}
		}
	}
	if err := yaml.Unmarshal(spec, &s); err != nil {
		return nil, fmt.Errorf("netlink spec: %w", err)
	}
	enums := map[string][]uint64{}
	for _, d := range s.Definitions {
		for _, e := range d.Entries {
			enums[d.Name] = append(enums[d.Name], e.Value)
		}
	}
	f := &Family{sets: map[string][]attribute{}}
	for _, set := range s.AttributeSets {
		n := uint16(0)
		for _, a := range set.Attributes {
			n++
			if a.Value != nil {
				n = *a.Value
			}
			f.sets[set.Name] = append(f.sets[set.Name], attribute{n, a.Type, enums[a.Enum], a.Nested})
		}
	}
	command := uint8(0)
	for _, o := range s.Operations.List {
		command++
		if o.Value != nil {
			command = *o.Value
		}
		f.ops = append(f.ops, operation{command, o.Set})
	}
	if len(f.ops) == 0 || len(f.sets) == 0 {
		return nil, fmt.Errorf("netlink spec: no operations or no attributes")
	}
	return f, nil
}

// IDs are numbers that mean something to the other side.
type IDs []uint64

// Datagram is one datagram to the family of that number, with one message or
// several.
func (f *Family) Datagram(r *rand.Rand, family uint16, ids IDs) []byte {
	var b []byte
	for {
		b = append(b, f.message(r, family, ids)...)
		if !one(r, 8) {
			break
		}
	}
	switch {
	case one(r, 60):
		b = b[:r.IntN(len(b)+1)]
	case one(r, 60):
		put(r, b)
	case one(r, 60):
		flip(r, b)
	}
	return b
}

// message is a netlink message with its header, netlink(7), and generic
// netlink's.
func (f *Family) message(r *rand.Rand, family uint16, ids IDs) []byte {
	op := pick(r, f.ops)
	set := op.set
	if one(r, 30) {
		op.command = uint8(r.IntN(256))
	}
	if one(r, 12) { // another operation's attributes
		set = pick(r, f.ops).set
	}
	body := f.attributes(r, set, ids, 0)
	if one(r, 20) {
		body = body[:r.IntN(len(body)+1)]
	}
	if one(r, 20) {
		body = grow(r, body)
	}
	flags := uint16(0x5) // NLM_F_REQUEST | NLM_F_ACK
	if one(r, 2) {
		flags = 0x1
	}
	if one(r, 20) {
		flags = uint16(r.Uint32())
	}
	version := uint8(1)
	if one(r, 30) {
		version = uint8(r.IntN(256))
	}
	if one(r, 200) {
		family = uint16(r.Uint32())
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(20+len(body)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, r.Uint32())
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, op.command, version, 0, 0)
	b = append(b, body...)
	if one(r, 40) {
		binary.NativeEndian.PutUint32(b, uint32(number(r, len(b))))
	}
	return append(b, make([]byte, -len(b)&3)...)
}

// attributes are those of a set: most of them, once, and sometimes not.
func (f *Family) attributes(r *rand.Rand, set string, ids IDs, depth int) []byte {
	var b []byte
	wild := one(r, 4)
	for _, a := range f.sets[set] {
		times := 1
		switch {
		case a.kind == "pad":
			times = 0
		case a.kind == "nest":
			times = []int{0, 1, 1, 2, 3, 20}[r.IntN(6)]
		case wild && one(r, 3), one(r, 10):
			times = 0
		case wild && one(r, 6):
			times = 2 + r.IntN(3)
		}
		if len(f.sets[set]) > 2 && one(r, 4) { // some exclude each other
			times = 0
		}
		for range times {
			b = append(b, f.attribute(r, a, ids, wild, depth)...)
		}
	}
	if wild && one(r, 4) {
		b = append(b, attr(uint16(r.Uint32()), grow(r, nil))...)
	}
	return b
}

func (f *Family) attribute(r *rand.Rand, a attribute, ids IDs, wild bool, depth int) []byte {
	data, number := f.value(r, a, ids, depth), a.number
	if wild {
		switch r.IntN(8) {
		case 0:
			data = data[:r.IntN(len(data)+1)]
		case 1:
			data = grow(r, data)
		case 2:
			data = nil
		case 3: // what it is not: a nest
			if depth < 3 {
				data = f.attributes(r, pick(r, f.ops).set, ids, depth+1)
			}
		case 4:
			put(r, data)
		}
		if one(r, 12) {
			number ^= 1 << (14 + r.IntN(2))
		}
	}
	b := attr(number, data)
	if wild && one(r, 8) {
		binary.NativeEndian.PutUint16(b, uint16(r.Uint32()))
	}
	return b
}

func attr(number uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, number), data...)
	return append(b, make([]byte, -len(b)&3)...)
}

func (f *Family) value(r *rand.Rand, a attribute, ids IDs, depth int) []byte {
	var v uint64
	switch {
	case len(a.enum) > 0 && !one(r, 10):
		v = pick(r, a.enum)
	case len(ids) > 0 && !one(r, 10):
		v = pick(r, ids)
	default:
		v = number(r, 64)
	}
	switch a.kind {
	case "u8", "s8":
		return []byte{byte(v)}
	case "u16", "s16":
		return binary.NativeEndian.AppendUint16(nil, uint16(v))
	case "u32", "s32":
		if len(a.enum) == 0 {
			v = number(r, 4096)
			if one(r, 2) {
				v = uint64(r.IntN(3))
			}
		}
		return binary.NativeEndian.AppendUint32(nil, uint32(v))
	case "u64", "s64", "uint", "sint":
		return binary.NativeEndian.AppendUint64(nil, v)
	case "flag":
		return nil
	case "nest", "indexed-array":
		if depth > 3 {
			return nil
		}
		return f.attributes(r, a.nested, ids, depth+1)
	}
	return bytesValue(r)
}

// bytesValue is a name, with directories or not, or a file handle, or
// neither.
func bytesValue(r *rand.Rand) []byte {
	switch r.IntN(8) {
	case 0, 1:
		return []byte(pick(r, []string{"a", "d/f", "d/e/f", "..", "../..", "/", "a/", "/a", "d//f", ".", "a\x00b", "vetoed-1", "d/vetoed-2/x"}))
	case 2, 3, 4:
		size := []uint32{8, 12, 16, 20, 32, 128}[r.IntN(6)]
		b := binary.NativeEndian.AppendUint32(nil, size)
		b = binary.NativeEndian.AppendUint32(b, []uint32{1, 2, 0x81, 255, 0x4d, 0xfe, uint32(number(r, 256))}[r.IntN(7)])
		b = append(b, make([]byte, size)...)
		for i := 8; i < len(b) && !one(r, 8); i++ {
			b[i] = byte(r.Uint32())
		}
		if one(r, 4) {
			put(r, b)
		}
		return b
	case 5:
		b := bytes.Repeat([]byte{'x'}, int(number(r, 4096)%65000))
		for i := r.IntN(200); i < len(b); i += 1 + r.IntN(200) {
			b[i] = '/'
		}
		return b
	}
	return grow(r, nil)
}
