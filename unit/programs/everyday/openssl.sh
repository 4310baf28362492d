# needs: openssl
# ports: 4433 4434
serve() {
    cert
    cd "$D"
    openssl s_server -accept 4433 -cert cert.pem -key key.pem -rev -quiet >s1 2>&1 &
    exec openssl s_server -accept 4434 -cert cert.pem -key key.pem -WWW -quiet >s2 2>&1
}
ask() {
    for ip in $ips; do
        for version in -tls1_2 -tls1_3; do
            # The server says every line backwards, and ends with this word.
            printf 'hello\nCLOSE\n' | openssl s_client -connect "$ip:4433" $version -quiet -verify_quiet 2>/dev/null || echo "status $?"
            echo | openssl s_client -connect "$ip:4433" $version 2>/dev/null | grep -E '^(subject|New,|Verify return code)' | sort -u
            printf 'GET /payload HTTP/1.0\r\n\r\n' | openssl s_client -connect "$ip:4434" $version -quiet 2>/dev/null |
                tail -c 3000000 | same
        done
    done
}
