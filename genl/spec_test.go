// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

type spec struct {
	Name        string
	Version     *int
	Definitions []struct {
		Name, Type string
		Value      int
		Entries    []struct {
			Name  string
			Value int
		}
	}
	AttributeSets []struct {
		Name       string
		Attributes []struct {
			Name  string
			Value *int
		}
	} `yaml:"attribute-sets"`
	Operations struct {
		List []struct {
			Name  string
			Value *int
		}
	}
	McastGroups struct {
		List []struct{ Name string }
	} `yaml:"mcast-groups"`
}

// constants returns all constants of the spec as "a name, parted by spaces"
// to its value.
func (s *spec) constants(t *testing.T) map[string]string {
	t.Helper()
	want := map[string]string{
		"family name":    strconv.Quote(s.Name),
		"family version": "1", // what a spec without a version means
	}
	if s.Version != nil {
		want["family version"] = strconv.Itoa(*s.Version)
	}
	add := func(value int, words ...string) {
		name := strings.ReplaceAll(strings.Join(words, " "), "-", " ")
		if _, there := want[name]; there {
			t.Errorf("the spec has %q twice", name)
		}
		want[name] = strconv.Itoa(value)
	}
	for _, d := range s.Definitions {
		if d.Type == "const" {
			add(d.Value, d.Name)
		}
		for _, e := range d.Entries {
			add(e.Value, d.Name, e.Name)
		}
	}
	for _, set := range s.AttributeSets {
		n := 0
		for _, a := range set.Attributes {
			n++
			if a.Value != nil {
				n = *a.Value
			}
			add(n, "a", set.Name, a.Name)
		}
	}
	n := 0
	for _, op := range s.Operations.List {
		n++
		if op.Value != nil {
			n = *op.Value
		}
		add(n, "cmd", op.Name)
	}
	for _, g := range s.McastGroups.List {
		want["mcgrp "+g.Name] = strconv.Quote(g.Name)
	}
	return want
}

func readSpec(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("ksmbd-notify.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var s spec
	if err := yaml.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	want := s.constants(t)
	if len(want) < 40 {
		t.Fatalf("only %d constants in the spec", len(want))
	}
	return want
}

// compare fails the test unless got is want with each name put through rename.
func compare(t *testing.T, want, got map[string]string, rename func(string) string) {
	t.Helper()
	renamed := make(map[string]string)
	for name, value := range want {
		renamed[rename(name)] = value
	}
	for _, name := range slices.Sorted(maps.Keys(renamed)) {
		if value, there := got[name]; !there {
			t.Errorf("%s = %s of the spec is missing", name, renamed[name])
		} else if value != renamed[name] {
			t.Errorf("%s is %s, in the spec %s", name, value, renamed[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, there := renamed[name]; !there {
			t.Errorf("%s = %s is not in the spec", name, got[name])
		}
	}
}

func TestGoConstantsMatchSpec(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "constants.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pkg, err := new(types.Config).Check("genl", fset, []*ast.File{file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, name := range pkg.Scope().Names() {
		if c, ok := pkg.Scope().Lookup(name).(*types.Const); ok {
			got[name] = c.Val().ExactString()
		}
	}
	compare(t, readSpec(t), got, func(name string) string {
		var b strings.Builder
		for _, word := range strings.Fields(name) {
			switch word {
			case "id", "fd":
				b.WriteString(strings.ToUpper(word))
			default:
				b.WriteString(strings.ToUpper(word[:1]) + word[1:])
			}
		}
		return b.String()
	})
}

var (
	cComment = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`)
	cDefine  = regexp.MustCompile(`(?m)^#define\s+(KSMBD_NOTIFY_\w+)\s+(\S+)`)
	cEnum    = regexp.MustCompile(`(?s)enum\s*\w*\s*\{(.*?)\}`)
	cEntry   = regexp.MustCompile(`^(\w+)(?:\s*=\s*(.+))?$`)
)

// The header must write out every value, so no C compiler is needed here.
func TestCHeaderMatchesSpec(t *testing.T) {
	b, err := os.ReadFile("../kernel/notify_uapi.h")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseHeader(string(b))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, readSpec(t), got, func(name string) string {
		return "KSMBD_NOTIFY_" + strings.ReplaceAll(strings.ToUpper(name), " ", "_")
	})
}

func parseHeader(header string) (map[string]string, error) {
	header = cComment.ReplaceAllString(header, "")
	got := make(map[string]string)
	for _, m := range cDefine.FindAllStringSubmatch(header, -1) {
		got[m[1]] = m[2]
	}
	for _, enum := range cEnum.FindAllStringSubmatch(header, -1) {
		for entry := range strings.SplitSeq(enum[1], ",") {
			entry = strings.TrimSpace(entry)
			m := cEntry.FindStringSubmatch(entry)
			switch {
			case entry == "":
			case m == nil:
				return nil, fmt.Errorf("%q is no enumerator", entry)
			case strings.HasPrefix(m[1], "__") || strings.HasSuffix(m[1], "_MAX"):
				// Bounds for policies, not on the wire.
			case got[m[1]] != "":
				return nil, fmt.Errorf("%s is there twice", m[1])
			default:
				got[m[1]] = m[2]
			}
		}
	}
	return got, nil
}
