#!/bin/bash
# The end-to-end tests on interfaces of several queues, with as many workers, and with every frame in another worker's hands first.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for queues in 2 4; do
    for steer in handoff everything; do
        echo "queues: $queues, steering: $steer"
        QUEUES=$queues STEER=$steer setpriv --pdeathsig TERM -- cargo test -p unit --test e2e || status=$?
    done
done
exit $status
