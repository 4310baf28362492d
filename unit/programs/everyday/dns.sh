# needs: dnsmasq dig
# ports: 53
serve() {
    : >"$D/hosts"
    for n in $(seq 200); do echo "192.0.2.$n host$n.example" >>"$D/hosts"; done
    exec dnsmasq -k -C /dev/null --no-resolv --no-hosts --user=root --addn-hosts="$D/hosts" --pid-file="$D/dnsmasq.pid" \
        --txt-record="long.example,$(head -c 200 /dev/zero | tr '\0' x),$(head -c 200 /dev/zero | tr '\0' y)"
}
ask() {
    # dnsmasq closes a connection after a hundred.
    seq 90 | sed 's/.*/host&.example/' >names
    for ip in $V4 $V6; do
        dig +tcp +short "@$ip" host7.example
        dig +tcp +short "@$ip" long.example TXT
        dig +tcp +noall +comments "@$ip" none.example | grep -o 'status: [A-Z]*'
        dig +tcp +short +keepopen "@$ip" -f names | md5sum
        # Over UDP too, beside.
        dig +short "@$ip" host9.example
    done
}
