#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# cover.sh OUT DATA...: which lines of the daemon no test has run, of the coverage data of go test and of a daemon in the
# guest, see GOCOVERDIR. Leaves OUT/all.txt, a profile, OUT/lines.txt, the lines, and prints how much of each package was run.
set -euo pipefail

out=$1
shift
dirs=$(IFS=,; echo "$*")
go tool covdata textfmt -i="$dirs" -o "$out/all.txt"
# module/dir/file.go:line.column,line.column statements count; a block may be there once for each program.
awk '
	NR == 1 { next }
	{ statements[$1] = $2; if ($3 > 0) ran[$1] = 1 }
	END {
		for (block in statements) {
			split(block, part, ":")
			file = part[1]
			sub(/^[^\/]*\//, "", file)
			package = file
			sub(/\/[^\/]*$/, "", package)
			all[package] += statements[block]
			if (block in ran) {
				run[package] += statements[block]
				continue
			}
			split(part[2], range, /[.,]/)
			print file ":" range[1] "-" range[3] > lines
		}
		for (package in all)
			printf "%-28s %5.1f %% of %d statements\n", package, 100 * run[package] / all[package], all[package]
	}' lines="$out/lines.new" "$out/all.txt" | sort
sort -t: -k1,1 -k2,2n "$out/lines.new" > "$out/lines.txt"
rm "$out/lines.new"
echo "cover: the lines that no test runs are in $out/lines.txt, $(wc -l < "$out/lines.txt") blocks"
