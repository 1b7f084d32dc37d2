// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"testing"

	"ksmbd-notifyd/fanotify"
)

// Each change under each single bit. A bit that is not named here lets nothing
// through.
func TestRecordsByBit(t *testing.T) {
	change := func(op fanotify.Op, dir bool, name, old string) fanotify.Change {
		c := fanotify.Change{Op: op, Dir: dir}
		if name != "" {
			c.Name = []byte(name)
		}
		if old != "" {
			c.OldName = []byte(old)
		}
		return c
	}
	for _, test := range []struct {
		what   string
		change fanotify.Change
		want   map[Filter]string
	}{
		{"create", change(fanotify.Create, false, "a", ""), map[Filter]string{FileName: "+a"}},
		{"mkdir", change(fanotify.Create, true, "d/a", ""), map[Filter]string{DirName: "+d/a"}},
		{"delete", change(fanotify.Delete, false, "a", ""), map[Filter]string{FileName: "-a"}},
		{"rmdir", change(fanotify.Delete, true, "a", ""), map[Filter]string{DirName: "-a"}},
		{"rename", change(fanotify.Rename, false, "b", "a"),
			map[Filter]string{FileName: "a>b", Attributes: "*b", Creation: "*b"}},
		{"rename in subdirectory", change(fanotify.Rename, false, "d/b", "d/a"),
			map[Filter]string{FileName: "d/a>d/b", Attributes: "*d/b", Creation: "*d/b"}},
		{"rename of directory", change(fanotify.Rename, true, "b", "a"), map[Filter]string{DirName: "a>b"}},
		{"move", change(fanotify.Rename, false, "d/a", "a"),
			map[Filter]string{FileName: "-a +d/a", Attributes: "*d/a", Creation: "*d/a"}},
		{"move between like named", change(fanotify.Rename, false, "dd/a", "d/a"),
			map[Filter]string{FileName: "-d/a +dd/a", Attributes: "*dd/a", Creation: "*dd/a"}},
		{"move of directory", change(fanotify.Rename, true, "a", "d/a"), map[Filter]string{DirName: "-d/a +a"}},
		{"move in", change(fanotify.Rename, false, "a", ""), map[Filter]string{FileName: "+a"}},
		{"move out", change(fanotify.Rename, false, "", "a"), map[Filter]string{FileName: "-a"}},
		{"move in of directory", change(fanotify.Rename, true, "a", ""), map[Filter]string{DirName: "+a"}},
		{"move out of directory", change(fanotify.Rename, true, "", "a"), map[Filter]string{DirName: "-a"}},
		{"write", change(fanotify.Modify, false, "a", ""),
			map[Filter]string{LastWrite: "*a", Size: "*a", Attributes: "*a"}},
		{"attributes", change(fanotify.Attrib, false, "a", ""),
			map[Filter]string{Attributes: "*a", LastWrite: "*a", LastAccess: "*a", Creation: "*a",
				EA: "*a", Security: "*a", StreamName: "*a", StreamSize: "*a", StreamWrite: "*a"}},
		{"attributes of directory", change(fanotify.Attrib, true, "a", ""),
			map[Filter]string{Attributes: "*a", LastWrite: "*a", LastAccess: "*a", Creation: "*a",
				EA: "*a", Security: "*a", StreamName: "*a", StreamSize: "*a", StreamWrite: "*a"}},
	} {
		for i := range 32 {
			f := Filter(1) << i
			got := recordString(f.records(test.change, All))
			if got != test.want[f] {
				t.Errorf("%s under %v: got %q, want %q", test.what, f, got, test.want[f])
			}
			if got != "" && f.Ops()&test.change.Op == 0 {
				t.Errorf("%s under %v: not asked for", test.what, f)
			}
		}
		if got := Filter(0).records(test.change, All); got != nil {
			t.Errorf("%s under no bit: got %v", test.what, got)
		}
	}
}

// Who sees a rename's names is not told of changed attributes besides.
func TestRenameUnderAll(t *testing.T) {
	c := fanotify.Change{Op: fanotify.Rename, Name: []byte("b"), OldName: []byte("a")}
	if got := recordString(All.records(c, All)); got != "a>b" {
		t.Errorf("got %q", got)
	}
}

func TestOps(t *testing.T) {
	for f, want := range map[Filter]fanotify.Op{
		0:          0,
		1 << 31:    0,
		FileName:   fanotify.Create | fanotify.Delete | fanotify.Rename,
		DirName:    fanotify.Create | fanotify.Delete | fanotify.Rename,
		Size:       fanotify.Modify,
		LastWrite:  fanotify.Modify | fanotify.Attrib,
		Attributes: fanotify.Modify | fanotify.Attrib | fanotify.Rename,
		LastAccess: fanotify.Attrib,
		Security:   fanotify.Attrib,
	} {
		if got := f.Ops(); got != want {
			t.Errorf("%v asks for %b, want %b", f, got, want)
		}
	}
}

func TestFilterNames(t *testing.T) {
	for f, want := range map[Filter]string{
		0:                           "0x0",
		FileName:                    "file-name",
		1 << 11:                     "stream-write",
		LastAccess | DirName:        "dir-name,last-access",
		1<<12 | Size:                "size,0x1000",
		1 << 31:                     "0x80000000",
		0x40 | 0x80 | 0x100 | 0x200: "creation,ea,security,stream-name",
	} {
		if got := f.String(); got != want {
			t.Errorf("%#x is %q, want %q", uint32(f), got, want)
		}
	}
	for i := range 12 {
		f := Filter(1) << i
		if got, err := ParseFilter(f.String()); err != nil || got != f {
			t.Errorf("%v is parsed as %v, %v", f, got, err)
		}
	}
	if got, err := ParseFilter("size,all,ea"); err != nil || got != 0xfff {
		t.Errorf("all is %v, %v", got, err)
	}
	for _, s := range []string{"", "size,", "Size", "sizes", "0x1", "size ea"} {
		if got, err := ParseFilter(s); err == nil {
			t.Errorf("%q is parsed as %v", s, got)
		}
	}
}

// A name below comes with the directory that it is in, a name in the watched
// directory without.
func TestDirectories(t *testing.T) {
	rename := func(old, name string) fanotify.Change {
		return fanotify.Change{Op: fanotify.Rename, OldName: []byte(old), OldParent: "from", Name: []byte(name), Parent: "to"}
	}
	for _, test := range []struct {
		change fanotify.Change
		want   []string
	}{
		{fanotify.Change{Op: fanotify.Create, Name: []byte("a"), Parent: "to"}, []string{""}},
		{fanotify.Change{Op: fanotify.Create, Name: []byte("d/a"), Parent: "to"}, []string{"to"}},
		{fanotify.Change{Op: fanotify.Rename, OldName: []byte("d/a"), OldParent: "from"}, []string{"from"}},
		{rename("d/a", "d/b"), []string{"from", "to"}},
		{rename("a", "d/a"), []string{"", "to"}},
		{rename("d/a", "a"), []string{"from", ""}},
	} {
		records := All.records(test.change, All)
		if len(records) != len(test.want) {
			t.Fatalf("%q: records %v", test.change.Name, records)
		}
		for i, r := range records {
			if r.Directory != test.want[i] {
				t.Errorf("%v %q comes with directory %q, want %q", r.Action, r.Name, r.Directory, test.want[i])
			}
		}
	}
}
