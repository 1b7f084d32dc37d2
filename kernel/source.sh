#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# source.sh SOURCE DIR [FILE...]: of the kernel's source SOURCE, a tree or a tarball of it of any kind, what ksmbd.ko is built
# from, and FILEs, in DIR. Prints its version.
set -euo pipefail

source=$1
dir=$2
shift 2
die() { echo "source: $source: $*" >&2; exit 1; }
files=(Makefile fs/smb/server fs/smb/common 'fs/nls/nls_ucs2_*.h' scripts/asn1_compiler.c 'include/linux/asn1*.h' "$@")

mkdir -p "$dir"
if [ -d "$source" ]; then
	(cd "$source" && tar -c ${files[*]}) 2> /dev/null | tar -x -C "$dir" || die "cannot read all of fs/smb/server and what it needs there"
else
	[ -s "$source" ] || die "there is no such tree or tarball, or it is empty"
	# In tarballs of distributions the tree is not always the first level.
	new=$(mktemp -d "$dir/new.XXXXXX")
	trap 'rm -rf "$new"' EXIT
	tar -x -f "$source" -C "$new" --wildcards --no-wildcards-match-slash "${files[@]/#/*\/}" "${files[@]/#/.\/*\/}" 2> "$new/error" || true
	! grep -vE ': Not found in archive$|Exiting with failure status' "$new/error" >&2 || die "it cannot be unpacked: fetch it anew; or the disk is full"
	tree=$(find "$new" -path '*/fs/smb/server' -print -quit)
	[ -n "$tree" ] || die "it has no fs/smb/server: a kernel's source of 6.1 or later has"
	cp -a "${tree%/fs/smb/server}"/. "$dir/"
fi
for f in Makefile fs/smb/{server,common} fs/nls/nls_ucs2_utils.h scripts/asn1_compiler.c include/linux/asn1_ber_bytecode.h; do
	[ -e "$dir/$f" ] || die "it has no $f"
done
awk '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v "." $3 } END { print substr(v, 2) }' "$dir/Makefile"
