# needs: busybox telnet
# ports: 23
serve() {
    printf '#!/bin/sh\nstty -echo\nwhile read -r line; do [ "$line" = bye ] && exit; echo "you said $line"; done\n' >"$D/shell"
    chmod +x "$D/shell"
    exec busybox telnetd -F -p 23 -f /dev/null -l "$D/shell"
}
ask() {
    for ip in $V4 $V6; do
        (sleep 1; for n in 1 2 3; do echo "word $n"; sleep 0.2; done; echo bye; sleep 1) | telnet "$ip" 2>&1 | tr -d '\r' |
            grep -E '^(Connected|you said|Connection)' || true
    done
}
