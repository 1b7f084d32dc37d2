#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# install.sh: has DKMS build and install ksmbd.ko for each kernel that is installed and has it not. Never fails: a kernel for
# which that cannot be keeps its own ksmbd, and one line says why, here and in /var/lib/ksmbd-notify/RELEASE; what a build that
# failed has said is in RELEASE.log there.
set -uo pipefail
export LC_ALL=C # what tools say is looked at

version=@VERSION@
why=/var/lib/ksmbd-notify
away=/var/lib/dkms/ksmbd-notify/original_module
say() { echo "ksmbd-notify-dkms: $*"; }
# installed: the module is there, whole, and of this version.
installed() {
	local ko
	ko=$(find "/lib/modules/$release/updates" "/lib/modules/$release/extra" -name 'ksmbd.ko*' 2> /dev/null | head -1)
	[ -n "$ko" ] && [ "$(modinfo -F version "$ko" 2> /dev/null)" = $version ]
}
# give_back: the kernel has its own ksmbd again, which DKMS puts away before it copies ours, and not back when that fails.
give_back() {
	local origin own gone=
	while read -r origin; do
		own=$(cat "$origin")
		[ -e "$own" ] || ln "${origin%.origin}" "$own" 2> /dev/null || { cp -p "${origin%.origin}" "$own.new" && mv "$own.new" "$own"; } || rm -f "$own.new"
		[ -e "$own" ] && rm -f "$origin" "${origin%.origin}" && gone=yes
	done < <(find "$away/$release" -name '*.origin' 2> /dev/null)
	[ -z "$gone" ] || find "$away" -depth -type d -empty -delete
	depmod "$release" 2> /dev/null
}
# lacking REASON...: the kernel keeps its own ksmbd.
lacking() {
	say "kernel $release keeps its own ksmbd, which tells no changes: $*" | tee "$why/$release"
}

mkdir -p $why
rm -f $why/*
for modules in /lib/modules/*/; do
	release=$(basename "$modules")
	if installed; then continue; fi
	[ ! -d "$away/$release" ] || give_back # an installation was cut short
	[ -e "$modules/modules.dep" ] || [ -e "$modules/build" ] || continue
	if [[ ! $release =~ ^(@SERIES_REGEXP@)\. ]]; then
		lacking "its series is not supported, only @SERIES@"
		continue
	fi
	if [ ! -e "$modules/build/include/config/kernel.release" ]; then
		lacking "no headers: install linux-headers-$release"
		continue
	fi
	log=$(mktemp) || log=/dev/null
	[ -n "$(dkms status -m ksmbd-notify -v $version 2> /dev/null)" ] || dkms add -m ksmbd-notify -v $version > "$log" 2>&1
	dkms install --force -m ksmbd-notify -v $version -k "$release" >> "$log" 2>&1
	make=$(ls -t /var/lib/dkms/ksmbd-notify/$version/build/make.log /var/lib/dkms/ksmbd-notify/$version/"$release"/*/log/make.log 2> /dev/null | head -1)
	if installed; then
		said=$(sed -n "s/^ksmbd-notify: note: //p" "$make" 2> /dev/null | tail -1)
		say "kernel $release has ksmbd that notifies${said:+; $said}"
	else
		said=$(sed -n "s/^ksmbd-notify: kernel $release: //p" "$make" 2> /dev/null | tail -1)
		cp "$make" "$why/$release.log" 2> /dev/null # DKMS removes it too
		# What was half written must not stand before the kernel's own.
		dkms remove -m ksmbd-notify -v $version -k "$release" > /dev/null 2>&1
		rm -f "/lib/modules/$release"/updates/dkms/ksmbd.ko*
		give_back
		[ -n "$said" ] || ! { grep -qs 'No space left' "$make" "$log" || ! head -c 100000 /dev/zero > $why/.space; } 2> /dev/null || said="the disk is full"
		lacking "${said:-$(tail -1 "$log")}; then: /usr/src/ksmbd-notify-$version/install.sh"
	fi
	[ "$log" = /dev/null ] || rm -f "$log"
	rm -f $why/.space
done 2>&1
exit 0
