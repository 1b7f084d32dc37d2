#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# torture.sh BUILD FS:SAMBA...: smbtorture's notify tests in a guest for each file system and Samba (empty: this machine's),
# as many guests at a time as there are processors, and a table in the end. Fails when one of them does.
set -euo pipefail

build=$1
shift
here=$(dirname "$(realpath "$0")")
name() { echo "test-${1%%:*}-torture${1#*:}"; }
one() {
	echo "torture: $(name "$1"), $TRIES times, slow ones $SLOW times"
	FS=${1%%:*} SAMBA=${1#*:} RUN=TestTorture "$here/test.sh" "$build" > "$build/guest/$(name "$1").log" 2>&1 && return
	grep -E '^ *(--- FAIL|torture_test)|^guest:' "$build/guest/$(name "$1").log" | sed "s/^/$(name "$1"): /"
	return 1
}
export -f one name
export build here

status=0
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'one {}' || status=1

# Of each test how often it passed of how many times.
tables=()
for run in "$@"; do tables+=("$build/guest/out/$(name "$run")/torture.tsv"); done
awk -F'\t' '
	FNR == 1 { run = FILENAME; sub(/\/torture.tsv$/, "", run); sub(/.*\/test-/, "", run); runs[++n] = run }
	{ if (!($1 in seen)) { seen[$1] = 1; tests[++m] = $1 } passed[$1, run] = $2 "/" $3 }
	END {
		printf "\n%-48s", "passed"
		for (i = 1; i <= n; i++) { r = runs[i]; sub(/-torture/, " ", r); printf " %11s", r }
		for (j = 1; j <= m; j++) {
			printf "\n%-48s", tests[j]
			for (i = 1; i <= n; i++) printf " %11s", passed[tests[j], runs[i]]
		}
		print "\n"
	}' "${tables[@]}" || status=1
exit $status
