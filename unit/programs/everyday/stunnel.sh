# needs: stunnel4 socat openssl
# ports: 4443 7000
serve() {
    cert
    printf 'foreground = yes\npid =\nsyslog = no\n[echo]\naccept = :::4443\nconnect = 127.0.0.1:7000\ncert = %s\n' "$D/both.pem" >"$D/stunnel.conf"
    stunnel4 "$D/stunnel.conf" >"$D/stunnel.log" 2>&1 &
    exec socat TCP-LISTEN:7000,reuseaddr,fork "OPEN:$D/payload,rdonly"
}
ask() {
    for ip in $ips; do
        socat -u "OPENSSL:$ip:4443,verify=0" - | same
    done
}
