// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernels returns the releases that are installed, the newest last.
func (m *machine) kernels() (releases []string) {
	dirs, _ := filepath.Glob(filepath.Join(m.root, "lib/modules/*/kernel"))
	for _, dir := range dirs {
		releases = append(releases, filepath.Base(filepath.Dir(dir)))
	}
	slices.SortFunc(releases, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
	return releases
}

var digits = regexp.MustCompile(`[0-9]+`)

// numbers returns those in a release, in order.
func numbers(release string) (n []int) {
	for _, d := range digits.FindAllString(release, -1) {
		i, _ := strconv.Atoi(d)
		n = append(n, i)
	}
	return n
}

// seriesOf returns the series of a release, as 6.12.
func seriesOf(release string) string {
	n := numbers(release)
	if len(n) < 2 {
		return release
	}
	return fmt.Sprintf("%d.%d", n[0], n[1])
}

func supported(release string) bool {
	return slices.Contains(strings.Fields(series), seriesOf(release))
}

// moduleOf says whether a kernel has a module that notifies.
func (m *machine) moduleOf(release string) bool {
	for _, where := range []string{"updates/dkms", "updates", "extra"} {
		files, _ := filepath.Glob(filepath.Join(m.root, "lib/modules", release, where, "ksmbd.ko*"))
		for _, file := range files {
			if notify, _ := m.modinfo("-F", "notify", file); notify != "" {
				return true
			}
		}
	}
	return false
}

// whyNot returns what the installation of the module said of a kernel that it has
// none for, "" for nothing.
func (m *machine) whyNot(release string) string {
	text, _ := os.ReadFile(filepath.Join(m.root, "var/lib/ksmbd-notify", release))
	line, _, _ := strings.Cut(string(text), "\n")
	_, why, _ := strings.Cut(line, "which tells no changes: ")
	return why
}

// howToBuild says what a kernel lacks for DKMS to build the module.
func (m *machine) howToBuild(release string) string {
	source := "linux-source-" + seriesOf(release)
	switch why := m.whyNot(release); {
	case why != "":
		return why
	case !m.exists("lib/modules/" + release + "/build/include"):
		return "install linux-headers-" + release
	case !m.hasSource(seriesOf(release)):
		return "install " + source
	}
	return "dkms install ksmbd-notify/" + m.dkmsVersion() + " -k " + release
}

// hasSource says whether there is the source of a series where Debian has it.
func (m *machine) hasSource(series string) bool {
	found, _ := filepath.Glob(filepath.Join(m.root, "usr/src/linux-source-"+series+"*"))
	return found != nil
}

// dkmsVersion returns that of the module that DKMS has, "" if it has none.
func (m *machine) dkmsVersion() string {
	found, _ := filepath.Glob(filepath.Join(m.root, "usr/src/ksmbd-notify-*/dkms.conf"))
	if found == nil {
		return ""
	}
	_, version, _ := strings.Cut(filepath.Base(filepath.Dir(found[len(found)-1])), "ksmbd-notify-")
	return version
}

// checkNextKernel says before it happens that the next kernel will have no module.
// That is so where there is one now that DKMS has built.
func (m *machine) checkNextKernel(c *checker) {
	if m.dkmsVersion() == "" {
		return
	}
	kernels := m.kernels()
	if n := len(kernels); n > 0 {
		switch next := kernels[n-1]; {
		case slices.Compare(numbers(next), numbers(m.release)) <= 0 || m.moduleOf(next):
		case !supported(next):
			c.note("next", "Linux %s is installed too, and there is no module for it: after the next boot nothing is told; boot Linux %s", next, series)
		default:
			c.note("next", "Linux %s is installed too and has no module yet: after the next boot nothing is told: %s", next, m.howToBuild(next))
		}
	}
	for _, flavour := range m.imagesWithoutHeaders() {
		c.note("next", "linux-image-%s brings kernels without the headers that the module is built with: apt install linux-headers-%s", flavour, flavour)
	}
}

var fullRelease = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+`)

// imagesWithoutHeaders returns what follows linux-image- in the name of a Debian
// metapackage that brings new kernels, where the one for headers is not installed.
func (m *machine) imagesWithoutHeaders() (flavours []string) {
	text, _ := os.ReadFile(filepath.Join(m.root, "var/lib/dpkg/status"))
	installed := make(map[string]bool)
	for paragraph := range bytes.SplitSeq(text, []byte("\n\n")) {
		var name string
		for line := range strings.Lines(string(paragraph)) {
			line = strings.TrimSpace(line)
			if n, ok := strings.CutPrefix(line, "Package: "); ok {
				name = n
			}
			if line == "Status: install ok installed" && name != "" {
				installed[name] = true
			}
		}
	}
	for name := range installed {
		flavour, ok := strings.CutPrefix(name, "linux-image-")
		if ok && !fullRelease.MatchString(flavour) && !strings.HasSuffix(flavour, "-dbg") && !installed["linux-headers-"+flavour] {
			flavours = append(flavours, flavour)
		}
	}
	slices.Sort(flavours)
	return flavours
}
