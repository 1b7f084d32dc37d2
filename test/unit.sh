#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# unit.sh LOG: formatting, vet, and every test that needs no guest, with the race detector; engine tests use this machine's
# own fanotify, as root. The verbose output goes to LOG; shown are packages and, of a failure, everything.
set -euo pipefail

log=$1
mkdir -p "$(dirname "$log")"
echo "unit: gofmt and go vet"
unformatted=$(gofmt -l cmd fanotify genl ipc packaging test)
[ -z "$unformatted" ] || { printf 'unit: not formatted:\n%s\n' "$unformatted" >&2; exit 1; }
go vet ./...
go vet -tags guest ./test/...
go vet -tags small ./cmd/...

echo "unit: go test -race"
go test -race -timeout 8m -v ./... > >(tee "$log" | grep --line-buffered -E '^(ok|FAIL|panic:|WARNING: DATA RACE)|^ *--- (FAIL|SKIP)') 2>&1 ||
	{ cat "$log"; exit 1; }
