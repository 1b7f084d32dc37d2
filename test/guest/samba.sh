#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# samba.sh VERSION PROGRAM DIR: PROGRAM, smbtorture or smbd, of a Samba for the guest: 4.17 is that of Debian 12, 4.22 that of
# its backports, 4.25 that of testing. Its packages are unpacked and never installed, and the host's apt knows nothing of it.
#
# Leaves DIR/PROGRAM.cpio: /usr/bin/PROGRAM-VERSION and, in /opt/samba-VERSION, the program and all its libraries; with smbd
# also smbpasswd.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
version=$1
program=$2
mkdir -p "$3"
dir=$(realpath "$3")
die() { echo "samba: $*" >&2; exit 1; }
command -v apt-get >/dev/null || die "no apt-get here: Samba's packages come from Debian"

case $version in
4.17) suites=(bookworm) ;;
4.22) suites=(bookworm bookworm-backports) ;;
4.25) suites=(testing) ;;
*) die "no Debian release has Samba $version as far as this script knows" ;;
esac
suite=${suites[-1]}
case $program in
smbtorture) programs=(usr/bin/smbtorture) package=samba-testsuite ;;
smbd) programs=(usr/sbin/smbd usr/bin/smbpasswd) package=samba ;;
*) die "no program $program" ;;
esac

# Testing's lists expire after a week, and a mirror may be older.
echo "samba: $program $version from $suite (about 60 MB)"
rm -rf "$dir"/{apt,deb,root}
"$here/backports.sh" "$dir/apt" "${suites[@]}" > /dev/null
mmdebstrap --mode=root --variant=extract --include="$package" --aptopt="APT::Default-Release \"$suite\"" \
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
for p in "${programs[@]}"; do
	libs=$("$ld" --library-path "$path" --list "$dir/deb/$p")
	! grep 'not found' <<< "$libs" || die "$p lacks libraries"
	grep -o '/[^ :)]*' <<< "$libs" | grep "^$dir" | sort -u | xargs -I{} cp -L {} "$dir/root/$opt/"
	cp -L "$ld" "$dir/deb/$p" "$dir/root/$opt/"
	name=${p##*/}
	printf '#!/bin/sh\nexec /%s/ld-linux-x86-64.so.2 --library-path /%s /%s/%s "$@"\n' "$opt" "$opt" "$opt" "$name" > "$dir/root/usr/bin/$name-$version"
	chmod 755 "$dir/root/usr/bin/$name-$version"
done
got=$("$ld" --library-path "$path" "$dir/deb/${programs[0]}" --version)
case $got in
*" $version".*) ;;
*) die "$suite has $got, not $version" ;;
esac
(cd "$dir/root" && find . | cpio --quiet -o -R 0:0 -H newc) > "$dir/$program.cpio.new"
rm -rf "$dir"/{apt,deb,root}
mv "$dir/$program.cpio.new" "$dir/$program.cpio"
