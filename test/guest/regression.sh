#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# regression.sh BUILD PATTERN: every smbtorture test whose name matches and that passes with the stock module passes with
# ours. What the stock module passes is found out first and kept until the kernel, the test suite or the pattern changes.
# LEASES=yes gives clients leases and durable handles, SAMBA=4.25 takes the tests of that Samba.
set -euo pipefail

build=$1
pattern=$2
run=$(dirname "$0")/run.sh
kver=$(cat "$build/linux/release")
stock=$build/guest/stock-$(sha256sum <<< "$kver ${SAMBA:-$(dpkg-query -W -f '${Version}' samba-testsuite)} ${LEASES:-} $pattern" | cut -c 1-16).tsv
e2e=$build/guest/e2e.test
how=()
[ "${LEASES:-}" != yes ] || how+=(-leases)
[ -z "${SAMBA:-}" ] || how+=(-smbtorture "smbtorture-$SAMBA")
[ -z "${SAMBA:-}" ] || export OVERLAY=$build/samba-$SAMBA/smbtorture.cpio

if [ ! -s "$stock" ]; then
	echo "regression: what the stock module passes of $pattern"
	"$run" "$build" stock 1800 "$e2e" -- /rig/e2e.test -module stock -daemon= "${how[@]}" -record /out/stock.tsv -regression "$pattern"
	cp "$build/guest/out/stock/stock.tsv" "$stock"
fi
cp "$stock" "$build/guest/stock.tsv"
echo "regression: $(wc -l < "$stock") tests that pass with the stock module, with ours"
"$run" "$build" test-regression 1800 "$e2e" "$build/module/$kver/ksmbd.ko" "$build/ksmbd-notifyd" "$build/guest/stock.tsv" -- \
	/rig/e2e.test "${how[@]}" -test.v -test.timeout 1700s -test.run TestRegression -baseline /rig/stock.tsv
