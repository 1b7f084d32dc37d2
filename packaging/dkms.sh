#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# dkms.sh DIR: what DKMS builds the kernel part from, in DIR, which is to be /usr/src/ksmbd-notify-VERSION. VERSION in the
# environment is its version.
set -euo pipefail
mkdir -p "$1"
dir=$(realpath "$1")
cd "$(dirname "$(realpath "$0")")/.."

packaging/version.sh check "${VERSION:-}"
# Our own files; all else is taken from the kernel's source when the module is built.
cp -r packaging/dkms/. kernel/{build,tree,source}.sh kernel/notify*.[ch] kernel/[0-9]* "$dir"
series=$(cd kernel && echo [0-9]*)
sed -i "s/@VERSION@/$VERSION/g; s/@SERIES@/${series// /, }/g; s/@SERIES_REGEXP@/$(echo $series | sed 's/ /|/g; s/\./\\\\./g')/g" "$dir"/{dkms.conf,make.sh,install.sh}
find "$dir" -type d -exec chmod 755 {} +
find "$dir" -type f -exec chmod u=rwX,go=rX {} +
