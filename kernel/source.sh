#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# source.sh DIR [PATTERN...] < linux-source-*.tar.xz: what ksmbd.ko is built from, in DIR, and files that match PATTERNs.
set -euo pipefail

tar -xJ -C "$1" --strip-components=1 --wildcards '*/fs/smb/server' '*/fs/smb/common' '*/fs/nls/nls_ucs2_*.h' \
	'*/scripts/asn1_compiler.c' '*/include/linux/asn1*.h' "${@:2}"
