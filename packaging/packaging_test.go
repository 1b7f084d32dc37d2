// SPDX-License-Identifier: GPL-2.0-or-later

// Package packaging has only tests: of what a distribution installs beside the
// daemon.
package packaging

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What the daemon is left to do is little.
var units = []string{"ksmbd-notifyd.service", "ksmbd-notifyd-metrics.service"}

func TestUnitSecurity(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	for _, unit := range units {
		out, err := exec.Command(path, "security", "--offline=true", "--threshold=20", "--no-pager", unit).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Overall exposure level") {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// The daemon reads how long its queues may be from /proc/sys, see queueLimit.
func TestUnitSeesQueueLimit(t *testing.T) {
	if regexp.MustCompile(`(?m)^ProcSubset=`).MatchString(read(t, "packaging/ksmbd-notifyd.service")) {
		t.Error("the daemon cannot see fs.fanotify.max_queued_events")
	}
}

// Lines that systemd does not understand it would ignore. That the programs and
// the manual are not installed here is no matter.
func TestUnitVerify(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	for _, unit := range units {
		out, _ := exec.Command(path, "verify", "--man=no", "./"+unit).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, unit) && !strings.Contains(line, "is not executable") {
				t.Error(line)
			}
		}
	}
}

// Alerts come when they should, and what they and the dashboard ask for there is.
func TestPrometheus(t *testing.T) {
	promtool, err := exec.LookPath("../build/promtool")
	if err != nil {
		promtool, err = exec.LookPath("promtool")
	}
	if err != nil {
		t.Skip("no promtool: make build/promtool")
	}
	ask := func(what, file string) {
		t.Helper()
		if out, err := exec.Command(promtool, what, "rules", file).CombinedOutput(); err != nil {
			t.Errorf("promtool %s rules %s: %v: %s", what, file, err, out)
		}
	}
	ask("check", "prometheus/alerts.yml")
	ask("test", "prometheus/alerts_test.yml")

	var dashboard struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("prometheus/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	alerts, err := os.ReadFile("prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../cmd/ksmbd-notifyd/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	asked, rules := string(alerts), "groups: [{name: a, rules: ["
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			asked += target.Expr + "\n"
			rules += fmt.Sprintf("{record: 'r:%d', expr: %q}, ", len(rules), strings.ReplaceAll(target.Expr, "$instance", ".*"))
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules+"]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask("check", file)
	_, config, _ := strings.Cut(string(alerts), "\n#scrape_configs:")
	config, _, _ = strings.Cut("scrape_configs:"+strings.ReplaceAll(config, "\n#", "\n"), "\ngroups:")
	if err := os.WriteFile(file, []byte(config+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "config", file).CombinedOutput(); err != nil || !strings.Contains(config, "job_name: ksmbd-notifyd\n") {
		t.Errorf("promtool check config: %v: %s, of %s", err, out, config)
	}
	names := regexp.MustCompile(`ksmbd_notifyd_([a-z_]+)`).FindAllStringSubmatch(asked, -1)
	for _, m := range names {
		name := strings.TrimSuffix(m[1], "_bucket")
		if !strings.Contains(string(source), `metric("`+name+`"`) {
			t.Errorf("there is no metric %s", name)
		}
	}
	if len(names) < 15 {
		t.Errorf("only %d metrics are asked for", len(names))
	}
}

// Which other manuals are installed here is no matter.
func TestManPage(t *testing.T) {
	path, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not installed")
	}
	out, _ := exec.Command(path, "-Tlint", "-Wstyle", "ksmbd-notifyd.8").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "referenced manual not found") && !strings.Contains(line, "mandoc.db") {
			t.Error(line)
		}
	}
}

// read returns a file of the project's top.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever README's Install has somebody do, make test-install does as it stands there:
// it reads the line, or has the same words. What check prints is left to its own test.
func TestInstall(t *testing.T) {
	_, text, _ := strings.Cut(read(t, "README.md"), "\n## Install\n")
	text, _, _ = strings.Cut(text, "\n## ")
	tried := []struct{ what, file, by string }{
		{`apt install linux-image-amd64 linux-headers-amd64 ksmbd-tools`, "test/install/root.sh", `s/^    apt install \(.*[^ ]\) *# Debian `},
		{`apt install linux-image-6.12-amd64 linux-headers-6.12-amd64 ksmbd-tools`, "test/install/root.sh", `s/^    apt install \(.*[^ ]\) *# Debian `},
		{`-cloud-amd64`, "test/install/root.sh", `sed 's/-amd64$/-cloud-amd64/'`},
		{`-amd64`, "test/install/root.sh", `sed 's/-amd64$/-cloud-amd64/'`},
		{`PATH=/usr/lib/go-1.26/bin:$PATH`, "test/install/test.sh", `s|.*PATH=\(/usr/lib/go-[0-9.]*\)/bin:.*|\1|p`},
		{`make deb`, "Makefile", "\ntest-install: deb rpm\n"},
		{`apt install ./build/package/*.deb`, "test/install/test.sh", `s/^    \(apt install .*build\/package.*\)/\1/p`},
		{`systemctl stop ksmbd && modprobe -r ksmbd && systemctl start ksmbd`, "test/install/job.sh", `s/^    \(systemctl stop ksmbd .*\)/\1/p`},
		{`ksmbd-notify-dkms`, "test/install/test.sh", "\napt purge ksmbd-notifyd ksmbd-notify-dkms\n"},
		{`/etc/ksmbd-notify/kernel-source`, "test/install/test.sh", `echo /root/tree > "$root/etc/ksmbd-notify/kernel-source"`},
		{`mokutil --import /var/lib/dkms/mok.pub`, "test/install/test.sh", `s/.*mokutil --import \([a-z./]*\).*/\1/p`}, // that it is there; there is no firmware to ask
		{`check`, "test/install/job.sh", "\nksmbd-notifyd check || fail"},
		{`ksmbd-notifyd check`, "test/install/job.sh", "\nksmbd-notifyd check || fail"},
		{`/etc/ksmbd/ksmbd-notifyd.conf`, "test/install/job.sh", "\nconf=/etc/ksmbd/ksmbd-notifyd.conf\n"},
		{`systemctl reload ksmbd-notifyd`, "test/install/job.sh", "systemctl reload ksmbd-notifyd || fail"},
	}
	n := 0
	for _, m := range regexp.MustCompile("(?m)^    (.*?)(?: +#.*)?$|`([^`]+)`").FindAllStringSubmatch(text, -1) {
		what := m[1] + m[2]
		if regexp.MustCompile(`^(ok|note|FAIL) `).MatchString(what) {
			continue
		}
		n++
		i := slices.IndexFunc(tried, func(e struct{ what, file, by string }) bool { return e.what == what })
		if i < 0 {
			t.Errorf("README has somebody do %q, which nothing tries", what)
		} else if !strings.Contains(read(t, tried[i].file), tried[i].by) {
			t.Errorf("%s does not try %q: it has no %s", tried[i].file, what, tried[i].by)
		}
	}
	if n < len(tried) {
		t.Errorf("README has %d things to do, %d are tried", n, len(tried))
	}
}

// What the documents and the forge's files call make for there is, and so are the
// files that they name.
func TestDocuments(t *testing.T) {
	targets := strings.Fields(regexp.MustCompile(`(?m)^\.PHONY:(.*)`).FindString(read(t, "Makefile")))
	if help := shell(t, "..", "unset MAKEFLAGS MFLAGS; make -s help"); !strings.HasPrefix(help, "make build ") || strings.Contains(help, "SHELL") {
		t.Errorf("make help says %q", help)
	}
	documents := strings.Fields(shell(t, "..", "ls *.md docs/*.md genl/*.md packaging/*/*.md .github/*.md .github/*/*.yml"))
	made := 0
	for _, name := range documents {
		text := read(t, name)
		for _, m := range regexp.MustCompile("(?m)(?:`|run: |^ {4,})make ((?:[a-z-]+ ?)+)").FindAllStringSubmatch(text, -1) {
			for _, target := range strings.Fields(m[1]) {
				if made++; !slices.Contains(targets, target) && target != "modules" { // modules_prepare is the kernel's
					t.Errorf("%s: there is no make %s", name, target)
				}
			}
		}
		for _, m := range regexp.MustCompile("`((?:cmd|ipc|fanotify|genl|kernel|packaging|test|\\.ci|\\.github|docs)/[A-Za-z0-9_./-]*)`|\\]\\(([^):#]+)[^):]*\\)").FindAllStringSubmatch(text, -1) {
			file := filepath.Join("..", m[1])
			if m[2] != "" {
				file = filepath.Join("..", filepath.Dir(name), m[2])
			}
			if _, err := os.Stat(file); err != nil && !regexp.MustCompile(`^kernel/(SERIES|7\.4)`).MatchString(m[1]) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if len(documents) < 10 || made < 40 {
		t.Errorf("only %d calls of make were found in %q", made, documents)
	}
	if !strings.Contains(read(t, "CHANGELOG.md"), "\n## Unreleased\n") {
		t.Error("CHANGELOG.md has no place for what comes")
	}
	if !strings.HasPrefix(strings.TrimSpace(read(t, "LICENSE")), "GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991") {
		t.Error("LICENSE is another")
	}
}

// Recipes for other distributions are in their language's order, as far as its tools
// are here, and what they take from the project there is.
func TestRecipes(t *testing.T) {
	nix := t.TempDir()     // Nix' own is root's
	openwrt := t.TempDir() // what its tree has, as far as make takes it
	shell(t, openwrt, "mkdir -p feeds/packages/lang/golang; echo 'all:;' > rules.mk; touch kernel.mk package.mk feeds/packages/lang/golang/golang-package.mk")
	for _, lint := range [][]string{
		{"shellcheck", "-s", "sh", "openwrt/files/ksmbd-notifyd.init", "alpine/ksmbd-notifyd.initd", "alpine/APKBUILD"},
		{"shellcheck", "-s", "bash", "arch/PKGBUILD"},
		{"bash", "-n", "arch/PKGBUILD"},
		{"rpmspec", "-P", "fedora/ksmbd-notify-kmod.spec"},
		{"make", "-f", "openwrt/Makefile", "TOPDIR=" + openwrt, "INCLUDE_DIR=" + openwrt},
		{"nix-instantiate", "--parse", "nixos/module.nix"},
	} {
		if _, err := exec.LookPath(lint[0]); err != nil {
			if os.Getenv("CI") != "" {
				t.Error(err)
			}
			t.Log(err)
			continue
		}
		c := exec.Command(lint[0], lint[1:]...)
		c.Env = append(os.Environ(), "NIX_STATE_DIR="+nix, "NIX_STORE_DIR="+nix)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", lint, err, out)
		}
	}
	recipes, err := filepath.Glob("*/*")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, name := range append(recipes, "openwrt/files/ksmbd-notifyd.init") {
		if !regexp.MustCompile(`^(openwrt|alpine|arch|nixos|fedora|ubuntu)/`).MatchString(name) || filepath.Ext(name) == "" && filepath.Base(name) == "files" {
			continue
		}
		text := strings.ReplaceAll(read(t, "packaging/"+name), "{,-metrics}", "")
		for _, m := range regexp.MustCompile(`(?m)(?:^|[ ./"(])((?:packaging|kernel|cmd|docs)/[a-z0-9-][A-Za-z0-9_./-]*)`).FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat("../" + strings.TrimRight(m[1], ".")); err != nil && !strings.Contains(m[0], "/lib/") {
				t.Errorf("%s: %v", name, err)
			}
			named++
		}
	}
	if named < 12 {
		t.Errorf("only %d files are named in %q", named, recipes)
	}
}

// make install, which recipes use, has all that the rpm has, and units that name programs
// where the recipes put them.
func TestMakeInstall(t *testing.T) {
	dir := t.TempDir()
	shell(t, "..", "unset MAKEFLAGS MFLAGS; mkdir "+dir+"/build; touch "+dir+"/build/ksmbd-notifyd; umask 077; make -s install BUILD="+dir+"/build DESTDIR="+dir+"/root SBINDIR=/opt/bin")
	got := strings.Fields(shell(t, dir+"/root", "find . -type f -printf '%m/%P\\n'"))
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^  - \{src: .*, dst: /(\S+?)(?:, type: "config.*|, packager: rpm)?\}$`).FindAllStringSubmatch(read(t, "packaging/ksmbd-notifyd.yaml"), -1) {
		switch name := strings.TrimSuffix(m[1], ".gz"); name {
		case "usr/sbin/ksmbd-notifyd":
			want = append(want, "755/opt/bin/ksmbd-notifyd")
		default:
			want = append(want, "644/"+name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(want) < 10 {
		t.Errorf("installed:\n%s\nnot:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	nix := regexp.MustCompile(`sed -i "(s#.*?)"`).FindStringSubmatch(read(t, "packaging/nixos/module.nix"))
	if nix == nil {
		t.Fatal("NixOS' recipe does not change the units")
	}
	nix[1] = strings.NewReplacer("${daemon}", "/opt", "${pkgs.coreutils}", "/opt").Replace(nix[1])
	for _, unit := range units {
		for where, text := range map[string]string{"make install": shell(t, dir+"/root/usr/lib/systemd/system", "cat "+unit), "nixos": shell(t, ".", "sed '"+nix[1]+"' "+unit)} {
			for _, m := range regexp.MustCompile(`(?m)^Exec\w+=(\S+)`).FindAllStringSubmatch(text, -1) {
				if path := m[1]; !strings.HasPrefix(path, "/opt/bin/") && (where == "nixos" || path != "kill") {
					t.Errorf("%s: %s starts %s", where, unit, path)
				}
			}
		}
	}
}

// Each series that there are patches for is built and tried, and README says so.
func TestSeriesEverywhere(t *testing.T) {
	dirs, err := filepath.Glob("../kernel/[0-9]*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no series: %v", err)
	}
	var quoted []string
	for _, dir := range dirs {
		series := filepath.Base(dir)
		quoted = append(quoted, strconv.Quote(series))
		if !regexp.MustCompile(`for kernel in [^;]*` + regexp.QuoteMeta(series) + `:`).MatchString(read(t, "Makefile")) {
			t.Errorf("make test-series does not try %s", series)
		}
		if _, table, _ := strings.Cut(read(t, "README.md"), "\n## Where it runs\n"); !regexp.MustCompile(` ` + regexp.QuoteMeta(series) + `[ ,;]`).MatchString(table) {
			t.Errorf("README does not say where %s runs", series)
		}
	}
	if want := "matrix: {series: [" + strings.Join(quoted, ", ") + "]}"; !strings.Contains(read(t, ".github/workflows/ci.yml"), want) {
		t.Errorf("no %s", want)
	}
}
