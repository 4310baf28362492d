#!/bin/bash
# The release archive: made twice, it is the same; unpacked below another root, its programs start, and it has what it promises.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-dist
. unit/guest/pack.sh

begin
export PROFILE=${PROFILE:-demo}
need jq
first=$(packaging/dist.sh "$work/first" | tail -1)
second=$(packaging/dist.sh "$work/second" | tail -1)
cmp "$first" "$second" || fail "two archives of the same tree differ"
(cd "$work/first" && sha256sum --quiet --check ./*.sha256) || fail "the checksum is wrong"
say "ok: the same twice, $(stat -c %s "$first") bytes"

mkdir "$work/root"
tar -xzf "$first" -C "$work/root" --strip-components=1
prefix=$work/root/usr/local
for program in sbin/synproxy bin/synctl bin/replay bin/netmapsend bin/tcpsendrecv bin/synflood bin/honest bin/ctrlperf; do
    "$prefix/$program" --help >/dev/null || fail "$program does not start"
done
for file in share/man/man1/synproxy.1 share/bash-completion/completions/synctl.bash share/doc/synproxy/README.md share/doc/synproxy/docs/drops.md \
    share/doc/synproxy/LICENSE-MIT share/doc/synproxy/examples/synproxy.json; do
    [ -s "$prefix/$file" ] || fail "there is no $file"
done
[ -s "$work/root/etc/systemd/system/synproxy@.service" ] || fail "there is no unit"
"$prefix/sbin/synproxy" --check-config "$prefix/share/doc/synproxy/examples/conf.txt" >/dev/null || fail "the sample is refused"
say "ok: programs, pages, completions, unit, examples and docs"

docs=$prefix/share/doc/synproxy
jq -e '.bomFormat == "CycloneDX" and (.components | length > 100) and all(.components[]; .name and .version and .purl and (.licenses | length) == 1)' \
    "$docs/synproxy.cdx.json" >/dev/null || fail "this is no bill of materials"
jq -e '[.components[].name] | (index("aya") and index("netmap_sys") and (index("proptest") | not))' "$docs/synproxy.cdx.json" >/dev/null \
    || fail "the bill of materials has not what is linked in, or what only tests need"
# What comes from others has its licence beside it.
for crate in $(jq -r '.components[] | select(.hashes) | "\(.name)-\(.version)"' "$docs/synproxy.cdx.json"); do
    [ -s "$docs/licences/$crate/SPDX" ] || fail "the licence of $crate is missing"
done
say "ok: a bill of materials, and the licence of each crate in it"
