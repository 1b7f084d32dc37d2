#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# lists.sh [now]: apt's package lists, fetched when absent, older than a day, or asked for now.
# Old lists name packages that a mirror no longer has.
set -euo pipefail

eval "$(apt-config shell lists Dir::State::Lists/d)" # APT_CONFIG may name other ones than this machine's
if [ "${1:-}" != now ] && [ -n "$(find "$lists" -maxdepth 1 -name '*Packages*' -mtime -1 2>/dev/null | head -1)" ]; then
	exit 0
fi
if [ ! -w "$lists" ]; then
	# Old lists may do; without any, nothing can be found.
	[ -n "$(find "$lists" -maxdepth 1 -name '*Packages*' | head -1)" ] && exit 0
	echo "lists: no package lists and not root; run: apt-get update" >&2
	exit 1
fi
echo "lists: apt-get update"
apt-get update -q | grep -E '^(Fetched|E:)' || true
