#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# tree.sh SOURCE SERIES TREE: ksmbd's sources of the kernel SOURCE, with the patches for SERIES and our own files, in TREE.
# VERSION in the environment is the release that the module says it is of.
# Only files that differ are written, so that make in TREE stays incremental.
set -euo pipefail

[ $# = 3 ] || { echo "tree: SOURCE, SERIES and TREE are needed" >&2; exit 1; }
source=$1
series=$2
tree=$3
here=$(dirname "$(realpath "$0")")
[ -s "$here/$series/hooks.patch" ] || { echo "tree: no patch hooks our part into ksmbd of Linux $series" >&2; exit 1; }

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/fs/nls" "$new/fs/smb"
cp -r "$source/fs/smb/server" "$source/fs/smb/common" "$new/fs/smb/"
cp "$source"/fs/nls/nls_ucs2_*.h "$new/fs/nls/"
for p in "$here/$series"/*.patch; do patch -s -d "$new" -p1 --fuzz=0 < "$p"; done
cp "$here"/notify*.[ch] "$new/fs/smb/server/"
echo "#define KSMBD_NOTIFY_RELEASE \"${VERSION:-unknown}\"" > "$new/fs/smb/server/notify_release.h"
(cd "$new" && find . -type f) | while read -r f; do
	cmp -s "$new/$f" "$tree/$f" || { mkdir -p "$(dirname "$tree/$f")"; cp "$new/$f" "$tree/$f"; }
done
