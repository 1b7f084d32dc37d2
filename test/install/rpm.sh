#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# rpm.sh BUILD: installs the rpms of BUILD/package in an empty root, compares what is there with the debs' files, and
# erases them. Their scripts run, though systemctl, dkms and bash, which install.sh takes, only note how they are called.
set -euo pipefail

build=$(realpath "$1")
root=$(mktemp -d)
trap 'rm -rf "$root" "$root.deb"' EXIT
die() { echo "install: rpm: FAILED: $*" >&2; exit 1; }
rpm=(rpm --force-debian --root "$root" --nosignature)
packages=(ksmbd-notifyd ksmbd-notify-dkms)

mkdir -p "$root"/{bin,usr/bin,usr/lib/systemd,run/systemd/system,var/lib/dkms}
cp "$(command -v busybox)" "$root/bin/sh"
for tool in bin/bash usr/bin/{systemctl,dkms} usr/lib/systemd/systemd-sysctl; do
	printf '#!/bin/sh\necho "${0##*/} $*" >> /calls\n' > "$root/$tool"
	chmod 755 "$root/$tool"
done
# files ROOT: the files of packages there, but for what each format has for itself.
files() {
	(cd "$1" && find usr ! -type d ! -path 'usr/bin/*' ! -name systemd-sysctl ! -path '*/lintian/*' ! -path '*/zsh/*' \
		-printf '%M %p ' -exec sh -c 'md5sum < "$1"' sh {} \;) | sort
}
# called LINE...: these calls were made since the last time.
called() {
	local line
	for line in "$@"; do
		grep -qxF -- "$line" "$root/calls" || die "a script did not call: $line; but: $(cat "$root/calls")"
	done
	rm "$root/calls"
}

version=$(rpm -qp --nosignature --qf '%{VERSION}' "$build"/package/ksmbd-notifyd-[0-9]*.rpm 2>/dev/null)
"${rpm[@]}" -i --nodeps "$build"/package/*.rpm || die "installing"
called "systemctl preset ksmbd-notifyd.service" "systemctl daemon-reload" "systemd-sysctl 90-ksmbd-notifyd.conf" \
	"systemctl try-restart ksmbd-notifyd.service" "bash /usr/src/ksmbd-notify-$version/install.sh"
[ -f "$root/usr/share/zsh/site-functions/_ksmbd-notifyd" ] || die "zsh's completions are missing"
for deb in "$build"/package/*.deb; do
	dpkg-deb -x "$deb" "$root.deb"
done
diff <(files "$root.deb") <(files "$root") || die "the rpms' files (>) are not the debs'"
"${rpm[@]}" -V --nodeps "${packages[@]}" || die "what is installed is not what the rpms say"

mkdir -p "$root/var/lib/ksmbd-notify" && touch "$root/var/lib/ksmbd-notify/6.12.1" # as install.sh does
"${rpm[@]}" -e "${packages[@]}" || die "erasing"
called "systemctl --no-reload disable --now ksmbd-notifyd.service" "systemctl daemon-reload" \
	"dkms remove -m ksmbd-notify -v $version --all --rpm_safe_upgrade"
left=$(find "$root" -name '*ksmbd*')
[ -z "$left" ] || die "erasing left: $left"
echo "install: rpm: $version installed, has the debs' files, erased, nothing is left"
