#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# cover-kernel.sh OBJECTS DATA OUT: which lines of kernel/notify*.c no test has run, of the DATA (*.gcda) that a guest left
# whose kernel was built with OBJECTS (*.gcno), see debug.sh. Leaves OUT/lines.txt, the lines, OUT/*.gcov, each file with
# how often each line was run, and prints how much of each file was run.
set -euo pipefail

objects=$(realpath "$1")
source=${objects%/fs/smb/server}
data=$(realpath "$2")
rm -rf "$3"
mkdir -p "$3"
cd "$3"
cp "$objects"/notify*.gcno "$data"/notify*.gcda .
ln -s "$source"/{arch,fs,include} . # gcov looks for the sources from where it is
gcov -- *.gcda > gcov.log 2>&1
rm arch fs include
# count:line:source, where ##### is a line that was not run, and - one that makes no code.
awk -F: '
	$2 + 0 == 0 { next }
	$1 ~ /-/ { next }
	{ all[FILENAME]++ }
	$1 !~ /[#=]/ { run[FILENAME]++; next }
	{
		line = $0
		sub(/^[^:]*: */, "", line)
		print substr(FILENAME, 1, length(FILENAME) - length(".gcov")) ":" line > "lines.txt"
	}
	END {
		for (f in all) {
			printf "%-20s %5.1f %% of %d lines\n", substr(f, 1, length(f) - length(".gcov")), 100 * run[f] / all[f], all[f]
			n += all[f]
			m += run[f]
		}
		printf "%-20s %5.1f %% of %d lines\n", "kernel/notify*.c", 100 * m / n, n
	}' notify*.c.gcov | sort
echo "cover: the lines that no test runs are in $3/lines.txt"
