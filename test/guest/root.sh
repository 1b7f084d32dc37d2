#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# root.sh LINUX ROOT: the guest's root: busybox, samba's test clients, ksmbd-tools, file system tools, kernel modules.
# Of each program only the binary and the libraries that ldd names are taken, from this machine.
set -euo pipefail

linux=$(realpath "$1")
root=$2
here=$(dirname "$(realpath "$0")")
kver=$(cat "$linux/release")
echo "root: staging the guest's root"
rm -rf "$root"
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/libexec,etc/ksmbd,etc/samba,proc,sys,dev,tmp,run,mnt,root,srv,out,rig,host,var/lib/samba,var/cache}
chmod 755 "$root" # else ksmbd denies every tree connect
chmod 1777 "$root/tmp"
ln -s ../run/lock "$root/var/lock"
ln -s ../run "$root/var/run"

cp /bin/busybox "$root/bin/busybox"
for a in $(/bin/busybox --list); do
	[ "$a" = busybox ] || ln -s /bin/busybox "$root/bin/$a"
done
ln -s /bin/busybox "$root/sbin/modprobe" # the kernel calls it by this path, for crypto above all

# put FILE AT: FILE with the libraries it wants.
put() {
	rm -f "$root$2"
	mkdir -p "$root$(dirname "$2")"
	cp -L --preserve=mode "$1" "$root$2"
	{ ldd "$1" 2>/dev/null || true; } | grep -o '/[^ :)]*' | while read -r lib; do
		[ -e "$root$lib" ] && continue
		mkdir -p "$root$(dirname "$lib")"
		cp -L --preserve=mode "$lib" "$root$lib"
	done || true
}
for p in smbtorture smbclient mount.cifs mke2fs mkfs.xfs mkfs.btrfs mkfs.vfat setfattr getfattr bash nice setpriv stdbuf; do
	put "$(command -v $p || command -v /usr/sbin/$p || command -v /sbin/$p)" /usr/bin/$p
done
put /usr/libexec/coreutils/libstdbuf.so /usr/libexec/coreutils/libstdbuf.so # stdbuf preloads it
# ksmbd-tools is one program under many names.
put "$linux/tools/usr/libexec/ksmbd.tools" /usr/libexec/ksmbd.tools
for p in mountd adduser addshare control; do ln -s ../libexec/ksmbd.tools "$root/usr/sbin/ksmbd.$p"; done

# Modules are unpacked here: xz under emulation is slow. modules.dep names what each of them wants.
modules=$root/lib/modules/$kver
mkdir -p "$modules"
cp "$linux"/img/lib/modules/"$kver"/modules.{builtin,builtin.modinfo,order} "$modules/"
for sub in fs/smb fs/nfs fs/nfs_common fs/nfsd fs/lockd net/sunrpc fs/nls fs/netfs fs/fscache fs/xfs fs/btrfs fs/overlayfs fs/fat fs/quota lib crypto arch/x86/crypto net/dns_resolver net/psample drivers/block/loop; do
	from=$linux/img/lib/modules/$kver/kernel/$sub
	[ -e "$from" ] || [ -e "$from.ko.xz" ] || continue
	find "$from"* -name '*.ko.xz' | while read -r f; do
		to=$modules/${f#"$linux/img/lib/modules/$kver/"}
		mkdir -p "$(dirname "$to")"
		xz -dc "$f" > "${to%.xz}"
	done
done
/sbin/depmod -b "$root" "$kver"

cat > "$root/etc/passwd" <<-END
	root:x:0:0:root:/root:/bin/sh
	nobody:x:65534:65534:nobody:/:/bin/false
	user:x:1000:1000::/:/bin/sh
	user2:x:1001:1001::/:/bin/sh
END
printf 'root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nuser2:x:1001:\n' > "$root/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files\n' > "$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost guest\n' > "$root/etc/hosts"
printf '[global]\n\tworkgroup = WORKGROUP\n\tdos charset = ASCII\n' > "$root/etc/samba/smb.conf"
install -m755 "$here/init" "$here/job" "$root/"
