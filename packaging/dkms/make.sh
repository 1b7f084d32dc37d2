#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# make.sh RELEASE HEADERS: ksmbd.ko for the kernel RELEASE, for DKMS, out of the distribution's source of the same series.
set -euo pipefail
cd "$(dirname "$0")"

release=$1
headers=$2
die() { echo "ksmbd-notify: $*" >&2; exit 1; }

version=${release%%[!0-9.]*}
series=$(cut -d. -f1,2 <<< "$version")
[ -s "$series/hooks.patch" ] || die "kernel $release: series $series is not supported, only @SERIES@"
tarball=/usr/src/linux-source-$series.tar.xz
[ -s "$tarball" ] || die "kernel $release: no $tarball; install linux-source-$series, or put that kernel's source there"

# Laid out as build.sh wants it.
mkdir -p "linux/src" "linux/hdr/usr/src"
ln -s "$headers" "linux/hdr/usr/src/linux-headers-$release"
echo "$release" > linux/release
./source.sh linux/src '*/Makefile' < "$tarball"
source=$(awk '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v "." $3 } END { print substr(v, 2) }' linux/src/Makefile)
# Within a series another version's ksmbd does as well, or else it does not compile.
[ "$source" = "$version" ] || echo "ksmbd-notify: kernel $release: linux-source-$series is of $source, building with that"
./build.sh linux out "$series" ||
	die "kernel $release: ksmbd of $source does not build for it; install linux-source-$series of $version"
mv "out/$release/ksmbd.ko" .
