#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# build.sh LINUX OUT SERIES [KBUILD-ARGUMENT...]: ksmbd.ko with our part in it, out of tree, against the headers of LINUX
# (see test/guest/fetch.sh). Leaves OUT/<kernel release>/ksmbd.ko, debug info stripped.
set -euo pipefail

linux=$(realpath "$1")
kver=$(cat "$linux/release")
mkdir -p "$2/$kver"
out=$(realpath "$2/$kver")
series=$3
shift 3

"$(dirname "$0")/tree.sh" "$linux/src" "$series" "$out"
# asn1_compiler is not among linux-kbuild's programs.
if [ ! -x "$out/asn1_compiler" ]; then
	gcc -O1 -I"$linux/src/include" -o "$out/asn1_compiler" "$linux/src/scripts/asn1_compiler.c"
	cd "$out/fs/smb/server"
	for a in *.asn1; do "$out/asn1_compiler" "$a" "$a.c" "$a.h"; done
	cd - > /dev/null
fi
args=(CONFIG_SMB_SERVER=m CC=gcc)
# BTF would need pahole, and a vmlinux that is not here either.
args+=(CONFIG_DEBUG_INFO_BTF_MODULES=)
# A kernel that a newer gcc has built may ask for what this one does not know.
gcc -fmin-function-alignment=16 -c -xc /dev/null -o /dev/null 2> /dev/null || args+=(CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=)
make -s -C "$linux/hdr/usr/src/linux-headers-$kver" M="$out/fs/smb/server" "${args[@]}" -j"$(nproc)" "$@" modules
strip -g -o "$out/ksmbd.ko" "$out/fs/smb/server/ksmbd.ko"
echo "build: $(realpath --relative-to=. "$out/ksmbd.ko")"
