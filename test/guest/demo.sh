#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# demo.sh BUILD: shows what a watching client is told, in a guest. The README has this, indented.
set -euo pipefail

build=$1
kver=$(cat "$build/linux/release")
"$(dirname "$0")/run.sh" "$build" demo 180 "$build/guest/e2e.test" "$build/module/$kver/ksmbd.ko" "$build/ksmbd-notifyd" -- /rig/e2e.test -demo

sed -n '/what is done/,/^$/s/^/    /p' "$build/guest/out/demo/test.log" | sed 's/ *$//' | while IFS= read -r line; do
	grep -qxF -- "$line" "$(dirname "$0")/../../README.md" || echo "demo: not in the README: $line"
done
