#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# fetch.sh DIR: SMB clients that others wrote, for the guest: impacket and node-smb2, with the Python and the Node.js of
# Debian 13, and a Kerberos for those that log in so: its KDC, and ksmbd.mountd with what kerberos.c says. Packages are
# unpacked and never installed. Made once, and again when this script or kerberos.c changes.
#
# Leaves DIR/clients.cpio: a root in /opt/clients, to be entered by chroot.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
dir=$(realpath "$1")
root=$dir/root/opt/clients
die() { echo "clients: $*" >&2; exit 1; }
command -v npm > /dev/null || "$here/../guest/packages.sh" npm

want=$(cat "$0" "$here/kerberos.c" | sha256sum)
[ "$(cat "$dir/done" 2>/dev/null)" != "$want" ] || exit 0
rm -rf "$dir/done" "$dir/root"
mkdir -p "$dir/root/opt"

echo "clients: impacket, node-smb2 and Kerberos with what they need (about 70 MB)"
APT_CONFIG=$("$here/../guest/backports.sh" "$dir/apt" trixie)
sources=$(cat "$dir/apt/sources.list")
[ -n "$APT_CONFIG" ] && [ -n "$sources" ] || die "apt knows no Debian mirror here"
mmdebstrap --mode=root --variant=extract --include=python3-impacket,nodejs,busybox-static,krb5-kdc,krb5-admin-server,libkrb5-dev,ksmbd-tools \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/*' --dpkgopt='path-include=/usr/share/nodejs/*' --dpkgopt='path-include=/usr/share/python3/*' \
	trixie "$root" - <<< "$sources" > "$dir/log" 2>&1 || { tail -20 "$dir/log"; die "not to be had, see $dir/log"; }
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$root/opt" node-smb2@1.3.5 ||
	die "npm does not give node-smb2"
for d in bin lib lib64; do [ -e "$root/$d" ] || ln -s "usr/$d" "$root/$d"; done # which nothing has set up
lib=usr/lib/$(uname -m)-linux-gnu
gcc -O2 -Wall -Werror -shared -fPIC -idirafter "$root/usr/include" -o "$root/$lib/kerberos.so" "$here/kerberos.c" -L"$root/$lib" -lgssapi_krb5
rm -r "$root/usr/include" "$root"/"$lib"/*.a
mkdir -p "$root"/{proc,dev,sys,run,tmp,etc/ksmbd,var/tmp,var/lib/krb5kdc}
(cd "$dir/root" && find . | cpio --quiet -o -R 0:0 -H newc) > "$dir/clients.cpio.new"
rm -rf "$dir/apt" "$dir/root"
mv "$dir/clients.cpio.new" "$dir/clients.cpio"
echo "$want" > "$dir/done"
