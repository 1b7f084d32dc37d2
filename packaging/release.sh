#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# release.sh OUT: a release of the last commit in OUT, from git: the source tarball, and of what that holds the debs and rpms
# for amd64 and arm64, a flat apt repository of the debs, the notes and all checksums. VERSION in the environment is its
# version.
set -euo pipefail
umask 022 # a web server is to read it
cd "$(dirname "$(realpath "$0")")/.."
die() { echo "release: $*" >&2; exit 1; }

packaging/version.sh check "$VERSION"
[ "$(git -c safe.directory="$PWD" rev-parse --show-prefix 2> /dev/null || echo none)" = "" ] || die "a release is made of a commit: run this in a clone with git"
git() { command git -c safe.directory="$PWD" "$@"; }
[ -z "$(git status --porcelain --untracked-files=no)" ] || die "there are changes that are not committed: a release is made of a commit"
mkdir -p "$1"
out=$(realpath "$1")
rm -rf "${out:?}"/*
name=ksmbd-notifyd-$VERSION
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# The tarball says of which version it is, tag or not.
git archive --prefix="$name/" HEAD | tar -xp -C "$stage" # whatever the umask
sed -i "s/^describe: .*/describe: v$VERSION/" "$stage/$name/packaging/release"
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | xz -9 > "$out/$name.tar.xz"

# Packages are made of the tarball, as those of anybody are.
for arch in amd64 arm64; do
	for format in deb rpm; do
		GOARCH=$arch KERNEL='' make -s --no-print-directory -C "$stage/$name" "$format" VERSION="$VERSION"
		mv "$stage/$name/build/package"/* "$out/"
	done
done

# Of a version's section in the changelog, or of what is to be in it.
section() { awk -v head="## $1" '/^## / { on = index($0 " ", head " ") == 1; next } on' CHANGELOG.md; }
notes=$(section "$VERSION")
if [ -z "$notes" ]; then
	echo "release: CHANGELOG.md has no section \"## $VERSION\": the notes are what is unreleased" >&2
	notes=$(section Unreleased)
fi
[ -n "$notes" ] || die "CHANGELOG.md has nothing to make notes of"
printf '# ksmbd-notifyd %s\n%s\n' "$VERSION" "$notes" > "$out/NOTES.md"

# To be signed, and put on any web server as it is.
mkdir "$out/apt"
mv "$out"/*.deb "$out/apt/"
(
	cd "$out/apt"
	apt-ftparchive packages . > Packages
	xz -9k Packages
	apt-ftparchive -o APT::FTPArchive::Release::Origin=ksmbd-notifyd -o APT::FTPArchive::Release::Label=ksmbd-notifyd -o APT::FTPArchive::Release::Architectures='amd64 arm64' release . > ../Release
	mv ../Release .
)
(cd "$out" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs -d '\n' sha256sum > SHA256SUMS)
(cd "$out" && find . -type f -printf 'release: %P\n' | sort)
