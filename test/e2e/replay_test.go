// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// watchersOf are what programs in the field watch with: completion filter, buffer length in bytes, whether a watch tree.
var watchersOf = []struct {
	program string
	filter  smb2.Filter
	length  uint32
	tree    bool
}{
	{".NET", 0x13, 8 << 10, true},
	{"Explorer", 0x17, 32 << 10, false},
	{"foobar2000", 0x1b, 64 << 10, true},
	{"parcel", 0x1f, 1 << 20, true},
	{"Java", 0x15f, 16 << 10, false},
	{"Node.js, watchdog", 0x17f, 4 << 10, true},
	{"macOS", 0xfff, 64 << 10, false},
}

// What a change of a file is told under.
const (
	anyName   = smb2.FilterNames
	contents  = smb2.FilterAttributes | smb2.FilterSize | smb2.FilterLastWrite
	attribute = smb2.FilterAttributes
)

// told is a record, and which completion filters let it through.
type told struct {
	record string
	by     smb2.Filter
}

// A replay is something that clients do, and all that is told of it, in this order.
type replay struct {
	name string
	do   func(place) error
	want []told
}

// open is a CREATE and a CLOSE of a name in the watched directory.
func open(name string, c smb2.CreateParams) func(place) error {
	return func(p place) error {
		c.Name = p.smb(name)
		return p.opened(c, nil)
	}
}

// on has something done with what has a name in the watched directory.
func on(name string, do func(place, *smb2.File) error) func(place) error {
	return func(p place) error { return p.with(name, func(f *smb2.File) error { return do(p, f) }) }
}

// from has something done with two files, of which only the second may be changed.
func from(source, name string, do func(_ place, source, f *smb2.File) error) func(place) error {
	return on(source, func(p place, other *smb2.File) error {
		return p.with(name, func(f *smb2.File) error { return do(p, other, f) })
	})
}

// fails is for what must be refused.
func fails(do func(place) error) func(place) error {
	return func(p place) error {
		if err := do(p); err == nil {
			return errors.New("is not refused")
		}
		return nil
	}
}

// onServer is a program that runs there.
func onServer(do func(place) error) func(place) error { return do }

// closeWhenAsked closes a file when the server asks to give up its oplock.
func closeWhenAsked(ctx context.Context, f *smb2.File) error {
	select {
	case <-f.Conn().Breaks():
		return f.Close(ctx)
	case <-ctx.Done():
		return fmt.Errorf("waiting for the break of an oplock: %w", ctx.Err())
	}
}

func everybody() smb2.ACE { return smb2.ACE{SID: smb2.SID(1, 0), Mask: 0x1f01ff} }

func replays() []replay {
	future := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	created, overwritten := []told{{"ADDED new", anyName}}, []told{{"MODIFIED file", contents}}
	one := func(record string, by smb2.Filter) []told { return []told{{record, by}} }
	resized := one("MODIFIED streams", smb2.FilterStreamSize|smb2.FilterStreamWrite)
	if series() == "7.2" {
		resized = nil // says that it has made a stream longer or shorter, and does not
	}
	renamed := func(from, to string) []told {
		return []told{{"RENAMED_OLD_NAME " + from, anyName}, {"RENAMED_NEW_NAME " + to, anyName}}
	}
	return []replay{
		// A file or directory is opened or made. What it has from the beginning belongs to that.
		{"open", open("file", smb2.CreateParams{Disposition: smb2.DispositionOpen}), nil},
		{"open-if of what is there", open("file", smb2.CreateParams{Disposition: smb2.DispositionOpenIf}), nil},
		{"open-if", open("new", smb2.CreateParams{Disposition: smb2.DispositionOpenIf}), created},
		{"open-if of a directory", open("new", smb2.CreateParams{Disposition: smb2.DispositionOpenIf, Options: smb2.OptionDirectory}), created},
		{"overwrite-if", open("new", smb2.CreateParams{Disposition: smb2.DispositionOverwriteIf}), created},
		{"supersede", open("new", smb2.CreateParams{Disposition: smb2.DispositionSupersede}), created},
		{"overwrite of what is there", open("file", smb2.CreateParams{Disposition: smb2.DispositionOverwrite}), overwritten},
		{"overwrite-if of what is there", open("file", smb2.CreateParams{Disposition: smb2.DispositionOverwriteIf}), overwritten},
		{"supersede of what is there", open("file", smb2.CreateParams{Disposition: smb2.DispositionSupersede}), overwritten},
		{"create with attributes", open("new", smb2.CreateParams{Disposition: smb2.DispositionCreate, Attributes: smb2.AttributeHidden}), created},
		{"create with an EA", open("new", smb2.CreateParams{Disposition: smb2.DispositionCreate,
			Contexts: []smb2.Context{smb2.EAContext("TEST", "value")}}), created},
		{"create with a DACL", open("new", smb2.CreateParams{Disposition: smb2.DispositionCreate,
			Contexts: []smb2.Context{smb2.SDContext(everybody())}}), created},
		{"create with an allocation", open("new", smb2.CreateParams{Disposition: smb2.DispositionCreate,
			Contexts: []smb2.Context{smb2.AllocationContext(65536)}}), created},
		{"create for a moment", open("new", smb2.CreateParams{Disposition: smb2.DispositionCreate, Options: smb2.OptionDeleteOnClose}),
			[]told{{"ADDED new", anyName}, {"REMOVED new", anyName}}},
		{"create what is there", fails(open("file", smb2.CreateParams{Disposition: smb2.DispositionCreate})), nil},
		{"create below a file", fails(open(`file\new`, smb2.CreateParams{Disposition: smb2.DispositionCreate})), nil},

		// Nobody changes anything.
		{"read", on("file", func(p place, f *smb2.File) error { _, err := f.Read(p.ctx, 0, 3); return err }), nil},
		{"read on the server", onServer(func(p place) error { _, err := os.ReadFile(p.at("file")); return err }), nil},
		{"list", on("", func(p place, f *smb2.File) error { _, err := f.List(p.ctx); return err }), nil},
		{"list below", on("other", func(p place, f *smb2.File) error { _, err := f.List(p.ctx); return err }), nil},
		{"query", on("file", func(p place, f *smb2.File) error {
			for _, class := range []uint8{4, 5, 18, 22} { // basic, standard, all, stream
				if err := f.Query(p.ctx, class); err != nil {
					return fmt.Errorf("class %d: %w", class, err)
				}
			}
			return nil
		}), nil},
		{"flush", on("file", func(p place, f *smb2.File) error { return f.Flush(p.ctx) }), nil},
		{"break of an oplock", func(p place) error {
			c := smb2.CreateParams{Name: p.smb("file"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen, Oplock: smb2.OplockBatch}
			held, err := p.tree.Create(p.ctx, c)
			if err != nil {
				return err
			}
			opened := make(chan error, 1)
			_, other := p.connect2()
			go func() {
				f, err := other.Create(p.ctx, smb2.CreateParams{Name: c.Name, Access: smb2.AccessListDirectory, Disposition: smb2.DispositionOpen})
				if err == nil {
					err = f.Close(p.ctx)
				}
				opened <- err
			}()
			return errors.Join(closeWhenAsked(p.ctx, held), <-opened)
		}, nil},
		{"write nothing", on("file", func(p place, f *smb2.File) error { return f.Write(p.ctx, 0, nil) }), nil},

		// Contents.
		{"write", on("file", func(p place, f *smb2.File) error { return f.Write(p.ctx, 0, []byte("x")) }), overwritten},
		{"write beyond the end", on("file", func(p place, f *smb2.File) error { return f.Write(p.ctx, 100000, []byte("x")) }), overwritten},
		{"write and close", func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.smb("new"), Disposition: smb2.DispositionCreate}, func(f *smb2.File) error {
				return f.Write(p.ctx, 0, []byte("x"))
			})
		}, append(slices.Clone(created), told{"MODIFIED new", contents})},
		{"set the end nearer", on("file", func(p place, f *smb2.File) error { return f.SetSize(p.ctx, 2) }), overwritten},
		{"set the end farther", on("file", func(p place, f *smb2.File) error { return f.SetSize(p.ctx, 5000) }), overwritten},
		{"allocate", on("file", func(p place, f *smb2.File) error { return f.SetAllocation(p.ctx, 1<<20) }), overwritten},
		{"allocate nothing", on("file", func(p place, f *smb2.File) error { return f.SetAllocation(p.ctx, 0) }), overwritten},

		{"zero", on("file", func(p place, f *smb2.File) error { return f.Zero(p.ctx, 0, 3) }), overwritten},
		{"copy on the server", from("victim", "file", func(p place, from, f *smb2.File) error { return f.Copy(p.ctx, from, 4) }), overwritten},
		{"overwrite with attributes", open("file", smb2.CreateParams{Disposition: smb2.DispositionOverwrite, Attributes: smb2.AttributeHidden}),
			overwritten},
		{"overwrite what has streams", open("streams", smb2.CreateParams{Disposition: smb2.DispositionOverwrite}),
			one("MODIFIED streams", contents|smb2.FilterStreamName)},

		// Times and attributes, each at once.
		{"set sparse, and not", func(p place) error { // before 7.3 every file is from the beginning
			return p.opened(smb2.CreateParams{Name: p.smb("new"), Disposition: smb2.DispositionCreate}, func(f *smb2.File) error {
				return errors.Join(f.SetSparse(p.ctx, true), f.SetSparse(p.ctx, false))
			})
		}, append(slices.Clone(created), told{"MODIFIED new", attribute})},
		{"set last write of a directory", basic("dir", smb2.Basic{LastWrite: future}), one("MODIFIED dir", smb2.FilterLastWrite)},
		{"set creation of a directory", basic("dir", smb2.Basic{Creation: future}), one("MODIFIED dir", smb2.FilterCreation)},
		{"remove an EA", on("streams", func(p place, f *smb2.File) error { return f.SetEA(p.ctx, "THERE", "") }), one("MODIFIED streams", smb2.FilterEA)},
		{"remove an EA that is not there", on("streams", func(p place, f *smb2.File) error { return f.SetEA(p.ctx, "NONE", "") }), nil},
		{"set last access", basic("file", smb2.Basic{LastAccess: future}), one("MODIFIED file", smb2.FilterLastAccess)},
		{"set last access of a directory", basic("dir", smb2.Basic{LastAccess: future}), one("MODIFIED dir", smb2.FilterLastAccess)},
		{"set all times", basic("file", smb2.Basic{Creation: future, LastAccess: future, LastWrite: future, Change: future}),
			one("MODIFIED file", smb2.FilterCreation|smb2.FilterLastAccess|smb2.FilterLastWrite)},
		{"set all", basic("file", smb2.Basic{Creation: future, LastAccess: future, LastWrite: future, Change: future, Attributes: smb2.AttributeArchive}),
			one("MODIFIED file", attribute|smb2.FilterCreation|smb2.FilterLastAccess|smb2.FilterLastWrite)},
		{"set nothing", basic("file", smb2.Basic{}), nil},
		{"set hidden", basic("file", smb2.Basic{Attributes: smb2.AttributeHidden}), one("MODIFIED file", attribute)},
		{"set an EA", on("file", func(p place, f *smb2.File) error { return f.SetEA(p.ctx, "TEST", "value") }), one("MODIFIED file", smb2.FilterEA)},
		{"set a DACL", dacl("file"), one("MODIFIED file", smb2.FilterSecurity)},

		// Names.
		{"rename", on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("new"), false) }), renamed("file", "new")},
		{"rename to another case", on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("FILE"), false) }), renamed("file", "FILE")},
		{"rename a directory to another case", on("dir", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("Dir"), false) }),
			renamed("dir", "Dir")},
		{"rename by another case", on("FILE", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("new"), false) }), renamed("file", "new")},
		{"rename to itself", on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("file"), true) }), nil},
		{"rename to what is there", fails(on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("victim"), false) })), nil},
		{"rename over", on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("victim"), true) }),
			append([]told{{"REMOVED victim", anyName}}, renamed("file", "victim")...)},
		{"rename over a directory", fails(on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("dir"), true) })), nil},
		{"rename to a long name of Windows", on("file", func(p place, f *smb2.File) error {
			return f.Rename(p.ctx, p.smb("New Text Document (2) – Ünïcode 日本 😀.txt"), false)
		}), renamed("file", "New Text Document (2) – Ünïcode 日本 😀.txt")},
		{"rename to a short name of DOS", on("file", func(p place, f *smb2.File) error { return f.Rename(p.ctx, p.smb("LONGFI~1.TXT"), false) }),
			renamed("file", "LONGFI~1.TXT")},
		{"link", on("file", func(p place, f *smb2.File) error { return f.Link(p.ctx, p.smb("new"), false) }), created},
		{"link to what is there", fails(on("file", func(p place, f *smb2.File) error { return f.Link(p.ctx, p.smb("victim"), false) })), nil},
		{"link over", on("file", func(p place, f *smb2.File) error { return f.Link(p.ctx, p.smb("victim"), true) }),
			[]told{{"REMOVED victim", anyName}, {"ADDED victim", anyName}}},
		{"save as Word does", func(p place) error {
			write := func(f *smb2.File) error { return f.Write(p.ctx, 0, []byte("text")) }
			to := func(name string) func(*smb2.File) error {
				return func(f *smb2.File) error { return f.Rename(p.ctx, p.smb(name), true) }
			}
			return errors.Join(
				p.opened(smb2.CreateParams{Name: p.smb("~new.tmp"), Disposition: smb2.DispositionCreate}, write),
				p.with("file", to("~old.tmp")), p.with("~new.tmp", to("file")),
				p.with("~old.tmp", func(f *smb2.File) error { return f.Delete(p.ctx) }))
		}, slices.Concat([]told{{"ADDED ~new.tmp", anyName}, {"MODIFIED ~new.tmp", contents}}, renamed("file", "~old.tmp"),
			renamed("~new.tmp", "file"), one("REMOVED ~old.tmp", anyName))},
		{"save as rsync does", func(p place) error {
			return errors.Join(
				p.opened(smb2.CreateParams{Name: p.smb(".file.h7Tz"), Disposition: smb2.DispositionCreate},
					func(f *smb2.File) error { return f.Write(p.ctx, 0, []byte("text")) }),
				basic(".file.h7Tz", smb2.Basic{LastAccess: future, LastWrite: future})(p),
				p.with(".file.h7Tz", func(f *smb2.File) error { return f.Rename(p.ctx, p.smb("file"), true) }))
		}, slices.Concat([]told{{"ADDED .file.h7Tz", anyName}, {"MODIFIED .file.h7Tz", contents | smb2.FilterLastAccess}, {"REMOVED file", anyName}},
			renamed(".file.h7Tz", "file"))},
		{"save as Visual Studio Code does", func(p place) error {
			return p.opened(smb2.CreateParams{Name: p.smb("file"), Disposition: smb2.DispositionOpenIf}, func(f *smb2.File) error {
				return errors.Join(f.SetSize(p.ctx, 0), f.Write(p.ctx, 0, []byte("text")), f.Flush(p.ctx))
			})
		}, overwritten},

		// Removal.
		{"delete", on("file", func(p place, f *smb2.File) error { return f.Delete(p.ctx) }), one("REMOVED file", anyName)},
		{"delete on close", open("file", smb2.CreateParams{Disposition: smb2.DispositionOpen, Options: smb2.OptionDeleteOnClose}),
			one("REMOVED file", anyName)},
		{"delete, and not", on("file", func(p place, f *smb2.File) error { return errors.Join(f.Delete(p.ctx), f.Undelete(p.ctx)) }), nil},
		{"delete a directory", on("dir", func(p place, f *smb2.File) error { return f.Delete(p.ctx) }), one("REMOVED dir", anyName)},
		{"delete a full directory", fails(on("other", func(p place, f *smb2.File) error { return f.Delete(p.ctx) })), nil},
		{"delete what two have open", func(p place) error {
			c := smb2.CreateParams{Name: p.smb("file"), Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen}
			first, err1 := p.tree.Create(p.ctx, c)
			second, err2 := p.tree.Create(p.ctx, c)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			return errors.Join(first.Delete(p.ctx), first.Close(p.ctx), second.Close(p.ctx))
		}, one("REMOVED file", anyName)},

		// Streams.
		{"make a stream", open("file:stream", smb2.CreateParams{Disposition: smb2.DispositionCreate}), one("MODIFIED file", smb2.FilterStreamName)},
		{"make a stream of a new file", open("new:stream", smb2.CreateParams{Disposition: smb2.DispositionCreate}),
			[]told{{"ADDED new", anyName}, {"MODIFIED new", smb2.FilterStreamName}}},
		{"read a stream", on("streams:there", func(p place, f *smb2.File) error { _, err := f.Read(p.ctx, 0, 1); return err }), nil},
		{"write to a stream", on("streams:there", func(p place, f *smb2.File) error { return f.Write(p.ctx, 0, []byte("other")) }),
			one("MODIFIED streams", smb2.FilterStreamSize|smb2.FilterStreamWrite)},
		{"write nothing to a stream", on("streams:there", func(p place, f *smb2.File) error { return f.Write(p.ctx, 2, nil) }), nil},
		{"write nothing behind a stream", on("streams:there", func(p place, f *smb2.File) error { return f.Write(p.ctx, 100, nil) }), nil},
		{"make a stream longer", on("streams:there", func(p place, f *smb2.File) error { return f.SetSize(p.ctx, 50) }),
			resized},
		{"make a stream empty", on("streams:there", func(p place, f *smb2.File) error { return f.SetSize(p.ctx, 0) }),
			resized},
		{"a stream as long as it was", on("streams:there", func(p place, f *smb2.File) error { return f.SetSize(p.ctx, 5) }), nil},
		{"open-if of a stream", open("streams:there", smb2.CreateParams{Disposition: smb2.DispositionOpenIf}), nil},
		{"rename a stream", on("streams:there", func(p place, f *smb2.File) error { return f.Rename(p.ctx, ":new", false) }),
			one("MODIFIED streams", smb2.FilterStreamName)},
		{"set creation through a stream", basic("streams:there", smb2.Basic{Creation: future}), one("MODIFIED streams", smb2.FilterCreation)},
		{"remove a stream", open("streams:there", smb2.CreateParams{Disposition: smb2.DispositionOpen, Options: smb2.OptionDeleteOnClose}),
			one("MODIFIED streams", smb2.FilterStreamName)},
	}
}

// TestReplays: of what clients do, each watcher in the field is told all that its completion filter lets through, and nothing
// else.
func TestReplays(t *testing.T) {
	begin(t)
	w := newWire(t, 10*long)
	_, actor := w.connect(smb2.Options{})
	_, watching := w.connect(smb2.Options{})
	for _, r := range replays() {
		t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) { replayOne(t, r, actor, watching) })
	}
}

func replayOne(t *testing.T, r replay, actor, tree *smb2.Tree) {
	w := newWire(t, long)
	w.mkdir("watched")
	p := place{wire: w, tree: actor}
	p.prepare()
	w.touch("watched/streams")
	w.ok(os.Chown(p.at("streams"), uid1, uid1))
	w.ok(unix.Setxattr(p.at("streams"), "user.THERE", []byte("value"), 0))
	w.ok(p.opened(smb2.CreateParams{Name: p.smb("streams:there"), Disposition: smb2.DispositionCreate}, func(f *smb2.File) error {
		return f.Write(w.ctx, 0, []byte("hello"))
	}))
	files, calls := make([]*smb2.File, len(watchersOf)), make([]*smb2.Call, len(watchersOf))
	params := make([]smb2.NotifyParams, len(watchersOf))
	for i, v := range watchersOf {
		params[i] = smb2.NotifyParams{Filter: v.filter, Length: v.length, Tree: v.tree}
		files[i] = w.open(tree, "watched")
		calls[i], _ = w.park(files[i], params[i])
	}
	w.ok(r.do(p))
	w.ok(os.WriteFile(filepath.Join(w.dir, "watched/end"), nil, 0o666))
	for i, v := range watchersOf {
		var want []string
		for _, record := range r.want {
			if record.by&v.filter != 0 {
				want = append(want, record.record)
			}
		}
		want = append(want, "ADDED end")
		var got []string
		for len(got) == 0 || got[len(got)-1] != "ADDED end" {
			got = append(got, w.records(w.ends(calls[i], smb2.StatusSuccess))...)
			calls[i] = w.send(files[i], params[i])
		}
		// What a request changes in two steps may be told twice, if it was read in between.
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s, filter %#x: told %q, want %q", v.program, v.filter, got, want)
		}
		w.ok(files[i].Close(w.ctx))
	}
}
