# SPDX-License-Identifier: GPL-2.0-or-later
#
# make build        build/ksmbd-notifyd; TAGS=small without metrics, for routers, GOARCH=... for another machine
# make install      what make build has made, and all that goes with it, below DESTDIR, the program in SBINDIR; for recipes
# make module       build/module/<kernel release>/ksmbd.ko, from the distribution's kernel source
# make deb          build/package/*.deb: the daemon, and the kernel part through DKMS; make rpm likewise
# make release      VERSION=1.0.0: tarball, packages, an apt repository, notes and checksums, of the last commit
# make run          see it work: a guest, a client that watches, changes on the server and by a second client
# make test         test-unit (this machine's kernel), test-machines (unit tests on 32-bit and big-endian machines),
#                   test-guest (a real ksmbd in a guest), test-filesystems (those that are not like others), test-series
#                   (a part of it on the newest kernel of each other series), test-latency (what clients wait for takes no
#                   longer than with the distribution's smbd, or a tenth at the most), and a part of these two:
# make test-torture smbtorture's notify tests of three versions of Samba on all file systems, each 10 times
# make test-clients     SMB clients that others wrote are told what they ask for (downloads these, 70 MB); with SERIES=7.3 also
#                   those that log in with Kerberos, whose tickets expire
# make test-regression  all of smbtorture's smb2 tests that pass with the stock module pass with ours
# make fuzz         the engine's convergence test for FUZZ a file system and mode; make bench its benchmarks
# make bench-smb    what clients wait for, beside the distribution's smbd in the same guest; SMB=short takes two minutes
# make bench-growth what an operation costs with 1,000, 10,000 and 100,000 watches, in a guest that may open so many files
# make bench-stock  what our module costs clients that watch nothing, beside the distribution's in the same guest
# make test-install the packages, on a server of each Debian release in DEBIAN, with systemd
# make test-release a release, its tarball, packages and apt repository
# make test-cross   ksmbd.ko is built for arm64, and for 32-bit big-endian PowerPC
# make port         SERIES=x.y FROM=7.3 SOURCE=...: the patches for another kernel series, see docs/new-series.md
# make check-kernel checkpatch and sparse over kernel/, for 32-bit big-endian machines too
# make test-debug   the guest tests under KASAN, lockdep, UBSAN and kmemleak (builds a kernel, about 15 minutes once)
# make test-starve  what many clients that wish no good cost another one, as ratios; CROWD of them never read
# make soak         FOR=1h: whatever befalls the server in a storm of changes, clients end with the true names, see TestSoak
# make cover        the lines of the daemon that neither unit tests nor those of the guest run, see RUN
# make cover-kernel the same of ksmbd.ko's part of ours, in the guest tests under KASAN
# make fuzz-kernel  what fuzzes the kernel part, there too, each fuzzer for FUZZ, its input made of SEED
#
# SERIES=7.3 does that for another kernel series, below build/7.3/, and SUITE=trixie with the kernel of another Debian.
#
# Everything fetched or built goes to build/. What a target needs of the host it installs with apt-get, as root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# The kernel series, or that of the kernel release KVER.
SERIES  := $(or $(shell cut -d. -f1,2 <<< '$(KVER)'),6.12)
export SUITE ?=
export VERSION := $(shell packaging/version.sh)
# Another series than the default has all that depends on it in a directory of its own.
BUILD   := build$(patsubst %,/%,$(filter-out 6.12,$(SERIES)$(SUITE:%=-%)))

# What the tests vary: TRIES of each smbtorture test, SLOW for those that take minutes, FS of the share, RUN the Go tests
# to run, SAMBA 4.22 or 4.25 for its smbtorture rather than this machine's, REQUESTS of TestCredits, LEASES=yes for leases
# and durable handles in test-regression, SMB the form of bench-smb, full or short, with PARTS and CLOCK as its bench.sh
# says, FUZZ for how long a fuzzer runs and SEED what its input is made of (0: a new one), FOR how long TestSoak runs, with
# BLOWS of that name and WATCHES a filesystem, LOUD=yes for the log of what the daemon does in it.
TRIES ?= 10
SLOW  ?= 2
FS    ?= tmpfs
RUN   ?= .
SAMBA ?=
LEASES ?=
export REQUESTS ?= 10000
export FUZZ SEED CROWD FOR BLOWS WATCHES LOUD
DEBIAN ?= bookworm trixie testing
TAGS   ?=
FUZZ   ?= 10s
SEED   ?= 0
SMB    ?= full
CROWD  ?= 300

PACKAGES_MODULE := gcc libc6-dev make patch xz-utils libelf1
PACKAGES_CHECK  := perl sparse bc bison flex gcc-powerpc-linux-gnu
PACKAGES_UNIT   := gcc libc6-dev git bzip2 xz-utils zstd e2fsprogs xfsprogs btrfs-progs mandoc systemd bindfs \
	rsync sqlite3 vim-tiny logrotate make shellcheck rpm nix-bin busybox-static
PACKAGES_GUEST  := qemu-system-x86 samba-testsuite smbclient cifs-utils busybox-static bash kmod cpio xz-utils \
	e2fsprogs xfsprogs btrfs-progs dosfstools attr libnl-genl-3-200 libglib2.0-0
PACKAGES_INSTALL := qemu-system-x86 mmdebstrap lintian rpm busybox-static e2fsprogs kmod xz-utils
PACKAGES_CLIENTS := mmdebstrap cpio gcc libc6-dev
PACKAGES_DEBUG  := bc bison flex libelf-dev

packages = test/guest/packages.sh

.PHONY: all help build install module port deb rpm release run test test-latency test-unit test-machines test-series test-guest test-filesystems test-smbtorture test-torture test-regression test-clients test-release test-cross test-install test-debug test-starve soak cover cover-kernel fuzz fuzz-kernel bench bench-growth bench-smb bench-stock check-kernel clean FORCE
all: build

help:
	@sed -n '3,/^$$/s/^# \{0,1\}//p' Makefile

build:
	@command -v go > /dev/null || { echo 'make: there is no go: install Go 1.26 or later, and have it in PATH' >&2; exit 1; }
	@go list -m > /dev/null || { echo "make: $$(cd / && go version) cannot build this: install Go 1.26 or later, and have it first in PATH" >&2; exit 1; }
	@packaging/version.sh check "$$VERSION"
	CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags 'nethttpomithttp2,$(TAGS)' -ldflags '-s -w -X main.version=$(VERSION)' -o $(BUILD)/ksmbd-notifyd ./cmd/ksmbd-notifyd

# As ksmbd-notifyd.yaml has it for debs and rpms.
DESTDIR ?=
SBINDIR ?= /usr/sbin
install:
	install -Dm755 $(BUILD)/ksmbd-notifyd -t '$(DESTDIR)$(SBINDIR)'
	install -Dm644 packaging/ksmbd-notifyd.conf -t '$(DESTDIR)/etc/ksmbd'
	install -Dm644 packaging/90-ksmbd-notifyd.conf -t '$(DESTDIR)/usr/lib/sysctl.d'
	install -Dm644 packaging/ksmbd-notifyd{,-metrics}.service -t '$(DESTDIR)/usr/lib/systemd/system'
	sed -i 's#/usr/sbin/#$(SBINDIR)/#' '$(DESTDIR)'/usr/lib/systemd/system/ksmbd-notifyd*.service
	install -Dm644 packaging/ksmbd-notifyd.8 -t '$(DESTDIR)/usr/share/man/man8'
	install -Dm644 packaging/prometheus/{alerts.yml,dashboard.json} -t '$(DESTDIR)/usr/share/doc/ksmbd-notifyd'
	install -Dm644 packaging/completions/bash '$(DESTDIR)/usr/share/bash-completion/completions/ksmbd-notifyd'
	install -Dm644 packaging/completions/fish '$(DESTDIR)/usr/share/fish/vendor_completions.d/ksmbd-notifyd.fish'
	install -Dm644 packaging/completions/zsh '$(DESTDIR)/usr/share/zsh/site-functions/_ksmbd-notifyd'

# Rewritten only when a newer kernel of the series is wanted, so that what depends on it is rebuilt only then.
$(BUILD)/linux/release: FORCE
	@$(packages) xz-utils
	@test/guest/fetch.sh $(SERIES) $(BUILD)/linux

$(BUILD)/module/done: $(BUILD)/linux/release $(wildcard kernel/*.sh) $(wildcard kernel/notify*.[ch] kernel/$(SERIES)/*.patch)
	@$(packages) $(PACKAGES_MODULE)
	@kver=$$(cat $<); kernel/build.sh $(BUILD)/linux/hdr/usr/src/linux-headers-$$kver $(BUILD)/linux/src $(BUILD)/module/$$kver
	@touch $@

module: $(BUILD)/module/done

deb rpm: build
	@packaging/build.sh $@ $(BUILD)/ksmbd-notifyd build/package

release:
	@$(packages) apt-utils xz-utils
	@packaging/release.sh build/release

check-kernel: $(BUILD)/linux/release
	@$(packages) $(PACKAGES_MODULE) $(PACKAGES_CHECK)
	kernel/check.sh $(BUILD)/linux $(BUILD)/check $(SERIES)

$(BUILD)/guest/root.cpio: $(BUILD)/linux/release test/guest/root.sh test/guest/init test/guest/job
	@$(packages) $(PACKAGES_GUEST)
	test/guest/root.sh $(BUILD)/linux $(BUILD)/guest/root
	cd $(BUILD)/guest/root && find . | cpio --quiet -o -R 0:0 -H newc > ../root.cpio.new
	@mv $(BUILD)/guest/root.cpio.new $@

$(BUILD)/guest/e2e.test: FORCE
	CGO_ENABLED=0 go test -c -tags guest -o $@ ./test/e2e

$(BUILD)/samba-%/smbtorture.cpio: test/guest/samba.sh
	@$(packages) $(PACKAGES_GUEST) mmdebstrap
	test/guest/samba.sh $* smbtorture $(@D)

guest := $(BUILD)/guest/root.cpio $(BUILD)/guest/e2e.test $(SAMBA:%=$(BUILD)/samba-%/smbtorture.cpio)

run: build module $(guest)
	@test/guest/demo.sh $(BUILD)

test: test-unit test-machines test-guest test-filesystems test-smbtorture test-latency test-series

# Prometheus itself is not installed, and needs much.
build/promtool:
	@test/guest/lists.sh
	@mkdir -p $@.dl && cd $@.dl && apt-get -o APT::Sandbox::User=root download -q prometheus
	@dpkg-deb --fsys-tarfile $@.dl/prometheus_*.deb | tar -xO ./usr/bin/promtool > $@.new
	@chmod +x $@.new && mv $@.new $@ && rm -r $@.dl

test-unit: build/promtool
	@$(packages) $(PACKAGES_UNIT)
	@test/unit.sh build/test-unit.log

test-machines:
	@$(packages) $(PACKAGES_UNIT) qemu-user-static
	@test/machines.sh build

# The other kernels there are hooks for, the newest of each.
test-series:
	@for kernel in 6.12:trixie 7.2: 7.3:; do \
		$(MAKE) --no-print-directory test-guest SERIES=$${kernel%:*} SUITE=$${kernel#*:} FS=tmpfs \
			RUN='^Test(ServerSideChanges|WatchTree|SecondClient|Save.*|HangingLogin|CaseOfDirectories|Durable.*|Wire(Explorer|FirstRecord|Compound|Cleanup|CancelFirst)|ModuleReload)$$'; \
	done

# The patches of FROM carried over to SERIES, whose kernel source SOURCE is; HEADERS to build for. That of FROM comes from Debian,
# or is FROM_SOURCE.
from = build$(patsubst %,/%,$(filter-out 6.12,$(FROM)))/linux
port:
	@[ '$(origin SERIES)' = 'command line' ] && [ -n '$(FROM)' ] && [ -n '$(SOURCE)' ] || { echo 'usage: make port SERIES=x.y FROM=7.3 SOURCE=a kernel source, tree or tarball [FROM_SOURCE=that of 7.3] [HEADERS=...]' >&2; exit 1; }
	@for s in '$(SOURCE)' '$(FROM_SOURCE)'; do [ -z "$$s" ] || [ -e "$$s" ] || { echo "port: $$s: there is no such tree or tarball" >&2; exit 1; }; done
	@$(packages) $(PACKAGES_MODULE) git
	@[ -n '$(FROM_SOURCE)' ] || test/guest/fetch.sh $(FROM) $(from)
	@kernel/port.sh $(SERIES) $(FROM) '$(or $(FROM_SOURCE),$(from)/src)' '$(SOURCE)' build/port/$(SERIES)
	@[ -z '$(HEADERS)' ] || kernel/build.sh '$(HEADERS)' '$(SOURCE)' build/port/$(SERIES)/module

fuzz:
	@$(packages) $(PACKAGES_UNIT)
	@mkdir -p build
	@go test ./fanotify -run TestConverge -timeout 2h -v -converge $(FUZZ) | tee build/fuzz.log | grep -E 'operations|^ *--- (FAIL|PASS)|diverged'
	@awk '/ operations, / { n += $$2 } END { print "fuzz: " n " operations, none diverged" }' build/fuzz.log

bench:
	@$(packages) $(PACKAGES_UNIT)
	@fanotify/bench.sh $(CURDIR)/build/bench.txt

test-guest: build module $(guest)
	@FS='$(FS)' RUN='$(RUN)' TRIES='$(TRIES)' SLOW='$(SLOW)' SAMBA='$(SAMBA)' test/guest/test.sh $(BUILD)

# overlayfs has file handles that cannot be opened, vfat has some that do not last, and neither owners nor extended attributes.
test-filesystems: build module $(guest)
	@FS=overlay RUN='^Test(ServerSideChanges|ColdDirectory|ManyFiles|Names|Permissions|HiddenDirectoryRe.*|VetoFiles)$$' \
		TRIES=1 SLOW=1 SAMBA= test/guest/test.sh $(BUILD)
	@FS=vfat RUN='^Test(ServerSideChanges|WatchTree|ColdDirectory|ManyFiles|SecondClient|Check|Wire.*)$$' \
		TRIES=1 SLOW=1 SAMBA= test/guest/test.sh $(BUILD)

# What of the two that follow a change must pass.
test-smbtorture: build module $(guest)
	@test/guest/torture.sh $(BUILD) tmpfs::$(TRIES):$(SLOW) {ext4,xfs,btrfs}::1:1
	@test/guest/regression.sh $(BUILD) '^smb2\.(compound|lock|dir|credits)\.'

test-torture: build module $(guest) $(BUILD)/samba-4.22/smbtorture.cpio $(BUILD)/samba-4.25/smbtorture.cpio
	@test/guest/torture.sh $(BUILD) {tmpfs,ext4,xfs,btrfs}:{,4.22,4.25}:10:10

test-regression: build module $(guest)
	@LEASES='$(LEASES)' SAMBA='$(SAMBA)' test/guest/regression.sh $(BUILD) '^smb2\.'

test-clients: build module $(guest)
	@$(packages) $(PACKAGES_CLIENTS)
	@test/clients/fetch.sh build/clients
	@FS='$(FS)' RUN=TestIndependent TRIES=1 SLOW=1 SAMBA= CLIENTS=build/clients/clients.cpio test/guest/test.sh $(BUILD)

test-release:
	@$(packages) apt-utils xz-utils rpm gnupg
	@test/release.sh build/test-release

test-cross: $(BUILD)/linux/release
	@$(packages) $(PACKAGES_MODULE) $(PACKAGES_DEBUG) gcc-aarch64-linux-gnu gcc-powerpc-linux-gnu binutils kmod
	@test/cross.sh $(BUILD)

# The older version, to come from and go back to, is of the same sources.
test-install: deb rpm
	@$(packages) $(PACKAGES_INSTALL)
	@lintian --allow-root --fail-on error build/package/*.deb
	@CGO_ENABLED=0 go build -ldflags '-X main.version=0~0' -o build/install/ksmbd-notifyd ./cmd/ksmbd-notifyd
	@VERSION=0~0 packaging/build.sh deb build/install/ksmbd-notifyd build/install/old
	@test/install/rpm.sh build
	@for release in $(DEBIAN); do test/install/test.sh $$release build; done

bench-smb: build module $(guest) $(BUILD)/samba-4.17/smbd.cpio
	@$(packages) gnuplot-nox
	@test/guest/bench.sh $(BUILD) $(SMB)

# But for a watch tree under load, where the two are about as fast.
test-latency: build module $(guest) $(BUILD)/samba-4.17/smbd.cpio
	@PARTS='one client|change over SMB|watchers' test/guest/bench.sh $(BUILD) short

# By instructions, so that a busy machine does not decide.
bench-growth: $(guest)
	@CGO_ENABLED=0 go test -c -o $(BUILD)/guest/fanotify.test ./fanotify
	@ICOUNT=shift=2,sleep=off test/guest/run.sh $(BUILD) bench-growth 2400 $(BUILD)/guest/fanotify.test -- \
		/rig/fanotify.test -test.run '^$$' -test.bench Growth -test.benchtime 100x -test.timeout 2300s

# Counted in the same way.
bench-stock: build module $(guest)
	@ICOUNT=shift=2,sleep=off test/guest/run.sh $(BUILD) bench-stock 600 $(BUILD)/guest/e2e.test $(BUILD)/module/$$(cat $(BUILD)/linux/release)/ksmbd.ko \
		$(BUILD)/ksmbd-notifyd -- /rig/e2e.test -bench-stock -bench-rounds 3 -quiet

$(BUILD)/samba-4.17/smbd.cpio: test/guest/samba.sh
	@$(packages) $(PACKAGES_GUEST) mmdebstrap
	test/guest/samba.sh 4.17 smbd $(@D)

$(BUILD)/debug/bzImage: FORCE $(BUILD)/linux/release
	@$(packages) $(PACKAGES_MODULE) $(PACKAGES_DEBUG)
	nice test/guest/debug.sh $(BUILD)/linux $(@D) $(SERIES)

test-debug: build $(guest) $(BUILD)/debug/bzImage
	@FS='$(FS)' RUN='$(RUN)' TRIES='$(TRIES)' SLOW='$(SLOW)' SAMBA= DEBUG=$(BUILD)/debug test/guest/test.sh $(BUILD)

test-starve: RUN = ^TestStarve
test-starve: test-guest

soak: RUN = ^TestSoak
soak: test-guest

# Of the tests that are left out, a program that runs as nobody, or may open no file, could not write what it ran.
COVERED := ./cmd/... ./fanotify/... ./genl/... ./ipc/...

cover: module $(guest)
	@$(packages) $(PACKAGES_UNIT)
	rm -rf build/cover
	mkdir -p build/cover/unit
	CGO_ENABLED=0 go build -cover -covermode=atomic -coverpkg=./... -buildvcs=false -o build/cover/ksmbd-notifyd ./cmd/ksmbd-notifyd
	go test -skip '^Test(StatusOfWaitingDaemon|FewFiles)$$' -cover -covermode=atomic -coverpkg=./... -timeout 10m $(COVERED) -args -test.gocoverdir=$(CURDIR)/build/cover/unit
	@COVER=build/cover FS='$(FS)' RUN='$(RUN)' TRIES=1 SLOW=1 SAMBA= test/guest/test.sh $(BUILD)
	@test/cover.sh build/cover build/cover/unit build/cover/guest

cover-kernel: test-debug
	@test/cover-kernel.sh $(BUILD)/debug/src/fs/smb/server $(BUILD)/guest/out/debug-$(FS)/gcov $(BUILD)/cover-kernel

fuzz-kernel: RUN = ^TestFuzz
fuzz-kernel: test-debug

clean:
	rm -rf build
