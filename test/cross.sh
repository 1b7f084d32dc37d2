#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# cross.sh BUILD: ksmbd.ko is built for another machine to its end: for arm64 with Debian's headers, and for 32-bit big-endian
# PowerPC, as routers are, with a kernel tree after make modules_prepare. BUILD/linux has the kernel that they are of.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
build=$(realpath "$1")
work=$build/cross
base=$(sed 's/-amd64$//; s/-cloud$//' "$build/linux/release")
die() { echo "cross: FAILED: $*" >&2; exit 1; }
# built ARCH MACHINE KO: of the ELF machine, stripped of debug info, ours.
built() {
	local class
	class=$(LC_ALL=C readelf -h "$3" | sed -n 's/^ *\(Class\|Data\|Machine\): *//p' | paste -sd' ')
	[[ $class = $2 ]] || die "$1: it is of $class"
	! readelf -S "$3" | grep -q '\.debug_info' || die "$1: it has debug info"
	[ "$(modinfo -F version "$3")" = cross ] || die "$1: it is of version $(modinfo -F version "$3")"
	echo "cross: $1: $(stat -c %s "$3") bytes, $class, vermagic $(modinfo -F vermagic "$3")"
}
export VERSION=cross
mkdir -p "$work"

# Debian's headers are for a machine; what they have in common, and the programs that build, are this one's.
arm64=$base-arm64
if [ ! -e "$work/hdr/usr/src/linux-headers-$arm64/Makefile" ]; then
	APT_CONFIG=$("$here/guest/backports.sh" "$work/apt" bookworm bookworm-security)
	export APT_CONFIG
	echo 'APT::Architectures { "amd64"; "arm64"; };' >> "$APT_CONFIG"
	"$here/guest/lists.sh"
	rm -rf "$work/hdr"
	cp -a "$build/linux/hdr" "$work/hdr"
	(cd "$work" && apt-get -q download "linux-headers-$arm64:arm64" && dpkg-deb -x linux-headers-*_arm64.deb hdr) > "$work/log" 2>&1 || { cat "$work/log"; die "there are no headers of $arm64"; }
	sed -i 's#/usr/src/#../#' "$work/hdr/usr/src/linux-headers-$arm64/Makefile"
	unset APT_CONFIG
fi
"$here/../kernel/build.sh" "$work/hdr/usr/src/linux-headers-$arm64" "$build/linux/src" "$work/arm64" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- > "$work/arm64.log" 2>&1 ||
	{ tail -20 "$work/arm64.log"; die "arm64, see $work/arm64.log"; }
! grep -E 'warning:|WARNING:' "$work/arm64.log" || die "arm64: it warns"
built arm64 'ELF64*little endian AArch64' "$work/arm64/ksmbd.ko"

# Of the tree only what Kconfig and modules_prepare need; no kernel is built, so that nobody knows its symbols.
ppc=(ARCH=powerpc CROSS_COMPILE=powerpc-linux-gnu-)
tree=$work/tree
prepare() {
	rm -rf "$tree" && mkdir "$tree" &&
		dpkg-deb --fsys-tarfile "$build"/linux/dl/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C "$tree" --strip-components=1 --wildcards --exclude='*/Documentation/[a-z]*' --exclude='*/tools/[pt][es]*' '*/Kconfig*' '*/Makefile*' '*/Kbuild*' \
			--no-wildcards-match-slash '*/scripts' '*/include' '*/arch/powerpc' '*/kernel' '*/lib' '*/tools' '*/fs/smb' '*/fs/nls' &&
		make -s -C "$tree" "${ppc[@]}" pmac32_defconfig &&
		"$tree/scripts/config" --file "$tree/.config" -e MODULES -d MODULE_SIG -d DEBUG_INFO_BTF -m SMB_SERVER &&
		make -s -C "$tree" "${ppc[@]}" olddefconfig &&
		make -s -C "$tree" "${ppc[@]}" -j"$(nproc)" modules_prepare arch/powerpc/lib/crtsavres.o &&
		touch "$tree/prepared"
}
[ -e "$tree/prepared" ] || prepare > "$work/log" 2>&1 || { tail -20 "$work/log"; die "preparing a kernel tree for PowerPC, see $work/log"; }
"$here/../kernel/build.sh" "$tree" "$build/linux/src" "$work/powerpc" "${ppc[@]}" KBUILD_MODPOST_WARN=1 > "$work/powerpc.log" 2>&1 ||
	{ tail -20 "$work/powerpc.log"; die "powerpc, see $work/powerpc.log"; }
! grep 'warning:' "$work/powerpc.log" || die "powerpc: it warns"
built powerpc 'ELF32*big endian PowerPC' "$work/powerpc/ksmbd.ko"
