#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# check-powerpc.sh LINUX OUT SERIES: compiles our sources with sparse and W=1 for 32 bits and big endian. Of the kernel's source
# only what that needs is unpacked.
set -euo pipefail

linux=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
series=$3
here=$(dirname "$(realpath "$0")")
kver=$(cat "$linux/release")
export ARCH=powerpc CROSS_COMPILE=powerpc-linux-gnu-

if [ "$(cat "$out/release" 2> /dev/null)" != "$kver" ]; then
	rm -rf "$out"
	mkdir -p "$out/src"
	dpkg-deb --fsys-tarfile "$linux"/dl/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C "$out/src" --strip-components=1 --wildcards --no-anchored --exclude='Documentation/*.[rtys]*' --exclude='drivers/*.[chS]' \
			--exclude='sound/*.[ch]' --exclude='arch/[a-oq-z]*/*.[cS]' --exclude='tools/testing/*' --exclude='tools/perf/*'
	cd "$out/src"
	make -s allnoconfig
	printf 'CONFIG_%s\n' PPC_BOOK3S_32=y CPU_BIG_ENDIAN=y MODULES=y NET=y INET=y MULTIUSER=y FANOTIFY=y NETWORK_FILESYSTEMS=y \
		SMB_SERVER=m >> .config
	make -s olddefconfig
	grep -qx CONFIG_PPC32=y .config && grep -qx CONFIG_SMB_SERVER=m .config
	make -s modules_prepare
	echo "$kver" > "$out/release"
fi
"$here/tree.sh" "$linux/src" "$series" "$out"
rm -f "$out"/fs/smb/server/notify*.o
make -s -C "$out/src" M="$out/fs/smb/server" C=2 CF=-D__CHECK_ENDIAN__ W=1 $(cd "$here" && ls notify*.c | sed 's/c$/o/')
