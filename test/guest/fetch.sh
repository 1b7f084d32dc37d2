#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# fetch.sh SERIES DIR: the newest cloud kernel of SERIES that the distribution has, its headers and source, and ksmbd-tools.
# They are unpacked and never installed: a kernel package would change the host, and ksmbd-tools conflicts with samba.
# A series that this machine's own package sources lack comes from the others of Debian, and with SUITE in the environment
# it comes from there in any case; see backports.sh.
#
# Leaves in DIR: release (the kernel's release), dl/ (the packages), img/ (kernel and modules), hdr/ (headers and kbuild),
# src/ (what ksmbd.ko is built from), tools/ (ksmbd-tools). KVER in the environment chooses another kernel release.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
series=$1
mkdir -p "$2"
dir=$(realpath "$2")
die() { echo "fetch: $*" >&2; exit 1; }
command -v apt-get >/dev/null || die "no apt-get here: the kernel's packages come from Debian"

newest() { apt-cache pkgnames "linux-headers-$series." | sed -n 's/^linux-headers-\(.*-cloud-amd64\)$/\1/p' | sort -V | tail -1; }

"$here/lists.sh" || [ -s "$dir/release" ] || exit 1
tools=ksmbd-tools
if [ -n "${SUITE:-}" ] || [ -z "$(newest)" ]; then
	case ${SUITE:-} in
	'') suites=(trixie trixie-security trixie-backports sid) ;;
	sid) suites=(trixie sid) ;;
	*) suites=("$SUITE" "$SUITE-security") ;;
	esac
	APT_CONFIG=$("$here/backports.sh" "$dir.apt" "${suites[@]}")
	export APT_CONFIG
	tools+=/${suites[0]} # sid's want libraries that this machine may not have
	"$here/lists.sh" || [ -s "$dir/release" ] || exit 1
fi
kver=${KVER:-$(newest)}
[ -n "$kver" ] || { [ -s "$dir/release" ] && exit 0; die "no linux-headers-$series.*-cloud-amd64 in this distribution or in Debian's others"; }
source() {
	rm -rf src
	dpkg-deb --fsys-tarfile dl/linux-source-*.deb | tar -x --wildcards './usr/src/linux-source-*.tar.xz'
	"$here/../../kernel/source.sh" usr/src/linux-source-*.tar.xz src scripts/{checkpatch.pl,spelling.txt,const_structs.checkpatch} > /dev/null
	rm -r usr
}
if [ "$(cat "$dir/release" 2>/dev/null)" = "$kver" ]; then
	[ -e "$dir/src/Makefile" ] || (cd "$dir" && source)
	exit 0
fi

base=${kver%-amd64}
base=${base%-cloud}
image=("linux-image-$kver")
# Newer series split the image, and linux-image- is a metapackage.
[ -z "$(apt-cache pkgnames "linux-binary-$kver")" ] || image=("linux-base-$kver" "linux-binary-$kver" "linux-modules-$kver")
download() { apt-get -o APT::Sandbox::User=root download -q "$@" | grep -E '^(Get:|E:)' || return 1; }
echo "fetch: kernel $kver, its headers and source, ksmbd-tools (about 200 MB)"
rm -rf "$dir"
mkdir -p "$dir/dl"
cd "$dir/dl"
all() {
	download "${image[@]}" "linux-headers-$kver" "linux-headers-$base-common" "linux-kbuild-$base" $tools &&
		download "linux-source-$series=$(dpkg-deb -f "linux-headers-${kver}"_*.deb Version)"
}
all || { "$here/lists.sh" now; all; } || die "the mirror does not have all of kernel $kver"

cd ..
echo "fetch: unpacking"
for p in "${image[@]}"; do dpkg-deb -x "dl/${p}"_*.deb img; done
if [ ! -e img/boot ]; then # all of it is in usr/lib/modules
	mkdir img/boot
	ln -s "../usr/lib/modules/$kver/vmlinuz" "img/boot/vmlinuz-$kver"
fi
[ -e img/lib ] || ln -s usr/lib img/lib
for d in dl/linux-headers-*.deb dl/linux-kbuild-*.deb; do dpkg-deb -x "$d" hdr; done
# The headers' Makefile names /usr/src; unpacked elsewhere they find each other as neighbours.
sed -i 's#/usr/src/#../#' "hdr/usr/src/linux-headers-$kver/Makefile"

# Programs of kbuild may want a newer libc than this machine has: these get the libc of their own release.
alien() { find hdr/usr/lib/linux-kbuild-* -type f -perm -100 -exec sh -c 'ldd "$1" 2>&1 | grep -q "GLIBC_.*not found"' sh {} \; -print; }
for p in $(alien); do
	[ -d libc ] || { (cd dl && download libc6) && dpkg-deb -x dl/libc6_*.deb libc; }
	mv "$p" "$p.elf"
	cat > "$p" <<-END
		#!/bin/sh
		lib="\${0%/*}/$(realpath --relative-to="$(dirname "$p")" libc/usr/lib/x86_64-linux-gnu)"
		exec "\$lib/ld-linux-x86-64.so.2" --library-path "\$lib" "\$0.elf" "\$@"
	END
	chmod +x "$p"
done
dpkg-deb -x dl/ksmbd-tools_*.deb tools
source
echo "$kver" > release
