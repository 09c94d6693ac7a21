#!/usr/bin/env bash
# Restart with a large backlog: how long until `ready`, and how much memory each queued recipient takes.
#
# Usage: scripts/scale.sh [-n RECIPIENTS] [-d DOMAINS] [-p PER_MESSAGE[,PER_MESSAGE…]] [-b BODY_BYTES] [-r ROUNDS] [-k DIR]
#
# By default 5,000,000 recipients over 200,000 domains: 1,000,000 messages to five each, and 5,000,000 to one
# each, bodies of 2 KiB. For each of the two a spool is made (examples/backlog, through the log's own code)
# and the server started on it ROUNDS times; it drops its segments from the page cache before it reads them. "ready" is the time from the
# start of the process to that line; memory is resident memory of the whole process a moment after, less
# that of a server on an empty spool; the server is asked what it has queued, and that must be everything.
# Nothing is delivered meanwhile: all mail waits for its next attempt.
#
# The spool lies below $WORK_DIR or ./target, and needs 3 KB for each message. With -k the spools are made in
# DIR and stay there; those that are there already are used again.
set -euo pipefail
cd "$(dirname "$0")/.."
export WORK_DIR=${WORK_DIR:-$PWD/target}
exec python3 - "$@" <<'PY'
import argparse, json, os, re, shutil, signal, subprocess, sys, tempfile, time
from statistics import median

SERVER = os.environ.get("RINGPOST", "target/release/ringpost")
BACKLOG = os.environ.get("BACKLOG", "target/release/examples/backlog")
PATIENCE = 300


def fail(why):
    sys.exit(f"scale.sh: {why}")


def memory_kib(pid, name):
    status = open(f"/proc/{pid}/status").read()
    return int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])


def summary(spool):
    out = subprocess.run([SERVER, "queue", "summary", "--json", "--limit", "1", "--spool", spool],
                         check=True, capture_output=True, timeout=PATIENCE)
    return json.loads(out.stdout)["report"]


def find(value, name):
    """The value of a counter, wherever in the report it stands."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        found = [find(v, name) for v in value.values()]
        return next((f for f in found if f is not None), None)
    if isinstance(value, list):
        found = [find(v, name) for v in value]
        return next((f for f in found if f is not None), None)
    return None


def start(spool, workers):
    """Seconds to `ready`, resident KiB at that moment, settled and at the highest, and what is queued."""
    begun = time.monotonic()
    server = subprocess.Popen([SERVER, "serve", "--spool", spool, "--workers", str(workers), "--listen", "127.0.0.1:0",
                               "--route", "*=127.0.0.1:9"], stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in server.stderr:
            said.append(line)
            if line.strip() == "ready":
                break
        else:
            fail("the server did not start:\n" + "".join(said))
        took = time.monotonic() - begun
        at_ready = memory_kib(server.pid, "VmRSS")
        time.sleep(3)
        settled, peak = memory_kib(server.pid, "VmRSS"), memory_kib(server.pid, "VmHWM")
        return took, at_ready, settled, peak, summary(spool)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=5_000_000, help="recipients")
    parser.add_argument("-d", type=int, default=200_000, help="domains")
    parser.add_argument("-p", default="5,1", help="recipients of each message")
    parser.add_argument("-b", type=int, default=2048, help="bytes of a body")
    parser.add_argument("-r", type=int, default=3, help="rounds")
    parser.add_argument("-w", type=int, default=2, help="workers and logs")
    parser.add_argument("-k", help="where spools are kept")
    args = parser.parse_args()
    for binary in (SERVER, BACKLOG):
        if not os.path.exists(binary):
            fail(f"{binary} is missing: cargo build --release --bin ringpost --example backlog")
    with tempfile.TemporaryDirectory(prefix="scale-", dir=os.environ["WORK_DIR"]) as work:
        empty = os.path.join(work, "empty")
        base = median([start(empty, args.w)[2] for _ in range(3)])
        print(f"{args.n:,} recipients, {args.d:,} domains, bodies of {args.b} bytes, {args.w} workers, durability disk; "
              f"an empty server: {base / 1024:.1f} MiB")
        print("| recipients/message | messages | made in | ready | bytes/recipient | at ready | at the highest |")
        print("|---:|---:|---:|---:|---:|---:|---:|")
        for each in (int(p) for p in args.p.split(",")):
            messages = args.n // each
            spool = os.path.join(args.k or work, f"spool-{each}")
            begun = time.monotonic()
            made = "kept from an earlier run"
            if not os.path.exists(spool):
                made = subprocess.run([BACKLOG, spool, "--messages", str(messages), "--recipients",
                                       str(each), "--domains", str(args.d), "--body", str(args.b), "--logs", str(args.w)],
                                      check=True, capture_output=True, text=True).stdout.strip()
            made_in = time.monotonic() - begun
            rounds = [start(spool, args.w) for _ in range(args.r)]
            for *_, report in rounds:
                queued = find(report, "queued_recipients_now")
                if queued != messages * each:
                    fail(f"{queued} recipients are queued, {messages * each} were written")
            per = [(r[k] - base) * 1024 / (messages * each) for k in (2, 1, 3) for r in rounds]
            per = [median(per[k * args.r:(k + 1) * args.r]) for k in range(3)]
            ready = [r[0] for r in rounds]
            print(f"| {each} | {messages:,} | {made_in:.0f} s | {median(ready):.2f} s ({min(ready):.2f}–{max(ready):.2f}) "
                  f"| {per[0]:.1f} | {per[1]:.1f} | {per[2]:.1f} |", flush=True)
            print(f"  ({made}; every recipient is queued after each start)", file=sys.stderr)
            if not args.k:
                shutil.rmtree(spool)


main()
PY
