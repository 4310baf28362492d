# needs: haproxy nginx curl
# ports: 80 8080
serve() {
    cat >"$D/haproxy.cfg" <<CONF
defaults
  mode http
  timeout connect 5s
  timeout client 9s
  timeout server 9s
listen web
  bind :::80 v4v6
  server one 127.0.0.1:8080 check inter 200ms
CONF
    haproxy -db -f "$D/haproxy.cfg" >"$D/haproxy.log" 2>&1 &
    web "listen 8080;"
}
ask() {
    sleep 1
    for ip in $ips; do
        curl -sS "http://$ip/hello" -w '%{http_code}\n'
        curl -sS "http://$ip/payload" | same
        curl -sS --data-binary "@$D/payload" "http://$ip/post" -w '%{http_code} %{size_upload}\n'
    done
}
