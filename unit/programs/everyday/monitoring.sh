# needs: nginx sshd check_tcp check_http check_ssh openssl
# ports: 80 443 22
serve() {
    cert
    mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$D/host"
    printf 'HostKey %s\nUsePAM no\n' "$D/host" >"$D/sshd_config"
    /usr/sbin/sshd -f "$D/sshd_config"
    web "listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl; ssl_certificate $D/cert.pem; ssl_certificate_key $D/key.pem;"
}
ask() {
    for ip in $V4 $V6; do
        six=$([ "$ip" = "$V6" ] && echo -6 || echo -4)
        check_tcp -H "$ip" -p 80 | cut -d'|' -f1
        check_tcp -H "$ip" -p 22 -e SSH -w 5 -c 9 | cut -d'|' -f1 | cut -c1-20
        check_http $six -I "$ip" -u /hello -s hello | cut -d'|' -f1
        check_http $six -I "$ip" -S -u /none | cut -d'|' -f1 || true
        check_ssh "$ip" | cut -d'|' -f1
    done
}
