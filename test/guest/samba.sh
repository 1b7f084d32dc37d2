#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# samba.sh VERSION DIR: smbtorture of another Samba than the host's, from the distribution's backports, for the guest.
# Its packages are unpacked and never installed, and the host's apt knows nothing of it: lists and packages are in DIR.
#
# Leaves DIR/smbtorture.cpio: /usr/bin/smbtorture-VERSION and, in /opt/samba-VERSION, the program and its libraries.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
version=$1
mkdir -p "$2"
dir=$(realpath "$2")
die() { echo "samba: $*" >&2; exit 1; }
command -v apt-get >/dev/null || die "no apt-get here: Samba's packages come from Debian"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
APT_CONFIG=$("$here/backports.sh" "$dir/apt" "$codename-backports")
export APT_CONFIG

echo "samba: smbtorture $version from $codename-backports (about 30 MB)"
rm -rf "$dir"/{dl,deb,root}
mkdir "$dir"/{dl,deb}
"$here/lists.sh" now
cd "$dir/dl"
apt-get download -q samba-testsuite samba-libs samba-common-bin libsmbclient winbind python3-samba python3-ldb libldb2 libtalloc2 \
	libtdb1 libtevent0 | grep -E '^(Get:|E:)' || true
got=$(dpkg-deb -f samba-testsuite_*.deb Version 2>/dev/null) || die "$codename-backports has no samba-testsuite"
case $got in
*:"$version".*) ;;
*) die "$codename-backports has Samba $got, not $version" ;;
esac
for d in *.deb; do dpkg-deb -x "$d" "$dir/deb"; done

# Its own libraries stand together, away from those of the host's Samba.
export LD_LIBRARY_PATH=$dir/deb/usr/lib/$(uname -m)-linux-gnu:$dir/deb/usr/lib/$(uname -m)-linux-gnu/samba
libs=$(ldd "$dir/deb/usr/bin/smbtorture")
! grep 'not found' <<< "$libs" || die "smbtorture lacks libraries"
opt=opt/samba-$version
mkdir -p "$dir/root/$opt" "$dir/root/usr/bin"
chmod -R 755 "$dir/root"
cp "$dir/deb/usr/bin/smbtorture" "$dir/root/$opt/"
grep -o '/[^ :)]*' <<< "$libs" | while read -r lib; do
	to=$dir/root$lib
	[ "${lib#"$dir/deb"}" = "$lib" ] || to=$dir/root/$opt/${lib##*/}
	mkdir -p "${to%/*}"
	cp -L "$lib" "$to"
done
printf '#!/bin/sh\nLD_LIBRARY_PATH=/%s exec /%s/smbtorture "$@"\n' "$opt" "$opt" > "$dir/root/usr/bin/smbtorture-$version"
chmod 755 "$dir/root/usr/bin/smbtorture-$version"
(cd "$dir/root" && find . | cpio --quiet -o -R 0:0 -H newc) > "$dir/smbtorture.cpio.new"
rm -rf "$dir"/{apt,dl,deb,root}
mv "$dir/smbtorture.cpio.new" "$dir/smbtorture.cpio"
