#!/bin/bash
# Draws where the worker's time goes, under a flood of SYNs and under bulk: docs/flame-flood.svg and docs/flame-bulk.svg. As root, on
# a machine that does nothing else. Needs perf (Debian: linux-perf) and inferno (cargo install inferno); both are only for this.
set -euo pipefail
cd "$(dirname "$0")/../.."
for tool in perf inferno-collapse-perf inferno-flamegraph; do
    command -v $tool >/dev/null || { echo "flame: $tool is missing (apt-get install linux-perf; cargo install inferno)" >&2; exit 1; }
done
cargo build --release --workspace --bins
work=$(mktemp -d)
load=
trap 'rm -rf "$work"; [ -z "$load" ] || kill "$load" 2>/dev/null || true' EXIT

# Of the frames of a stack: generic arguments say nothing here, and what starts a thread is the same in all of them.
tidy() {
    awk '{
        count = $NF; sub(/ [0-9]+$/, ""); n = split($0, frames, ";"); line = ""; last = ""
        for (i = 1; i <= n; i++) {
            frame = frames[i]
            if (frame ~ /^(\[unknown\]|__rust_begin|catch_unwind|do_call|call_once|\{closure#[01]\}|std::sys::(backtrace|pal|thread)|std::panicking|core::ops::function|start_thread|clone|__clone|<?alloc::boxed)/) continue
            if (frame !~ /^</) sub(/<.*/, "", frame)
            else if (match(frame, /^<[^ ]+ as .*>::/)) { type = substr(frame, 2); sub(/ as .*/, "", type); sub(/^.*>::/, "", frame); frame = type "::" frame }
            if (frame == last) continue
            line = line (line == "" ? "" : ";") frame; last = frame
        }
        print line, count
    }'
}

# Whether the worker has computed for seven tenths of the last second.
busy() {
    local before after
    before=$(computed)
    sleep 1
    after=$(computed)
    ((after - before > 70))
}

# What the worker has computed so far, in hundredths of a second.
computed() {
    { grep -sh '(worker 0)' /proc/[0-9]*/task/[0-9]*/stat || true; } | awk '{ sub(/^.*\) /, ""); sum += $12 + $13 } END { print sum + 0 }'
}

draw() {
    local name=$1 title=$2
    shift 2
    cargo bench -q -p unit --bench wire -- --seconds=12 "$@" cookies >/dev/null 2>"$work/$name.log" &
    load=$!
    # Until the rows' rig stands: first the generator is measured alone.
    until grep -q '^round' "$work/$name.log"; do
        kill -0 $load || exit 1
        sleep 0.2
    done
    # And then until the worker is at work: for more than it takes to start; to take down the first rig can take the kernel ten seconds.
    until busy && busy; do kill -0 $load || exit 1; done
    # Before the load, which leaves others next to nothing: it would be ready when all is over.
    nice -n -20 perf record -q -e cpu-clock -F 1499 -m 8192 --call-graph dwarf,2048 -C 0 -a -o "$work/$name" -- sleep 6 >/dev/null
    wait $load
    load=
    perf script -i "$work/$name" --comm 'worker 0' 2>/dev/null | inferno-collapse-perf 2>/dev/null | tidy |
        inferno-flamegraph --title "$title" --countname ns --minwidth 0.2 >"docs/flame-$name.svg"
}

draw flood "The worker under a flood of SYNs, cookies alone" IPv6
draw bulk "The worker under bulk, to the server and to the client" "in peace"
