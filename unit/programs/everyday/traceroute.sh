# needs: nginx tcptraceroute traceroute mtr ping
# ports: 80
serve() { web "listen 80; listen [::]:80;"; }
ask() {
    ping -n -q -c 5 -i 0.1 "$V4" | grep -o '.* received'
    ping -n -q -c 5 -i 0.1 "$V6" | grep -o '.* received'
    for n in 1 2; do
        tcptraceroute -n -q 2 -m 3 "$V4" 80 2>/dev/null | grep -oE "^ *[0-9]+ +[^ ]+( \[[a-z]+\])?"
        traceroute -n -T -q 2 -m 3 -p 80 "$V4" | tail -n +2 | grep -oE '^ *[0-9]+ +[^ ]+'
        traceroute -6 -n -T -q 2 -m 3 -p 80 "$V6" | tail -n +2 | grep -oE '^ *[0-9]+ +[^ ]+'
        mtr -n -r -c 3 -i 0.2 -m 3 --tcp -P 80 "$V4" | tail -n +2 | grep -oE '^ +[0-9]+\.\|-- [^ ]+ +[0-9.]+%' || true
    done
}
