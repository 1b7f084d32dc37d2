// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write PROTOCOL.md anew")

// described is the spec with what it says for people.
type described struct {
	Name, Doc   string
	Definitions []struct {
		Name, Type, Doc string
		Value           int
		Entries         []struct {
			Name, Doc string
			Value     int
		}
	}
	AttributeSets []struct {
		Name       string
		Attributes []attribute
	} `yaml:"attribute-sets"`
	Operations struct {
		List []struct {
			Name, Doc    string
			AttributeSet string `yaml:"attribute-set"`
			Flags        []string
			Mcgrp        string
			Do           struct{ Request, Reply message }
		}
	}
}

type message struct{ Attributes []string }

type attribute struct {
	Name, Type, Doc, Enum string
	Nested                string `yaml:"nested-attributes"`
	Multi                 bool   `yaml:"multi-attr"`
}

// kind says what an attribute holds.
func (a attribute) kind() string {
	s := a.Type
	switch {
	case a.Enum != "":
		s += ", " + a.Enum
	case a.Nested != "":
		s = "nest of " + a.Nested
	}
	if a.Multi {
		s += ", any number"
	}
	return s
}

// markdown writes the spec as a page for people.
func (d *described) markdown() string {
	var b strings.Builder
	cell := func(s string) string {
		return strings.ReplaceAll(strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`), "<", "&lt;")
	}
	table := func(head ...string) {
		fmt.Fprintf(&b, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	}
	row := func(cells ...any) {
		for _, c := range cells {
			b.WriteString("| " + cell(fmt.Sprint(c)) + " ")
		}
		b.WriteString("|\n")
	}
	fmt.Fprintf(&b, "<!-- SPDX-License-Identifier: GPL-2.0-or-later -->\n"+
		"<!-- Made from ksmbd-notify.yaml by go generate ./genl: change that. -->\n"+
		"# The generic netlink family `%s`\n\n%s\n", d.Name, cell(d.Doc))

	b.WriteString("\n## Operations\n")
	for _, op := range d.Operations.List {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n", op.Name, cell(op.Doc))
		if op.Mcgrp != "" {
			fmt.Fprintf(&b, "\nMulticast to the group `%s`.\n", op.Mcgrp)
			continue
		}
		var attributes []attribute
		for _, set := range d.AttributeSets {
			if set.Name == op.AttributeSet {
				attributes = set.Attributes
			}
		}
		table("attribute of "+op.AttributeSet, "in", "type", "")
		for _, a := range attributes {
			var in []string
			if slices.Contains(op.Do.Request.Attributes, a.Name) {
				in = append(in, "request")
			}
			if slices.Contains(op.Do.Reply.Attributes, a.Name) {
				in = append(in, "reply")
			}
			if in != nil {
				row(a.Name, strings.Join(in, ", "), a.kind(), a.Doc)
			}
		}
	}

	b.WriteString("\n## Nested attributes\n")
	for _, set := range d.AttributeSets {
		nested := false
		for _, other := range d.AttributeSets {
			nested = nested || slices.ContainsFunc(other.Attributes, func(a attribute) bool { return a.Nested == set.Name })
		}
		if nested {
			table("attribute of "+set.Name, "type", "")
			for _, a := range set.Attributes {
				if a.Type != "pad" {
					row(a.Name, a.kind(), a.Doc)
				}
			}
		}
	}

	b.WriteString("\n## Values\n")
	for _, def := range d.Definitions {
		fmt.Fprintf(&b, "\n**%s**", def.Name)
		if def.Type == "const" {
			fmt.Fprintf(&b, " is %d.", def.Value)
		}
		fmt.Fprintf(&b, " %s\n", cell(def.Doc))
		if len(def.Entries) > 0 {
			table("", "value", "")
			for _, e := range def.Entries {
				row(e.Name, e.Value, e.Doc)
			}
		}
	}
	return b.String()
}

// PROTOCOL.md says what the spec says.
func TestProtocolDoc(t *testing.T) {
	text, err := os.ReadFile("ksmbd-notify.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d described
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	want := d.markdown()
	if *update {
		if err := os.WriteFile("PROTOCOL.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile("PROTOCOL.md"); err != nil || string(got) != want {
		t.Errorf("PROTOCOL.md is not of this spec (%v): go generate ./genl", err)
	}
	// Whatever the spec has must be in the page.
	for _, set := range d.AttributeSets {
		for _, a := range set.Attributes {
			if a.Type != "pad" && !strings.Contains(want, "\n| "+a.Name+" | ") {
				t.Errorf("%s of %s is left out", a.Name, set.Name)
			}
		}
	}
}
