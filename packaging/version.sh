#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# version.sh [maintainer|date|check VERSION]: the version of this tree, in a form that dpkg, rpm and DKMS take: 1.2.0 of tag v1.2.0,
# 1.2.0+3.gabcdef0 of three commits later, and before the first tag 0~git20261231.2359.abcdef0, which sorts below any
# release; 1.2.0~rc1 of v1.2.0-rc1. Or the last commit's author, or its date, or whether VERSION is one. Of git, or, in a tarball, of what git archive wrote into release.
set -eu
cd "$(dirname "$0")"

if [ "${1:-}" = check ]; then
	version=${2-}
	case $version in
	[0-9]*[!A-Za-z0-9.+~]* | [!0-9]* | '')
		echo "version: \"$version\" is no version that dpkg, rpm and DKMS all take, as 1.0.0 and 1.0.0~rc1 are" >&2
		exit 1
		;;
	esac
	exit 0
fi

from() { sed -n "s/^$1: //p" release; }
# Only a repository of this very tree is asked, though it may be another user's.
git() { command git -c safe.directory="$(cd .. && pwd -P)" "$@"; }
if [ "$(git rev-parse --show-prefix 2>/dev/null)" = packaging/ ]; then
	describe=$(git describe --tags --match 'v[0-9]*' 2>/dev/null || true)
	commit=$(git log -1 --format=%h) time=$(git log -1 --format=%ct) author=$(git log -1 --format='%an <%ae>')
	dirty=$(git status --porcelain --untracked-files=no)
elif ! from commit | grep -q Format; then
	describe=$(from describe) commit=$(from commit) time=$(from time) author=$(from author) dirty=
else # copied without git
	describe=v0~unknown commit= time=$(stat -c %Y ../Makefile) author= dirty=
fi
[ -n "$author" ] || author="ksmbd-notifyd <root@$(uname -n)>"

case ${1:-} in
maintainer)
	name=${author% <*} email=${author##*<}
	echo "${DEBFULLNAME:-$name} <${DEBEMAIL:-${email%>}}>"
	;;
date) LC_ALL=C date -Ru -d "@$time" ;;
*)
	version=$(echo "${describe#v}" | sed 's/-\([0-9]*\)-g\([0-9a-f]*\)$/+\1.g\2/; s/-/~/g')
	[ -n "$version" ] || version=0~git$(date -u -d "@$time" +%Y%m%d.%H%M).$commit
	echo "$version${dirty:++dirty}"
	;;
esac
