#!/usr/bin/env bash
# Can the load tools be trusted? What they cost, and what they measure of things that are known otherwise.
#
#   cost          CPU of source and of sink per pipelined message of 4 KiB on 64 connections that are used
#                 again, the kernel's work on their sockets included: at most 14 µs each, or this fails. On
#                 one connection alone each message wakes each side, which costs more and is shown
#   bottleneck    source and sink alone, as fast as they go: one of them must say that it was the bottleneck
#   known         10 ms injected are measured within 1 % (the way there and back, measured without, taken
#                 off the median), a stall of 1 s is not omitted, smtp-sink -c counts
#                 the same, a seed repeats a run, receivers do as their models say, HdrHistogram's Python port
#                 reads the log, a browser draws the page in light and dark, and what is late, not begun,
#                 or of another run is said to be
#
# A quiet machine is needed. The last need, on Debian: apt-get install --no-install-recommends postfix chromium python3-venv
# Usage: scripts/instrument.sh [ROUNDS]      default 3; ends with status 1 if anything is not as it should be
set -euo pipefail
rounds=${1:-3}
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin
binary=${RINGPOST:-target/release/ringpost}
[ -x "$binary" ] || { echo "build first: cargo build --release"; exit 2; }
work=$(mktemp -d -p "${WORK_DIR:-$PWD/target}" instrument.XXXXXX)
trap 'rm -rf "$work"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

for round in $(seq "$rounds"); do
  for connections in 1 64; do
    at=127.0.0.1:$(free_port)
    "$binary" load --to "$at" --sink "$at" --connections "$connections" --messages 150000 --json \
      2>/dev/null >"$work/$connections-$round.json"
  done
done
python3 - "$work" "$rounds" <<'PYTHON'
import json, statistics, sys
work, rounds = sys.argv[1], int(sys.argv[2])
failed = False
print("| connections | messages/s | source, µs of CPU per message | sink |")
print("|---:|---:|---:|---:|")
for connections in (1, 64):
    runs = [json.load(open(f"{work}/{connections}-{n}.json")) for n in range(1, rounds + 1)]
    assert all(run["verdict"]["missing"] == 0 and run["verdict"]["duplicates"] == 0 for run in runs), "mail was lost"
    cells = []
    for values in ([run["rate"] for run in runs], [run["cpu_us_per_message"] for run in runs],
                   [run["sink"]["cpu_us_per_message"] for run in runs]):
        digits = 0 if values[0] > 1000 else 1
        cells.append(f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})")
    print(f"| {connections} | {' | '.join(cells)} |")
    for side in ("source", "sink"):
        cost = statistics.median(run["cpu_us_per_message"] if side == "source"
                                 else run["sink"]["cpu_us_per_message"] for run in runs)
        if cost > 14 and connections > 1:
            failed = True
            print(f"FAILED: the {side} takes {cost:.1f} µs of CPU per message")
    if connections == 64 and not all("bottleneck" in " ".join(run["warnings"]) or
                                     "waited for a processor" in " ".join(run["warnings"]) for run in runs):
        failed = True
        print("FAILED: nobody said that the tools themselves were the bottleneck")
sys.exit(failed)
PYTHON

if python3 -m venv "$work/python" && "$work/python/bin/pip" -q install hdrhistogram; then
  export RINGPOST_TEST_PYTHON=$work/python/bin/python
fi
# A test whose tool is missing fails here instead of being skipped.
export RINGPOST_TEST_QUIET=1 RINGPOST_TEST_REQUIRE=1
cargo test -q --release -p ringpost-loadgen --test instrument --test honesty --test receivers -- \
  --nocapture --test-threads 1
cargo test -q -p ringpost-loadgen --lib html -- --nocapture
