#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# backports.sh DIR SUITE...: apt's configuration for suites of Debian's, trixie-security and the like among them, for use as
# APT_CONFIG; prints its name. All of it lives in DIR, this machine's own apt is only asked for its Debian mirrors.
set -euo pipefail

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
die() { echo "backports: $*" >&2; exit 1; }

mirror() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" | sort -u | head -1; }
debian=$(mirror Debian)
[ -n "$debian" ] || die "apt knows no Debian mirror here"
security=$(mirror Debian-Security)
[ -s $keyring ] || die "no $keyring: install debian-archive-keyring"
mkdir -p "$1"/{lists,cache}
dir=$(realpath "$1")
for suite in "${@:2}"; do
	case $suite in
	*-security) echo "deb [signed-by=$keyring] ${security:-$debian-security} $suite main" ;;
	*) echo "deb [signed-by=$keyring] $debian $suite main" ;;
	esac
done > "$dir/sources.list"
cat > "$dir/apt.conf" <<END
Dir::State::Lists "$dir/lists";
Dir::Cache "$dir/cache";
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "-";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
END
echo "$dir/apt.conf"
