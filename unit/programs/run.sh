#!/bin/bash
# Programs of others through the proxy, beside a bridge: what an operator has running there. Installs those that Debian has, and runs the tests in
# unit/programs, each of which is ignored if its program is missing. For test machines: a service that is installed here is not started, but may start
# when the machine does.
#
#     run.sh [ARGUMENTS...]      the arguments are those of the tests
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-programs
. unit/guest/pack.sh

# One line a test or two, as in unit/programs/everyday.rs.
packages=$(sed 's/#.*//' <<'LIST'
haproxy nmap nftables                                        # the tests of their own
nginx-light curl wget openssl                                # HTTP, TLS
apache2-utils wrk httping nghttp2-client                     # HTTP under load, HTTP/2
tinyproxy stunnel4 python3 python3-websockets
openssh-server openssh-client rsync git subversion
vsftpd lftp tnftp samba smbclient                            # files
nfs-ganesha nfs-ganesha-vfs libnfs-utils
redis-server redis-tools memcached libmemcached-tools mosquitto mosquitto-clients
postgresql postgresql-client mariadb-server-core mariadb-client-core
exim4-daemon-light swaks dovecot-imapd dovecot-pop3d         # mail
dnsmasq-base bind9-dnsutils slapd ldap-utils rpcbind         # names
netcat-openbsd socat busybox-static inetutils-telnet         # bytes and lines
iperf3 iperf traceroute tcptraceroute mtr-tiny iputils-ping  # measurements
keepalived monitoring-plugins-basic                          # checks
LIST
)

begin
# What is missing as a whole and, where that fails, one by one. No service starts meanwhile, as far as this is a Debian.
(
    refusal=/usr/sbin/policy-rc.d
    if [ -d "${refusal%/*}" ] && [ ! -e "$refusal" ]; then
        trap 'rm -f "$refusal"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$refusal"
        chmod 755 "$refusal"
    fi
    get() { (need "$@") | sed '/^make /d'; }
    # shellcheck disable=SC2086
    get $packages || for package in $packages; do get "$package" || say "without $package"; done
)
attend cargo test -p unit --test programs -- "$@"
