# needs: nginx ab wrk httping
# ports: 80
serve() { web "listen 80 backlog=512; listen [::]:80 backlog=512;"; }
ask() {
    for ip in $ips; do
        ab -q -n 500 -c 20 "http://$ip/hello" | grep -E '^(Complete|Failed|Non-2xx|Total transferred|HTML transferred)'
        ab -q -k -n 500 -c 20 "http://$ip/hello" | grep -E '^(Complete|Failed|Keep-Alive|Non-2xx)'
        # What goes wrong, of which there should be nothing.
        wrk -t 1 -c 20 -d 1s "http://$ip/hello" | grep -E 'Socket errors|Non-2xx' || echo "wrk: no error"
    done
    httping -c 5 -i 0.1 -G "http://$V4/hello" | grep -E 'connects|failed'
}
