#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# build.sh FORMAT DAEMON OUT: the packages of both parts, FORMAT deb or rpm, of the built DAEMON, in OUT. VERSION in the
# environment is theirs, GOARCH the machine that they are for, KERNEL the release whose source they recommend, that of the
# kernel that runs.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
root=$PWD

format=$1
daemon=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
rm -f "$out"/*".$format"
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
die() { echo "package: $*" >&2; exit 1; }
packaging/version.sh check "$VERSION"
ARCH=$(go env GOARCH)
[ "$ARCH" != arm ] || ARCH+=$(go env GOARM | cut -c1)
MAINTAINER=$(packaging/version.sh maintainer)
DATE=$(packaging/version.sh date)
export ARCH MAINTAINER

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -r packaging/. "$stage"
cp "$daemon" "$stage/ksmbd-notifyd"
cd "$stage"

rm -r dkms
"$root/packaging/dkms.sh" dkms
series=$(cd dkms && echo [0-9]*)
# Of alternatives apt takes the first: who makes packages for their own machine needs the source of the kernel that runs.
here=$(cut -d. -f1,2 <<< "${KERNEL-$(uname -r)}")
SOURCES=$(for s in $series; do [ "$s" = "$here" ] && echo "0 $s" || echo "1 $s"; done | sort -s -k1,1 | sed 's/^. /linux-source-/' | paste -sd'|' | sed 's/|/ | /g')
export SOURCES
sed -i "s/@VERSION@/$VERSION/g" {deb,rpm}/dkms.*

gzip -9n ksmbd-notifyd.8
for package in ksmbd-notifyd ksmbd-notify-dkms; do
	mkdir -p "doc/$package"
	cat > "doc/$package/changelog" <<-END
		$package ($VERSION) unstable; urgency=medium

		  * See CHANGELOG.md, beside this file.

		 -- $MAINTAINER  $DATE
	END
	gzip -9n "doc/$package/changelog"
	cp copyright "$root/CHANGELOG.md" "doc/$package/"
done
# What is linked into the daemon wants its licences told.
(
	cd "$root"
	echo; echo "The daemon is linked with Go's own library and these modules:"
	go version -m "$daemon" | awk '$1 == "dep" { print $2 "@" $3 }' | while read -r module; do
		dir=$(env -u GOARCH go list -m -f '{{.Dir}}' "${module%@*}")
		printf '\n%s\n\n' "--- $module"
		if grep -q 'Apache License' "$dir"/LICENSE*; then
			echo '    Apache License 2.0, see /usr/share/common-licenses/Apache-2.0'
			sed 's/^/    /' "$dir"/NOTICE* 2>/dev/null || true
		else
			sed 's/^/    /' "$dir"/LICENSE*
		fi
	done
	printf '\n%s\n\n' "--- Go"
	sed 's/^/    /' "$(go env GOROOT)/LICENSE"
) >> doc/ksmbd-notifyd/copyright

find . -type d -exec chmod 755 {} +
find . -type f -exec chmod u=rwX,go=rX {} +
for package in ksmbd-notifyd ksmbd-notify-dkms; do
	GOOS=$(go env GOHOSTOS) GOARCH=$(go env GOHOSTARCH) go run $nfpm package --config "$package.yaml" --packager "$format" --target "$out" > nfpm.log 2>&1 || { cat nfpm.log >&2; die "no $package"; }
done
ls "$out"/*"$VERSION"*".$format" | sed "s#^$root/#package: #"
