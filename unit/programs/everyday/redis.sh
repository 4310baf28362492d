# needs: redis-server redis-cli redis-benchmark
# ports: 6379
serve() {
    cd "$D"
    exec redis-server --bind '*' '-::*' --protected-mode no --save '' --appendonly no --logfile "$D/redis.log"
}
ask() {
    for ip in $V4 $V6; do
        ask="redis-cli -h $ip"
        $ask ping
        $ask set greeting hello
        $ask get greeting
        $ask -x set payload <"$D/payload"
        $ask --raw get payload | head -c 3000000 | same
        seq 1000 | sed 's/.*/set key& value&/' | $ask --pipe 2>&1 | grep -E '^(errors|ERR)'
        $ask dbsize
        (sleep 1; $ask publish news "it is late" >/dev/null) &
        timeout 2 $ask subscribe news | tail -n 3 || true
        redis-benchmark -h "$ip" -n 2000 -c 20 -P 4 -t set,get,lpush --csv | cut -d, -f1
        $ask flushall
    done
}
