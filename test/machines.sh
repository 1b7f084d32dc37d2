#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# machines.sh BUILD: the daemon and all tests compile for 32-bit and big-endian machines, and unit tests pass on them, by
# qemu-user. That knows neither fanotify nor generic netlink, and no program of its machine can start another: tests that take
# the kernel's, or a process, are not among these.
set -euo pipefail

out=$1/machines
mkdir -p "$out"
export CGO_ENABLED=0
# Package, and its tests that are the same on every kernel.
tests=(
	'genl .'
	'ipc ^Test([^RP]|Re[^a]|P[^r])'
	'fanotify ^Test(Decode|EventString)|^Fuzz'
	'test/smb2 .'
	'cmd/ksmbd-notifyd ^Test(Completion|Help|Log|Misuse|ReadShares|Record|Series|StatusForPeople)'
)

for arch in 386 arm64 mipsle; do
	echo "machines: $arch: go vet"
	GOARCH=$arch go vet ./...
done
for machine in arm mips s390x; do
	echo "machines: $machine: go vet and tests"
	GOARCH=$machine go vet ./...
	log=$out/$machine.log
	: > "$log"
	for line in "${tests[@]}"; do
		package=${line% *}
		binary=$PWD/$out/$machine-${package##*/}.test
		GOARCH=$machine go test -c -o "$binary" "./$package"
		(cd "$package" && timeout 120 "qemu-$machine-static" "$binary" -test.v -test.timeout 110s -test.run "${line##* }") >> "$log" 2>&1 ||
			{ tail -60 "$log"; echo "machines: $machine: $package FAILED, see $log" >&2; exit 1; }
	done
	echo "machines: $machine: $(grep -cE '^--- PASS' "$log") tests passed"
done
