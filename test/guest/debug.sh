#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# debug.sh LINUX OUT SERIES: a kernel for the guest of the same source as its usual one, but with KASAN, lockdep, UBSAN,
# kmemleak, failslab and gcov, and ksmbd.ko for it. Leaves OUT/bzImage, OUT/ksmbd.ko and OUT/functions,
# the functions that notify*.c has. The first build takes
# about 15 minutes of one processor; later ones only what changed.
set -euo pipefail

linux=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
series=$3
here=$(dirname "$(realpath "$0")")
kver=$(cat "$linux/release")
config=$here/debug.config
jobs=${JOBS:-$(nproc)}

if [ "$(cat "$out/release" 2>/dev/null)" != "$kver" ]; then
	echo "debug: unpacking the kernel's source"
	rm -rf "$out/src"
	mkdir "$out/src"
	dpkg-deb --fsys-tarfile "$linux"/dl/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C "$out/src" --strip-components=1
	echo "$kver" > "$out/release"
fi
"$here/../../kernel/tree.sh" "$linux/src" "$series" "$out/src"
cd "$out/src"
if ! cmp -s "$config" "$out/config"; then
	make -s ARCH=x86_64 allnoconfig
	cat "$config" >> .config
	make -s ARCH=x86_64 olddefconfig 2> /dev/null
	while read -r line; do
		grep -qx "$line" .config || { echo "debug: the kernel's configuration did not take $line" >&2; exit 1; }
	done < <(grep ^CONFIG_ "$config")
	cp "$config" "$out/config"
fi
echo "debug: building the kernel and ksmbd.ko"
profile=()
for f in "$here"/../../kernel/notify*.c; do
	f=${f##*/}
	profile+=("GCOV_PROFILE_${f%.c}.o=y")
done
make -s ARCH=x86_64 "${profile[@]}" -j"$jobs" bzImage modules
strip -g -o "$out/ksmbd.ko" fs/smb/server/ksmbd.ko
cp arch/x86/boot/bzImage "$out/bzImage"
# What of the module is ours, for a test to know.
nm fs/smb/server/notify*.o | awk '$2 ~ /^[tT]$/ { print $3 }' | sort -u > "$out/functions"
