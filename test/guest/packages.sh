#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# packages.sh PACKAGE...: installs those of the host packages that are missing.
set -euo pipefail

missing=()
for p in "$@"; do
	case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null || true) in
	"install ok installed") ;;
	*) missing+=("$p") ;;
	esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

die() { echo "packages: $*" >&2; exit 1; }
command -v apt-get >/dev/null || die "no apt-get here; install by other means: ${missing[*]}"
[ "$(id -u)" = 0 ] || die "not root; run: apt-get install --no-install-recommends ${missing[*]}"

"$(dirname "$0")/lists.sh"
echo "packages: installing ${missing[*]}"
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "${missing[@]}" |
	grep -E '^(Get:|Fetched|Setting up|E:)' || true
for p in "${missing[@]}"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || die "could not install $p"
done
