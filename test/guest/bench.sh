#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# bench.sh BUILD FORM: measures ours beside Debian's smbd in a guest, all or the parts that PARTS matches, see
# test/e2e/benchsmb_test.go. FORM is full or short.
# Time is counted in instructions, with CLOCK=host as it passes outside of the guest, which wants a machine that is quiet.
# Leaves BUILD/bench-smb.{md,json,tsv} and, if there is gnuplot, plots of the ratios, BUILD/bench-smb.{svg,png}.
set -euo pipefail

build=$1
form=$2
here=$(dirname "$(realpath "$0")")
kver=$(cat "$build/linux/release")
case $form in
short) rounds=3 limit=600 ;;
full) rounds=4 limit=1800 ;;
*) echo "bench: SMB=$form: only full and short are known" >&2; exit 1 ;;
esac
case ${CLOCK:-instructions} in
instructions) export ICOUNT=shift=2,sleep=off ;;
host) ;;
*) echo "bench: CLOCK=$CLOCK: only instructions and host are known" >&2; exit 1 ;;
esac
# Ours being behind is a result too, and a failure.
status=0
OVERLAY=$build/samba-4.17/smbd.cpio "$here/run.sh" "$build" bench-smb "$limit" "$build/guest/e2e.test" "$build/module/$kver/ksmbd.ko" \
	"$build/ksmbd-notifyd" -- /rig/e2e.test -bench-smb "$form" -bench-rounds "$rounds" -bench-parts "${PARTS:-}" -bench-clock "${ICOUNT:+, where an instruction takes 4 ns}" -quiet || status=$?
[ -s "$build/guest/out/bench-smb/bench-smb.tsv" ] || exit "$status"
cp "$build"/guest/out/bench-smb/bench-smb.* "$build/"
command -v gnuplot > /dev/null || exit "$status"
for kind in svg png; do
	case $kind in
	svg) terminal='svg size 900,640' ;;
	png) terminal='pngcairo size 900,640' ;;
	esac
	gnuplot <<-END
		set terminal $terminal
		set output "$build/bench-smb.$kind"
		set title "ours / smbd: left of 1 is less"
		set datafile separator "\t"
		set logscale x
		set xrange [0.01:10]
		set yrange [:] reverse
		set grid x
		set arrow from 1, graph 0 to 1, graph 1 nohead lw 2
		unset key
		plot "$build/bench-smb.tsv" using 2:0:3:4:ytic(1) with xerrorbars pt 7 lw 2
	END
done
exit "$status"
