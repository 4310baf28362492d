# needs: socat
# ports: 7001 7002 7003
serve() {
    socat TCP6-LISTEN:7001,ipv6only=0,reuseaddr,fork EXEC:cat &
    # The other end closes first; and resets.
    socat TCP6-LISTEN:7002,ipv6only=0,reuseaddr,fork "OPEN:$D/payload,rdonly" &
    exec socat TCP6-LISTEN:7003,ipv6only=0,reuseaddr,fork,so-linger=0 "EXEC:head -c 10"
}
ask() {
    for ip in $ips; do
        socat -t 9 - "TCP:$ip:7001" <"$D/payload" | same
        socat -t 9 - "TCP:$ip:7001,nodelay,mss=536" <"$D/payload" | same
        socat -t 9 - "TCP:$ip:7001,rcvbuf=4096,sndbuf=4096" <"$D/payload" | same
        socat -u "TCP:$ip:7002" - | same
        # Half closed by the client, while the server goes on.
        head -c 100000 "$D/payload" | socat -t 9 - "TCP:$ip:7001,shut-down" | md5sum
        (echo 0123456789; sleep 1) | socat -t 2 - "TCP:$ip:7003" 2>/dev/null || echo "status $?"
        for n in 1 2 3 4 5 6 7 8; do (echo "client $n" | socat -t 5 - "TCP:$ip:7001") & done | sort
    done
}
