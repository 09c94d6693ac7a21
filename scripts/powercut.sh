#!/usr/bin/env bash
# Cuts the power under the spool while mail is being accepted, and shows that nothing acknowledged is lost.
#
# The spool lies on a file system in an image on a second, lower file system. Shutting the LOWER one
# down without flushing its journal (FS_IOC_SHUTDOWN, flag 2) throws away whatever was not synced, as a
# disk with a volatile cache does when the power fails. Then both are mounted again, `spool verify` reads
# the spool as the cut left it, and the server recovers from it and goes on.
#
# Six of seven domains are delivered while the power fails, the seventh waits until the end: so outcomes,
# segments that are used again and survivors being copied meet the cuts as well. After the last round all
# is delivered, and what the load source was told is compared with what the sink has received.
#
# Needs root, loop devices, python3, mkfs.ext4 or mkfs.xfs. Usage:
#   scripts/powercut.sh [ROUNDS] [ext4|xfs] [extra `serve` flags, e.g. --durability os]
# With `--durability os` (no data sync) it must report lost mail: that proves the test can fail.
# Prints lost, duplicated, rounds, damaged (rounds after which verify found damage), how often the segments
# were written over; exits 1 if anything was lost, damaged or left, or if ten rounds used no segment again; with
# EXPECT_LOSS=1 if nothing was lost.
set -euo pipefail
rounds=${1:-3}
kind=${2:-ext4}
shift $(($# < 2 ? $# : 2))
[ "$(id -u)" = 0 ] || { echo "powercut.sh needs root (mounts)"; exit 2; }
cd "$(dirname "$0")/.."
binary=${RINGPOST:-target/release/ringpost}
[ -x "$binary" ] || { echo "build first: cargo build --release"; exit 2; }
binary=$(realpath "$binary")
work=$(mktemp -d -p "${WORK_DIR:-$PWD/target}" powercut.XXXXXX)
lower=$work/lower upper=$work/upper
mkdir "$lower" "$upper"
cp "$binary" "$work/ringpost"
binary=$work/ringpost
server=0 sink=0 load=0 large=0
# mountpoint(1) asks the file system, and one that was shut down does not answer.
is_mounted() { grep -q " $1 " /proc/mounts; }
unmount() {
  for at in "$upper" "$lower"; do
    for _ in $(seq 50); do
      is_mounted "$at" || break
      umount "$at" 2>/dev/null || sleep 0.1
    done
    if is_mounted "$at"; then umount -l "$at"; fi
  done
}
cleanup() {
  for pid in $server $sink $load $large; do [ "$pid" = 0 ] || kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  unmount
  rm -rf "$work"
}
trap cleanup EXIT

truncate -s 3G "$work/lower.img"
make() { case $kind in ext4) mkfs.ext4 -q -F "$1" ;; xfs) mkfs.xfs -q -f "$1" ;; *) echo "ext4 or xfs"; exit 2 ;; esac; }
make "$work/lower.img"
mount -o loop "$work/lower.img" "$lower"
truncate -s 2G "$lower/upper.img"
make "$lower/upper.img"
mount -o loop "$lower/upper.img" "$upper"
sync

cut_power() {
  python3 - "$lower" <<'PY'
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 2))
PY
}
# start_server FLAGS...: starts it on a free port and waits for `ready`; sets $server and $port.
start_server() {
  # The shell opens it for the server in its own time: the last one's `ready` must be gone before.
  : >"$work/server.log"
  "$binary" serve --listen 127.0.0.1:0 --hostname mta.test --spool "$upper/spool" --retry-schedule 1s \
    --segment-size 4MiB --workers 2 "$@" 2>"$work/server.log" &
  server=$!
  for _ in $(seq 3000); do
    grep -q '^ready$' "$work/server.log" && break
    kill -0 $server 2>/dev/null || { cat "$work/server.log"; exit 1; }
    sleep 0.1
  done
  grep -q '^ready$' "$work/server.log" || { echo "no ready"; cat "$work/server.log"; exit 1; }
  port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$work/server.log" | head -n 1)
}
# counter NAME: of the running server.
counter() {
  "$binary" queue summary --spool "$upper/spool" --json |
    python3 -c "import json,sys; print(json.load(sys.stdin)['report']['counters']['$1'])"
}

# The sink is another host: its power does not fail.
"$binary" sink --listen 127.0.0.1:0 --seen-log "$work/seen" --json >"$work/sink.json" 2>"$work/sink.log" &
sink=$!
for _ in $(seq 100); do
  to=$(grep -om1 '127.0.0.1:[0-9]*' "$work/sink.log" || true)
  [ -n "$to" ] && break
  sleep 0.1
done
[ -n "$to" ] || { echo "the sink did not start"; cat "$work/sink.log"; exit 1; }
touch "$work/acks" "$work/refused" "$work/seen"

written=0 damaged=0
for round in $(seq "$rounds"); do
  # Nothing listens on the discard port.
  start_server --route 'd6.test=127.0.0.1:9' --route "*=$to" "$@"
  # Small messages share a write; large ones lie in several that must all be durable before the 250.
  "$binary" load --to "127.0.0.1:$port" --duration 8s --connections 32 --recipients-per-message 3 --domains 7 \
    --rate 2000/s \
    --tolerate-errors --reply-timeout 5s --ack-log "$work/acks" --refused-log "$work/refused" >"$work/load.log" 2>&1 &
  load=$!
  "$binary" load --to "127.0.0.1:$port" --duration 8s --connections 4 --size 300KiB --rate 20/s \
    --tolerate-errors --reply-timeout 5s --ack-log "$work/acks" --refused-log "$work/refused" \
    >"$work/load-large.log" 2>&1 &
  large=$!
  sleep "$((2 + RANDOM % 3)).$((RANDOM % 10))"
  written=$((written + $(counter written_bytes)))
  cut_power
  kill -9 $server
  wait $server 2>/dev/null || true
  server=0
  kill $load $large 2>/dev/null || true
  wait $load $large || true
  unmount
  mount -o loop "$work/lower.img" "$lower"
  mount -o loop "$lower/upper.img" "$upper"
  # Read as the cut left it, by nobody but the offline reader: a cut is not damage.
  if ! "$binary" spool verify --spool "$upper/spool" >"$work/verify.txt"; then
    damaged=$((damaged + 1))
    head -n 5 "$work/verify.txt"
  fi
  if [ $((round % 5)) = 0 ]; then echo "round $round: acknowledged $(sort -u "$work/acks" | wc -l) so far"; fi
done
files=$(find "$upper/spool" -name 'seg-*' -printf '%s\n' | awk '{n += $1} END {print n + 0}')

start_server --route "*=$to" "$@"
# What was deferred for the seventh domain is tried at once.
"$binary" queue retry --all --spool "$upper/spool" >/dev/null
left=-1
for _ in $(seq 600); do
  left=$(counter queued_recipients_now)
  [ "$left" = 0 ] && break
  sleep 0.2
done
failed=0
kill $server
wait $server || { echo "the server ended with status $?"; failed=1; }
server=0
kill $sink
wait $sink || true
sink=0
python3 scripts/reconcile.py "$work/acks" "$work/seen" >"$work/balance" || true
cat "$work/balance"
echo "rounds $rounds, $kind, flags: ${*:-none}; damaged $damaged, left $left; written $((written >> 20)) MiB to $((files >> 20)) MiB of segments"
if [ "${EXPECT_LOSS:-0}" = 1 ]; then
  ! grep -q 'lost 0,' "$work/balance" || { echo "FAILED: nothing was lost"; failed=1; }
else
  grep -q 'lost 0,' "$work/balance" || { echo "FAILED: acknowledged mail is lost"; failed=1; }
  [ $damaged = 0 ] || { echo "FAILED: the spool was damaged"; failed=1; }
  [ "$left" = 0 ] || { echo "FAILED: mail is left"; failed=1; }
fi
# A log grows to its size first: a few rounds do not go round it.
[ "$rounds" -lt 10 ] || [ "$written" -gt "$files" ] || { echo "FAILED: no segment was used again"; failed=1; }
exit $failed
