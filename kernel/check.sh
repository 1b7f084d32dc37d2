#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# check.sh LINUX OUT HOOKS: checkpatch over our sources and hooks, sparse and W=1 over the module. Fails on any complaint
# about our files.
set -euo pipefail

linux=$(realpath "$1")
out=$2
hooks=$(realpath "$3" 2>/dev/null || echo "$3")
here=$(dirname "$(realpath "$0")")
[ -s "$hooks" ] || { echo "check: $hooks is missing" >&2; exit 1; }
bad=0

# CAMELCASE: ksmbd names the fields of SMB2 as MS-SMB2 does. The hooks are no commit: no message, no sign-off.
checkpatch() {
	(cd "$linux/src" && perl scripts/checkpatch.pl --no-tree --root=. --strict --terse --show-types --no-summary \
		--ignore CAMELCASE,COMMIT_MESSAGE,MISSING_SIGN_OFF,FILE_PATH_CHANGES "$@") || bad=1
}
echo "check: checkpatch"
checkpatch --file "$here"/notify*.[ch]
checkpatch --patch "$hooks"

echo "check: sparse"
rm -rf "$out" # sparse sees only what is compiled: compile all of it
mkdir -p "$out"
log=$out/build.log
"$(dirname "$0")/build.sh" "$linux" "$out" "$hooks" C=2 CF=-D__CHECK_ENDIAN__ W=1 > "$log" 2>&1 || { cat "$log"; exit 1; }
if grep -E '(^|/)notify[^/ ]*:[0-9]+|modpost:' "$log"; then bad=1; fi

[ $bad = 0 ] || { echo "check: complaints, see above" >&2; exit 1; }
echo "check: clean"
