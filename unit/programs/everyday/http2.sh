# needs: nginx curl nghttp h2load openssl
# ports: 443
serve() {
    cert
    web "listen 443 ssl http2; listen [::]:443 ssl http2; ssl_certificate $D/cert.pem; ssl_certificate_key $D/key.pem;"
}
ask() {
    for ip in $ips; do
        curl -sSk --http2 "https://$ip/hello" -w '%{http_version} %{http_code}\n'
        curl -sSk --http1.1 "https://$ip/hello" -w '%{http_version} %{http_code}\n'
        curl -sSk --tlsv1.3 "https://$ip/payload" | same
        curl -sSk --tls-max 1.2 "https://$ip/payload" | same
        nghttp --no-verify-peer "https://$ip/payload" 2>&1 | same
        h2load -n 200 -c 10 -m 5 "https://$ip/hello" | grep -E '^(requests|status codes)'
    done
}
