# needs: mosquitto mosquitto_sub mosquitto_pub
# ports: 1883
serve() {
    printf 'listener 1883\nallow_anonymous true\nuser root\nmessage_size_limit 0\n' >"$D/mosquitto.conf"
    exec mosquitto -c "$D/mosquitto.conf" 2>"$D/mosquitto.log"
}
ask() {
    for ip in $V4 $V6; do
        mosquitto_sub -h "$ip" -t all/# -C 100 -W 20 -q 1 >got &
        mosquitto_sub -h "$ip" -t payload -C 1 -W 20 -N >file &
        sleep 1
        seq 100 | mosquitto_pub -h "$ip" -t all/of -l -q 1
        mosquitto_pub -h "$ip" -t payload -f "$D/payload" -q 2
        wait
        md5sum <got
        same file
    done
}
