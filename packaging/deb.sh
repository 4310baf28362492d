#!/bin/bash
# Builds the Debian package of this tree into the directory $1 (target/deb), from programs with the profile $PROFILE (release). VERSION, if it is
# set, is the package's version instead of the changelog's.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
name=deb
. unit/guest/pack.sh

work=$(mktemp -d -t "spx$$-$name.XXXXXX") child=
trap undo EXIT
trap 'exit 130' INT TERM HUP
need debhelper dpkg-dev fakeroot
build "${PROFILE:-release}"
out=${1:-$target/deb}
mkdir -p "$out"

tree=$work/synproxy
mkdir -p "$tree"
cp -r packaging/debian "$tree/debian"
cp -r README.md SECURITY.md conf.txt docs packaging "$tree"
cp packaging/systemd/synproxy@.service packaging/systemd/synproxy.sysusers "$tree/debian"
[ -z "${VERSION:-}" ] || sed -i "1s/(.*)/($VERSION)/" "$tree/debian/changelog"
export PROGRAMS=$programs PAGES=$work/pages
quietly "$programs/mkman" "$PAGES"
(cd "$tree" && quietly dpkg-buildpackage -b -us -uc -d)
cp "$work"/*.deb "$out"
(cd "$out" && ls -t synproxy_*.deb | head -1 | xargs readlink -f)
