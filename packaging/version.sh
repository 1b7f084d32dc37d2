#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# version.sh: the version of this tree, in a form that dpkg, rpm and DKMS take: 1.2.0 of tag v1.2.0, 1.2.0+3.gabcdef0 of
# three commits later, and before the first tag 0~git20261231.2359.abcdef0, which sorts below any release.
set -eu

tag=$(git describe --tags --match 'v[0-9]*' 2>/dev/null || true)
if [ -n "$tag" ]; then
	version=$(echo "${tag#v}" | sed 's/-\([0-9]*\)-g/+\1.g/')
elif ! version=$(TZ=UTC git log -1 --date=format-local:%Y%m%d.%H%M --format='0~git%cd.%h' 2>/dev/null); then
	echo 0~unknown
	exit
fi
[ -z "$(git status --porcelain --untracked-files=no)" ] || version=$version+dirty
echo "$version"
