#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# samba.sh VERSION DIR: smbtorture of another Samba than the host's, for the guest: 4.22 is that of Debian 12's backports, 4.25
# that of testing. Its packages are unpacked and never installed, and the host's apt knows nothing of it.
#
# Leaves DIR/smbtorture.cpio: /usr/bin/smbtorture-VERSION and, in /opt/samba-VERSION, the program and all its libraries.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
version=$1
mkdir -p "$2"
dir=$(realpath "$2")
die() { echo "samba: $*" >&2; exit 1; }
command -v apt-get >/dev/null || die "no apt-get here: Samba's packages come from Debian"

case $version in
4.22) suites=(bookworm bookworm-backports) ;;
4.25) suites=(testing) ;;
*) die "no Debian release has Samba $version as far as this script knows" ;;
esac
suite=${suites[-1]}

# Testing's lists expire after a week, and a mirror may be older.
echo "samba: smbtorture $version from $suite (about 60 MB)"
rm -rf "$dir"/{apt,deb,root}
"$here/backports.sh" "$dir/apt" "${suites[@]}" > /dev/null
mmdebstrap --mode=root --variant=extract --include=samba-testsuite --aptopt="APT::Default-Release \"$suite\"" \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/*' \
	"$suite" "$dir/deb" - < "$dir/apt/sources.list" > "$dir/log" 2>&1 || { tail -20 "$dir/log"; die "not to be had, see $dir/log"; }

# It runs with the libc of its own release, away from the guest's libraries.
multiarch=usr/lib/$(uname -m)-linux-gnu
opt=opt/samba-$version
mkdir -p "$dir/root/$opt" "$dir/root/usr/bin"
chmod -R 755 "$dir/root"
ld=$(find "$dir/deb" -name 'ld-linux-x86-64.so.2' | head -1)
[ -n "$ld" ] || die "no dynamic linker in $dir/deb"
path=$dir/deb/$multiarch:$dir/deb/$multiarch/samba:$dir/deb/lib/$(uname -m)-linux-gnu
libs=$("$ld" --library-path "$path" --list "$dir/deb/usr/bin/smbtorture")
! grep 'not found' <<< "$libs" || die "smbtorture lacks libraries"
got=$("$ld" --library-path "$path" "$dir/deb/usr/bin/smbtorture" --version)
case $got in
*" $version".*) ;;
*) die "$suite has $got, not $version" ;;
esac
grep -o '/[^ :)]*' <<< "$libs" | grep "^$dir" | sort -u | xargs -I{} cp -L {} "$dir/root/$opt/"
cp -L "$ld" "$dir/deb/usr/bin/smbtorture" "$dir/root/$opt/"
printf '#!/bin/sh\nexec /%s/ld-linux-x86-64.so.2 --library-path /%s /%s/smbtorture "$@"\n' "$opt" "$opt" "$opt" > "$dir/root/usr/bin/smbtorture-$version"
chmod 755 "$dir/root/usr/bin/smbtorture-$version"
(cd "$dir/root" && find . | cpio --quiet -o -R 0:0 -H newc) > "$dir/smbtorture.cpio.new"
rm -rf "$dir"/{apt,deb,root}
mv "$dir/smbtorture.cpio.new" "$dir/smbtorture.cpio"
