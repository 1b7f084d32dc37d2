#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# bench.sh LOG: the engine's benchmarks, each six times, and how they compare within this run. As root.
set -euo pipefail
cd "$(dirname "$0")"

log=$1
benchstat() { go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da "$@" 2>&1 | grep -vE '^(goos|goarch|pkg|cpu):|^$'; }
mkdir -p "$(dirname "$log")"
echo "bench: about eight minutes, on $(nproc) processors"
go test -run '^$' -bench '^Benchmark(Tree|Directories|Writer|Latency|Drain)$' -count 6 -timeout 30m . | tee "$log"
go test -run '^$' -bench Growth -benchtime 200x -timeout 30m . | tee -a "$log"
echo "bench: a watch tree of 100,000 directories"
benchstat -filter .name:Tree -col /by "$log"
echo "bench: reading and telling, against reading and decoding alone"
benchstat -filter '.name:Drain /as:(bare OR single OR tree)' -col /as "$log"
echo "bench: what a watch tree costs those who change its filesystem"
benchstat -filter .name:Writer -col /watch "$log"
echo "bench: 10,000 directories, each by itself; from a change to its record"
benchstat -filter '.name:(Directories OR Latency)' "$log"
echo "bench: one operation, with 1,000, 10,000 and 100,000 directories, watch trees, or watches of one directory (as the limit of open files has it)"
for what in directories trees one; do benchstat -filter .name:Growth -col "/$what" -row /op "$log" | grep -v '^ *$'; done
