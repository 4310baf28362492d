# needs: iperf
# ports: 5001
serve() {
    exec iperf -s -V >"$D/iperf.log" 2>&1
}
ask() {
    for how in "" "-R" "-P 4" "--full-duplex"; do
        iperf -c "$V4" -n 8M $how >said 2>&1 && echo "iperf $how: $(grep -ciE 'refused|failed|error' said) errors"
    done
    iperf -V -c "$V6" -n 8M >said 2>&1 && echo "iperf -V: $(grep -ciE 'refused|failed|error' said) errors"
}
