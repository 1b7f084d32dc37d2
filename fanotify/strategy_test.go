// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// readme has the table of filesystems between these lines.
const (
	readme     = "../README.md"
	tableBegin = "<!-- filesystems: go test ./fanotify -run TestStrategies -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestStrategies makes the table of filesystems in the README: how each is
// watched, and what of it is told as something else than what happened.
func TestStrategies(t *testing.T) {
	var table strings.Builder
	table.WriteString("| filesystem | a directory | a watch tree | told otherwise |\n|---|---|---|---|\n")
	for _, f := range testFilesystems {
		var strategy [2]string
		var otherwise []string
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			for i, tree := range []bool{false, true} {
				dir := filepath.Join(mnt, fmt.Sprint("w", i))
				os.Mkdir(dir, 0o755)
				g := openTest(t)
				w, told := watchTest(t, g, dir, tree, allOps)
				strategy[i] = w.Strategy()
				for _, o := range oddities {
					if what := o.tried(t, g, dir, told); what != "" && !slices.Contains(otherwise, what) {
						otherwise = append(otherwise, what)
					}
				}
				g.Close()
			}
		})
		if strategy[1] == "" {
			return // skipped, or failed: there is no whole table
		}
		if otherwise == nil {
			otherwise = []string{"–"}
		}
		label := f.name
		if f.over != "" {
			label += " (" + f.over + ")"
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", label, strategy[0], strategy[1], strings.Join(otherwise, "; "))
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), tableBegin)
	is, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", readme)
	}
	if is == table.String() || t.Failed() {
		return
	}
	if !*update {
		t.Fatalf("the README has\n%s\nis\n%s", is, table.String())
	}
	if err := os.WriteFile(readme, []byte(before+tableBegin+table.String()+tableEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// oddities are operations that not every filesystem tells by name.
var oddities = []oddity{
	{"chmod of a directory below", func(dir string) error {
		return errJoin(os.Mkdir(dir+"/d", 0o755), os.Chmod(dir+"/d", 0o700))
	}, []string{"create d/", "attrib d/"}},
	{"made", func(dir string) error {
		return errJoin(os.WriteFile(dir+"/f", nil, 0o600), os.WriteFile(dir+"/g", nil, 0o600))
	}, []string{"create f", "create g"}},
	{"replaced by a rename", func(dir string) error {
		return os.Rename(dir+"/f", dir+"/g")
	}, []string{"delete g", "rename f -> g"}},
}

type oddity struct {
	what string
	do   func(dir string) error
	want []string
}

// tried returns how o is told otherwise.
func (o *oddity) tried(t *testing.T, g *Group, dir string, told *[]string) string {
	err := o.do(dir)
	drain(t, g)
	defer func() { *told = nil }()
	missing := slices.Clone(o.want)
	for _, c := range *told {
		if c == "overflow" {
			return o.what + ": list anew"
		}
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == c })
	}
	switch {
	case err != nil || len(missing) == 0:
		return "" // or it cannot be done
	default:
		return o.what + ": without " + strings.Join(missing, ", ")
	}
}
