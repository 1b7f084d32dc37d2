#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# test.sh RELEASE BUILD: the packages on a Debian server of RELEASE. BUILD/install has the server, BUILD/package the
# packages, BUILD/install/old an older version of them. DKMS builds in a chroot here, since the guest's processors are
# slow; the guest boots what came of that, with systemd, and shows that it works.
set -euo pipefail

release=$1
build=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
work=$build/install/$release
root=$work/root
say() { echo "install: $release: $*"; }
die() { say "FAILED: $*" >&2; exit 1; }

# in_root COMMAND...: run on the server that does not run; whatever it leaves running ends with it.
in_root() {
	unshare --mount --pid --fork bash -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$root" "$@" \
		>> "$work/chroot.log" 2>&1 < /dev/null || { tail -30 "$work/chroot.log"; die "$*, see $work/chroot.log"; }
}
apt() { in_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 --allow-downgrades "$@"; }

# files: what is on the server, but for caches, logs and apt's own.
files() {
	(cd "$root" && find . \( -path ./var/cache -o -path ./var/log -o -path ./var/lib/dpkg -o -path ./var/lib/apt -o -path ./proc -o -path ./dev -o -path ./run -o -path ./root/debs \) \
		-prune -o -printf '%M %u %p %l\n' -a -type f -exec md5sum {} +) | sort
}
# module VERSION: which ksmbd.ko the server would load with kernel $kver, and who signed it.
module() {
	local ko got
	ko=$(find "$root/lib/modules/$kver/updates/dkms" -name 'ksmbd.ko*')
	got=$(modinfo -F version "$ko")
	[ "$got" = "$1" ] || die "the module for $kver is of version ${got:-none}, want $1"
	grep -q '^updates/dkms/ksmbd.ko' "$root/lib/modules/$kver/modules.dep" || die "modprobe ksmbd would not take DKMS's"
	[ "$(modinfo -F signer "$ko")" = "DKMS module signing key" ] || die "DKMS did not sign the module"
	[ -s "$root$(sed -n 's/.*mokutil --import \([a-z./]*\).*/\1/p' "$here/../../README.md")" ] || die "README names a key for Secure Boot that is not there"
}

old=$(dpkg-deb -f "$build"/install/old/ksmbd-notifyd_*.deb Version)
new=$(dpkg-deb -f "$build"/package/ksmbd-notifyd_*.deb Version)
"$here/root.sh" "$release" "$work/base" "$build"/package/*.deb
rm -rf "$root" "$work/chroot.log"
cp -a --reflink=auto "$work/base" "$root"
mkdir "$root/root/debs"
cp "$build"/install/old/*.deb "$build"/package/*.deb "$root/root/debs/"
debs=("/root/debs/ksmbd-notifyd_${old}_amd64.deb" "/root/debs/ksmbd-notify-dkms_${old}_all.deb"
	"/root/debs/ksmbd-notifyd_${new}_amd64.deb" "/root/debs/ksmbd-notify-dkms_${new}_all.deb")
files > "$work/files.before"
newest() { ls "$root/lib/modules" | sort -V | tail -1; }
kver=$(newest)
series=$(cut -d. -f1,2 <<< "$kver")

say "installing $new, as README has it"
mkdir -p "$root/root/build/package"
cp "$build"/package/*.deb "$root/root/build/package/"
line=$(sed -n 's/^    \(apt install .*build\/package.*\)/\1/p' "$here/../../README.md")
[ -n "$line" ] || die "README does not say how to install the packages"
in_root sh -c "cd /root && yes | $line"
rm -r "$root/root/build"
module "$new"
say "downgrading to $old"
apt install "${debs[@]:0:2}"
module "$old"
say "upgrading to $new"
apt install "${debs[@]:2}"
module "$new"

# Kernels, headers and sources that come or go are triggers of the package.
tarball=usr/src/linux-source-$series.tar.xz
trigger() { in_root dpkg-trigger --no-await --by-package=ksmbd-notify-dkms /usr/src; in_root dpkg --triggers-only ksmbd-notify-dkms; }
# lacks WHAT LINE: of the kernel that is installed with WHAT wrong, LINE is said, and its own ksmbd is what stays.
lacks() {
	say "$1: $(grep -a '^ksmbd-notify-dkms: kernel' "$work/chroot.log" | tail -1)"
	grep -qE "^ksmbd-notify-dkms: kernel ${kver//+/\\+} keeps its own ksmbd, .*: $2" "$root/var/lib/ksmbd-notify/$kver" || die "$1: no line that says: $2"
	! ls "$root/lib/modules/$kver"/updates/dkms/* 2> /dev/null || die "$1: there is a module"
	grep -q '^kernel/fs/smb/server/ksmbd.ko' "$root/lib/modules/$kver/modules.dep" || die "$1: modprobe ksmbd would not take the kernel's own"
	[ -z "$(chroot "$root" dpkg --audit)" ] || die "$1: dpkg --audit complains"
}
without() { in_root dkms remove "ksmbd-notify/$new" -k "$kver"; }
mv "$root/$tarball" "$root/root/kept"
before=$(stat -c '%i %Y' "$root/lib/modules/$kver"/updates/dkms/*)
trigger
[ "$(stat -c '%i %Y' "$root/lib/modules/$kver"/updates/dkms/*)" = "$before" ] || die "a module that is there is built again"
without
trigger
lacks "no source" "there is no kernel source: install linux-source-$series"
in_root /etc/kernel/postinst.d/dkms "$kver"
head -c 20000000 "$root/root/kept" > "$root/$tarball"
trigger
lacks "a broken tarball" "/$tarball: it cannot be unpacked, fetch it anew: .*"
rm "$root/$tarball"
mkdir -p "$root/root/tree" "$root/etc/ksmbd-notify"
"$here/../../kernel/source.sh" "$root/root/kept" "$root/root/tree" > /dev/null
echo '#error "broken"' >> "$root/root/tree/fs/smb/server/auth.c"
echo /root/tree > "$root/etc/ksmbd-notify/kernel-source"
trigger
lacks "a build that fails" "ksmbd of $series[.0-9]*, from /root/tree, does not build for it: .*error"
grep -q '#error "broken"' "$root/var/lib/ksmbd-notify/$kver.log" || die "what the build said is gone"
rm -r "$root/root/tree" "$root/etc/ksmbd-notify"
mv "$root/root/kept" "$root/$tarball"
for full in /var/lib/dkms "/lib/modules/$kver/updates"; do
	mkdir -p "$root$full"
	in_root sh -c "mount -t tmpfs -o size=16k none $full && /usr/src/ksmbd-notify-$new/install.sh"
	lacks "a full disk at $full" ".*(No space left|disk is full)"
done
say "a kernel of a series that is not supported is installed"
mkdir -p "$root/lib/modules/6.1.0-0-amd64/build/include"
trigger
grep -q '^ksmbd-notify-dkms: kernel 6.1.0-0-amd64 keeps its own ksmbd, .*not supported' "$work/chroot.log" || die "nothing says so, see $work/chroot.log"
rm -r "$root/lib/modules/6.1.0-0-amd64"
module "$new"

say "purging"
purged=$work/purged
rm -rf "$purged"
cp -a --reflink=auto "$root" "$purged"
kept=$root root=$purged
apt purge ksmbd-notifyd ksmbd-notify-dkms
files > "$work/files.after"
# DKMS's own key stays for other modules.
if diff "$work/files.before" "$work/files.after" | grep '^[<>]' | grep -v ' \./var/lib/dkms/mok\.'; then
	die "this differs from before the installation, see $work/files.*"
fi
root=$kept
rm -rf "$purged"

# boot SECONDS ARGUMENT...: the server as it is now, with its newest kernel, where job.sh looks.
boot() {
	local limit=$1
	shift
	say "booting $kver"
	[ "$(basename "$(readlink "$root/vmlinuz")")" = "vmlinuz-$kver" ] || die "$kver is not what is booted"
	cp -L "$root/vmlinuz" "$root/initrd.img" "$work/"
	echo "$kver" > "$work/release"
	rm -f "$work/root.img"
	truncate -s 4G "$work/root.img"
	mke2fs -q -F -t ext4 -E lazy_itable_init=1 -d "$root" "$work/root.img"
	DISK=$work "$here/../guest/run.sh" "$build" "install-$release-$kver" "$limit" "$here/job.sh" "$here/../../README.md" -- bash /rig/job.sh "$old" "$new" 2.0 "$@"
	rm "$work/root.img"
}
# arrived: the newest kernel was installed, and there is all that it takes to boot it.
arrived() {
	local before=$kver
	kver=$(newest)
	[ "$kver" != "$before" ] || die "no newer kernel than $kver came"
	[ -s "$root/boot/initrd.img-$kver" ] || die "$kver has no initrd"
	[ -z "$(chroot "$root" dpkg --audit)" ] || die "after $kver came dpkg --audit complains"
}

# Kernels come as any other package does.
image=(linux-{image,headers}-cloud-amd64)
if [ "$release" = trixie ]; then
	say "upgrading $kver"
	in_root apt-get -q update
	apt install "${image[@]}"
	arrived
	module "$new"
fi
boot 1500
if [ "$release" = trixie ]; then
	sed -n 's/ trixie main/ trixie-backports main/p' "$root/etc/apt/sources.list" > "$root/etc/apt/sources.list.d/backports.list"
	in_root apt-get -q update
	go=$(sed -n 's|.*PATH=\(/usr/lib/go-[0-9.]*\)/bin:.*|\1|p' "$here/../../README.md")
	in_root apt-get -q -s install -t trixie-backports "golang-${go##*-}"
	in_root sh -c "apt-cache depends golang-${go##*-} | grep 'Depends: golang-${go##*-}-go$'"
	say "upgrading $kver to that of the backports, without its source"
	apt install -t trixie-backports "${image[@]}"
	arrived
	series=$(cut -d. -f1,2 <<< "$kver")
	lacks "no source of $series" "there is no kernel source: install linux-source-$series"
	apt install -t trixie-backports "linux-source-$series"
	module "$new"
	boot 600 short
fi
rm -rf "$root"
