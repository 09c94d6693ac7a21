#!/usr/bin/env bash
# Gives the disk under a running server one trouble after the other, and watches what it does.
#
#   full      the file system fills up: 452 4.3.1, deliveries go on, and new mail is taken again by itself
#   limit     the same with --spool-limit instead of a full disk
#   sync      a write or sync fails below the file system (EIO, once, under load): 451, never a false 250
#   enospc    the device below the file system refuses writes with ENOSPC: the same
#   readonly  the file system turns read-only under the server: 451, the process stays, nothing is lost
#   stall     the file system stands still for seconds: sessions wait, memory does not grow, nothing is lost
#   removed   the spool directory is deleted under the server: 451, said loudly
#   clock     mail accepted while the clock was ten days ahead is delivered when it is right again
#
# Usage: scripts/trouble.sh [SCENARIO …]      (all without arguments)
# Needs root, loop devices, python3, e2fsprogs; sync and enospc: qemu-storage-daemon and fuse3; clock:
# faketime. What is missing is skipped with a message. apt-get install qemu-utils qemu-system-common fuse3
# faketime. Exits 1 if any scenario failed.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "trouble.sh needs root (mounts)"; exit 2; }
cd "$(dirname "$0")/.."
repository=$PWD
binary=${RINGPOST:-target/release/ringpost}
[ -x "$binary" ] || { echo "build first: cargo build --release"; exit 2; }
# A scenario runs as a process of its own, in the directory of the first: only so does every command in it count.
only=${TROUBLE_SCENARIO:-}
if [ -z "$only" ]; then
  work=$(mktemp -d -p "${WORK_DIR:-$PWD/target}" trouble.XXXXXX)
  cp "$binary" "$work/ringpost"
  mkdir "$work/disk"
else
  work=$TROUBLE_WORK
fi
binary=$work/ringpost
server=0 sink=0 load=0 storage=0 device='' disk=$work/disk spool=$work/disk/spool

unmount() {
  for _ in $(seq 50); do
    grep -q " $disk " /proc/mounts || break
    umount "$disk" 2>/dev/null || sleep 0.1
  done
  if grep -q " $disk " /proc/mounts; then umount -l "$disk"; fi
  if [ -n "$device" ]; then losetup -d "$device" 2>/dev/null || true; device=''; fi
  if [ "$storage" != 0 ]; then kill "$storage" 2>/dev/null || true; wait "$storage" 2>/dev/null || true; storage=0; fi
}
end_processes() {
  for pid in $server $sink $load; do [ "$pid" = 0 ] || kill -9 "$pid" 2>/dev/null || true; done
  wait $server $sink $load 2>/dev/null || true
  server=0 sink=0 load=0
}
cleanup() {
  fsfreeze -u "$disk" 2>/dev/null || true
  end_processes
  unmount
  rm -rf "$work"
}
[ -n "$only" ] || trap cleanup EXIT

# What a scenario ends with that cannot run here.
SKIPPED=77
skip() { echo "   skipped: $*"; exit $SKIPPED; }
say() { echo "   $*"; }
fail() { echo "FAILED: $*"; tail -n 20 "$work/server.log" | cut -c1-300; exit 1; }

# mount_image MIB: an ext4 image of its own on a loop device.
mount_image() {
  rm -f "$work/disk.img"
  truncate -s "$1M" "$work/disk.img"
  mkfs.ext4 -q -F "$work/disk.img"
  mount -o loop "$work/disk.img" "$disk"
}
start_server() {
  : >"$work/server.log"
  "${prefix[@]}" "$binary" serve --listen 127.0.0.1:0 --hostname mta.test --spool "$spool" --retry-schedule 1s \
    --segment-size 4MiB --workers 2 "$@" 2>"$work/server.log" &
  server=$!
  for _ in $(seq 3000); do
    grep -q '^ready$' "$work/server.log" && break
    kill -0 $server 2>/dev/null || fail "the server does not start"
    sleep 0.1
  done
  port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$work/server.log" | head -n 1)
  [ -n "$port" ] || fail "no ready"
}
prefix=(env)
start_sink() {
  : >"$work/sink.log"
  "$binary" sink --listen "127.0.0.1:${1:-0}" --seen-log "$work/seen" --json >"$work/sink.json" 2>"$work/sink.log" &
  sink=$!
  for _ in $(seq 100); do
    to=$(grep -om1 '127.0.0.1:[0-9]*' "$work/sink.log" || true)
    [ -n "$to" ] && return
    sleep 0.1
  done
  fail "the sink does not start"
}
# start_load FLAGS...
start_load() {
  "$binary" load --to "127.0.0.1:$port" --connections 16 --tolerate-errors --reply-timeout 60s \
    --ack-log "$work/acks" --refused-log "$work/refused" --json "$@" >"$work/load.json" 2>"$work/load.log" &
  load=$!
}
# send [BYTES]: one message; prints the code of the final reply, or of the first refusal.
send() { python3 "$repository/scripts/send_one.py" "$port" "${1:-2000}"; }
# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
  local left=$(($1 * 5))
  shift
  until "$@"; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.2
  done
}
accepts() { [ "$(send)" = 250 ]; }
refuses_452() { [ "$(send)" = '452 4.3.1' ]; }
refuses_451() { case "$(send)" in 451*) true ;; *) false ;; esac }
counter() {
  "$binary" queue summary --spool "$spool" --json |
    python3 -c "import json,sys; print(json.load(sys.stdin)['report']['counters']['$1'])"
}
is_empty() { [ "$(counter queued_recipients_now)" = 0 ]; }
# An orderly end.
stop_server() {
  kill $server || fail "the server was gone"
  wait $server || fail "the server ended with status $?"
  server=0
}
# Everything acknowledged is in the sink, or waits in the spool (which must be readable); nothing refused is.
balance() {
  "$binary" spool dump --spool "$spool" --header X-Ringpost-Load --json >"$work/queued.json" || fail "the spool is unreadable"
  touch "$work/acks" "$work/refused" "$work/seen"
  python3 scripts/reconcile.py --refused "$work/refused" "$work/acks" "$work/seen" "$work/queued.json" >"$work/balance" || true
  sed 's/^/   /' "$work/balance"
  grep -q 'lost 0,' "$work/balance" || fail "acknowledged mail is lost"
  grep -q 'delivered although refused 0$' "$work/balance" || fail "refused mail is delivered"
}

# fill_up FLAGS: mail is taken until there is no room; then all of it is delivered, and there is room again.
fill_up() {
  start_server --route '*=127.0.0.1:9' "$@"
  start_load --messages 3000 --size 64KiB
  wait_for 60 refuses_452 || fail "no 452 4.3.1 when the disk is full"
  kill $load 2>/dev/null || true
  wait $load || true
  load=0
  kill -0 $server || fail "the server ended"
  say "full: $(counter accepted_messages) accepted, then $(send)"
  is_up=$(counter queued_messages_now)
  stop_server
  start_sink
  start_server --route "*=$to" "$@"
  wait_for 120 is_empty || fail "$(counter queued_recipients_now) of $is_up are not delivered from a full spool"
  wait_for 20 accepts || fail "it does not take mail again: $(send)"
  say "delivered $is_up messages out of a full spool, then $(send)"
  stop_server
  balance
}
scenario_full() {
  mount_image 96
  fill_up
  full_of_others
}
# Somebody else fills the disk under a running server, and makes room again.
full_of_others() {
  # A log that has its full size already would fill the disk by itself.
  rm -rf "$spool"
  # What is delivered makes room: nobody takes it yet.
  start_server --route '*=127.0.0.1:9'
  accepts || fail "no mail is taken"
  dd if=/dev/zero of="$disk/filler" bs=1M 2>/dev/null || true
  # Past the spare segments the log needs new ones.
  start_load --messages 2000 --size 64KiB
  wait_for 30 refuses_452 || fail "no 452 4.3.1 with the disk full of other things: $(send)"
  kill -0 $server || fail "the server ended"
  say "with the disk full of other things: $(send)"
  kill $load 2>/dev/null || true
  wait $load || true
  load=0
  rm "$disk/filler"
  wait_for 20 accepts || fail "it does not take mail again: $(send)"
  stop_server
  start_server --route "*=$to"
  wait_for 60 is_empty || fail "mail is left"
  stop_server
  balance
}
scenario_limit() {
  mount_image 512
  fill_up --spool-limit 100MiB
}

# below KIND ERRNO EVENT COUNT: a device that answers the COUNTth EVENT with an error, once.
below() {
  for tool in qemu-storage-daemon fusermount3; do
    command -v $tool >/dev/null || skip "$tool is not installed"
  done
  truncate -s 768M "$work/disk.img"
  python3 - "$1" "$2" "$3" >"$work/blkdebug.conf" <<'PY'
import sys
errno, event, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(1, count):
    print(f'[set-state]\nstate = "{n}"\nevent = "{event}"\nnew_state = "{n + 1}"')
print(f'[inject-error]\nstate = "{count}"\nevent = "{event}"\nerrno = "{errno}"\nonce = "on"')
PY
  touch "$work/export.img"
  qemu-storage-daemon \
    --blockdev driver=file,node-name=file,filename="$work/disk.img" \
    --blockdev driver=blkdebug,node-name=faulty,image=file,config="$work/blkdebug.conf" \
    --blockdev driver=raw,node-name=top,file=faulty \
    --export type=fuse,id=export,node-name=top,mountpoint="$work/export.img",writable=on 2>"$work/storage.log" &
  storage=$!
  wait_for 10 grep -q "$work/export.img" /proc/mounts || { cat "$work/storage.log"; exit 1; }
  device=$(losetup --find --show "$work/export.img")
  # Without a journal: the error of a journal turns the file system read-only, which `readonly` shows.
  mkfs.ext4 -q -F -O ^has_journal "$device"
  mount "$device" "$disk"
}
# The error comes somewhere in the middle of a load; what was acknowledged must be there.
broken() {
  start_sink
  start_server --route "*=$to"
  start_load --duration 20s --rate 400/s --size 8KiB
  wait_for 30 has_lost_groups || { say "no write failed in time"; }
  lost=$(counter groups_lost)
  wait_for 20 accepts || fail "it does not take mail again: $(send)"
  wait $load || true
  load=0
  say "$lost groups lost; load: $(python3 -c "import json; r=json.load(open('$work/load.json')); print(r['accepted'], 'accepted, errors', r.get('errors'))")"
  [ "$lost" != 0 ] || fail "no error reached the log: nothing was shown"
  wait_for 60 is_empty || fail "mail is left"
  say "then $(send)"
  kill -9 $server
  wait $server || true
  # The state on disk must bear it out, not only the memory of the process.
  start_server --route "*=$to"
  wait_for 60 is_empty || fail "mail is left"
  stop_server
  balance
  "$binary" spool verify --spool "$spool" >"$work/verify.txt" || { cat "$work/verify.txt"; fail "the spool is damaged"; }
  sed 's/^/   /' "$work/verify.txt"
}
has_lost_groups() { [ "$(counter groups_lost)" != 0 ]; }
scenario_sync() {
  below 5 flush_to_disk "${FLUSHES:-150}"
  broken
}
scenario_enospc() {
  below 28 pwritev "${WRITES:-1500}"
  broken
}

scenario_readonly() {
  mount_image 256
  mount -o remount,errors=remount-ro "$disk"
  start_sink
  start_server --route "*=$to"
  start_load --duration 6s --rate 300/s --size 8KiB
  sleep 2
  device_name=$(basename "$(findmnt -no SOURCE "$disk")")
  echo 1 >"/sys/fs/ext4/$device_name/trigger_fs_error"
  wait_for 10 refuses_451 || fail "a read-only spool takes mail: $(send)"
  wait $load || true
  load=0
  kill -0 $server || fail "the server ended"
  say "read-only: $(send); $(counter unwritable_logs_now) logs unwritable, $(counter queued_recipients_now) queued"
  kill $server
  wait $server || true
  server=0
  umount "$disk"
  e2fsck -fy "$work/disk.img" >/dev/null || true
  mount -o loop "$work/disk.img" "$disk"
  start_server --route "*=$to"
  wait_for 60 is_empty || fail "mail is left"
  accepts || fail "no mail is taken after the repair"
  stop_server
  balance
}

rss() { awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$server/status"; }
scenario_stall() {
  mount_image 512
  start_sink
  start_server --route "*=$to" --control 127.0.0.1:0
  start_load --duration 14s --size 16KiB
  sleep 3
  before=$(rss) sessions=$(counter sessions_now)
  fsfreeze -f "$disk"
  sleep 1
  begin=$(counter accepted_messages)
  sleep 6
  during=$(rss) end=$(counter accepted_messages)
  fsfreeze -u "$disk"
  say "RSS $before MiB before, $during MiB after 7 s of standstill; $sessions sessions; accepted meanwhile: $((end - begin))"
  [ "$begin" = "$end" ] || fail "mail is acknowledged that cannot be on disk"
  [ $((during - before)) -lt 64 ] || fail "memory grows while the disk stands still"
  wait $load || fail "the load failed: $(tail -n 3 "$work/load.log")"
  load=0
  wait_for 60 is_empty || fail "mail is left"
  say "commit latency, longest: $("$binary" queue summary --spool "$spool" --json | python3 -c "import json,sys; print(json.load(sys.stdin)['report']['counters']['commit_us']['max'] // 1000)") ms"
  stop_server
  balance
}

scenario_removed() {
  mount_image 256
  start_sink
  start_server --route "*=$to"
  accepts || fail "no mail is taken"
  rm -rf "$spool"
  wait_for 10 refuses_451 || fail "mail is taken into a deleted spool: $(send)"
  kill -0 $server || fail "the server ended"
  grep -q 'ERROR.*deleted' "$work/server.log" || fail "nothing is said of it"
  say "removed: $(send); $(grep -m1 'ERROR' "$work/server.log" | cut -c1-160)"
}

scenario_clock() {
  command -v faketime >/dev/null || skip "faketime is not installed"
  mount_image 256
  prefix=(faketime -f +10d)
  start_server --route '*=127.0.0.1:9'
  prefix=(env)
  for _ in 1 2 3 4 5; do accepts || fail "no mail is taken"; done
  sleep 3
  kill -9 "$(pgrep -P $server -x ringpost || echo $server)"
  wait $server || true
  start_sink
  start_server --route "*=$to"
  for _ in 1 2 3; do accepts || fail "no mail is taken: $(send)"; done
  wait_for 20 is_empty || fail "mail from the future waits: $(counter queued_recipients_now)"
  say "8 messages, $(counter delivered_recipients) delivered; ids of both times in order"
  stop_server
}

if [ -n "$only" ]; then
  "scenario_$only"
  exit 0
fi
scenarios=("$@")
[ $# -gt 0 ] || scenarios=(full limit sync enospc readonly stall removed clock)
failed=0
for name in "${scenarios[@]}"; do
  echo "== $name"
  rm -f "$work/acks" "$work/refused" "$work/seen"
  result=0
  TROUBLE_SCENARIO=$name TROUBLE_WORK=$work bash -e "$repository/scripts/trouble.sh" || result=$?
  case $result in
    0) echo "   ok" ;;
    "$SKIPPED") ;;
    *)
      echo "FAILED: $name ended with status $result"
      failed=$((failed + 1))
      ;;
  esac
  # Whatever the scenario left behind.
  fsfreeze -u "$disk" 2>/dev/null || true
  for pid in $(pgrep -f "^$work/ringpost" || true); do kill -9 "$pid" 2>/dev/null || true; done
  storage=$(pgrep -f "mountpoint=$work/export.img" || echo 0)
  device=$(losetup -j "$work/export.img" 2>/dev/null | cut -d: -f1 || true)
  sleep 0.2
  unmount
done
[ $failed = 0 ] || { echo "$failed scenarios failed"; exit 1; }
