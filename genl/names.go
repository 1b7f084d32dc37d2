// SPDX-License-Identifier: GPL-2.0-or-later

package genl

import "fmt"

var (
	itemTypeNames = [...]string{"watch", "request", "cancel", "unwatch"}
	actionNames   = [...]string{"ADDED", "REMOVED", "MODIFIED", "RENAMED_OLD_NAME", "RENAMED_NEW_NAME"}
	statusNames   = [...]string{"ENUM_DIR", "DELETE_PENDING"}
)

// String returns the type's name in the spec.
func (t ItemType) String() string { return name(itemTypeNames[:], uint32(t)) }

// String returns the action's name, MS-FSCC 2.7.1 less FILE_ACTION_.
func (a Action) String() string { return name(actionNames[:], uint32(a)) }

// String returns the name of the client's NTSTATUS less STATUS_ and NOTIFY_.
func (s Status) String() string { return name(statusNames[:], uint32(s)) }

func name(names []string, n uint32) string {
	if n < 1 || n > uint32(len(names)) {
		return fmt.Sprintf("unknown(%d)", n)
	}
	return names[n-1]
}
