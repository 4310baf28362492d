#!/bin/sh
# Copies programs, man pages, completions and examples to where they belong: the programs of directory $1 and the pages that mkman has written
# into directory $2, below DESTDIR and PREFIX (/usr/local). The service's unit and user come with $3, the directory of systemd's units, or stay away.
set -eu
cd "$(dirname "$0")/.."
programs=$1 pages=$2 units=${3:-}
prefix=${DESTDIR:-}${PREFIX:-/usr/local}
share=$prefix/share

install -D -m 755 -t "$prefix/sbin" "$programs/synproxy"
for tool in synctl synflood honest replay tcpsendrecv netmapsend ctrlperf; do
    install -D -m 755 -t "$prefix/bin" "$programs/$tool"
done
install -D -m 644 -t "$share/man/man1" "$pages"/man1/*
install -D -m 644 -t "$share/bash-completion/completions" "$pages"/bash/*
install -D -m 644 -t "$share/zsh/${ZSH:-site-functions}" "$pages"/zsh/*
install -D -m 644 -t "$share/fish/vendor_completions.d" "$pages"/fish/*
install -D -m 644 -t "$share/doc/synproxy/examples" conf.txt packaging/prometheus/synproxy.rules.yml packaging/grafana/synproxy.json
install -D -m 755 -t "$prefix/lib/synproxy" packaging/bgp/synproxy-blackhole
install -d -m 755 "${DESTDIR:-}/etc/synproxy"
if [ -n "$units" ]; then
    install -d "${DESTDIR:-}$units" "$prefix/lib/sysusers.d"
    sed "s#/usr/sbin/synproxy#${PREFIX:-/usr/local}/sbin/synproxy#g; s#/usr/bin/synctl#${PREFIX:-/usr/local}/bin/synctl#" \
        packaging/systemd/synproxy@.service >"${DESTDIR:-}$units/synproxy@.service"
    install -m 644 packaging/systemd/synproxy.sysusers "$prefix/lib/sysusers.d/synproxy.conf"
fi
