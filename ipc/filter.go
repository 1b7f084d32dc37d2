// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"bytes"
	"fmt"
	"strings"

	"ksmbd-notifyd/fanotify"
	"ksmbd-notifyd/genl"
)

// Filter is a completion filter, MS-SMB2 2.2.35. Undefined bits are ignored.
type Filter uint32

const (
	FileName Filter = 1 << iota
	DirName
	Attributes
	Size
	LastWrite
	LastAccess
	Creation
	EA
	Security
	StreamName
	StreamSize
	StreamWrite

	All Filter = 1<<iota - 1
)

// filterNames has the name of each bit, lowest first.
var filterNames = [...]string{
	"file-name", "dir-name", "attributes", "size", "last-write", "last-access",
	"creation", "ea", "security", "stream-name", "stream-size", "stream-write",
}

// String returns the names of the bits, parted by commas, and undefined bits
// in hexadecimal.
func (f Filter) String() string {
	var names []string
	for i, name := range filterNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if rest := f &^ All; rest != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	return strings.Join(names, ",")
}

// ParseFilter is the reverse of String, without undefined bits. "all" stands
// for every bit.
func ParseFilter(s string) (Filter, error) {
	var f Filter
next:
	for name := range strings.SplitSeq(s, ",") {
		if name == "all" {
			f |= All
			continue
		}
		for i, n := range filterNames {
			if n == name {
				f |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown completion filter %q, known are all,%v", name, All)
	}
	return f, nil
}

// What lets through a change of one name that does not concern the name itself.
// An ATTRIB of fanotify does not tell mode, owner, ACL, times and xattrs apart,
// and ksmbd keeps DOS attributes, EAs and streams in xattrs: it stands for
// everything that those can be, unless its cause is known. A size, though,
// changes with a MODIFY only, and a MODIFY is never anything but a write or a
// change of size where SMB requests are concerned: ksmbd sets times by twos.
const (
	byModify = LastWrite | Size | Attributes
	byAttrib = Attributes | LastWrite | LastAccess | Creation | EA | Security |
		StreamName | StreamSize | StreamWrite

	// A renamed file's attributes count as changed for those who do not
	// see its names.
	byRename = Attributes | Creation
)

// Ops returns what has to be reported of a directory to serve the filter.
func (f Filter) Ops() fanotify.Op {
	var ops fanotify.Op
	if f&(FileName|DirName) != 0 {
		ops |= fanotify.Create | fanotify.Delete | fanotify.Rename
	}
	if f&byRename != 0 {
		ops |= fanotify.Rename
	}
	if f&byModify != 0 {
		ops |= fanotify.Modify
	}
	if f&byAttrib != 0 {
		ops |= fanotify.Attrib
	}
	return ops
}

// byData returns what lets through a change that leaves the name as it is. Of
// what is known to be behind an ATTRIB, only that.
func byData(op fanotify.Op, cause Filter) (by Filter) {
	if op&fanotify.Modify != 0 {
		by |= byModify
	}
	if op&fanotify.Attrib != 0 {
		by |= byAttrib & cause
	}
	return by
}

// records returns the change records that a change gives under the filter. They
// belong together: they go to the client in one response or not at all. The
// cause is what an Attrib stands for, All if nobody knows.
func (f Filter) records(c fanotify.Change, cause Filter) []genl.Record {
	nameBit := FileName
	if c.Dir {
		nameBit = DirName
	}
	passes := f&nameBit != 0
	switch c.Op {
	case fanotify.Create:
		return when(passes, now(genl.ActionAdded, c))
	case fanotify.Delete:
		return when(passes, now(genl.ActionRemoved, c))
	case fanotify.Rename:
		switch {
		case c.OldName == nil:
			return when(passes, now(genl.ActionAdded, c))
		case c.Name == nil:
			return when(passes, before(genl.ActionRemoved, c))
		case !passes:
			return when(!c.Dir && f&byRename != 0, now(genl.ActionModified, c))
		case bytes.Equal(parent(c.OldName), parent(c.Name)):
			return []genl.Record{before(genl.ActionRenamedOldName, c), now(genl.ActionRenamedNewName, c)}
		default:
			return []genl.Record{before(genl.ActionRemoved, c), now(genl.ActionAdded, c)}
		}
	default:
		return when(f&byData(c.Op, cause) != 0, now(genl.ActionModified, c))
	}
}

func when(passes bool, r genl.Record) []genl.Record {
	if !passes {
		return nil
	}
	return []genl.Record{r}
}

// now and before return records of the new and the old name in a change.
func now(action genl.Action, c fanotify.Change) genl.Record { return record(action, c.Name, c.Parent) }

func before(action genl.Action, c fanotify.Change) genl.Record {
	return record(action, c.OldName, c.OldParent)
}

// record leaves out the watched directory itself: who watches it may list it.
func record(action genl.Action, name []byte, dir string) genl.Record {
	if len(parent(name)) == 0 {
		dir = ""
	}
	return genl.Record{Action: action, Name: string(name), Directory: dir}
}

// parent returns what comes before the last component of a name.
func parent(name []byte) []byte {
	return name[:bytes.LastIndexByte(name, '/')+1]
}
