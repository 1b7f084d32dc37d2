#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# root.sh RELEASE ROOT DEB...: in ROOT a Debian server of RELEASE, from its own packages: the kernel, its headers and the
# ksmbd-tools that README's Install names, with shares, smbclient, and what the DEBs depend on, but not these. Reused while the same is wanted and it
# is less than a week old.
set -euo pipefail

release=$1
root=$2
shift 2
here=$(dirname "$(realpath "$0")")
die() { echo "install: $release: $*" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
like=$release suites=("$release" "$release-updates" "$release-security")
case $release in
testing) like=trixie series=7.2 suites=(testing) ;;
*) series=6.12 ;;
esac
packages=(systemd-sysv dbus udev kmod iproute2 procps initramfs-tools btrfs-progs ksmbd-tools smbclient linux-source-$series)
for deb in "$@"; do # of alternatives the first
	mapfile -t -O "${#packages[@]}" packages < <(dpkg-deb -f "$deb" Depends | tr , '\n' | sed 's/^ *//; s/ *|.*//; /^$/d')
done
# What README has apt install, in the flavour for virtual machines; of trixie the kernel that its last point release had.
mapfile -t kernel < <(sed -n "s/^    apt install \(.*[^ ]\) *# Debian $(case $like in bookworm) echo 12 ;; trixie) echo 13 ;; esac)[,;].*/\1/p" \
	"$here/../../README.md" | tr ' ' '\n' | sed 's/-amd64$/-cloud-amd64/')
[ ${#kernel[@]} -gt 0 ] || die "README does not say what to install"
want="$release ${kernel[*]} ${packages[*]} $(cat "$0" "$here/../guest/job" | md5sum)"
if [ "$(cat "$root.done" 2>/dev/null)" = "$want" ] && [ -n "$(find "$root.done" -mtime -7)" ]; then exit 0; fi

"$here/../guest/lists.sh"
mirror() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" | sort -u | head -1; }
debian=$(mirror Debian)
[ -n "$debian" ] || die "apt knows no Debian mirror here"
security=$(mirror Debian-Security)
rm -rf "$root" "$root.done"
mkdir -p "$(dirname "$root")"
echo "install: $release: installing it from Debian's packages (about 330 MB, 2 minutes)"

cat > "$root.setup" <<'END'
#!/bin/bash
set -eux
chroot "$1" apt-get install -y -q --no-install-recommends -t SUITE KERNEL

cd "$1"
chroot . useradd user
mkdir -p etc/ksmbd srv/share rig out
chmod 777 srv/share
printf '[global]\n\tmap to guest = never\n[TEST]\n\tpath = /srv/share\n\tread only = no\n[SUB]\n\tpath = /srv/sub/share\n\tread only = no\n' > etc/ksmbd/ksmbd.conf
chroot . ksmbd.adduser -a -p pass user || chroot . ksmbd.adduser -a user -p pass # of 3.5 and 3.4
echo server > etc/hostname
echo '127.0.0.1 localhost server' > etc/hosts
printf '/dev/vda / ext4 defaults 0 1\n' > etc/fstab

# Files come on the second disk, see test/guest/run.sh.
cat > etc/systemd/system/rig.service <<-UNIT
	[Unit]
	After=ksmbd.service
	[Service]
	Environment=HOME=/root LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
	ExecStartPre=tar xf /dev/vdb -C /rig
	ExecStartPre=sh -c 'echo "INIT: userspace at \$\$(cut -d\\  -f1 /proc/uptime)s, kernel \$\$(uname -r)" > /dev/kmsg'
	ExecStart=sh /usr/local/sbin/job
	StandardOutput=journal+console
	[Install]
	WantedBy=multi-user.target
UNIT
chroot . systemctl enable rig.service
chroot . systemctl mask serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
END
sed -i "s/SUITE/$release/; s/KERNEL/${kernel[*]}/" "$root.setup"
chmod +x "$root.setup"
mmdebstrap --mode=root --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" --customize-hook="$root.setup" \
	--customize-hook="copy-in '$here/../guest/job' /usr/local/sbin" \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
	"$release" "$root" - > "$root.log" 2>&1 <<-END || { tail -20 "$root.log"; die "not to be had, see $root.log"; }
$(for suite in "${suites[@]}"; do
	case $suite in *-security) url=${security:-$debian-security} ;; *) url=$debian ;; esac
	echo "deb [signed-by=$key] $url $suite main"
done)
	END
rm "$root.setup"
echo "$want" > "$root.done"
