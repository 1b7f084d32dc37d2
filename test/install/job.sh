#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# job.sh OLD NEW EXPOSURE [short]: on a server that has booted with our packages of version NEW installed, see test.sh.
# EXPOSURE is what systemd-analyze security may say of the unit at most.
set -u

old=$1
new=$2
most=$3
say() { echo "[$(cut -d. -f1 /proc/uptime) s] $*"; }
fail() {
	echo "FAILED: $*"
	systemctl --no-pager status ksmbd ksmbd-notifyd
	journalctl --no-pager -b -n 60
	exit 1
}
# within SECONDS COMMAND...: until it succeeds.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.3
	done
}
quietly() { "$@" > /dev/null 2>&1; }
share=TEST
dir=/srv/share
smb() { timeout 60 smbclient //127.0.0.1/$share -U user%pass "$@"; }
serving() { quietly smb -c 'put /etc/hostname f; get f /tmp/f; del f' && cmp -s /etc/hostname /tmp/f; }
# watch: a client that watches the share from now on.
watch() {
	stdbuf -oL smbclient //127.0.0.1/$share -U user%pass -c 'notify ""' > /tmp/told 2>&1 &
	client=$!
}
unwatch() {
	kill $client
	wait $client 2>/dev/null
}
# told NAME: makes a file of that name and a number, and looks whether the client was told of such a file.
file=0
told() {
	file=$((file + 1))
	touch "$dir/$1.$file"
	sleep 0.5
	grep -q "^0001 $1\." /tmp/told
}
# notifies WHEN: a fresh client is told of a change. One from before it watches does not count, so they go on.
notifies() {
	watch
	within 30 told "$1" || { cat /tmp/told; fail "no client is told of a change $1"; }
	unwatch
	say "a client is told of a change $1"
}
active() { systemctl --quiet is-active ksmbd-notifyd; }
version() { ksmbd-notifyd --version | grep -qF "version $1"; }
pid() { systemctl show -P MainPID ksmbd-notifyd; }
restarted() { active && [ "$(pid)" != "$before" ]; }

# The share SUB is in a btrfs subvolume, whose top level is mounted nowhere.
truncate -s 128M /root/btrfs.img
quietly mkfs.btrfs /root/btrfs.img && mkdir /srv/sub && mount -o loop /root/btrfs.img /srv/sub && quietly btrfs subvolume create /srv/sub/s &&
	umount /srv/sub && mount -o loop,subvol=s /root/btrfs.img /srv/sub && mkdir -m 777 /srv/sub/share || fail "making a btrfs subvolume"

within 60 serving || fail "ksmbd does not serve"
say "ksmbd serves, kernel $(uname -r), $(systemctl --version | head -1)"
[ "$(cat /sys/module/ksmbd/version)" = "$new" ] || fail "ksmbd that is loaded: $(cat /sys/module/ksmbd/version)"
timeout 60 systemctl enable --now ksmbd-notifyd || fail "enable --now"
active || fail "ksmbd-notifyd is not ready"
say "ksmbd-notifyd is ready: $(systemctl show -P StatusText ksmbd-notifyd)"
ksmbd-notifyd check || fail "ksmbd-notifyd check"
[ "$(cat /proc/sys/fs/fanotify/max_queued_events)" = 131072 ] || fail "the package did not raise fs.fanotify.max_queued_events"
notifies after-boot
[ "${4:-}" != short ] || exit 0
exposure=$(systemd-analyze security --no-pager ksmbd-notifyd 2>/dev/null | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\).*/\1/p')
say "systemd-analyze security: ${exposure:-unknown}"
awk "BEGIN { exit !(${exposure:-10} <= $most) }" || fail "systemd-analyze security says more than $most"

# Settings are followed without a restart. TEST is on the filesystem that the journal is on.
conf=/etc/ksmbd/ksmbd-notifyd.conf
cp $conf /tmp/conf
before=$(pid)
printf '[global]\nverbose = 2\n' > $conf
timeout 60 systemctl reload ksmbd-notifyd || fail "reloading ksmbd-notifyd"
watch
within 30 told with-verbose || { cat /tmp/told; fail "a client is told nothing with verbose = 2"; }
lines() { journalctl --no-pager -q -b -u ksmbd-notifyd | wc -l; }
journalctl --no-pager -q -b -u ksmbd-notifyd | grep -q 'change watch=.* path=/srv/share/with-verbose' || fail "verbose = 2 does not have changes in the log"
sleep 2
n=$(lines)
sleep 5
n=$(($(lines) - n))
[ $n -le 10 ] || fail "the log feeds on itself: $n lines in 5 idle seconds"
unwatch
say "verbose = 2 on a share beside the journal: $n lines in 5 idle seconds"
printf '[test]\nchange notify = no\n' > $conf
timeout 60 systemctl reload ksmbd-notifyd || fail "reloading ksmbd-notifyd"
refused() { smb -c 'notify ""' 2>&1 | grep NT_STATUS_NOT_IMPLEMENTED; }
within 30 quietly refused || fail "changes are told where that is off"
ksmbd-notifyd check --quiet | grep -q '^note  share     TEST: /srv/share: change notify is off' || fail "check does not say what is off"
echo 'notify = no' >> $conf
quietly systemctl reload ksmbd-notifyd && fail "a reload with bad settings succeeds"
cp /tmp/conf $conf
timeout 60 systemctl reload ksmbd-notifyd || fail "reloading ksmbd-notifyd"
[ "$(pid)" = "$before" ] || fail "a reload restarts the daemon"
notifies after-reloads
scrape() { (exec 3<> /dev/tcp/127.0.0.1/9842 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && timeout 10 cat <&3) 2>/dev/null | tr -d '\r'; }
measured() { scrape | grep -q "^ksmbd_notifyd_$1"; }
measured serving && fail "metrics are on by themselves"
timeout 60 systemctl --quiet enable --now ksmbd-notifyd-metrics || fail "enable --now ksmbd-notifyd-metrics"
within 30 measured 'serving 1' || { scrape; fail "no metrics"; }
measured 'latency_seconds_count{share="test"} [1-9]' || { scrape; fail "no latency"; }
say "metrics: $(scrape | grep latency_seconds_sum), systemd-analyze security: $(systemd-analyze security --no-pager ksmbd-notifyd-metrics 2>/dev/null | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\).*/\1/p')"

share=SUB dir=/srv/sub/share
watch
within 30 told in-a-subvolume || { cat /tmp/told; fail "no client is told of a change in a btrfs subvolume"; }
ksmbd-notifyd status --json | tr -d ' \n' | grep -q '"type":"btrfs","device":"[0-9:]*","strategy":"filesystemmark"' ||
	{ ksmbd-notifyd status; fail "in its sandbox the daemon does not mark a btrfs subvolume's filesystem"; }
unwatch
share=TEST dir=/srv/share
say "a client is told of a change in a btrfs subvolume, by a filesystem mark"

# A daemon that hangs.
mkdir -p /run/systemd/system/ksmbd-notifyd.service.d
printf '[Service]\nWatchdogSec=6s\n' > /run/systemd/system/ksmbd-notifyd.service.d/watchdog.conf
systemctl daemon-reload && timeout 60 systemctl restart ksmbd-notifyd || fail "restarting ksmbd-notifyd with a short watchdog"
watch
within 30 told before-hang || fail "the client that watches while the daemon hangs"
before=$(pid)
kill -STOP "$before"
within 60 restarted || fail "systemd does not restart a daemon that hangs"
within 30 told after-hang || { cat /tmp/told; fail "a client that watches while the daemon hangs is told nothing after"; }
journalctl --no-pager -b -u ksmbd-notifyd | grep -q 'Watchdog timeout' || fail "it was not the watchdog that restarted the daemon"
journalctl --no-pager -b -u ksmbd-notifyd | grep -E 'goroutine|SIGABRT' && fail "the watchdog leaves a stack trace"
unwatch
rm -r /run/systemd/system/ksmbd-notifyd.service.d
systemctl daemon-reload && timeout 60 systemctl restart ksmbd-notifyd || fail "restarting ksmbd-notifyd"
say "a daemon that hangs is killed and started anew, and a client that watches goes on to be told"

# A daemon that dies again and again.
[ "$(systemctl show -P StartLimitIntervalUSec ksmbd-notifyd)" = 0 ] || fail "systemd gives a daemon up that dies often"
watch
within 30 told before-deaths || fail "the client that watches while the daemon dies again and again"
for _ in 1 2 3 4 5 6 7; do
	before=$(pid)
	kill -KILL "$before"
	within 60 restarted || fail "systemd does not restart a daemon that was killed"
done
within 30 told after-deaths || { cat /tmp/told; fail "a client that watches while the daemon dies again and again is told nothing after"; }
unwatch
say "a daemon that was killed 7 times is started anew, and a client that watches goes on to be told"

# unbroken WHEN: the client was told to list nothing.
unbroken() {
	! grep ENUM_DIR /tmp/told && journalctl --no-pager -b -u ksmbd-notifyd | grep -q 'going on where the last daemon ended' ||
		{ cat /tmp/told; fail "$1 a client is told to list its directory anew"; }
}
mkdir -p /run/systemd/system/ksmbd-notifyd.service.d
printf '[Service]\nExecStopPost=+touch %s/meanwhile\n' $dir > /run/systemd/system/ksmbd-notifyd.service.d/meanwhile.conf
systemctl daemon-reload
watch
within 30 told before-restart || fail "the client that watches over a restart"
timeout 60 systemctl restart ksmbd-notifyd || fail "restarting ksmbd-notifyd"
within 30 told after-restart || { cat /tmp/told; fail "a client that watches over a restart of ksmbd-notifyd is told nothing after"; }
grep -q '^0001 meanwhile' /tmp/told || { cat /tmp/told; fail "a client is not told of what happened while ksmbd-notifyd was restarted"; }
unbroken "over a restart of ksmbd-notifyd"
rm -r /run/systemd/system/ksmbd-notifyd.service.d
systemctl daemon-reload
mkdir /srv/share/mnt
mount -t tmpfs none /srv/share/mnt
within 30 told with-a-mount-below || fail "with a mount below the watched directory no client is told"
journalctl --no-pager -b -u ksmbd-notifyd | grep 'cannot be watched' && fail "in its sandbox the daemon cannot watch a mount"
for i in $(seq 20); do
	for j in $(seq 20); do
		mkdir -p /srv/share/mnt/$j/x && touch /srv/share/mnt/$j/x/f && mv /srv/share/mnt/$j/x/f /srv/share/mnt/$j/x/g
	done
	umount /srv/share/mnt || fail "the daemon keeps a mount from being unmounted, the ${i}th time"
	mount -t tmpfs none /srv/share/mnt
done
umount /srv/share/mnt || fail "the daemon keeps a mount from being unmounted"
rmdir /srv/share/mnt
unwatch
say "a client that watches over a restart of ksmbd-notifyd is told all of what happened meanwhile, a mount below its directory is no hindrance"

# A queue has the length that there was when it was opened: with another one the daemon opens its queues anew.
limit=/proc/sys/fs/fanotify/max_queued_events
was=$(cat $limit)
watch
within 30 told before-another-limit || fail "the client that watches while the queue's length is changed"
echo $((was / 2)) > $limit
timeout 60 systemctl restart ksmbd-notifyd || fail "restarting ksmbd-notifyd with another queue length"
opened_anew() { journalctl --no-pager -b -u ksmbd-notifyd | grep -q 'fs.fanotify.max_queued_events was changed'; }
within 30 opened_anew || fail "a restart does not follow fs.fanotify.max_queued_events"
within 30 told after-another-limit || { cat /tmp/told; fail "a client that watches while the queue's length is changed is told nothing after"; }
unwatch
echo "$was" > $limit
say "a restart follows fs.fanotify.max_queued_events"
timeout 60 systemctl restart ksmbd || fail "restarting ksmbd"
within 30 serving || fail "ksmbd does not serve after its restart"
notifies after-ksmbd-restarted

quietly dpkg -i /root/debs/ksmbd-notifyd_"$old"_*.deb || fail "downgrading the daemon"
version "$old" && within 30 active || fail "after the downgrade: $(ksmbd-notifyd --version)"
notifies after-downgrade
watch
within 30 told before-upgrade || fail "the client that watches over an upgrade"
before=$(pid)
quietly dpkg -i /root/debs/ksmbd-notifyd_"$new"_*.deb || fail "upgrading the daemon"
version "$new" && within 30 restarted || fail "after the upgrade: $(ksmbd-notifyd --version)"
within 30 told after-upgrade || { cat /tmp/told; fail "a client that watches over an upgrade is told nothing after"; }
unbroken "over an upgrade"
unwatch
say "an upgrade is nothing that clients notice"
systemctl --quiet disable --now ksmbd-notifyd
quietly dpkg -i /root/debs/ksmbd-notifyd_"$new"_*.deb || fail "upgrading the disabled daemon"
! active && ! systemctl --quiet is-enabled ksmbd-notifyd || fail "an upgrade enabled what the administrator had disabled"
say "an upgrade keeps it disabled"
systemctl --quiet enable --now ksmbd-notifyd

# reload: another ksmbd.ko, as README says to.
line=$(sed -n 's/^    \(systemctl stop ksmbd .*\)/\1/p' /rig/README.md)
[ -n "$line" ] || fail "README does not say how to change to another ksmbd"
reload() { timeout 140 sh -c "$line" && within 30 serving; }
reload || fail "reloading ksmbd under the daemon"
within 30 active || fail "ksmbd-notifyd after ksmbd was loaded anew"
notifies after-module-reload

quietly dpkg --purge ksmbd-notifyd ksmbd-notify-dkms || fail "purging"
left=$(find / -xdev -path /root/debs -prune -o \( -name '*ksmbd-notify*' -o -path '*/updates/*ksmbd*' \) -print)
[ -z "$left" ] || fail "purging left: $left"
systemctl --no-pager --all list-units | grep ksmbd-notifyd && fail "systemd still knows ksmbd-notifyd"
serving || fail "ksmbd does not serve after the purge"
say "purged under a serving ksmbd: nothing is left, and it serves"
reload || fail "reloading ksmbd after the purge"
[ ! -e /sys/module/ksmbd/version ] || fail "after the purge ksmbd is still of version $(cat /sys/module/ksmbd/version)"
say "Debian's own ksmbd serves again"

# The daemon alone, with the module that cannot notify: it waits, holds nobody up, and check says what to do.
quietly timeout 60 dpkg -i /root/debs/ksmbd-notifyd_"$new"_*.deb || fail "installing the daemon alone"
within 30 active || fail "the daemon alone does not run"
say "the daemon without its module: $(systemctl show -P StatusText ksmbd-notifyd)"
ksmbd-notifyd check && fail "check sees nothing wrong without the module"
quietly dpkg --purge ksmbd-notifyd || fail "purging the daemon alone"
serving || fail "ksmbd does not serve in the end"
[ -z "$(systemctl --failed --plain --no-legend)" ] || fail "units that failed: $(systemctl --failed --plain --no-legend)"
