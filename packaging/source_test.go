// SPDX-License-Identifier: GPL-2.0-or-later

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shell runs a script in a directory, which must succeed.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	c := exec.Command("bash", "-euc", script)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// The kernel's source may be a tree or a tarball of any kind; what is wrong with it
// is said in a line.
func TestKernelSource(t *testing.T) {
	source, err := filepath.Abs("../kernel/source.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	shell(t, dir, `
		mkdir -p linux-6.12.9/{fs/smb/{server,common},fs/nls,scripts,include/linux} bin none two in signed
		printf 'VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\n' > linux-6.12.9/Makefile
		for f in fs/smb/server/a.c fs/smb/common/b.c fs/nls/nls_ucs2_utils.h scripts/asn1_compiler.c include/linux/asn1_ber_bytecode.h; do
			head -c 3000 /dev/urandom > linux-6.12.9/$f
		done
		for z in '' .gz .bz2 .xz .zst; do tar -caf linux-6.12.9.tar$z linux-6.12.9; done
		tar -C linux-6.12.9 -cf flat.tar .
		(cd linux-6.12.9 && tar -cf ../bare.tar *)
		cp linux-6.12.9.tar.bz2 in/linux-source-6.12.9.tar.bz2
		cp linux-6.12.9.tar.xz signed/ && touch signed/linux-6.12.9.tar.sign
		cp linux-6.12.9.tar 'host:with blank.tar'
		touch two/linux-{1,2}.tar; echo >> two/linux-1.tar
		for z in xz gz zst; do head -c 5000 linux-6.12.9.tar.$z > cut.tar.$z; done
		echo text > text.tar.gz
		: > empty.tar
		tar -cf other.tar bin
		cp -a linux-6.12.9 part && rm part/fs/nls/*
		cp -a linux-6.12.9 lacks && rm lacks/scripts/* && tar -cf lacks.tar lacks
		for tool in bash cat cp find grep head mkdir mktemp realpath rm sed tail tar awk; do ln -s $(command -v $tool) bin/; done`)
	for name, want := range map[string]string{
		"linux-6.12.9": "6.12.9", "linux-6.12.9.tar": "6.12.9", "linux-6.12.9.tar.gz": "6.12.9", "linux-6.12.9.tar.bz2": "6.12.9",
		"linux-6.12.9.tar.xz": "6.12.9", "linux-6.12.9.tar.zst": "6.12.9", "flat.tar": "6.12.9", "bare.tar": "6.12.9", "in": "6.12.9",
		"signed": "6.12.9", "host:with blank.tar": "6.12.9",

		"nowhere":     "there is no such tree or tarball, or it is empty",
		"empty.tar":   "there is no such tree or tarball, or it is empty",
		"/dev/null":   "there is no such tree or tarball, or it is empty",
		"none":        "there is no kernel source in it, neither fs/smb/server nor a tarball linux*.tar.*",
		"two":         "there are several tarballs in it, name one",
		"cut.tar.xz":  "it cannot be unpacked, fetch it anew: xz: (stdin): Unexpected end of input",
		"cut.tar.gz":  "it cannot be unpacked, fetch it anew: gzip: stdin: unexpected end of file",
		"cut.tar.zst": "it cannot be unpacked, fetch it anew: ",
		"text.tar.gz": "it cannot be unpacked, fetch it anew: ",
		"other.tar":   "it has no fs/smb/server: a kernel's source of 6.1 or later has",
		"part":        "what ksmbd is built from cannot be copied: ",
		"lacks":       "what ksmbd is built from cannot be copied: ",
		"lacks.tar":   "it has no scripts/asn1_compiler.c",
	} {
		out := t.TempDir()
		c := exec.Command(source, name, out)
		c.Dir = dir
		got, err := c.CombinedOutput()
		text := string(got)
		if ok := want == "6.12.9"; ok && (err != nil || text != want+"\n") ||
			!ok && (err == nil || !strings.HasPrefix(text, "source: "+name+": "+want) || strings.Count(text, "\n") != 1) {
			t.Errorf("%s: %v, %q, want %q", name, err, text, want)
		}
	}
	for z, want := range map[string]string{"zst": "install zstd", "bz2": "install bzip2", "xz": "install xz"} {
		c := exec.Command(filepath.Join(dir, "bin/bash"), source, "linux-6.12.9.tar."+z, t.TempDir())
		c.Dir = dir
		c.Env = []string{"PATH=" + filepath.Join(dir, "bin")}
		got, err := c.CombinedOutput()
		if want := "source: linux-6.12.9.tar." + z + ": it cannot be unpacked: " + want + "\n"; err == nil || string(got) != want {
			t.Errorf("without what unpacks it: %v, %q, want %q", err, got, want)
		}
	}
	t.Run("busybox", func(t *testing.T) {
		busybox, err := exec.LookPath("busybox")
		if err != nil {
			skip(t, "there is no busybox, whose tar cannot do what is needed: install busybox-static")
		}
		shell(t, dir, "ln -sf "+busybox+" bin/tar")
		c := exec.Command(filepath.Join(dir, "bin/bash"), source, "linux-6.12.9.tar", t.TempDir())
		c.Dir = dir
		c.Env = []string{"PATH=" + filepath.Join(dir, "bin")}
		got, err := c.CombinedOutput()
		if want := "source: linux-6.12.9.tar: it cannot be unpacked: install GNU tar\n"; err == nil || string(got) != want {
			t.Errorf("%v, %q, want %q", err, got, want)
		}
	})
}

// skip leaves a test out for want of something that CI has: there it fails.
func skip(t *testing.T, lacks string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(lacks)
	}
	t.Skip(lacks)
}

// What a module cannot be built of or with is said in a line.
func TestKernelBuild(t *testing.T) {
	build, err := filepath.Abs("../kernel/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	shell(t, dir, `
		for h in raw good old odd none; do mkdir -p $h/include/config && touch $h/Makefile; done
		echo 6.12.9-amd64 > good/include/config/kernel.release
		echo 6.6.1 > old/include/config/kernel.release
		echo odd > odd/include/config/kernel.release
		: > none/include/config/kernel.release
		mkdir -p tree/{fs/smb/{server,common},fs/nls,scripts,include/linux}
		touch tree/{fs/nls/nls_ucs2_utils.h,scripts/asn1_compiler.c,include/linux/asn1_ber_bytecode.h}
		printf 'VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 9\n' > tree/Makefile
		mkdir -p kept/src && cp -r tree kept/src/linux`)
	for _, test := range []struct{ args, want string }{
		{"", "build: HEADERS, SOURCE and OUT are needed"},
		{"nowhere tree out", "build: nowhere: no kernel headers there: install linux-headers-RELEASE, or prepare a kernel tree with make modules_prepare"},
		{"raw tree out", "not prepared, no include/config/kernel.release: make modules_prepare"},
		{"none tree out", "names no series"},
		{"odd tree out", "release odd names no series"},
		{"old tree out", "build: kernel 6.6.1: series 6.6 is not supported, only "},
		{"good nowhere out", "source: nowhere: there is no such tree or tarball, or it is empty"},
		{"good tree out", "build: tree is of 7.2.9, but kernel 6.12.9-amd64 takes the source of 6.12"},
		{"good tree out ARCH=mips CROSS_COMPILE=nowhere-", "build: there is no nowhere-gcc: install it"},
		{"good tree raw/Makefile/out", "mkdir: cannot create directory"},
		{"good kept/src/linux kept", "build: kept/src/linux is of 7.2.9, but kernel 6.12.9-amd64 takes the source of 6.12"},
		{"good tree tree", "/tree: it has a Makefile, as a kernel's source has: name a directory of its own for OUT"},
		{"good tree a%b", "/a b: it has a blank or a colon, with which kbuild cannot work: name another OUT"},
	} {
		args := strings.Fields(test.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "%", " ")
		}
		c := exec.Command(build, args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "LC_ALL=C")
		got, err := c.CombinedOutput()
		if err == nil || !strings.Contains(string(got), test.want) || strings.Count(string(got), "\n") != 1 {
			t.Errorf("%s: %v, %q, want %q", test.args, err, got, test.want)
		}
	}
	// Nothing of anybody's is taken away, nor is anything left.
	shell(t, dir, `diff -r tree kept/src/linux; [ "$(ls kept)" = src ]; [ -z "$(ls out)" ]`)
}

// For DKMS a source is chosen of those that there are, and why none will do is said in a
// line, in whatever language the administrator reads.
func TestDKMSMake(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "only root can put directories of its own over /etc and /usr/src")
	}
	dir := t.TempDir()
	shell(t, ".", `cp dkms/make.sh `+dir+`/ && cd `+dir+` && mkdir 6.12 && echo > 6.12/hooks.patch
		printf '#!/bin/sh\ncat "$1"\n' > source.sh
		printf '#!/bin/sh\n[ "$LC_ALL" != C ] || error=error\necho "f.c:1: ${error:-Fehler}: $(cat out.says)"\n! grep -q broken out.says || exit 1\nmkdir -p out && touch out/ksmbd.ko\n' > build.sh
		chmod +x *.sh`)
	for _, test := range []struct{ sources, want string }{
		{"true", "ksmbd-notify: kernel 6.12.9-amd64: there is no kernel source: install linux-source-6.12, or name one in /etc/ksmbd-notify/kernel-source\n"},
		{"echo 6.12.9 > /usr/src/linux-source-6.12.tar.xz", ""},
		{"echo 6.12.7 > /usr/src/linux-source-6.12.tar.xz", "ksmbd-notify: note: building with /usr/src/linux-source-6.12.tar.xz, which is of 6.12.7\n"},
		{"echo 6.12.9 > /usr/src/linux-source-6.12.tar.xz; echo broken > out.says",
			"ksmbd-notify: kernel 6.12.9-amd64: ksmbd of 6.12.9, from /usr/src/linux-source-6.12.tar.xz, does not build for it: f.c:1: error: broken\n"},
		{"mkdir /etc/ksmbd-notify; printf '# none\n\n/usr/src/a b.tar \r\n' > /etc/ksmbd-notify/kernel-source; echo 7.3.1 > '/usr/src/a b.tar'",
			"ksmbd-notify: kernel 6.12.9-amd64: none that /etc/ksmbd-notify/kernel-source names is of 6.12\n"},
		{"mkdir /etc/ksmbd-notify; printf '# none\n\n\t/usr/src/a b.tar \r\n' > /etc/ksmbd-notify/kernel-source; echo 6.12.9 > '/usr/src/a b.tar'", ""},
	} {
		c := exec.Command("unshare", "-m", "bash", "-euc", `mount -t tmpfs none /usr/src; mount -t tmpfs none /etc; cd "$1"; : > out.says; `+test.sources+`; exec ./make.sh 6.12.9-amd64 /nowhere`, "bash", dir)
		c.Env = append(os.Environ(), "LC_ALL=de_DE.UTF-8")
		out, err := c.CombinedOutput()
		said := regexp.MustCompile(`(?m)^(f\.c:|.*warning: setlocale).*\n`).ReplaceAllString(string(out), "")
		if failed := strings.Contains(test.want, "kernel 6.12"); said != test.want || (err != nil) != failed {
			t.Errorf("%s: %v, %q, want %q", test.sources, err, out, test.want)
		}
	}
}

// A module that does not build is no error, and what there is to be known of it stays,
// though DKMS takes its own away; with what was missing there it is built.
func TestDKMSInstall(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "only root can enter a root directory of its own")
	}
	dir := t.TempDir()
	shell(t, ".", `sed 's/@VERSION@/1.0/; s/@SERIES_REGEXP@/6\\.12/; s/@SERIES@/6.12/' dkms/install.sh > `+dir+`/install.sh && cd `+dir+` && mkdir bin
		cat > bin/dkms <<-'END'
			#!/bin/bash
			tree=/var/lib/dkms/ksmbd-notify/1.0
			case $1 in
			add) mkdir -p $tree/build ;;
			install)
				echo 'f.c:1: error' > $tree/build/make.log
				echo 'ksmbd-notify: kernel 6.12.9: it does not build' >> $tree/build/make.log
				mkdir -p /lib/modules/6.12.9/updates/dkms
				[ ! -e /good ] || echo 1.0 > /lib/modules/6.12.9/updates/dkms/ksmbd.ko
				[ -e /good ]
				;;
			remove) rm -rf /var/lib/dkms/ksmbd-notify ;;
			esac
		END
		printf '#!/bin/sh\ncat "$3"\n' > bin/modinfo
		printf '#!/bin/sh\n' > bin/depmod
		chmod +x bin/* install.sh`)
	got := shell(t, dir, `exec 2>&1; exec unshare -m bash -euc '
		mkdir top; mount -t tmpfs none top; mkdir top/{upper,work}
		mount -t overlay -o lowerdir=/,upperdir=top/upper,workdir=top/work none /mnt
		mkdir -p /mnt/lib/modules/{6.12.9/build/include/config,6.12.10,6.1.1}
		touch /mnt/lib/modules/{6.12.9/build/include/config/kernel.release,{6.12.10,6.1.1}/modules.dep}
		mkdir /mnt/job && cp -r bin install.sh /mnt/job
		mount -t tmpfs none /mnt/var/lib
		mount --rbind /dev /mnt/dev
		mount --rbind /proc /mnt/proc
		in_root() { PATH=/job/bin:$PATH chroot /mnt "$@"; }
		in_root /job/install.sh
		cat /mnt/var/lib/ksmbd-notify/6.12.9{,.log}
		touch /mnt/good
		in_root /job/install.sh
		ls /mnt/var/lib/ksmbd-notify
		in_root /job/install.sh'`)
	const keeps = " keeps its own ksmbd, which tells no changes: "
	const others = "ksmbd-notify-dkms: kernel 6.1.1" + keeps + "its series is not supported, only 6.12\n" +
		"ksmbd-notify-dkms: kernel 6.12.10" + keeps + "no headers: install linux-headers-6.12.10\n"
	const failed = "ksmbd-notify-dkms: kernel 6.12.9" + keeps + "it does not build; then: /usr/src/ksmbd-notify-1.0/install.sh\n"
	want := others + failed + failed + "f.c:1: error\nksmbd-notify: kernel 6.12.9: it does not build\n" +
		others + "ksmbd-notify-dkms: kernel 6.12.9 has ksmbd that notifies; 6.1.1\n6.12.10\n" + others
	if want = strings.Replace(want, "notifies; ", "notifies\n", 1); got != strings.TrimSpace(want) {
		t.Errorf("%s\n, want\n%s", got, want)
	}
}

// What a script lacks is said in a line.
func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"kernel/port.sh 7.4": "port: SERIES, FROM, SOURCE-OF-FROM, SOURCE and WORK are needed",
		"kernel/source.sh":   "source: SOURCE and DIR are needed", "kernel/tree.sh a": "tree: SOURCE, SERIES and TREE are needed",
		"kernel/check.sh": "check: LINUX, OUT and SERIES are needed", "packaging/dkms/make.sh": "ksmbd-notify: RELEASE and HEADERS are needed",
		"packaging/dkms.sh": "dkms: DIR is needed", "packaging/version.sh check": `version: "" is no version that dpkg, rpm and DKMS all take, as 1.0.0 and 1.0.0~rc1 are`,
		"make -s build VERSION=a%b":                                 `version: "a b" is no version that dpkg, rpm and DKMS all take, as 1.0.0 and 1.0.0~rc1 are`,
		"make -s port FROM=7.3 SOURCE=/nowhere HEADERS=":            "usage: make port SERIES=x.y FROM=7.3 SOURCE=a kernel source, tree or tarball [FROM_SOURCE=that of 7.3] [HEADERS=...]",
		"make -s port SERIES=7.4 FROM=7.3 SOURCE=/nowhere HEADERS=": "port: /nowhere: there is no such tree or tarball",
		"make -s port SERIES=7.4 FROM=7.3 SOURCE=/ FROM_SOURCE=/no": "port: /no: there is no such tree or tarball",
		"make -s port SERIES=99.9 FROM=7.3 SOURCE=/ FROM_SOURCE=/":  "source: /: there is no kernel source in it, neither fs/smb/server nor a tarball linux*.tar.*",
	} {
		words := strings.Fields(args)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "%", " ")
		}
		c := exec.Command(words[0], words[1:]...)
		c.Dir = ".."
		c.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=") })
		out, err := c.CombinedOutput()
		got := regexp.MustCompile(`(?m)^make: \*\*\*.*\n`).ReplaceAllString(string(out), "")
		if err == nil || got != want+"\n" {
			t.Errorf("%s: %v, %q, want %q", args, err, got, want)
		}
	}
}

// Whoever has no Go, or that of Debian 12, is told which it takes.
func TestMakeWithoutGo(t *testing.T) {
	dir := t.TempDir()
	shell(t, dir, `for tool in bash sh git sed date dirname grep uname hostname cut cat; do ln -s $(command -v $tool) . || true; done
		mkdir old && printf '#!/bin/sh\n[ "$*" != version ] || { echo go version go1.19.8 linux/amd64; exit 0; }\nexit 1\n' > old/go && chmod +x old/go`)
	for path, want := range map[string]string{
		dir:                      "make: there is no go: install Go 1.26 or later, and have it in PATH\n",
		dir + ":" + dir + "/old": "make: go version go1.19.8 linux/amd64 cannot build this: install Go 1.26 or later, and have it first in PATH\n",
	} {
		c := exec.Command("make", "-s", "build", "VERSION=1.0", "BUILD="+dir)
		c.Dir = ".."
		c.Env = []string{"PATH=" + path}
		out, err := c.CombinedOutput()
		if got := regexp.MustCompile(`(?m)^make: \*\*\*.*\n`).ReplaceAllString(string(out), ""); err == nil || got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// A series is there when all of its patches fit, and what somebody has made of it stays.
// Until then no package has it.
func TestPort(t *testing.T) {
	dir := t.TempDir()
	shell(t, ".", "mkdir -p "+dir+"/packaging && cp -r ../kernel "+dir+"/ && cp -r dkms dkms.sh version.sh "+dir+"/packaging/")
	shell(t, dir, `
		tree() {
			mkdir -p $1/{fs/smb/{server,common},fs/nls,scripts,include/linux}
			touch $1/{fs/nls/nls_ucs2_utils.h,scripts/asn1_compiler.c,include/linux/asn1_ber_bytecode.h}
			printf 'VERSION = %s\nPATCHLEVEL = %s\nSUBLEVEL = 1\n' ${1/./ } > $1/Makefile
			printf '%s\n' a b "$2" d e > $1/fs/smb/server/f.c
		}
		tree 9.1 c; tree 9.2 other
		mkdir kernel/9.1 kernel/9.3
		printf '%s\n' 'why, Linux 9.1' --- '--- a/fs/smb/server/f.c' '+++ b/fs/smb/server/f.c' '@@ -1,5 +1,5 @@' ' a' ' b' -c +ours ' d' ' e' > kernel/9.1/hooks.patch
		: > kernel/9.3/hooks.patch`)
	port := func() string {
		_, last := portOf(dir)
		return last
	}
	if got := port(); got != "port: solve what is shown above, then run this again" {
		t.Error(got)
	}
	shell(t, dir, `
		[ ! -e kernel/9.2 ]
		VERSION=1.0 packaging/dkms.sh out
		[ ! -e out/9.2 ] && [ ! -e out/9.3 ] && [ -e out/9.1/hooks.patch ] && [ -e out/7.3/hooks.patch ]
		grep -q '|9\\.1)' out/dkms.conf
		! grep -E '9.*[23]' out/dkms.conf
		printf '%s\n' a b both d e > work/solve/hooks.patch/fs/smb/server/f.c`)
	if got := port(); got != "" {
		t.Error(got)
	}
	shell(t, dir, `grep -qx 'why, Linux 9.2' kernel/9.2/hooks.patch; grep -qx +both kernel/9.2/hooks.patch; echo mine > kernel/9.2/mine`)
	if got := port(); got != "port: kernel/9.2 is there already: remove it to port anew" {
		t.Error(got)
	}
	shell(t, dir, "[ -e kernel/9.2/mine ] && [ -e kernel/9.2/hooks.patch ]")
}

// portOf carries patches for 9.1 over to 9.2, and returns what it says, and of that the
// last line if it fails.
func portOf(dir string) (said, last string) {
	c := exec.Command("kernel/port.sh", "9.2", "9.1", "9.1", "9.2", "work")
	c.Dir = dir
	out, err := c.CombinedOutput()
	said = strings.TrimSpace(string(out))
	if err != nil {
		last = said[strings.LastIndex(said, "\n")+1:]
	}
	return said, last
}

// Of patches that change the same file none takes back what another does, whatever had
// to be solved in both, and one that the new series has already is left out.
func TestPortOfSeveralPatches(t *testing.T) {
	dir := t.TempDir()
	shell(t, ".", "cp -r ../kernel "+dir+"/")
	shell(t, dir, `
		for v in 9.1 9.2; do
			mkdir -p $v/{fs/smb/{server,common},fs/nls,scripts,include/linux}
			touch $v/{fs/nls/nls_ucs2_utils.h,scripts/asn1_compiler.c,include/linux/asn1_ber_bytecode.h}
			printf 'VERSION = %s\nPATCHLEVEL = %s\nSUBLEVEL = 1\n' ${v/./ } > $v/Makefile
			seq 40 > $v/fs/smb/server/f.c
			echo $v > $v/fs/smb/server/g.c
		done
		sed -i 's/^10$/ten/; s/^30$/thirty/' 9.2/fs/smb/server/f.c
		echo gone > 9.1/fs/smb/server/gone.c
		mkdir kernel/9.1
		cp -r 9.1 is
		patch_of() { # NAME FILE SED
			cp -r is will
			sed -i "$3" will/$2
			{ printf 'why, Linux 9.1\n---\n'; diff -up --label a/$2 --label b/$2 is/$2 will/$2 || true; } >> kernel/9.1/$1.patch
			rm -r is
			mv will is
		}
		patch_of hooks fs/smb/server/f.c 's/^10$/hook10/; s/^20$/hook20/'
		patch_of mend-a fs/smb/server/f.c 's/^30$/mend30/'
		patch_of mend-b fs/smb/server/g.c 's/9.1/9.2/'
		patch_of mend-c fs/smb/server/gone.c 's/gone/mended/'`)
	const again = "port: solve what is shown above, then run this again"
	const first, second = "work/solve/hooks.patch/fs/smb/server/f.c", "work/solve/mend-a.patch/fs/smb/server/f.c"
	step := func(want, then string) (said string) {
		t.Helper()
		said, last := portOf(dir)
		if last != want {
			t.Fatalf("%q, want %q", said, want)
		}
		shell(t, dir, then)
		return said
	}
	step(again, "[ ! -e "+second+" ]; sed -i '/^<<<<<<< /,/^>>>>>>> /c both10' "+first)
	step(again, "sed -i '/^<<<<<<< /,/^>>>>>>> /c both30' "+second+"; sed -i s/both10/better10/ "+first)
	step("port: "+second+" is of another merge than this: remove it, to solve it anew", "rm "+second)
	step(again, "sed -i '/^<<<<<<< /,/^>>>>>>> /c both30' "+second)
	said := step("", `
		[ "$(ls kernel/9.2 | paste -sd' ')" = "hooks.patch mend-a.patch" ]
		kernel/tree.sh 9.2 9.2 tree
		[ "$(sed -n '10p;20p;30p' tree/fs/smb/server/f.c | paste -sd' ')" = "better10 hook20 both30" ]`)
	for _, want := range []string{
		"port: mend-b.patch: left out, 9.2 has all of it",
		"port: mend-c.patch: 9.2 has no fs/smb/server/gone.c: what is for that is left out, find out where it belongs",
	} {
		if !strings.Contains(said, want+"\n") {
			t.Errorf("%q, want %q", said, want)
		}
	}
}

// Without git, and without its archive's words, there is a version still, on a machine
// that has little.
func TestVersionOfCopy(t *testing.T) {
	dir := t.TempDir()
	shell(t, ".", "mkdir "+dir+"/packaging "+dir+"/bin && cp version.sh "+dir+"/packaging/ && touch "+dir+"/Makefile")
	shell(t, dir, "printf 'commit: $%s:%%h$\\n' Format > packaging/release; for tool in sh sed stat date dirname grep uname; do ln -s $(command -v $tool) bin/; done")
	for arg, want := range map[string]string{"": "^0~unknown\n$", "maintainer": "^ksmbd-notifyd <root@.+>\n$", "date": "^[A-Z][a-z]{2}, .* \\+0000\n$"} {
		c := exec.Command(filepath.Join(dir, "packaging/version.sh"), strings.Fields(arg)...)
		c.Env = []string{"PATH=" + filepath.Join(dir, "bin"), "LANG=de_DE.UTF-8"}
		if out, err := c.CombinedOutput(); err != nil || !regexp.MustCompile(want).Match(out) {
			t.Errorf("%q: %v, %q", arg, err, out)
		}
	}
}

// Versions sort as they follow each other, for dpkg and for rpm.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	shell(t, ".", "mkdir "+dir+"/packaging && cp version.sh release "+dir+"/packaging/")
	commit := "git add . && git commit -q --allow-empty -m x; "
	var versions []string
	for _, step := range []string{"git init -q; " + commit, commit + "git tag v1.0.0-rc1", commit, "git tag v1.0.0-rc2 HEAD", "git tag -d v1.0.0-rc2; " + commit + "git tag v1.0.0",
		commit, "git tag -a -m x v1.0.1", commit + "git tag v1.0.10", "git commit -q --allow-empty -m x; echo >> packaging/release"} {
		shell(t, dir, step)
		versions = append(versions, shell(t, dir, "packaging/version.sh"))
	}
	for i, want := range []string{"0~git", "1.0.0~rc1", "1.0.0~rc1+1.g", "1.0.0~rc2", "1.0.0", "1.0.0+1.g", "1.0.1", "1.0.10", "1.0.10+1.g"} {
		if !strings.HasPrefix(versions[i], want) {
			t.Errorf("%q, want %s", versions[i], want)
		}
	}
	_, err := exec.LookPath("rpm")
	rpm := err == nil
	for i, v := range versions[1:] {
		before := versions[i]
		if out, err := exec.Command("dpkg", "--compare-versions", before, "lt", v).CombinedOutput(); err != nil {
			t.Errorf("dpkg: %s is not before %s: %v %s", before, v, err, out)
		}
		if rpm && shell(t, ".", "rpm --eval '%{lua: print(rpm.vercmp(\""+before+"\", \""+v+"\"))}'") != "-1" {
			t.Errorf("rpm: %s is not before %s", before, v)
		}
		if out, err := exec.Command("./version.sh", "check", v).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	for _, v := range []string{"", "1.0.0-rc1", "v1.0.0", "1_0", "1 0", "1.0\n", "1:1.0", "$(id)"} {
		if out, err := exec.Command("./version.sh", "check", v).CombinedOutput(); err == nil || !strings.Contains(string(out), "is no version that dpkg, rpm and DKMS all take") {
			t.Errorf("%q: %v: %s", v, err, out)
		}
	}
}
