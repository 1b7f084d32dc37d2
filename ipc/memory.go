// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory returns how many bytes of memory this process may have: those of the machine, or what its
// control groups allow if that is less (memory.max of each, see cgroups(7)).
func Memory() int {
	var info unix.Sysinfo_t
	most := math.MaxInt
	if err := unix.Sysinfo(&info); err == nil {
		most = int(min(uint64(info.Totalram)*uint64(info.Unit), math.MaxInt))
	}
	groups, _ := os.ReadFile("/proc/self/cgroup") // without one of version 2 there is no bound
	return min(most, groupMemory("/sys/fs/cgroup", string(groups)))
}

// groupMemory returns the least memory.max of a process' control group and those above it, of a hierarchy that is mounted at
// root. groups is what /proc/self/cgroup says.
func groupMemory(root, groups string) int {
	most := math.MaxInt
	for line := range strings.Lines(groups) {
		group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		for ; ok; group = filepath.Dir(group) {
			text, err := os.ReadFile(filepath.Join(root, group, "memory.max"))
			if n, err2 := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && err2 == nil { // it may say "max"
				most = min(most, n)
			}
			if len(group) <= 1 { // the topmost, which has a bound in a container
				break
			}
		}
	}
	return most
}
