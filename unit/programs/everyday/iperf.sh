# needs: iperf
# ports: 5001
serve() {
    # This server now and then writes over its own memory when several clients come at once, over the loopback too: it is started again, and that noted.
    while :; do
        ended=0
        iperf -s -V >"$D/iperf.log" 2>&1 || ended=$?
        echo "$ended" >>"$D/crashes"
    done
}
crashes() { wc -l <"$D/crashes"; }
# What the client said, from a run in which the server did not crash.
whole() {
    local before
    for _ in $(seq 40); do
        before=$(crashes)
        iperf "$@" >said 2>&1 || true
        sleep 0.2
        [ "$(crashes)" = "$before" ] && return
        sleep 1
    done
    echo "the server crashed forty times" >said
    return 1
}
ask() {
    touch "$D/crashes"
    for how in "" "-R" "-P 4" "--full-duplex"; do
        whole -c "$V4" -n 8M $how && echo "iperf $how: $(grep -ciE 'refused|failed|error' said) errors"
    done
    whole -V -c "$V6" -n 8M && echo "iperf -V: $(grep -ciE 'refused|failed|error' said) errors"
}
