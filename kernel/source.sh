#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# source.sh SOURCE DIR [FILE...]: of the kernel's source SOURCE, a tree or a tarball of it of any kind, or a directory with one
# such tarball, what ksmbd.ko is built from, and FILEs, in DIR. Prints its version.
set -euo pipefail

[ $# -ge 2 ] || { echo "source: SOURCE and DIR are needed" >&2; exit 1; }
source=$1
dir=$2
shift 2
die() { echo "source: $source: $*" >&2; exit 1; }
files=(Makefile fs/smb/server fs/smb/common 'fs/nls/nls_ucs2_*.h' scripts/asn1_compiler.c 'include/linux/asn1*.h' "$@")

mkdir -p "$dir"
dir=$(realpath "$dir")
if [ -d "$source" ] && [ ! -e "$source/fs/smb/server" ]; then
	mapfile -t tarballs < <(find "$source/" -maxdepth 1 -name 'linux*.tar*' ! -name '*.sign' ! -name '*.asc' ! -type d)
	[ ${#tarballs[@]} != 0 ] || die "there is no kernel source in it, neither fs/smb/server nor a tarball linux*.tar.*"
	[ ${#tarballs[@]} = 1 ] || die "there are several tarballs in it, name one"
	source=${tarballs[0]}
fi
if [ -d "$source" ]; then
	error=$({ cd "$source" && tar -c ${files[*]} | tar -x -C "$dir"; } 2>&1) || die "what ksmbd is built from cannot be copied: ${error%%$'\n'*}"
else
	[ -s "$source" ] || die "there is no such tree or tarball, or it is empty"
	# In tarballs of distributions the tree is not always the first level.
	new=$(mktemp -d "$dir/new.XXXXXX")
	trap 'rm -rf "$new"' EXIT
	error=$(LC_ALL=C tar -x --force-local -f "$source" -C "$new" --wildcards --no-wildcards-match-slash "${files[@]}" "${files[@]/#/*\/}" "${files[@]/#/.\/*\/}" 2>&1 |
		grep -vE '^$|: Not found in archive$|Exiting with failure status') || true
	case $error in
	'') ;;
	*'Cannot exec'*) die "it cannot be unpacked: install $(sed -n 's/.*: l*\([a-z0-9]*\): Cannot exec.*/\1/p' <<< "$error" | tail -1)" ;;
	*'unrecognized option'*) die "it cannot be unpacked: install GNU tar" ;;
	*'No space left'*) die "it cannot be unpacked: No space left on device: the disk is full" ;;
	*) die "it cannot be unpacked, fetch it anew: ${error%%$'\n'*}" ;;
	esac
	tree=$(find "$new" -path '*/fs/smb/server' -print -quit)
	[ -n "$tree" ] || die "it has no fs/smb/server: a kernel's source of 6.1 or later has"
	cp -a "${tree%/fs/smb/server}"/. "$dir/"
fi
for f in Makefile fs/smb/{server,common} fs/nls/nls_ucs2_utils.h scripts/asn1_compiler.c include/linux/asn1_ber_bytecode.h; do
	[ -e "$dir/$f" ] || die "it has no $f"
done
awk '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v "." $3 } END { print substr(v, 2) }' "$dir/Makefile"
