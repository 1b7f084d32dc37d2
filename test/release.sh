#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# release.sh WORK: a release is made in a clone that belongs to somebody else, its tarball builds without git, its packages
# are for the machines that they name, apt installs from its repository once that is signed, and the checksums are true.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

work=$1
version=1.2.3
rm -rf "$work"
mkdir -p "$work"
work=$(realpath "$work")
say() { echo "release: $*"; }
die() { say "FAILED: $*" >&2; exit 1; }
quietly() { "$@" > "$work/log" 2>&1 || { tail -20 "$work/log"; die "$*"; }; }
# refused WORDS COMMAND...: it fails, and one line with WORDS says why.
refused() {
	local words=$1
	shift
	! "$@" > "$work/log" 2>&1 || die "$* succeeds"
	[ "$(grep -v '^make' "$work/log" | wc -l)" = 1 ] && grep -q "$words" "$work/log" || { cat "$work/log"; die "$* does not say: $words"; }
}

git -c safe.directory='*' clone -q --no-hardlinks . "$work/clone"
chown -R nobody: "$work/clone"
(umask 077 && quietly make -C "$work/clone" release VERSION=$version)
out=$work/clone/build/release
[ -z "$(find "$out" ! -perm -o=r)" ] || die "a web server cannot read $(find "$out" ! -perm -o=r)"
(cd "$out" && sha256sum --quiet --strict -c SHA256SUMS) || die "checksums"
[ "$(wc -l < "$out/SHA256SUMS")" = $(($(find "$out" -type f | wc -l) - 1)) ] || die "not everything has a checksum"
grep -q "^# ksmbd-notifyd $version\$" "$out/NOTES.md" && grep -q '^- ' "$out/NOTES.md" || die "the notes: $(cat "$out/NOTES.md")"
for p in ksmbd-notifyd_${version}_{amd64,arm64}.deb ksmbd-notify-dkms_${version}_all.deb; do
	[ "$(dpkg-deb -f "$out/apt/$p" Version)" = $version ] || die "no $p"
done
for p in "$out"/apt/*.deb; do
	dpkg-deb --fsys-tarfile "$p" | tar -xO --wildcards './usr/share/doc/*/CHANGELOG.md' | cmp -s - CHANGELOG.md || die "$p does not say what is new"
done
for p in ksmbd-notifyd-$version-1.{x86_64,aarch64}.rpm ksmbd-notify-dkms-$version-1.noarch.rpm; do
	[ "$(rpm -qp --nosignature --qf '%{VERSION}' "$out/$p" 2> /dev/null)" = $version ] || die "no $p"
done
# machine PACKAGE: what the daemon in it is for, by its ELF header.
machine() { dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/sbin/ksmbd-notifyd | { od -An -tu2 -j18 -N2; cat > /dev/null; } | tr -d " "; }
[ "$(machine "$out/apt/ksmbd-notifyd_${version}_amd64.deb")" = 62 ] && [ "$(machine "$out/apt/ksmbd-notifyd_${version}_arm64.deb")" = 183 ] ||
	die "a daemon is for another machine than its package says"
say "made in another owner's clone, for amd64 and arm64"

# The tarball, without git, and for another machine.
tar -x -C "$work" -f "$out/ksmbd-notifyd-$version.tar.xz"
tarball=$work/ksmbd-notifyd-$version
[ "$("$tarball/packaging/version.sh")" = $version ] || die "the tarball takes itself for $("$tarball/packaging/version.sh")"
quietly env PATH="$PATH" GIT_DIR=/nowhere make -C "$tarball" deb
for p in ksmbd-notifyd_${version}_amd64.deb ksmbd-notify-dkms_${version}_all.deb; do
	diff <(dpkg-deb -c "$out/apt/$p" | awk '{ print $1, $2, $3, $6 }') <(dpkg-deb -c "$tarball/build/package/$p" | awk '{ print $1, $2, $3, $6 }') || die "the tarball's $p has other files"
done
quietly make -C "$tarball" deb GOARCH=arm
[ "$(machine "$tarball/build/package/ksmbd-notifyd_${version}_armhf.deb")" = 40 ] || die "no package for arm"
refused "a release is made of a commit" make -s -C "$tarball" release VERSION=$version
refused '"1.0-rc1" is no version' make -s -C "$work/clone" release VERSION=1.0-rc1
refused '"1.0-rc1" is no version' make -s -C "$tarball" deb VERSION=1.0-rc1
echo >> "$work/clone/README.md"
refused "not committed" make -s -C "$work/clone" release VERSION=$version
say "the tarball builds without git"

# Signed, apt takes it as it is.
export GNUPGHOME=$work/gnupg
mkdir -m 700 "$GNUPGHOME"
quietly gpg --batch --passphrase '' --quick-generate-key release@example.org
gpg -q --export > "$work/key.gpg"
gpg -q --clearsign -o "$out/apt/InRelease" "$out/apt/Release"
gpgconf --kill all
mkdir -p "$work"/apt/{lists,cache/archives/partial}
echo "deb [signed-by=$work/key.gpg arch=amd64,arm64] file:$out/apt ./" > "$work/apt/sources.list"
cat > "$work/apt/apt.conf" <<-END
	APT::Sandbox::User "root";
	APT::Architectures { "amd64"; "arm64"; };
	Dir::State::Lists "$work/apt/lists";
	Dir::Cache "$work/apt/cache";
	Dir::Etc::SourceList "$work/apt/sources.list";
	Dir::Etc::SourceParts "-";
END
export APT_CONFIG=$work/apt/apt.conf
quietly apt-get update
! grep -E '^[WE]:' "$work/log" || die "apt does not take the repository"
(cd "$work/apt" && quietly apt-get download ksmbd-notifyd:amd64 ksmbd-notifyd:arm64 ksmbd-notify-dkms)
(cd "$work/apt" && for p in *.deb; do cmp "$p" "$out/apt/$p" || die "apt gives another $p"; done; [ "$(ls ./*.deb | wc -l)" = 3 ] || die "apt gives $(ls ./*.deb)")
say "apt takes the repository, signed"
