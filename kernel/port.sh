#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# port.sh SERIES FROM SOURCE-OF-FROM SOURCE WORK: the patches of FROM for SERIES, whose kernel source SOURCE is, see source.sh.
# Each file that a patch changes is merged three ways; what of a patch does not merge is shown, and left in WORK/solve/PATCH/FILE
# with marks to be solved there: the next run takes that file as it is then, and goes on. There is no SERIES until all of it fits.
# docs/new-series.md says what to look at.
set -euo pipefail

die() { echo "port: $*" >&2; exit 1; }
[ $# = 5 ] || die "SERIES, FROM, SOURCE-OF-FROM, SOURCE and WORK are needed"
series=$1
from=$2
work=$5
here=$(dirname "$(realpath "$0")")

[[ $series =~ ^[0-9]+\.[0-9]+$ ]] || die "$series is no series, as 7.4 is"
[ ! -e "$here/$series" ] || die "kernel/$series is there already: remove it to port anew"
[ -s "$here/$from/hooks.patch" ] || die "there are no patches for $from"
rm -rf "$work"/{old,new,patches}
mkdir -p "$work/patches"
version=$("$here/source.sh" "$3" "$work/old")
[[ $version = "$from".* ]] || die "$3 is of $version, not of $from"
version=$("$here/source.sh" "$4" "$work/new")
[[ $version = "$series".* ]] || die "$4 is of $version, not of $series"

for patch in "$here/$from"/*.patch; do
	name=${patch##*/}
	open=
	rm -rf "$work"/{old,new}.patched
	cp -a "$work/old" "$work/old.patched"
	cp -a "$work/new" "$work/new.patched"
	patch -s -d "$work/old.patched" -p1 --fuzz=0 < "$patch"
	files=()
	for f in $(sed -n 's#^+++ b/##p' "$patch"); do
		if [ ! -e "$work/new/$f" ]; then
			echo "port: $name: $series has no $f: what is for that is left out, find out where it belongs"
			continue
		fi
		files+=("$f")
		solved=$work/solve/$name/$f
		if ! git merge-file -p -q --diff3 -L "$series" -L "$from" -L "$from and ours" "$work/new/$f" "$work/old/$f" "$work/old.patched/$f" > "$work/new.patched/$f"; then
			mkdir -p "${solved%/*}"
			[ -e "$solved" ] || tee "$solved" "$solved.unsolved" < "$work/new.patched/$f" > /dev/null
			# It would take back what has come into the file since.
			cmp -s "$work/new.patched/$f" "$solved.unsolved" || die "$solved is of another merge than this: remove it, to solve it anew"
			cp "$solved" "$work/new.patched/$f"
		fi
		if grep -n '^<<<<<<< ' "$work/new.patched/$f" > "$work/marks"; then
			echo "port: $name: this does not fit; solve it in $solved:$(cut -d: -f1 "$work/marks" | paste -sd,)"
			sed -n '/^<<<<<<< /,/^>>>>>>> /p' "$solved" | sed 60q
			open=yes
		fi
	done
	# The patches that follow stand on what comes of it.
	[ -z "$open" ] || die "solve what is shown above, then run this again"
	{
		sed '/^---$/q' "$patch" | sed "s/Linux ${from/./\\.}/Linux $series/"
		for f in "${files[@]}"; do
			diff -up --label "a/$f" --label "b/$f" "$work/new/$f" "$work/new.patched/$f" || true
		done
	} > "$work/patches/$name"
	if ! grep -q '^+++ ' "$work/patches/$name"; then
		echo "port: $name: left out, $series has all of it"
		rm "$work/patches/$name"
	fi
	rm -rf "$work"/{old,new}
	mv "$work/old.patched" "$work/old"
	mv "$work/new.patched" "$work/new"
done
mv -T "$work/patches" "$here/$series"
echo "port: kernel/$series/ has the patches for $series, made on $version; look at what they differ in: diff -r kernel/$from kernel/$series"
