#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# build.sh HEADERS SOURCE OUT [KBUILD-ARGUMENT...]: OUT/ksmbd.ko with our part in it, debug info stripped, for the kernel of
# HEADERS, as /lib/modules/RELEASE/build is, out of SOURCE, see source.sh. Another machine's takes what kbuild takes,
# ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- or LLVM=1. VERSION in the environment is our release.
set -euo pipefail

die() { echo "build: $*" >&2; exit 1; }
[ $# -ge 3 ] || die "HEADERS, SOURCE and OUT are needed"
headers=$1
source=$2
mkdir -p "$3"
out=$(realpath "$3")
[[ $out != *[[:space:]:]* ]] || die "$out: it has a blank or a colon, with which kbuild cannot work: name another OUT"
# What we write would go into a kernel's own sources. An OUT of ours has no Makefile.
[ ! -e "$out/Makefile" ] || die "$out: it has a Makefile, as a kernel's source has: name a directory of its own for OUT"
shift 3
here=$(dirname "$(realpath "$0")")

[ -e "$headers/Makefile" ] || die "$headers: no kernel headers there: install linux-headers-RELEASE, or prepare a kernel tree with make modules_prepare"
headers=$(realpath "$headers")
release=$(cat "$headers/include/config/kernel.release" 2> /dev/null) || die "$headers: not prepared, no include/config/kernel.release: make modules_prepare"
series=$(grep -oE '^[0-9]+\.[0-9]+' <<< "$release") || die "$headers: release $release names no series"
[ -s "$here/$series/hooks.patch" ] ||
	die "kernel $release: series $series is not supported, only $(cd "$here" && echo */hooks.patch | sed 's#/hooks.patch##g')"

cross=${CROSS_COMPILE:-} llvm=
for arg in "$@"; do
	case $arg in
	CROSS_COMPILE=*) cross=${arg#*=} ;;
	LLVM=1) llvm=llvm- ;;
	esac
done
# What the kernel was built with may be another compiler than there is.
cc=${cross}gcc
strip=${cross}strip
if [ -n "$llvm" ]; then cc=clang strip=llvm-strip; fi
for tool in make patch gcc $cc $strip; do
	command -v "$tool" > /dev/null || die "there is no $tool: install it"
done

src=$(mktemp -d "$out/source.XXXXXX")
trap 'rm -rf "$src"' EXIT
version=$("$here/source.sh" "$source" "$src")
[ "$(cut -d. -f1,2 <<< "$version")" = "$series" ] || die "$source is of $version, but kernel $release takes the source of $series"
"$here/tree.sh" "$src" "$series" "$out" || die "the patches for $series do not fit ksmbd of $version, from $source"
# asn1_compiler is not among the programs of a distribution's headers.
gcc -O1 -I"$src/include" -o "$out/asn1_compiler" "$src/scripts/asn1_compiler.c"
for a in "$out"/fs/smb/server/*.asn1; do
	[ "$a.c" -nt "$a" ] || (cd "${a%/*}" && a=${a##*/} && "$out/asn1_compiler" "$a" "$a.c" "$a.h")
done
args=(CONFIG_SMB_SERVER=m "CC=$cc")
# BTF would need pahole, and a vmlinux that is not here either.
args+=(CONFIG_DEBUG_INFO_BTF_MODULES=)
# A kernel that a newer gcc has built may ask for what this one does not know.
$cc -fmin-function-alignment=16 -c -xc /dev/null -o /dev/null 2> /dev/null || args+=(CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=)
echo 'struct s { int n; char a[] __attribute__((counted_by(n))); };' | $cc -Werror=attributes -c -xc - -o /dev/null 2> /dev/null || args+=(KCFLAGS=-Wno-attributes)
make -s -C "$headers" M="$out/fs/smb/server" "${args[@]}" -j"$(nproc)" "$@" modules || die "ksmbd of $version, from $source, does not compile for kernel $release"
$strip -g -o "$out/ksmbd.ko" "$out/fs/smb/server/ksmbd.ko"
echo "build: $out/ksmbd.ko, kernel $release"
