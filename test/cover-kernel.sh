#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# cover-kernel.sh OBJECTS DATA OUT: which lines of kernel/notify*.c no test has run, of the DATA (*.gcda) that a guest left
# whose kernel was built with OBJECTS (*.gcno), see debug.sh. Leaves OUT/lines.txt, the lines, OUT/*.gcov, each file with
# how often each line was run, and prints how much of each file was run.
set -euo pipefail

objects=$(realpath "$1")
data=$(realpath "$2")
rm -rf "$3"
mkdir -p "$3"
cd "$3"
cp "$objects"/notify*.gcno "$data"/notify*.gcda .
for f in *.gcda; do
	gcov -r -s "$(realpath "$objects/../../..")" "$f" > "${f%.gcda}.txt" 2>&1
done
# count:line:source, where ##### is a line that was not run, and - one that makes no code.
awk -F: '
	$2 + 0 == 0 || FILENAME !~ /^notify.*\.c\.gcov$/ { next }
	$1 ~ /-/ { next }
	{ all[FILENAME]++ }
	$1 !~ /[#=]/ { run[FILENAME]++; next }
	{ sub(/ */, "", $2); file = FILENAME; sub(/\.gcov$/, "", file); text = $0; sub(/^[^:]*:[^:]*:/, "", text); print file ":" $2 ":" text > "lines.txt" }
	END {
		for (f in all) {
			file = f
			sub(/\.gcov$/, "", file)
			printf "%-20s %5.1f %% of %d lines\n", file, 100 * run[f] / all[f], all[f]
			n += all[f]
			m += run[f]
		}
		printf "%-20s %5.1f %% of %d lines\n", "kernel/notify*.c", 100 * m / n, n
	}' notify*.gcov | sort
echo "cover: the lines that no test runs are in $3/lines.txt"
