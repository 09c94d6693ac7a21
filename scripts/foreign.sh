#!/usr/bin/env bash
# Mail through the server between programs that no one here wrote, in earnest numbers: Postfix's
# smtp-source in, smtp-sink out; then the tests that also speak to swaks, msmtp, smtplib, nodemailer and
# openssl, through TLS and with logins as well.
#
# Install them on Debian:
#   apt-get install --no-install-recommends postfix swaks libnet-ssleay-perl libauthen-sasl-perl msmtp openssl \
#     python3 nodejs npm && npm install -g nodemailer
#
# Usage: scripts/foreign.sh [MESSAGES]      default 20000 per run
# Prints a table: messages per second from the first sent to the last delivered, and the CPU that the
# server takes for each. Exits 1 if a message is missing.
set -euo pipefail
messages=${1:-20000}
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin
binary=${RINGPOST:-target/release/ringpost}
[ -x "$binary" ] || { echo "build first: cargo build --release"; exit 2; }
for program in smtp-source smtp-sink; do
  command -v $program >/dev/null || { echo "$program is missing; see the install line in $0"; exit 2; }
done
work=$(mktemp -d -p "${WORK_DIR:-$PWD/target}" foreign.XXXXXX)
server=0 sink=0
cleanup() {
  for pid in $server $sink; do [ "$pid" = 0 ] || kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
user=()
[ "$(id -u)" != 0 ] || user=(-u nobody)
ticks=$(getconf CLK_TCK)
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

echo "| smtp-source | smtp-sink | messages | lost | messages/s | server CPU per message |"
echo "|---|---|---:|---:|---:|---:|"
failed=0
# run NAME-OF-SOURCE SINK-FLAGS SOURCE-FLAGS...
run() {
  local name=$1 sink_flags=$2 to from before after start end seen lost
  shift 2
  to=$(free_port)
  # It ends by itself after the last message.
  # shellcheck disable=SC2086
  smtp-sink "${user[@]}" $sink_flags -m 1000 -M "$messages" -c "127.0.0.1:$to" 1000 >"$work/sink.log" &
  sink=$!
  "$binary" serve --listen 127.0.0.1:0 --hostname mta.test --spool "$work/spool" \
    --route "*=127.0.0.1:$to" --retry-schedule 1s 2>"$work/server.log" &
  server=$!
  for _ in $(seq 300); do grep -q '^ready$' "$work/server.log" && break; sleep 0.1; done
  from=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$work/server.log" | head -n 1)
  before=$(cpu $server) start=$(date +%s.%N)
  smtp-source "$@" -m "$messages" -l 4096 -f a@sender.test -t b@one.test "127.0.0.1:$from"
  for _ in $(seq 600); do kill -0 $sink 2>/dev/null || break; sleep 0.05; done
  end=$(date +%s.%N) after=$(cpu $server)
  if kill -0 $sink 2>/dev/null; then kill $sink; fi
  wait $sink 2>/dev/null || true
  # The counters are rewritten in place: sessions, quits, messages.
  seen=$(tr '\r' '\n' <"$work/sink.log" | sed -n 's/.*mesg=\([0-9]*\).*/\1/p' | tail -n 1)
  lost=$((messages - ${seen:-0}))
  [ "$lost" -le 0 ] || failed=1
  awk -v name="$name" -v to="${sink_flags:-as it is}" -v n="$messages" -v lost="$lost" -v s="$start" -v e="$end" \
    -v cpu=$((after - before)) -v hz="$ticks" \
    'BEGIN { printf "| %s | %s | %d | %d | %.0f | %.0f µs |\n", name, to, n, lost, n / (e - s), cpu * 1e6 / hz / n }'
  kill $server
  wait $server || failed=1
  server=0 sink=0
  rm -rf "$work/spool"
}
run "-s 50 -d (reused)" "" -s 50 -d
run "-s 50 (one per connection)" "" -s 50
run "-s 50 -d (reused)" "-p" -s 50 -d
echo
cargo test --quiet --test foreign -- --nocapture 2>&1 | grep -E '^(skipped|test result)' || failed=1
exit $failed
