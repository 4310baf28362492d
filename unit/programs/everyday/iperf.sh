# needs: iperf
# ports: 5001
serve() {
    exec iperf -s -V >"$D/iperf.log" 2>&1
}
ask() {
    for how in "" "-d" "-r" "-P 4"; do
        iperf -c "$V4" -n 8M $how >said 2>&1 && echo "iperf $how: $(grep -ciE 'refused|failed|error' said) errors"
    done
    iperf -V -c "$V6" -n 8M >said 2>&1 && echo "iperf -V: $(grep -ciE 'refused|failed|error' said) errors"
}
