// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/ipc"
)

// toolsRelease is one of ksmbd-tools, as much of it as matters here.
type toolsRelease [3]int

// newestTools is a release whose rules those of later ones are as well.
var newestTools = toolsRelease{3, 5, 6}

// parseTools reads what ksmbd.mountd says of itself. What says nothing counts as
// the newest.
func parseTools(version string) toolsRelease {
	var r toolsRelease
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &r[0], &r[1], &r[2]); n < 2 {
		return newestTools
	}
	return r
}

func (r toolsRelease) before(major, minor, patch int) bool {
	return slices.Compare(r[:], []int{major, minor, patch}) < 0
}

// entry is a key and its value in a section of ksmbd.conf(5).
type entry struct{ key, value string }

// section of ksmbd.conf(5). Sections of which the names are spellings of one are one.
type section struct {
	name    string // as it was first
	line    int
	entries []entry // the first with a key counts
	keys    map[string]bool
}

// conf is a ksmbd.conf(5), or a file in its format.
type conf struct {
	tools    toolsRelease
	sections []*section
	byName   map[string]*section // as ipc.FoldShare has it
	cut      bool                // the last line has no end, and lost its last character
	ignored  error               // says which line counts for nothing first: one with a key that the section has already, or with no value
}

// readConf reads a file in the format of ksmbd.conf(5) as those tools do.
func readConf(path string, tools toolsRelease) (*conf, error) {
	text, err := readShort(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", cmp.Or(path, `""`), withoutCall(err))
	}
	c, err := parseConf(string(text), tools)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return c, nil
}

// withoutCall returns why a call has failed, without its name and that of the file.
func withoutCall(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// maxConf is more than any configuration takes.
const maxConf = 16 << 20

var errTooLong = fmt.Errorf("it has more than %d MiB, and is no configuration", maxConf>>20)

// readShort reads a file of at most maxConf bytes, whatever it is: a pipe to which
// nobody writes is empty, and a device does not go on for ever.
func readShort(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(text) > maxConf {
		err = errTooLong
	}
	return text, err
}

// parseConf follows the parsers of ksmbd-tools 3.4 and 3.5, which differ: before
// 3.5 a comment has a line of its own, and behind a value it is part of it.
func parseConf(text string, tools toolsRelease) (*conf, error) {
	c := &conf{tools: tools, byName: make(map[string]*section)}
	old := tools.before(3, 5, 0)
	if old && text != "" && !strings.HasSuffix(text, "\n") {
		text, c.cut = text[:len(text)-1], true
	}
	var current *section
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "\x00")
		line = strings.TrimLeft(line, " \t")
		if isComment(line) {
			continue
		}
		name, isSection := sectionName(line, tools)
		if isSection {
			current = c.add(name, n+1)
			continue
		}
		e, why := parseEntry(line, tools)
		if why == "" && current == nil && (e.value != "" || !old) {
			why = "it is in no section"
		}
		if why != "" {
			return nil, fmt.Errorf("line %d: %s: %s", n+1, printable(shortened(line)), why+asOfWindows(line))
		}
		switch {
		case e.value == "":
			why = "the key has no value"
		case !current.add(e, tools):
			why = fmt.Sprintf("[%s] has that key already", shortened(current.name))
		}
		if why != "" && c.ignored == nil {
			c.ignored = fmt.Errorf("line %d: %s: %s", n+1, printable(shortened(line)), why)
		}
	}
	return c, nil
}

// shortened is enough of a line to find it by.
func shortened(line string) string {
	const enough = 80
	if len(line) > enough {
		return strings.ToValidUTF8(line[:enough], "") + "..."
	}
	return line
}

// asOfWindows says what editors of Windows leave in a line, which cannot be seen.
func asOfWindows(line string) string {
	switch {
	case strings.HasPrefix(line, "\ufeff"):
		return "; it begins with a byte order mark, remove that"
	case strings.HasSuffix(line, "\r"):
		return "; it ends in a carriage return, as all lines of Windows do: dos2unix removes them"
	}
	return ""
}

func isComment(s string) bool { return s == "" || s[0] == ';' || s[0] == '#' }

// isText says whether s has no control characters.
func isText(s string, tab bool) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && !(tab && r == '\t') || r == 0x7f })
}

// maxShareName is how long, in bytes, a share's name can be (KSMBD_REQ_MAX_SHARE_NAME).
const maxShareName = 63

func sectionName(line string, tools toolsRelease) (string, bool) {
	if line[0] != '[' {
		return "", false
	}
	name, rest, closed := strings.Cut(line[1:], "]")
	if tools.before(3, 5, 0) || !closed {
		return name, closed
	}
	return name, name != "" && len(name) <= maxShareName && utf8.ValidString(name) && isText(name, !tools.before(3, 5, 3)) &&
		!strings.Contains(name, "[") && isComment(strings.TrimLeft(rest, " \t"))
}

// parseEntry returns an entry without a value if that is not there, or says what
// is wrong.
func parseEntry(line string, tools toolsRelease) (e entry, why string) {
	key, value, ok := strings.Cut(line, "=")
	if !ok || key == "" {
		return e, "it is neither a section nor a key and its value"
	}
	e.key, e.value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
	if tools.before(3, 5, 0) {
		if isComment(e.value) {
			e.value = ""
		}
		return e, ""
	}
	if end := strings.IndexAny(e.value, ";#"); end >= 0 {
		e.value = e.value[:end]
	}
	switch {
	case strings.ContainsAny(key, ";#") || !isText(key, !tools.before(3, 5, 3)):
		return e, "the key has a character that it may not have"
	case !isText(e.value, true):
		return e, "the value has a character that it may not have"
	}
	return e, ""
}

// add adds a section, or finds the one of that name.
func (c *conf) add(name string, line int) *section {
	if s := c.section(name); s != nil {
		return s
	}
	s := &section{name: name, line: line}
	c.sections = append(c.sections, s)
	c.byName[ipc.FoldShare(name)] = s
	return s
}

func (c *conf) section(name string) *section { return c.byName[ipc.FoldShare(name)] }

// add says whether the entry is the first with its key. Until 3.5.2 keys that differ
// in case are not the same, and both count.
func (s *section) add(e entry, tools toolsRelease) bool {
	key := e.key
	if !tools.before(3, 5, 3) {
		key = strings.ToLower(key)
	}
	if s.keys[key] {
		return false
	}
	if s.keys == nil {
		s.keys = make(map[string]bool)
	}
	s.keys[key] = true
	s.entries = append(s.entries, e)
	return true
}

// values returns all values that the tools may take for that of a key. Until 3.5.2
// they take any key that begins so, and of several whichever their hash table has
// last.
func (s *section) values(key string, tools toolsRelease) (values []string) {
	if s == nil {
		return nil
	}
	for _, e := range s.entries {
		if strings.EqualFold(e.key, key) || tools.before(3, 5, 3) && len(e.key) > len(key) && strings.EqualFold(e.key[:len(key)], key) {
			values = append(values, e.value)
		}
	}
	return values
}

// share is a section of ksmbd.conf(5).
type share struct {
	name   string
	path   string   // as ksmbd takes it; "" for none
	others []string // that it may take instead
}

// whole returns what holds of a share: what it does not say, [global] does.
func (c *conf) whole(s *section) *section {
	all := &section{entries: slices.Clone(s.entries), keys: maps.Clone(s.keys)}
	if global := c.section("global"); global != nil {
		for _, e := range global.entries {
			all.add(e, c.tools)
		}
	}
	return all
}

// ipcShare is where clients ask for the names of the others.
const ipcShare = "ipc$"

// misfit says why ksmbd.mountd leaves a share out, nil if it does not. From 3.5.3 on
// it does so where one of these cannot be: known asks for a name in a database of
// getent(1). Without ipcShare it does not start.
func (c *conf) misfit(name string, known func(database, name string) bool) error {
	if c.tools.before(3, 5, 3) {
		return nil
	}
	s := new(section)
	if of := c.section(name); of != nil {
		s.entries, s.keys = slices.Clone(of.entries), maps.Clone(of.keys)
	}
	if name == ipcShare {
		s.add(entry{"comment", "IPC share"}, c.tools)
	}
	s = c.whole(s)
	for _, of := range []struct{ key, database, what string }{{"force user", "passwd", "user"}, {"force group", "group", "group"}} {
		for _, value := range s.values(of.key, c.tools) {
			if !known(of.database, value) {
				return fmt.Errorf("there is no %s %s for %s", of.what, printable(value), of.key)
			}
		}
	}
	for _, value := range s.values("comment", c.tools) {
		if !utf8.ValidString(value) {
			return fmt.Errorf("the comment %s is not UTF-8", printable(value))
		}
	}
	return nil
}

// readShares reads ksmbd.conf(5) as ksmbd.mountd does.
func readShares(c *conf) (shares []share) {
	global := c.section("global")
	root := append(global.values("root directory", c.tools), "")[0]
	for _, s := range c.sections {
		if s == global || strings.EqualFold(s.name, ipcShare) {
			continue
		}
		paths := c.whole(s).values("path", c.tools)
		for i, path := range paths {
			path = root + path
			for len(path) > 1 && strings.HasSuffix(path, "/") {
				path = path[:len(path)-1]
			}
			paths[i] = path
		}
		sh := share{name: s.name}
		if len(paths) > 0 {
			sh.path, sh.others = paths[0], paths[1:]
		}
		shares = append(shares, sh)
	}
	return shares
}
