#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# version.sh [maintainer|date]: the version of this tree, in a form that dpkg, rpm and DKMS take: 1.2.0 of tag v1.2.0,
# 1.2.0+3.gabcdef0 of three commits later, and before the first tag 0~git20261231.2359.abcdef0, which sorts below any
# release. Or the last commit's author, or its date. Of git, or, in a tarball, of what git archive wrote into release.
set -eu
cd "$(dirname "$0")"

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
[ -n "$author" ] || author="ksmbd-notifyd <root@$(hostname)>"

case ${1:-} in
maintainer)
	name=${author% <*} email=${author##*<}
	echo "${DEBFULLNAME:-$name} <${DEBEMAIL:-${email%>}}>"
	;;
date) LC_ALL=C date -Ru -d "@$time" ;;
*)
	version=$(echo "${describe#v}" | sed 's/-\([0-9]*\)-g/+\1.g/')
	[ -n "$version" ] || version=0~git$(date -u -d "@$time" +%Y%m%d.%H%M).$commit
	echo "$version${dirty:++dirty}"
	;;
esac
