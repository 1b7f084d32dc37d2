#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# torture.sh BUILD FS:SAMBA:TRIES:SLOW...: smbtorture's notify tests in a guest for each file system and Samba (empty: this
# machine's), each test TRIES times and those that take minutes SLOW times. JOBS guests at a time (as many as there are
# processors), and a table in the end. Fails when one of them does.
set -euo pipefail

build=$1
shift
here=$(dirname "$(realpath "$0")")
name() { IFS=: read -r FS SAMBA TRIES SLOW <<< "$1" && echo "test-$FS-torture$SAMBA"; }
one() {
	local name log
	name=$(name "$1")
	log=$build/guest/$name.log
	IFS=: read -r FS SAMBA TRIES SLOW <<< "$1"
	export FS SAMBA TRIES SLOW
	echo "torture: $name: $TRIES times, slow ones $SLOW times"
	RUN=TestTorture "$here/test.sh" "$build" > "$log" 2>&1 && return
	grep -aE '^ *(--- FAIL|torture_test)|^guest:' "$log" | grep -v ': PASS ' | sed "s/^/$name: /"
	return 1
}
export -f one name
export build here

status=0
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc)}" -I{} bash -euo pipefail -c 'one {}' || status=1

# Of each test how often it passed of how many times, or that it failed as expected.
tables=()
for run in "$@"; do tables+=("$build/guest/out/$(name "$run")/torture.tsv"); done
awk -F'\t' '
	FNR == 1 { run = FILENAME; sub(/\/torture.tsv$/, "", run); sub(/.*\/test-/, "", run); sub(/-torture/, " ", run); runs[++n] = run }
	{ if (!($1 in seen)) { seen[$1] = 1; tests[++m] = $1 } passed[$1, run] = $2 }
	END {
		printf "\n%-48s", "passed"
		for (i = 1; i <= n; i++) printf " %11s", runs[i]
		for (j = 1; j <= m; j++) {
			printf "\n%-48s", tests[j]
			for (i = 1; i <= n; i++) printf " %11s", passed[tests[j], runs[i]]
		}
		print "\n"
	}' "${tables[@]}" || status=1
exit $status
