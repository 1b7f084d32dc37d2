// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGroupMemory(t *testing.T) {
	root := t.TempDir()
	const top = 16 << 20 // as in a container
	for group, max := range map[string]string{"": "16777216\n", "system.slice": "4194304\n", "system.slice/a.service": "max\n", "system.slice/b.service": "1048576\n",
		"system.slice/c.service": "8388608\n", "system.slice/none": "", "user.slice": "max\n"} {
		dir := filepath.Join(root, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if max == "" { // the controller is not in use there
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte(max), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		groups string
		want   int
	}{
		{"0::/system.slice/a.service\n", 4 << 20},
		{"0::/system.slice/b.service\n", 1 << 20},
		{"0::/system.slice/c.service\n", 4 << 20},
		{"0::/system.slice/none\n", 4 << 20},
		{"0::/user.slice\n", top},
		{"0::/\n", top},
		{"5:memory:/system.slice/b.service\n", math.MaxInt}, // of version 1
		{"5:memory:/\n0::/system.slice/b.service\n", 1 << 20},
		{"0::/not/there\n", top},
		{"", math.MaxInt},
	} {
		if got := groupMemory(root, test.groups); got != test.want {
			t.Errorf("groupMemory(%q) = %d, want %d", test.groups, got, test.want)
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if got := Memory(); got < 16<<20 || uint64(got) > uint64(info.Totalram)*uint64(info.Unit) {
		t.Errorf("Memory() = %d, of %d units of %d", got, info.Totalram, info.Unit)
	}
}
