#!/usr/bin/env bash
# Cuts the power under the spool while mail is being accepted, and shows that nothing acknowledged is lost.
#
# The spool lies on a file system in an image on a second, lower file system. Shutting the LOWER one
# down without flushing its journal (FS_IOC_SHUTDOWN, flag 2) throws away whatever was not synced, as a
# disk with a volatile cache does when the power fails. Then both are mounted again, the server recovers,
# and what the load source was told is compared with what the sink receives.
#
# Needs root, loop devices, python3, mkfs.ext4. Usage:
#   scripts/powercut.sh [ROUNDS] [ext4|xfs] [extra `serve` flags, e.g. --durability os]
# With `--durability os` (no data sync) it must report lost mail: that proves the test can fail.
# Prints lost, duplicated, rounds; exits 1 if anything was lost; with EXPECT_LOSS=1 if nothing was.
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
# start_server LOG FLAGS...: starts it on a free port and waits for `ready`; sets $server and $port.
start_server() {
  local log=$1
  shift
  # The shell opens it for the server in its own time: the last one's `ready` must be gone before.
  : >"$log"
  "$binary" serve --listen 127.0.0.1:0 --hostname mta.test --spool "$upper/spool" "$@" 2>"$log" &
  server=$!
  for _ in $(seq 3000); do
    grep -q '^ready$' "$log" && break
    kill -0 $server 2>/dev/null || { cat "$log"; exit 1; }
    sleep 0.1
  done
  grep -q '^ready$' "$log" || { echo "no ready"; cat "$log"; exit 1; }
  port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$log" | head -n 1)
}

for round in $(seq "$rounds"); do
  # Nothing listens on the discard port: mail is accepted and stays queued.
  start_server "$work/server.log" --route '*=127.0.0.1:9' --retry-schedule 1s --segment-size 16MiB "$@"
  # Small messages share a write; large ones lie in several that must all be durable before the 250.
  "$binary" load --to "127.0.0.1:$port" --duration 6s --connections 32 --recipients-per-message 3 --domains 7 \
    --rate 3000/s \
    --tolerate-errors --reply-timeout 5s --ack-log "$work/acks" >"$work/load.log" 2>&1 &
  load=$!
  "$binary" load --to "127.0.0.1:$port" --duration 6s --connections 4 --size 300KiB --rate 20/s \
    --tolerate-errors --reply-timeout 5s --ack-log "$work/acks" >"$work/load-large.log" 2>&1 &
  large=$!
  sleep "$((1 + RANDOM % 2)).$((RANDOM % 10))"
  cut_power
  kill -9 $server
  wait $server 2>/dev/null || true
  server=0
  kill $load $large 2>/dev/null || true
  wait $load $large || true
  unmount
  mount -o loop "$work/lower.img" "$lower"
  mount -o loop "$lower/upper.img" "$upper"
  echo "round $round: acknowledged $(sort -u "$work/acks" | wc -l) so far"
done

"$binary" sink --listen 127.0.0.1:0 --seen-log "$work/seen" --quiet-exit 10s --json >"$work/sink.json" 2>"$work/sink.log" &
sink=$!
for _ in $(seq 100); do
  to=$(grep -om1 '127.0.0.1:[0-9]*' "$work/sink.log" || true)
  [ -n "$to" ] && break
  sleep 0.1
done
start_server "$work/server.log" --route "*=$to" --retry-schedule 1s --segment-size 16MiB "$@"
touch "$work/seen"
wait $sink || true
sink=0
kill $server
wait $server || true
server=0
sort -u "$work/acks" >"$work/acks.sorted"
sort "$work/seen" >"$work/seen.sorted"
uniq "$work/seen.sorted" >"$work/seen.unique"
lost=$(comm -23 "$work/acks.sorted" "$work/seen.unique" | wc -l)
duplicated=$(($(wc -l <"$work/seen.sorted") - $(wc -l <"$work/seen.unique")))
echo "acknowledged $(wc -l <"$work/acks.sorted"), lost $lost, duplicated $duplicated, rounds $rounds, $kind, flags: ${*:-none}"
grep -i 'recovery' "$work/server.log" | head -n 5 || true
"$binary" spool verify --spool "$upper/spool" || true
if [ "${EXPECT_LOSS:-0}" = 1 ]; then [ "$lost" != 0 ]; else [ "$lost" = 0 ]; fi
