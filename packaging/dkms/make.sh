#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# make.sh RELEASE HEADERS: ksmbd.ko for the kernel RELEASE, for DKMS, out of a kernel source of the same series: the one that
# /etc/ksmbd-notify/kernel-source names, or what the distribution has.
set -euo pipefail
export LC_ALL=C # what tools say is looked at
cd "$(dirname "$0")"

[ $# = 2 ] || { echo "ksmbd-notify: RELEASE and HEADERS are needed" >&2; exit 1; }
release=$1
headers=$2
config=/etc/ksmbd-notify/kernel-source
die() { echo "ksmbd-notify: kernel $release: $*" >&2; exit 1; }

wanted=${release%%[!0-9.]*}
series=$(cut -d. -f1,2 <<< "$wanted")
[ -s "$series/hooks.patch" ] || die "series $series is not supported, only @SERIES@"

# Debian's and Ubuntu's linux-source, openSUSE's kernel-source, a tree that the kernel was built in.
shopt -s nullglob
sources=(/usr/src/linux-source-"$series".tar.* /usr/src/linux-source-"$series"*/linux-source-*.tar.*
	/usr/src/linux-"$wanted"* /lib/modules/"$release"/source)
missing=
if [ -e $config ]; then
	mapfile -t sources < <(sed 's/\r$//; s/^[[:blank:]]*//; s/[[:blank:]]*$//; /^#/d; /^$/d' $config)
	missing="none that $config names is of $series"
fi
reason=
for source in "${sources[@]}"; do
	[ -n "$missing" ] || [ -f "$source" ] || [ -d "$source/fs/smb/server" ] || continue
	rm -rf source
	if ! version=$(./source.sh "$source" source 2> source.log); then
		reason=$(tail -1 source.log)
		reason=${reason#source: }
		continue
	fi
	[[ $version = "$series".* ]] || continue
	# Within a series another version's ksmbd does as well, or else it does not compile.
	[ "$version" = "$wanted" ] || echo "ksmbd-notify: note: building with $source, which is of $version"
	./build.sh "$headers" source out > build.log 2>&1 && mv out/ksmbd.ko . && exit
	cat build.log
	die "ksmbd of $version, from $source, does not build for it: $(grep -m1 -E 'error:|rror |No space|^build:' build.log || tail -1 build.log)"
done
die "${reason:-${missing:-there is no kernel source: install linux-source-$series, or name one in $config}}"
