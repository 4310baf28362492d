# needs: nc
# ports: 9001 9002
serve() {
    # One sends to each client, one keeps what comes.
    (while true; do nc -N -6 -l 9001 <"$D/payload" >/dev/null || true; done) &
    (while true; do nc -N -4 -l 9001 <"$D/payload" >/dev/null || true; done) &
    (while true; do nc -6 -l 9002 >>"$D/kept6" || true; done) &
    while true; do nc -4 -l 9002 >>"$D/kept4" || true; done
}
ask() {
    for ip in $V4 $V6; do
        nc -d "$ip" 9001 | same
        nc -N "$ip" 9002 <"$D/payload"
        sleep 0.5
        same "$D/kept$([ "$ip" = "$V4" ] && echo 4 || echo 6)"
        # So long is a port between two of its programs that nobody listens.
        nc -z -w 5 "$ip" 9002 && echo "open"
        sleep 0.5
    done
}
