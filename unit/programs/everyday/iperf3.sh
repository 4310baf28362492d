# needs: iperf3 python3
# ports: 5201
serve() { exec iperf3 -s >"$D/iperf3.log" 2>&1; }
ask() {
    cat >tell.py <<'PYTHON'
import json, sys
said = json.load(sys.stdin)
end = said.get("end", {})
streams = len(end.get("streams", []))
# The receiver stops counting when the sender says that it is done.
enough = all(end[key]["bytes"] >= 1 << 20 for key in end if key.startswith("sum_"))
print(said.get("error", "no error"), streams, "streams,", "enough bytes" if enough else "too few bytes")
PYTHON
    for ip in $V4 $V6; do
        for how in "" "-R" "--bidir" "-P 4" "-P 4 -R" "-M 536" "-Z" "-w 32K -R" "-N -l 1000"; do
            echo "iperf3 $how: $(iperf3 -c "$ip" -n 10M $how -J | python3 tell.py)"
        done
    done
}
