// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"reflect"
	"strings"
	"testing"
)

// What ksmbd-tools 3.4.7, 3.5.2 and 3.5.3 take for the shares, "-" where they refuse
// the file. TestCheckReadsAsTools asks the tools themselves.
func TestReadShares(t *testing.T) {
	type shares = []share
	for _, test := range []struct {
		name, text            string
		v347, v352, v353, all shares // all stands for all three
		refused               string // by whom
	}{
		{name: "nothing", text: "; nothing\n#\n\n", all: nil},
		{name: "comment behind a value", text: "[global]\n\tread only = ; yes\n\tpath = \n[a]\n\tcomment = it's \"so\"\n\tpath = /a b # here\n",
			v347: shares{{"a", "/a b # here", nil}}, v352: shares{{"a", "/a b ", nil}}, v353: shares{{"a", "/a b ", nil}}},
		{name: "keys that differ in case", text: "[A]\nPATH=/first\npath=/second\n[GLOBAL]\npath = /all\n[b]\n[ipc$]\npath=/x\n",
			v347: shares{{"A", "/first", []string{"/second"}}, {"b", "/all", nil}}, v352: shares{{"A", "/first", []string{"/second"}}, {"b", "/all", nil}},
			v353: shares{{"A", "/first", nil}, {"b", "/all", nil}}},
		{name: "one share in two sections", text: "[DUP]\ncomment = c\n[dup]\npath = /x\n[Dup]\npath = /y\n", all: shares{{"DUP", "/x", nil}}},
		{name: "root directory", text: "[global]\nroot directory = /root/\n[a]\npath = /a//\n[b]\npath = b\n", all: shares{{"a", "/root//a", nil}, {"b", "/root/b", nil}}},
		{name: "relative path", text: "[a]\npath = srv/a\n", all: shares{{"a", "srv/a", nil}}},
		{name: "root", text: "[a]\npath = //\n", all: shares{{"a", "/", nil}}},
		{name: "backslash", text: "[a]\npath = /%(b)s\\\n\tb = c\n", all: shares{{"a", `/%(b)s\`, nil}}},
		{name: "key twice", text: "[a]\npath = /x\npath = /y\n", all: shares{{"a", "/x", nil}}},
		{name: "empty first", text: "[a]\npath =\npath = ; no\npath = /y\n", all: shares{{"a", "/y", nil}}},
		{name: "key that begins so", text: "[a]\npathology = /x\n", v347: shares{{"a", "/x", nil}}, v352: shares{{"a", "/x", nil}}, v353: shares{{"a", "", nil}}},
		{name: "no end", text: "[a]\npath = /srv/a", v347: shares{{"a", "/srv", nil}}, v352: shares{{"a", "/srv/a", nil}}, v353: shares{{"a", "/srv/a", nil}}},
		{name: "behind a section", text: "[a] b\npath = /x\n", v347: shares{{"a", "/x", nil}}, refused: "3.5"},
		{name: "comment behind a section", text: "[a] ; b\npath = /x\n", all: shares{{"a", "/x", nil}}},
		{name: "section without an end", text: "[a\npath = /x\n", refused: "all"},
		{name: "key without a value", text: "[a]\npath\n", refused: "all"},
		{name: "value without a key", text: "[a]\n= /x\n", refused: "all"},
		{name: "no section", text: "path = /x\n[a]\n", refused: "all"},
		{name: "no section and no value", text: "path = ; none\n[a]\npath = /x\n", v347: shares{{"a", "/x", nil}}, refused: "3.5"},
		{name: "carriage return", text: "[a]\r\npath = /x\r\n", v347: shares{{"a", "/x\r", nil}}, refused: "3.5"},
		{name: "NUL", text: "[a]\npath = /x\x00y\n", all: shares{{"a", "/x", nil}}},
		{name: "trailing blanks", text: "[a]\npath = /x \t\n", all: shares{{"a", "/x \t", nil}}},
		{name: "blanks", text: " \t[a]\n\t path\t = \t/x\n", v347: shares{{"a", "/x", nil}}, v353: shares{{"a", "/x", nil}}, refused: "3.5.2"},
		{name: "tab in a name", text: "[a\tb]\npath = /x\n", v347: shares{{"a\tb", "/x", nil}}, v353: shares{{"a\tb", "/x", nil}}, refused: "3.5.2"},
		{name: "equals signs", text: "[a]\npath = /x=y\n", all: shares{{"a", "/x=y", nil}}},
		{name: "letters of several parts", text: "[\u00c4rger]\npath = /a\n[a\u0308RGER]\npath = /b\n[STRASSE]\npath = /c\n[stra\u00dfe]\npath = /d\n",
			all: shares{{"\u00c4rger", "/a", nil}, {"STRASSE", "/c", nil}}},
		{name: "mark at the beginning", text: "\ufeff[a]\npath = /x\n", refused: "all"},
		{name: "long line", text: "[a]\ncomment = " + strings.Repeat("x", 1<<20) + "\npath = /" + strings.Repeat("y", 5000) + "\n", all: shares{{"a", "/" + strings.Repeat("y", 5000), nil}}},
		{name: "include", text: "include = /x\n", refused: "all"},
		{name: "include in a section", text: "[global]\ninclude = /x\n[a]\npath = /srv/%S\n", all: shares{{"a", "/srv/%S", nil}}},
		{name: "quotes", text: "[a]\npath = \"/srv/a\"\n", all: shares{{"a", "\"/srv/a\"", nil}}},
		{name: "letters of others", text: "[Ärger]\npath = /ä\n[ärger]\npath = /b\n", all: shares{{"Ärger", "/ä", nil}}},
	} {
		for i, version := range []string{"3.4.7", "3.5.2", "3.5.3"} {
			want := [...]shares{test.v347, test.v352, test.v353}[i]
			if test.all != nil {
				want = test.all
			}
			refused := test.refused == "all" || test.refused == version || test.refused == "3.5" && i > 0
			c, err := parseConf(test.text, parseTools(version))
			if err != nil || refused {
				if err == nil || !refused {
					t.Errorf("%s, %s: %v", test.name, version, err)
				}
				continue
			}
			got := readShares(c)
			for i := range got {
				if len(got[i].others) == 0 {
					got[i].others = nil
				}
			}
			if len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s: got %+v, want %+v", test.name, version, got, want)
			}
		}
	}
}

func TestMountsHidden(t *testing.T) {
	for version, want := range map[string]bool{
		"3.4.7": true, "3.3.12": true, "3.4.8": true, "2.9.9": true, "3.4.9": false, "3.4.10": false, "3.5.0": false, "3.5": false, "": false,
	} {
		if got := mountsHidden(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
