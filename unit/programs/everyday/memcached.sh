# needs: memcached nc memccp memccat memcping
# ports: 11211
serve() { exec memcached -u root -U 0 -l "$V4,$V6" -I 8m; }
ask() {
    for ip in $V4 $V6; do
        printf 'set key 0 0 5\r\nhello\r\nget key\r\nincr none 1\r\nquit\r\n' | nc "$ip" 11211
    done
    memcping --servers="$V4:11211"
    memccp --servers="$V4:11211" "$D/payload" && memccat --servers="$V4:11211" payload | head -c 3000000 | same
}
