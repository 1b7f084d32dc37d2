#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# fetch.sh DIR: SMB clients that others wrote, for the guest: impacket and node-smb2, with the Python and the Node.js of
# Debian 13. Packages are unpacked and never installed. Made once, and again when this script changes.
#
# Leaves DIR/clients.cpio: a root in /opt/clients, to be entered by chroot.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
dir=$(realpath "$1")
root=$dir/root/opt/clients
die() { echo "clients: $*" >&2; exit 1; }
command -v npm > /dev/null || "$here/../guest/packages.sh" npm

want=$(sha256sum < "$0")
[ "$(cat "$dir/done" 2>/dev/null)" != "$want" ] || exit 0
rm -rf "$dir/done" "$dir/root"
mkdir -p "$dir/root/opt"

echo "clients: impacket and node-smb2 with what they need (about 60 MB)"
APT_CONFIG=$("$here/../guest/backports.sh" "$dir/apt" trixie)
sources=$(cat "$dir/apt/sources.list")
[ -n "$APT_CONFIG" ] && [ -n "$sources" ] || die "apt knows no Debian mirror here"
mmdebstrap --mode=root --variant=extract --include=python3-impacket,nodejs,busybox-static \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/*' --dpkgopt='path-include=/usr/share/nodejs/*' --dpkgopt='path-include=/usr/share/python3/*' \
	trixie "$root" - <<< "$sources" > "$dir/log" 2>&1 || { tail -20 "$dir/log"; die "not to be had, see $dir/log"; }
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$root/opt" node-smb2@1.3.5 ||
	die "npm does not give node-smb2"
for d in bin lib lib64; do [ -e "$root/$d" ] || ln -s "usr/$d" "$root/$d"; done # which nothing has set up
mkdir -p "$root"/{proc,dev,tmp}
(cd "$dir/root" && find . | cpio --quiet -o -R 0:0 -H newc) > "$dir/clients.cpio.new"
rm -rf "$dir/apt" "$dir/root"
mv "$dir/clients.cpio.new" "$dir/clients.cpio"
echo "$want" > "$dir/done"
