# needs: tinyproxy nginx curl openssl
# ports: 8888 443
serve() {
    cert
    printf 'Port 8888\nTimeout 30\nMaxClients 50\nLogFile "%s"\n' "$D/tinyproxy.log" >"$D/tinyproxy.conf"
    tinyproxy -d -c "$D/tinyproxy.conf" >"$D/tinyproxy.out" 2>&1 &
    web "listen 80; listen 443 ssl; ssl_certificate $D/cert.pem; ssl_certificate_key $D/key.pem;"
}
ask() {
    curl -sS -x "http://$V4:8888" "http://$V4/payload" | same
    # CONNECT
    curl -sSk -x "http://$V4:8888" "https://$V4/payload" | same
    curl -sSk -x "http://$V4:8888" "https://$V4/none" -o none -w '%{http_connect} %{http_code}\n'
}
