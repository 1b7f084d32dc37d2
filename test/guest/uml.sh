#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# uml.sh LINUX OUT SERIES: user-mode Linux of the same source as the guest's kernel, with KASAN and lockdep, and ksmbd.ko for it.
# Leaves OUT/linux and OUT/ksmbd.ko. The first build takes minutes; later ones only what changed.
set -euo pipefail

linux=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
series=$3
here=$(dirname "$(realpath "$0")")
kver=$(cat "$linux/release")
config=$here/uml.config

if [ "$(cat "$out/release" 2>/dev/null)" != "$kver" ]; then
	echo "uml: unpacking the kernel's source"
	rm -rf "$out/src"
	mkdir "$out/src"
	dpkg-deb --fsys-tarfile "$linux"/dl/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C "$out/src" --strip-components=1
	# The host takes registers only from a buffer of its full XSTATE, 11008 bytes where there is AMX; a longer one is no harm.
	sed -i 's/HOST_FP_SIZE, 2696/HOST_FP_SIZE, 12288/' "$out/src/arch/x86/um/user-offsets.c"
	echo "$kver" > "$out/release"
fi
"$here/../../kernel/tree.sh" "$linux/src" "$series" "$out/src"
cd "$out/src"
if ! cmp -s "$config" "$out/config"; then
	make -s ARCH=um defconfig
	scripts/kconfig/merge_config.sh -m -Q .config "$config" > /dev/null
	make -s ARCH=um olddefconfig
	while read -r line; do
		grep -qx "$line" .config || { echo "uml: the kernel's configuration did not take $line" >&2; exit 1; }
	done < <(grep ^CONFIG_ "$config")
	cp "$config" "$out/config"
fi
echo "uml: building the kernel and ksmbd.ko"
make -s ARCH=um -j"$(nproc)" linux modules
strip -g -o "$out/ksmbd.ko" fs/smb/server/ksmbd.ko
cp linux "$out/linux"
