#!/bin/bash
# The release archive of this tree, in the directory $1 (target/dist): programs with the profile $PROFILE (release), man pages, completions, units,
# examples and docs, laid out as they are installed below /; the licences of everything that is linked in, and a bill of materials
# (CycloneDX). The same sources at the same place, with the same tools, give the same archive, byte for byte: $SOURCE_DATE_EPOCH is the time of all files (that of the
# last commit).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
name=dist
. unit/guest/pack.sh

work=$(mktemp -d -t "spx$$-$name.XXXXXX") child=
trap undo EXIT
trap 'exit 130' INT TERM HUP
need gzip tar jq
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH
build "${PROFILE:-release}"
out=${1:-$target/dist}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
machine=$(rustc -vV | sed -n 's/^host: //p')
tree=synproxy-$version-$machine
mkdir -p "$out" "$work/$tree" "$work/stripped"

for program in synproxy synctl synflood honest replay tcpsendrecv netmapsend ctrlperf; do strip -o "$work/stripped/$program" "$programs/$program"; done
quietly "$programs/mkman" "$work/pages"
DESTDIR=$work/$tree PREFIX=/usr/local packaging/install.sh "$work/stripped" "$work/pages" /etc/systemd/system
docs=$work/$tree/usr/local/share/doc/synproxy
cp -r README.md SECURITY.md LICENSE-APACHE LICENSE-MIT docs "$docs"

# The bill of materials, from what cargo knows.
awk '/^name = /{name=$3} /^version = /{version=$3} /^checksum = /{gsub(/"/, "", name); gsub(/"/, "", version); printf "%s\"%s %s\": %s", n++ ? ",\n" : "{\n", name, version, $3} END{print "}"}' \
    Cargo.lock >"$work/sums"
attend cargo metadata --format-version 1 --locked --offline --filter-platform "$machine" >"$work/metadata"
jq --sort-keys --argjson roots '["synproxy", "tools"]' --slurpfile sum "$work/sums" --arg version "$version" --arg time "$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)" \
    '$sum[0] as $sums | '"$(cat packaging/bom.jq)" "$work/metadata" >"$docs/synproxy.cdx.json"

# The licences: the texts that each crate comes with, and the name of its licence.
licences=$docs/licences
mkdir "$licences"
while IFS='|' read -r crate licence; do
    directory=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$crate" | head -1)
    mkdir "$licences/$crate"
    echo "$licence" >"$licences/$crate/SPDX"
    # Libraries in C have theirs in folders of their own.
    (cd "$directory" && find . -maxdepth 3 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'unlicense*' \) \
        -exec cp --parents -t "$licences/$crate" {} +)
done < <(jq -r '.components[] | select(.hashes) | "\(.name)-\(.version)|\(.licenses[0].expression // "see the text")"' "$docs/synproxy.cdx.json")

find "$work/$tree" -type d -exec chmod 755 {} +
find "$work/$tree" -type f -perm /111 -exec chmod 755 {} +
find "$work/$tree" -type f -not -perm /111 -exec chmod 644 {} +
tar -C "$work" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf "$work/$tree.tar" "$tree"
gzip -9n "$work/$tree.tar"
mv "$work/$tree.tar.gz" "$out"
(cd "$out" && sha256sum "$tree.tar.gz" >"$tree.tar.gz.sha256" && readlink -f "$tree.tar.gz")
