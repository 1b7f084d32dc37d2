#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# run.sh BUILD NAME SECONDS [FILE...] -- COMMAND...
# Boots the guest, runs COMMAND there with every FILE in /rig, prints its output as it comes, and leaves in
# BUILD/guest/out/NAME: test.log, console.log, dmesg.txt and what the command wrote to /out.
# Fails when the command does, and also when the guest does not report in SECONDS or its kernel complains.
# The guest is QEMU without KVM, with CPUS processors (2) and, in its root, the cpio archive OVERLAY too. With DEBUG=DIR its
# kernel is DIR/bzImage, see debug.sh. With DISK=DIR it is the system on DIR/root.img instead, booted by DIR's vmlinuz and
# initrd.img of DIR's release, where a service runs test/guest/job, see test/install/root.sh. With ICOUNT, as qemu's -icount
# has it, its clock counts what its processors execute, in turns: what it measures is the same on a busy machine.
set -euo pipefail

build=$(realpath "$1")
debug=${DEBUG:+$(realpath "$DEBUG")}
name=$2
limit=$3
shift 3
out=$build/guest/out/$name
mkdir -p "$build/guest"
tmp=$(mktemp -d "$build/guest/run.XXXXXX")
pid=
cleanup() {
	[ -z "$pid" ] || kill "$pid" 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
die() { echo "guest: $name: $*" >&2; exit 1; }

mkdir -p "$tmp/over/rig"
chmod 755 "$tmp/over" "$tmp/over/rig" # this becomes the guest's root too
while [ "$1" != -- ]; do
	cp "$1" "$tmp/over/rig/"
	shift
done
shift
printf '%q ' exec "$@" > "$tmp/over/rig/job"
args=(loglevel=5 panic=-1 oops=panic softlockup_panic=1 log_buf_len=4M "rig.timeout=$((limit - 30))")

start_qemu() {
	local system thread=multi memory=2048 append="console=ttyS0 mitigations=off ${args[*]}"
	if [ -n "${DISK:-}" ]; then
		tar cf "$tmp/rig.tar" -C "$tmp/over/rig" .
		system=(-kernel "$DISK/vmlinuz" -initrd "$DISK/initrd.img" -append "root=/dev/vda rw $append"
			-drive "if=virtio,format=raw,snapshot=on,file=$DISK/root.img" -drive "if=virtio,format=raw,readonly=on,file=$tmp/rig.tar")
	else
		{ cat "$build/guest/root.cpio" ${OVERLAY:+"$OVERLAY"} && (cd "$tmp/over" && find . | cpio --quiet -o -R 0:0 -H newc); } > "$tmp/initrd"
		system=("$build"/linux/img/boot/vmlinuz-*)
		[ -z "$debug" ] || { system=("$debug/bzImage"); memory=4096; }
		system=(-kernel "${system[@]}" -initrd "$tmp/initrd" -append "rdinit=/init $append")
	fi
	# On two emulated processors that run at once, 7.3 sometimes panics or hangs before its init.
	case $(cat "${DISK:-$build/linux}/release") in 7.*) thread=single ;; esac
	# Where instructions are counted, cmpxchg16b at times leaves flags that are none, and the kernel dies where it uses that: it has
	# to do without.
	local clock=() cpu=max
	[ -z "${ICOUNT:-}" ] || { clock=(-icount "$ICOUNT"); thread=single; cpu=max,-cx16; }
	timeout -k 5 "$limit" qemu-system-x86_64 "${clock[@]}" -accel tcg,thread=$thread -cpu "$cpu" -M q35 -smp "${CPUS:-2}" -m $memory \
		-nodefaults -display none -no-reboot -serial "file:$out/console.log" \
		-device virtio-serial-pci \
		-chardev "file,id=log,path=$out/test.log" -device virtserialport,chardev=log,name=log \
		-chardev "file,id=res,path=$out/results.tar" -device virtserialport,chardev=res,name=results \
		"${system[@]}" < /dev/null > "$out/qemu.log" 2>&1 &
	pid=$!
}

# boot: one attempt; shows the command's output while it runs.
boot() {
	rm -rf "$out"
	mkdir -p "$out"
	touch "$out/test.log"
	start_qemu
	tail -q -n +1 -F -s 0.2 --pid="$pid" "$out/test.log" 2>/dev/null
	status=0
	wait "$pid" || status=$?
	pid=
	[ ! -s "$out/results.tar" ] || tar xf "$out/results.tar" -C "$out" --warning=no-timestamp || true
	rm -f "$out/results.tar"
}

start=$(date +%s)
echo "guest: $name: booting"
boot
if ! grep -qs 'INIT: userspace' "$out/console.log" "$out/dmesg.txt"; then
	echo "guest: $name: died before its init spoke; booting it once more"
	boot
fi

complaints='WARNING:|BUG:|Oops|KASAN|UBSAN|ODEBUG|INFO: task|INFO: rcu|unreferenced object|refcount_t|general protection|list_(add|del) corruption'
complaints+='|possible (circular|recursive) locking|inconsistent lock state|suspicious RCU|sleeping function called|Kernel panic|Call Trace'
if grep -hsE -B2 -A30 "$complaints" "$out/dmesg.txt" > "$out/complaints" || grep -hsE -B2 -A30 "$complaints" "$out/console.log" > "$out/complaints"; then
	head -60 "$out/complaints"
	die "the kernel complained, see $out/complaints"
fi
if [ ! -s "$out/status" ]; then
	tail -20 "$out/console.log" "$out"/qemu.log 2>/dev/null || true
	[ "$status" = 124 ] && die "did not report in $limit s"
	die "never reported (emulator's status $status)"
fi
job=$(cat "$out/status")
case $job in
0) ;;
137 | 143) die "the command did not end in $((limit - 30)) s; see $out" ;;
*) die "failed, status $job; see $out" ;;
esac
[ "$status" = 0 ] || die "the emulator failed, status $status; see $out"
echo "guest: $name: done in $(($(date +%s) - start)) s"
