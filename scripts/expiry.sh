#!/usr/bin/env bash
# Does mail that expires all at once hold up the mail that is accepted and delivered meanwhile?
#
# Usage: scripts/expiry.sh [-n RECIPIENTS] [-l RATE] [-s SECONDS] [-r ROUNDS]
#
# A spool with RECIPIENTS (1,000,000) waiting messages that are equally old is made (examples/backlog, through
# the log's own code). A server is started on it twice: once they have days left, and once they reach --max-age
# a few seconds after the load has begun. The load is RATE (500) messages a second of 4 KiB at times fixed in
# advance, of a transactional stream, for SECONDS (30); latencies count from the intended time. The mail
# that expires is reported to its senders, whose host takes the reports. ROUNDS (3) of both, in turn, each
# expiry on a new spool; compared are the medians of the p99, and it fails where one is more than doubled.
# Durability is `disk`. Nothing leaves the loopback interface; the spool lies below $WORK_DIR or ./target and
# needs 1.5 KB for each message.
set -euo pipefail
cd "$(dirname "$0")/.."
export WORK_DIR=${WORK_DIR:-$PWD/target}
exec python3 - "$@" <<'PY'
import argparse, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from statistics import median

SERVER = os.environ.get("RINGPOST", "target/release/ringpost")
BACKLOG = os.environ.get("BACKLOG", "target/release/examples/backlog")
PATIENCE = 300
# How long after the start of the server, at the least, mail reaches its greatest age: it is ready by then,
# and the load has begun.
LEAD = 25
# Between `ready` and the load: a server prepares its next segments meanwhile, which keeps the disk busy.
SETTLE = 10
# Bounds of the p99, as a multiple of what it is without expiry.
BOUND = 2


def fail(why):
    sys.exit(f"expiry.sh: {why}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(child, pattern):
    said = []
    for line in child.stderr:
        said.append(line)
        if found := re.search(pattern, line):
            threading.Thread(target=lambda: [None for _ in child.stderr], daemon=True).start()
            return found
    fail("the process ended:\n" + "".join(said))


def counters(spool):
    out = subprocess.run([SERVER, "queue", "summary", "--json", "--limit", "1", "--spool", spool],
                         check=True, capture_output=True, timeout=PATIENCE)
    return json.loads(out.stdout)["report"]["counters"]


def run(work, spool, max_age, corpus, args):
    """The report of the load, and how many recipients expired meanwhile."""
    reports = subprocess.Popen([SERVER, "sink", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    elsewhere = wait_for(reports, r"127\.0\.0\.1:(\d+)")[1]
    own, listen = free_port(), free_port()
    server = subprocess.Popen([SERVER, "serve", "--spool", spool, "--workers", str(args.w), "--listen", f"127.0.0.1:{listen}",
                               "--route", f"urgent.test=127.0.0.1:{own}", "--route", f"*=127.0.0.1:{elsewhere}",
                               "--stream-header", "X-Stream", "--transactional-stream", "urgent",
                               "--max-age", f"{max_age}s"], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(server, r"^ready$")
        time.sleep(SETTLE)
        before = counters(spool)
        load = subprocess.run([SERVER, "load", "--to", f"127.0.0.1:{listen}", "--sink", f"127.0.0.1:{own}", "--rate",
                               f"{args.l}/s", "--duration", f"{args.s}s", "--connections", "16", "--corpus", corpus,
                               "--to-domain", "urgent.test", "--seed", "1", "--json"], capture_output=True,
                              text=True, timeout=PATIENCE + args.s)
        after = counters(spool)
        if load.returncode:
            fail(f"load: {load.stderr[-2000:]}")
        return json.loads(load.stdout), after["expired_recipients"] - before["expired_recipients"]
    finally:
        for child in (server, reports):
            child.send_signal(signal.SIGTERM)
        for child in (server, reports):
            child.wait(PATIENCE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=1_000_000, help="recipients that expire")
    parser.add_argument("-l", type=int, default=500, help="messages per second beside")
    parser.add_argument("-s", type=int, default=30, help="seconds of load")
    parser.add_argument("-r", type=int, default=3, help="rounds")
    parser.add_argument("-w", type=int, default=2, help="workers and logs")
    args = parser.parse_args()
    for binary in (SERVER, BACKLOG):
        if not os.path.exists(binary):
            fail(f"{binary} is missing: cargo build --release --bin ringpost --example backlog")
    kinds = {"all of it waits": [], "all of it expires": []}
    with tempfile.TemporaryDirectory(prefix="expiry-", dir=os.environ["WORK_DIR"]) as work:
        corpus = os.path.join(work, "message")
        with open(corpus, "w") as file:
            file.write("From: <shop@example.test>\r\nX-Stream: urgent\r\nSubject: your code\r\n\r\n" + ("x" * 70 + "\r\n") * 56)
        for _ in range(args.r):
            spool = os.path.join(work, "spool")
            made = time.time()
            subprocess.run([BACKLOG, spool, "--messages", str(args.n), "--recipients", "1", "--domains", "100000",
                            "--body", "512", "--logs", str(args.w)], check=True, capture_output=True)
            for kind, max_age in (("all of it waits", 5 * 86400), ("all of it expires", None)):
                age = max_age or int(time.time() - made) + LEAD
                report, expired = run(work, spool, age, corpus, args)
                if (expired == 0) == (max_age is None):
                    fail(f"{kind}: {expired} recipients expired")
                kinds[kind].append((report, expired))
            shutil.rmtree(spool)
    print(f"{args.n:,} messages in the queue, {args.l}/s beside them for {args.s} s, {args.w} workers, durability disk")
    print("| of the queue | expired meanwhile | accept p50 | p99 | end to end p50 | p99 |")
    print("|---|---:|---:|---:|---:|---:|")
    p99 = {}
    for kind, runs in kinds.items():
        cells = []
        for stage in ("whole", "end_to_end"):
            for q in ("p50_us", "p99_us"):
                values = [r["latency"][stage][q] / 1000 for r, _ in runs]
                cells.append(f"{median(values):.2f} ms ({min(values):.2f}–{max(values):.2f})")
                p99[kind, stage, q] = median(values)
        print(f"| {kind} | {int(median(e for _, e in runs)):,} | " + " | ".join(cells) + " |")
    waits, expires = kinds
    for stage in ("whole", "end_to_end"):
        ratio = p99[expires, stage, "p99_us"] / p99[waits, stage, "p99_us"]
        print(f"p99 of {stage}: {ratio:.2f} times")
        if ratio > BOUND:
            fail(f"the p99 of {stage} is more than {BOUND} times what it is without expiry")


main()
PY
