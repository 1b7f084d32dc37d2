#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# test.sh BUILD: the guest tests, but for TestRegression, TestTorture only if RUN names it, and TestIndependentClients with
# CLIENTS, the cpio archive that has these. From the environment: RUN, FS, TRIES, SLOW, SAMBA, REQUESTS, as the Makefile has
# them, and UML for run.sh.
set -euo pipefail

build=$1
run=$(dirname "$0")/run.sh
kver=$(cat "$build/linux/release")
name=test-$FS
ours=$build/module/$kver/ksmbd.ko
skip=TestRegression
also=()
case ${CLIENTS:-} in
'') skip+='|TestIndependentClients' ;;
*)
	export OVERLAY=$CLIENTS
	also=("$(dirname "$0")"/../clients/watch.*)
	;;
esac
if [ -n "${UML:-}" ]; then
	name=debug-$FS
	ours=$UML/ksmbd.ko
	# KASAN in user-mode Linux does not forget where a module was, and complains of the next one there. For basedir see below.
	skip+='|TestModuleReload|TestDurable|TestTorture/notify.basedir'
fi
[ -z "$SAMBA" ] || export OVERLAY=$build/samba-$SAMBA/smbtorture.cpio

# guest NAME SECONDS RUN SKIP: boots our module and runs the tests that RUN names but not SKIP.
guest() {
	echo "test: our module, share on $FS"
	"$run" "$build" "$1" "$2" "$build/guest/e2e.test" "$ours" "$build/ksmbd-notifyd" "${also[@]}" -- \
		/rig/e2e.test -test.v -test.timeout "$(($2 - 100))s" -test.run "$3" -test.skip "$4" -fs "$FS" \
		-requests "${REQUESTS:-10000}" -tries "$TRIES" -slow "$SLOW" -smbtorture "smbtorture${SAMBA:+-$SAMBA}"
}

if [ -n "${UML:-}" ]; then
	guest "$name" 1200 "$RUN" "$skip"
	exit
fi
# smbtorture's basedir changes a file over a second connection before it is told that its request pends. A server need
# not have it watched by then, and on two emulated processors ours has not in 1 of 100 tries. On one the daemon comes
# first, by its priority.
case $RUN in
*Torture*) CPUS=1 guest "$name-torture$SAMBA" 1500 "$RUN" "$skip" ;;
*) guest "$name" 1200 "$RUN" "$skip|TestTorture" ;;
esac
