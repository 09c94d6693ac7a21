#!/usr/bin/env bash
# kill -9 under load, over and over: shows that no acknowledged mail is lost.
#
# Each round starts the server on one and the same spool (one worker, two, one, …), sends it messages of
# mixed sizes and several recipients, and kills it at a random moment. After the last round the books are
# balanced: every delivery that the load source was told is accepted must be in the sink's log or, as a
# recipient that waits, in `spool dump`. Then the server runs once more until the spool is empty, and the
# sink alone must have them all.
#
# A kill loses no write that the kernel has taken: what is shown here is the order of things within the
# process and its recovery. scripts/powercut.sh shows that writes reach the disk.
#
# Usage: scripts/crash.sh [ROUNDS] [SEED] [extra `serve` flags …]
# Needs: python3. Environment: RINGPOST (the binary), WORK_DIR (where the spool goes).
# Prints rounds, seed, acknowledged, lost, duplicated; exits 1 if anything was lost, is left in the spool, or was
# delivered although the load source was told that it is refused.
set -euo pipefail
rounds=${1:-20}
seed=${2:-$((RANDOM * 32768 + RANDOM))}
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/.."
binary=${RINGPOST:-target/release/ringpost}
[ -x "$binary" ] || { echo "build first: cargo build --release"; exit 2; }
work=$(mktemp -d -p "${WORK_DIR:-$PWD/target}" crash.XXXXXX)
cp "$binary" "$work/ringpost"
binary=$work/ringpost
RANDOM=$((seed % 32768))
server=0 sink=0
loads=()
cleanup() {
  for pid in $server $sink "${loads[@]:-0}"; do [ "$pid" = 0 ] || kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# start_server FLAGS...: starts it on a free port and waits for `ready`; sets $server and $port.
start_server() {
  # The shell opens it for the server in its own time: the last one's `ready` must be gone before.
  : >"$work/server.log"
  "$binary" serve --listen 127.0.0.1:0 --hostname mta.test --spool "$work/spool" --route "*=$to" \
    --retry-schedule 1s --segment-size 8MiB "$@" 2>"$work/server.log" &
  server=$!
  for _ in $(seq 6000); do
    grep -q '^ready$' "$work/server.log" && break
    kill -0 $server 2>/dev/null || { cat "$work/server.log"; exit 1; }
    sleep 0.05
  done
  grep -q '^ready$' "$work/server.log" || { echo "no ready"; cat "$work/server.log"; exit 1; }
  port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$work/server.log" | head -n 1)
}
# start_load SIZE RECIPIENTS CONNECTIONS RATE
start_load() {
  "$binary" load --to "127.0.0.1:$port" --duration 4s --size "$1" --recipients-per-message "$2" --domains 7 \
    --connections "$3" --rate "$4" --tolerate-errors --reply-timeout 5s --ack-log "$work/acks" --refused-log "$work/refused" >>"$work/load.log" 2>&1 &
  loads+=($!)
}

"$binary" sink --listen 127.0.0.1:0 --seen-log "$work/seen" --json >"$work/sink.json" 2>"$work/sink.log" &
sink=$!
for _ in $(seq 100); do
  to=$(grep -om1 '127.0.0.1:[0-9]*' "$work/sink.log" || true)
  [ -n "$to" ] && break
  sleep 0.1
done
[ -n "$to" ] || { echo "the sink did not start"; cat "$work/sink.log"; exit 1; }
touch "$work/acks" "$work/refused" "$work/seen" "$work/server.log"

sizes=(1KiB 4KiB 20KiB 40KiB 100KiB 200KiB 600KiB)
for round in $(seq "$rounds"); do
  start_server --workers $((1 + round % 2)) "$@"
  loads=()
  # Bounded, or the backlog of all rounds would have to be recovered in each.
  start_load "${sizes[RANDOM % 3]}" $((1 + RANDOM % 5)) 16 1500/s
  start_load "${sizes[3 + RANDOM % 4]}" $((1 + RANDOM % 3)) 4 40/s
  sleep "$((RANDOM % 3)).$((3 + RANDOM % 7))$((RANDOM % 10))"
  kill -9 $server
  wait $server 2>/dev/null || true
  server=0
  # The load would only wait for a server that is gone.
  kill "${loads[@]}" 2>/dev/null || true
  wait "${loads[@]}" 2>/dev/null || true
  if [ $((round % 10)) = 0 ]; then echo "round $round: $(sort -u "$work/acks" | wc -l) acknowledged so far"; fi
done

# The spool as the last kill left it, read by nobody but the offline reader.
"$binary" spool verify --spool "$work/spool" >"$work/verify.txt" || { cat "$work/verify.txt"; exit 1; }
"$binary" spool dump --spool "$work/spool" --header X-Ringpost-Load --json >"$work/queued.json"
# Nothing is put off: what is wrong here is wrong, but the second balance says more of it.
failed=0
python3 scripts/reconcile.py --refused "$work/refused" "$work/acks" "$work/seen" "$work/queued.json" >"$work/first" || failed=1

start_server "$@"
left=-1
for _ in $(seq 600); do
  left=$("$binary" queue summary --spool "$work/spool" --json |
    python3 -c 'import json,sys; print(json.load(sys.stdin)["report"]["counters"]["queued_recipients_now"])')
  [ "$left" = 0 ] && break
  sleep 0.2
done
kill $server
wait $server || { echo "the server ended with status $?"; failed=1; }
server=0
# The log of the sink is whole once it has ended.
kill $sink 2>/dev/null || true
wait $sink || true
sink=0
echo "rounds $rounds, seed $seed, flags: ${*:-none}; spool after the last kill, then after delivery ($left recipients left):"
cat "$work/first"
# No dump any more: whatever is not in the sink is lost.
python3 scripts/reconcile.py --refused "$work/refused" "$work/acks" "$work/seen" || failed=1
[ "$left" = 0 ] || { echo "FAILED: $left recipients are left in the spool"; failed=1; }
exit $failed
