// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

const demoDir = "/tmp/client2" // from where the second client puts

// demoSteps are what is done while a client watches, by whom, and what it must be told at least.
var demoSteps = []struct {
	by   string
	do   string
	must []string
}{
	{"server", "touch report.txt", []string{"added report.txt"}},
	{"server", "echo hello > report.txt", []string{"modified report.txt"}},
	{"server", "mv report.txt final.txt", []string{"old name report.txt", "new name final.txt"}},
	{"client 2", "mkdir archive", []string{"added archive"}},
	{"server", "mv final.txt archive/", []string{"removed final.txt", "added archive/final.txt"}},
	{"client 2", "put notes.txt", []string{"added notes.txt"}},
	{"client 2", "rename notes.txt ideas.txt", []string{"old name notes.txt", "new name ideas.txt"}},
	{"client 2", `rename ideas.txt archive\ideas.txt`, []string{"removed ideas.txt", "added archive/ideas.txt"}},
	{"client 2", `del archive\ideas.txt`, []string{"removed archive/ideas.txt"}},
	{"server", "mkdir -p a/b/c", []string{"added a", "added a/b", "added a/b/c"}},
	{"server", "touch a/b/c/deep.txt", []string{"added a/b/c/deep.txt"}},
	{"server", "rm archive/final.txt", []string{"removed archive/final.txt"}},
	{"server", "rmdir archive", []string{"removed archive"}},
}

const demoWidth = 46 // of the left column

// showDemo prints side by side what is done and what a watching client is told.
func showDemo(out io.Writer) error {
	if err := os.Mkdir(demoDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(demoDir, "notes.txt"), []byte("hello\n"), 0o644); err != nil {
		return err
	}
	w, err := watch("", user1)
	if err != nil {
		return err
	}
	defer w.close()
	row := func(left, right string) {
		pad := max(0, demoWidth-utf8.RuneCountInString(left))
		fmt.Fprintln(out, strings.TrimRight("  "+left+strings.Repeat(" ", pad)+"  "+right, " "))
	}
	fmt.Fprintln(out)
	row("what is done", "what the watching client is told")
	row(strings.Repeat("─", demoWidth), strings.Repeat("─", 34))
	silent := 0
	for _, s := range demoSteps {
		if s.by == "server" {
			err = command("sh", "-c", s.do)
		} else {
			err = smbclient(user2, "lcd "+demoDir+"; "+s.do)
		}
		if err != nil {
			return err
		}
		told, err := w.told()
		if err != nil {
			return err
		}
		told = slices.Compact(told)
		left := fmt.Sprintf("%-9s %s", s.by, s.do)
		for _, r := range told {
			row(left, fmt.Sprintf("%-9s %s", r.action, r.name))
			left = ""
		}
		for _, must := range s.must {
			if !slices.ContainsFunc(told, func(r record) bool { return r.String() == must }) {
				row(left, "NOT TOLD: "+must)
				left = ""
				silent++
			}
		}
	}
	fmt.Fprintln(out)
	if silent > 0 {
		return fmt.Errorf("%d changes of which the client was not told", silent)
	}
	fmt.Fprintf(out, "  %d changes, and the client was told of all of them.\n\n", len(demoSteps))
	return nil
}
