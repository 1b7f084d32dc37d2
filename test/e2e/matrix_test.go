// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// expectations has for each operation the records, in order, and the completion filter bits that let each through.
// Names are relative to where it is done: the watched directory, or a directory below, of which only a watch tree tells.
// A watch that is no tree sees what has no backslash.
//
// Through SMB every bit has its own meaning. On the server fanotify has one event, ATTRIB, for mode, owner, ACL, extended
// attributes and a touch, and ksmbd keeps attributes, creation time, EAs and streams in extended attributes. It is let
// through by whatever it can be: a needless MODIFIED has a client look, a missing one leaves it with what was. The times
// alone are told apart: a modification time is MODIFY, as writing is, and an access time is told as reading is: not at all.
const expectations = `
create            | both   | ADDED new                    | file-name
mkdir             | both   | ADDED new                    | dir-name
link              | both   | ADDED new                    | file-name
delete            | both   | REMOVED file                 | file-name
rmdir             | both   | REMOVED dir                  | dir-name
rename            | both   | RENAMED_OLD_NAME file        | file-name
                  |        | RENAMED_NEW_NAME new         | file-name
                  |        | MODIFIED new                 | attributes creation
rename dir        | both   | RENAMED_OLD_NAME dir         | dir-name
                  |        | RENAMED_NEW_NAME new         | dir-name
rename over       | both   | REMOVED victim               | file-name
                  |        | RENAMED_OLD_NAME file        | file-name
                  |        | RENAMED_NEW_NAME victim      | file-name
                  |        | MODIFIED victim              | attributes creation
move              | both   | REMOVED file                 | file-name
                  |        | ADDED other\file             | file-name
                  |        | MODIFIED other\file          | attributes creation
move dir          | both   | REMOVED dir                  | dir-name
                  |        | ADDED other\dir              | dir-name
move over         | both   | REMOVED other\victim         | file-name
                  |        | REMOVED file                 | file-name
                  |        | ADDED other\victim           | file-name
                  |        | MODIFIED other\victim        | attributes creation
move out          | both   | REMOVED file                 | file-name
move out dir      | both   | REMOVED dir                  | dir-name
move in           | both   | ADDED in                     | file-name
move in dir       | both   | ADDED indir                  | dir-name
move in over      | both   | REMOVED victim               | file-name
                  |        | ADDED victim                 | file-name
write             | both   | MODIFIED file                | attributes size last-write
truncate          | both   | MODIFIED file                | attributes size last-write
overwrite         | both   | MODIFIED file                | attributes size last-write
set hidden        | smb    | MODIFIED file                | attributes
set hidden of dir | smb    | MODIFIED dir                 | attributes
set last write    | smb    | MODIFIED file                | last-write
set last access   | smb    | MODIFIED file                | last-access
set creation      | smb    | MODIFIED file                | creation
set change        | smb    | nothing                      |
set DACL          | smb    | MODIFIED file                | security
set DACL of dir   | smb    | MODIFIED dir                 | security
set EA            | smb    | MODIFIED file                | ea
create stream     | smb    | MODIFIED file                | stream-name
write stream      | smb    | MODIFIED file                | stream-size stream-write
delete stream     | smb    | MODIFIED file                | stream-name
set hidden itself | smb    | nothing                      |
chmod             | server | MODIFIED file                | ATTRIB
chmod dir         | server | MODIFIED dir                 | ATTRIB
chown             | server | MODIFIED file                | ATTRIB
set xattr         | server | MODIFIED file                | ATTRIB
touch             | server | MODIFIED file                | ATTRIB
set last write    | server | MODIFIED file                | attributes size last-write
set last access   | server | nothing                      |
chmod itself      | server | nothing                      |
`

// filterBits has the completion filter's bits by the names that expectations uses.
var filterBits = []string{
	"file-name", "dir-name", "attributes", "size", "last-write", "last-access", "creation", "ea", "security",
	"stream-name", "stream-size", "stream-write",
}

const whateverATTRIBIs = "attributes last-write last-access creation ea security stream-name stream-size stream-write"

// place is where an operation is done.
type place struct {
	*wire
	tree *smb2.Tree
	sub  string // of the test's directory; "" is itself
}

// at is a path on the server, and smb one through SMB. outside/ is beside the watched directory.
func (p place) at(name string) string {
	if rest, ok := strings.CutPrefix(name, "outside/"); ok {
		return filepath.Join(p.dir, "outside", rest)
	}
	return filepath.Join(p.dir, "watched", p.sub, name)
}

func (p place) smb(name string) string {
	name, _ = filepath.Rel(p.dir, p.at(name))
	return p.path(strings.ReplaceAll(name, "/", `\`))
}

// with opens a file or directory, has something done with it, and closes it.
func (p place) with(name string, do func(*smb2.File) error) error {
	return p.opened(smb2.CreateParams{Name: p.smb(name), Disposition: smb2.DispositionOpen}, do)
}

func (p place) opened(c smb2.CreateParams, do func(*smb2.File) error) error {
	c.Access = smb2.AccessMaximum
	f, err := p.tree.Create(p.ctx, c)
	if err != nil {
		return err
	}
	if do != nil {
		if err := do(f); err != nil {
			return err
		}
	}
	return f.Close(p.ctx)
}

func (p place) stream(disposition uint32, do func(*smb2.File) error) error {
	return p.opened(smb2.CreateParams{Name: p.smb("file") + ":stream", Disposition: disposition}, do)
}

// prepare makes what the operations work on.
func (p place) prepare() {
	for _, name := range []string{p.at("dir"), p.at("other")} {
		p.ok(os.MkdirAll(name, 0o777))
	}
	p.ok(os.MkdirAll(p.at("outside/indir"), 0o777))
	for _, name := range []string{"file", "victim", "other/victim", "outside/in"} {
		p.ok(os.WriteFile(p.at(name), []byte("hello"), 0o666))
	}
	// Only an owner may set times and ACLs.
	p.ok(filepath.WalkDir(p.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, uid1, uid1), os.Chmod(path, 0o777))
	}))
}

type operation func(place) error

func rename(from, to string) (bySMB, onServer operation) {
	return func(p place) error {
			return p.with(from, func(f *smb2.File) error { return f.Rename(p.ctx, p.smb(to), true) })
		}, func(p place) error {
			return os.Rename(p.at(from), p.at(to))
		}
}

func basic(name string, b smb2.Basic) operation {
	return func(p place) error {
		return p.with(name, func(f *smb2.File) error { return f.SetBasic(p.ctx, b) })
	}
}

func dacl(name string) operation {
	return func(p place) error {
		return p.with(name, func(f *smb2.File) error {
			return f.SetDACL(p.ctx, smb2.ACE{SID: smb2.SID(1, 0), Mask: 0x1f01ff}) // everyone, everything
		})
	}
}

func utimes(atime, mtime unix.Timespec) operation {
	return func(p place) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, p.at("file"), []unix.Timespec{atime, mtime}, 0)
	}
}

// operations returns how the operations of expectations are done.
func operations() (bySMB, onServer map[string]operation) {
	future := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	bySMB = map[string]operation{
		"create": func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.smb("new"), Disposition: smb2.DispositionCreate}, nil)
		},
		"mkdir": func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.smb("new"), Disposition: smb2.DispositionCreate, Options: smb2.OptionDirectory}, nil)
		},
		"link": func(p place) error {
			return p.with("file", func(f *smb2.File) error { return f.Link(p.ctx, p.smb("new"), false) })
		},
		"delete": func(p place) error { return p.with("file", func(f *smb2.File) error { return f.Delete(p.ctx) }) },
		"rmdir":  func(p place) error { return p.with("dir", func(f *smb2.File) error { return f.Delete(p.ctx) }) },
		"write": func(p place) error {
			return p.with("file", func(f *smb2.File) error { return f.Write(p.ctx, 0, []byte("other")) })
		},
		"truncate": func(p place) error { return p.with("file", func(f *smb2.File) error { return f.SetSize(p.ctx, 2) }) },
		"overwrite": func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.smb("file"), Disposition: smb2.DispositionOverwrite}, nil)
		},
		"set hidden":        basic("file", smb2.Basic{Attributes: smb2.AttributeHidden}),
		"set hidden of dir": basic("dir", smb2.Basic{Attributes: smb2.AttributeHidden}),
		"set hidden itself": func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.path("watched"), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
				return f.SetBasic(p.ctx, smb2.Basic{Attributes: smb2.AttributeHidden})
			})
		},
		"set last write":  basic("file", smb2.Basic{LastWrite: future}),
		"set last access": basic("file", smb2.Basic{LastAccess: future}),
		"set creation":    basic("file", smb2.Basic{Creation: future}),
		"set change":      basic("file", smb2.Basic{Change: future}),
		"set DACL":        dacl("file"),
		"set DACL of dir": dacl("dir"),
		"set EA": func(p place) error {
			return p.with("file", func(f *smb2.File) error { return f.SetEA(p.ctx, "TEST", "value") })
		},
		"create stream": func(p place) error { return p.stream(smb2.DispositionCreate, nil) },
		"write stream": func(p place) error {
			return p.stream(smb2.DispositionOpen, func(f *smb2.File) error { return f.Write(p.ctx, 0, []byte("hello")) })
		},
		"delete stream": func(p place) error {
			return p.opened(smb2.CreateParams{ // a delete disposition removes the file itself: a bug of the stock module
				Name: p.smb("file") + ":stream", Disposition: smb2.DispositionOpen, Options: smb2.OptionDeleteOnClose,
			}, nil)
		},
	}
	onServer = map[string]operation{
		"create":    func(p place) error { return os.WriteFile(p.at("new"), nil, 0o666) },
		"mkdir":     func(p place) error { return os.Mkdir(p.at("new"), 0o777) },
		"link":      func(p place) error { return os.Link(p.at("file"), p.at("new")) },
		"delete":    func(p place) error { return os.Remove(p.at("file")) },
		"rmdir":     func(p place) error { return os.Remove(p.at("dir")) },
		"overwrite": func(p place) error { return os.WriteFile(p.at("file"), []byte("other"), 0) },
		"truncate":  func(p place) error { return os.Truncate(p.at("file"), 2) },
		"write": func(p place) error {
			f, err := os.OpenFile(p.at("file"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("other")
			return err
		},
		"chmod":           func(p place) error { return os.Chmod(p.at("file"), 0o600) },
		"chmod dir":       func(p place) error { return os.Chmod(p.at("dir"), 0o700) },
		"chmod itself":    func(p place) error { return os.Chmod(filepath.Join(p.dir, "watched"), 0o755) },
		"chown":           func(p place) error { return os.Chown(p.at("file"), uid2, uid2) },
		"set xattr":       func(p place) error { return unix.Setxattr(p.at("file"), "user.test", []byte("value"), 0) },
		"touch":           utimes(now, now),
		"set last write":  utimes(omit, unix.Timespec{Sec: future.Unix()}),
		"set last access": utimes(unix.Timespec{Sec: future.Unix()}, omit),
	}
	for name, names := range map[string][2]string{
		"rename":       {"file", "new"},
		"rename dir":   {"dir", "new"},
		"rename over":  {"file", "victim"},
		"move":         {"file", "other/file"},
		"move dir":     {"dir", "other/dir"},
		"move over":    {"file", "other/victim"},
		"move out":     {"file", "outside/file"},
		"move out dir": {"dir", "outside/dir"},
		"move in":      {"outside/in", "in"},
		"move in dir":  {"outside/indir", "indir"},
		"move in over": {"outside/in", "victim"},
	} {
		bySMB[name], onServer[name] = rename(names[0], names[1])
	}
	return bySMB, onServer
}

// expectation is a row of expectations, with the rows that continue it.
type expectation struct {
	op, by  string
	records []struct {
		record string
		bits   []string
	}
}

func parseExpectations(t *testing.T) []expectation {
	var all []expectation
	for line := range strings.Lines(strings.TrimSpace(expectations)) {
		col := strings.Split(strings.TrimSpace(line), "|")
		if len(col) != 4 {
			t.Fatalf("bad row %q", line)
		}
		for i := range col {
			col[i] = strings.TrimSpace(col[i])
		}
		if col[0] != "" {
			all = append(all, expectation{op: col[0], by: col[1]})
		}
		e := &all[len(all)-1]
		if col[2] == "nothing" {
			continue
		}
		bits := strings.Fields(strings.ReplaceAll(col[3], "ATTRIB", whateverATTRIBIs))
		for _, bit := range bits {
			if !slices.Contains(filterBits, bit) {
				t.Fatalf("bad bit %q", bit)
			}
		}
		e.records = append(e.records, struct {
			record string
			bits   []string
		}{col[2], bits})
	}
	return all
}

// of gives the records that a watch with one filter bit is told of the operation done in sub.
func (e expectation) of(bit, sub string, tree bool) []string {
	var want []string
	for _, r := range e.records {
		action, name, _ := strings.Cut(r.record, " ")
		if sub != "" {
			name = sub + `\` + name
		}
		if slices.Contains(r.bits, bit) && (tree || !strings.Contains(name, `\`)) {
			want = append(want, action+" "+name)
		}
	}
	return want
}

// TestMatrix does every operation in a watched directory and in one below it, through SMB and on the server, while each
// completion filter bit has a watch of its own that is a tree and one that is not.
func TestMatrix(t *testing.T) {
	begin(t)
	bySMB, onServer := operations()
	done := 0
	for _, e := range parseExpectations(t) {
		for _, side := range []struct {
			name string
			do   operation
		}{{"smb", bySMB[e.op]}, {"server", onServer[e.op]}} {
			if e.by != "both" && e.by != side.name {
				continue
			}
			done++
			for _, sub := range []string{"", "sub"} {
				if sub != "" && strings.HasSuffix(e.op, "itself") {
					continue
				}
				t.Run(strings.Join([]string{e.op, side.name, sub}, "/"), func(t *testing.T) {
					if side.do == nil {
						t.Fatal("nobody knows how to do that")
					}
					matrixCell(t, e, sub, side.do)
				})
			}
		}
	}
	if n := len(bySMB) + len(onServer); done != n {
		t.Errorf("%d operations are expected, there are %d", done, n)
	}
}

func matrixCell(t *testing.T, e expectation, sub string, do operation) {
	w := newWire(t, wireLimit)
	w.mkdir("watched")
	if sub != "" {
		w.mkdir("watched/" + sub)
	}
	_, actor := w.connect(smb2.Options{})
	p := place{w, actor, sub}
	p.prepare()
	if strings.HasSuffix(e.op, " stream") && e.op != "create stream" {
		w.ok(p.stream(smb2.DispositionCreate, nil))
	}
	c, tree := w.connect(smb2.Options{})

	type watch struct {
		bit   string
		tree  bool
		file  *smb2.File
		p     smb2.NotifyParams
		calls []*smb2.Call
		told  []string
	}
	var watches []*watch
	for i, bit := range filterBits {
		for _, isTree := range []bool{false, true} {
			watches = append(watches, &watch{
				bit: bit, tree: isTree, file: w.open(tree, "watched"),
				p: smb2.NotifyParams{Tree: isTree, Filter: 1 << i, Length: 4096},
			})
		}
	}
	park := func() {
		for _, v := range watches {
			v.calls = append(v.calls, w.send(v.file, v.p))
		}
	}
	park()
	for _, v := range watches {
		w.pending(v.calls[0])
	}
	w.ok(do(p))
	// Once a further request pends, or is answered, all that came before it has been told or is in its answer.
	park()
	for _, v := range watches {
		last, err := v.calls[1].Recv(w.ctx)
		w.ok(err)
		ends := []*smb2.Response{nil, last}
		if last.Interim() {
			ends[1] = nil
		}
		for i, end := range ends {
			if end == nil {
				w.ok(v.calls[i].Cancel(w.ctx))
				ends[i], err = v.calls[i].Recv(w.ctx)
				w.ok(err)
			}
			switch ends[i].Status {
			case smb2.StatusSuccess:
				v.told = append(v.told, w.records(ends[i])...)
			case smb2.StatusCancelled:
			default:
				v.told = append(v.told, ends[i].Status.String())
			}
		}
		// Whether two equal records are told in one response is a matter of time.
		v.told = slices.Compact(v.told)
	}
	w.quiet(c)

	// Watches that go wrong in the same way share a line.
	wrong := map[string][]string{}
	for _, v := range watches {
		if want := e.of(v.bit, sub, v.tree); !slices.Equal(v.told, want) {
			line := fmt.Sprintf("told %q, want %q", v.told, want)
			kind := ""
			if v.tree {
				kind = "/tree"
			}
			wrong[line] = append(wrong[line], v.bit+kind)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(wrong)) {
		t.Errorf("%s: %s", strings.Join(wrong[line], " "), line)
	}
}

// TestCreateWithACL: what ksmbd stores about a file while it creates it belongs to the creation, an ACL too.
func TestCreateWithACL(t *testing.T) {
	begin(t)
	w := newWireAt(t, wireLimit, sharePath("ACL"))
	tree, err := w.dial(smb2.Options{}).TreeConnect(w.ctx, "ACL")
	w.ok(err)
	f := w.open(tree, "")
	all := smb2.NotifyParams{Tree: true, Filter: smb2.FilterAll, Length: 4096}
	w.arm(f, all)
	p := place{wire: w, tree: tree}
	for name, options := range map[string]uint32{"file": 0, "dir": smb2.OptionDirectory} {
		w.ok(p.opened(smb2.CreateParams{Name: w.path(name), Disposition: smb2.DispositionCreate, Options: options}, nil))
		w.told(w.send(f, all), "ADDED "+name)
	}
	for _, name := range []string{"file", "dir"} { // a change of it is one all the same
		w.ok(p.opened(smb2.CreateParams{Name: w.path(name), Disposition: smb2.DispositionOpen}, func(f *smb2.File) error {
			return f.SetDACL(w.ctx, smb2.ACE{SID: smb2.SID(1, 0), Mask: 0x1f01ff})
		}))
		r := w.ends(w.send(f, all), smb2.StatusSuccess)
		if got := slices.Compact(w.records(r)); !slices.Equal(got, []string{"MODIFIED " + name}) {
			t.Errorf("told %q", got)
		}
	}
}
