// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// TestNames: records name files exactly as listings do, whatever a server's file system takes for a name.
func TestNames(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	names := []string{
		"plain", "CaSe", "with space", " leading", "trailing ", "trailing.", "..three", "~tilde", "semi;colon",
		"ümlaut", "u\u0308mlaut", "日本語", "😀", "\u202eleft", "\ufeffmark", "no\u00a0break",
		`back\slash`, "colon:", "star*", "question?", "less<", "more>", "pipe|", `quote"`, "tab\t", "newline\n", "one\x01", "del\x7f",
		"private\uf022use", "bad\xff", "bad\xc3", "\x80bad", "bad\xed\xa0\x80half", "over\xc0\xaflong", "beyond\xf4\x90\x80\x80",
		strings.Repeat("x", 255), strings.Repeat("é", 127), strings.Repeat("日", 85), strings.Repeat("😀", 63),
	}
	_, tree := w.connect(smb2.Options{})
	w.mkdir("sub")
	for _, dir := range []string{"", "sub"} {
		t.Run("in-"+dir, func(t *testing.T) {
			w := &wire{t, w.ctx, w.name, w.dir}
			f := w.open(tree, "")
			p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterFileName, Length: 65536}
			for _, name := range names {
				call, _ := w.park(f, p)
				w.touch(filepath.Join(dir, name))
				list := w.open(tree, dir) // anew: on btrfs a handle lists what was there when it was opened
				listed, err := list.List(w.ctx)
				w.ok(err)
				w.ok(list.Close(w.ctx))
				listed = slices.DeleteFunc(listed, func(s string) bool { return s == "sub" })
				if len(listed) != 1 {
					t.Fatalf("%q: listed as %q", name, listed)
				}
				as := strings.TrimPrefix(dir+`\`+listed[0], `\`)
				w.told(call, "ADDED "+as)
				w.ok(os.Remove(filepath.Join(w.dir, dir, name)))
				w.told(w.send(f, p), "REMOVED "+as)
			}
		})
	}
}

// TestLongPaths: a path of nearly 4 KiB below the watched directory is told, a longer one as a directory to be listed
// anew.
func TestLongPaths(t *testing.T) {
	begin(t)
	w := newWire(t, long)
	_, tree := w.connect(smb2.Options{})
	p := smb2.NotifyParams{Tree: true, Filter: smb2.FilterFileName, Length: 65536}
	// No path reaches that deep, so each directory is made from the one before.
	dir, err := unix.Open(w.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	w.ok(err)
	defer func() { unix.Close(dir) }()
	path := ""
	down := func(length int) {
		name := strings.Repeat(string(rune('a'+strings.Count(path, `\`))), length)
		w.ok(unix.Mkdirat(dir, name, 0o777))
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		w.ok(err)
		unix.Close(dir)
		dir = next
		path += name + `\`
	}
	touch := func(name string) {
		fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY, 0o666)
		w.ok(err)
		unix.Close(fd)
	}
	for len(path) < 15*256 {
		down(255)
	}
	f := w.open(tree, "")
	w.arm(f, p)
	for _, length := range []int{4000, 4095} {
		name := strings.Repeat("f", length-len(path))
		touch(name)
		w.told(w.send(f, p), "ADDED "+path+name)
	}
	for range 2 {
		down(200)
		touch(strings.Repeat("g", 200))
		w.enumDir(w.ends(w.send(f, p), smb2.StatusNotifyEnumDir))
	}
	// The watch goes on.
	w.touch("after")
	w.told(w.send(f, p), "ADDED after")
	w.ok(os.Remove(filepath.Join(w.dir, "after")))
	w.told(w.send(f, p), "REMOVED after")
	w.ok(os.RemoveAll(w.dir))
	w.ends(w.send(f, p), smb2.StatusDeletePending)
}
