# needs: rpcbind rpcinfo
# ports: 111
serve() { exec rpcbind -f -w; }
ask() {
    rpcinfo -p "$V4" | tr -s ' '
    for ip in $V4 $V6; do
        rpcinfo "$ip" | grep -E ' tcp6? ' | tr -s ' '
    done
    rpcinfo -n 111 -t "$V4" 100000 2>&1 || echo "status $?"
    rpcinfo -n 111 -t "$V4" 100099 2>&1 || echo "status $?"
}
