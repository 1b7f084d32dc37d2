#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# test.sh BUILD: the guest tests. The regression suites run with the stock module first; its verdicts are kept until
# the kernel or the test suite changes. From the environment: RUN, FS, TRIES, as the Makefile has them, and UML for run.sh.
set -euo pipefail

build=$1
run=$(dirname "$0")/run.sh
e2e=$build/guest/e2e.test
kver=$(cat "$build/linux/release")
stock=$build/guest/stock-$kver-$(dpkg-query -W -f '${Version}' samba-testsuite | tr ':/' '__').tsv
name=test-$FS
ours=$build/module/$kver/ksmbd.ko
skip='^$'
if [ -n "${UML:-}" ]; then
	name=debug-$FS
	ours=$UML/ksmbd.ko
	# KASAN in user-mode Linux does not forget where a module was, and complains of the next one there. The regression
	# suites meet a bug of the stock module: it pads a READ at the end of a compound beyond its buffer.
	skip='TestModuleReload|TestRegression'
fi

if [ ! -s "$stock" ]; then
	echo "test: what the stock module passes"
	UML='' "$run" "$build" stock 420 "$e2e" -- /rig/e2e.test -module stock -daemon= -record /out/stock.tsv
	cp "$build/guest/out/stock/stock.tsv" "$stock"
fi
cp "$stock" "$build/guest/stock.tsv"

echo "test: our module, share on $FS, smbtorture $TRIES times"
"$run" "$build" "$name" 1200 "$e2e" "$ours" "$build/ksmbd-notifyd" "$build/guest/stock.tsv" -- \
	/rig/e2e.test -test.v -test.timeout 1100s -test.run "$RUN" -test.skip "$skip" -fs "$FS" -tries "$TRIES" -baseline /rig/stock.tsv
