#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# check.sh LINUX OUT SERIES: checkpatch over our sources and patches, sparse and W=1 over the module, and over our sources for a
# machine of 32 bits and the other byte order, as routers are. Fails on any complaint about our files.
set -euo pipefail

[ $# = 3 ] || { echo "check: LINUX, OUT and SERIES are needed" >&2; exit 1; }
linux=$(realpath "$1")
out=$2
series=$3
here=$(dirname "$(realpath "$0")")
bad=0

# CAMELCASE: ksmbd names the fields of SMB2 as MS-SMB2 does. The patches are no commits: no message, no sign-off.
# LINUX_VERSION_CODE: notify_compat.h is for several kernels.
checkpatch() {
	(cd "$linux/src" && perl scripts/checkpatch.pl --no-tree --root=. --strict --terse --show-types --no-summary \
		--ignore CAMELCASE,LINUX_VERSION_CODE,COMMIT_MESSAGE,MISSING_SIGN_OFF,FILE_PATH_CHANGES "$@") || bad=1
}
echo "check: checkpatch"
checkpatch --file "$here"/notify*.[ch]
checkpatch --patch "$here/$series"/*.patch

echo "check: sparse"
rm -rf "$out" # sparse sees only what is compiled: compile all of it
mkdir -p "$out"
log=$out/build.log
"$here/build.sh" "$linux/hdr/usr/src/linux-headers-$(cat "$linux/release")" "$linux/src" "$out" C=2 CF=-D__CHECK_ENDIAN__ W=1 > "$log" 2>&1 || { cat "$log"; exit 1; }
complaints='(^|/)notify[^/ ]*:[0-9]+|modpost:'
if grep -E "$complaints" "$log"; then bad=1; fi

echo "check: sparse, powerpc"
log=$out/powerpc.log
"$here/check-powerpc.sh" "$linux" "$out-powerpc" "$series" > "$log" 2>&1 || { cat "$log"; exit 1; }
if grep -E "$complaints" "$log"; then bad=1; fi

[ $bad = 0 ] || { echo "check: complaints, see above" >&2; exit 1; }
echo "check: clean"
