#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# dkms.sh DIR: what DKMS builds the kernel part from, in DIR, which is to be /usr/src/ksmbd-notify-VERSION. VERSION in the
# environment is its version.
set -euo pipefail
[ $# = 1 ] || { echo "dkms: DIR is needed" >&2; exit 1; }
mkdir -p "$1"
dir=$(realpath "$1")
cd "$(dirname "$(realpath "$0")")/.."

packaging/version.sh check "${VERSION:-}"
# Our own files; all else is taken from the kernel's source when the module is built.
cp -r packaging/dkms/. kernel/{build,tree,source}.sh kernel/notify*.[ch] "$dir"
series=
for hooks in kernel/*/hooks.patch; do
	[ -s "$hooks" ] || continue
	cp -r "${hooks%/*}" "$dir"
	series+=" $(basename "${hooks%/*}")"
done
series=${series# }
sed -i "s/@VERSION@/$VERSION/g; s/@SERIES@/${series// /, }/g; s/@SERIES_REGEXP@/$(sed 's/ /|/g; s/\./\\\\./g' <<< "$series")/g" "$dir"/{dkms.conf,make.sh,install.sh}
find "$dir" -type d -exec chmod 755 {} +
find "$dir" -type f -exec chmod u=rwX,go=rX {} +
