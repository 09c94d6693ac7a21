#!/usr/bin/env bash
# Reclaim under the whole server: a part of the mail is deferred for days while the rest is delivered at once.
#
# Usage: scripts/reclaim.sh [-s SECONDS] [-w SECONDS] [-m MIB] [-r ROUNDS] [PERCENT…]
#
# For each percentage (0 and 1 by default), in turn, ROUNDS times (3): a server on a fresh spool with segments
# of MIB MiB (4; the server's default is 64, and needs longer runs), a sink for what is delivered, and SECONDS
# (20) of load as fast as it goes, of which that part goes to a host that cannot be reached and so waits. The
# same load for -w SECONDS (20) comes before, unmeasured, for a log first grows to its size, and new segments
# are filled with zeros once. Printed: messages delivered per second, bytes written to segments for each byte
# of mail accepted (outcomes, copies and padding are the surplus), and the size of all segment files for each
# byte that queued mail needs, at the end. Durability is `disk`. Nothing leaves the loopback interface; the
# spool lies below $WORK_DIR or ./target.
set -euo pipefail
cd "$(dirname "$0")/.."
export WORK_DIR=${WORK_DIR:-$PWD/target}
exec python3 - "$@" <<'PY'
import argparse, json, os, re, signal, subprocess, sys, tempfile, time
from statistics import median

SERVER = os.environ.get("RINGPOST", "target/release/ringpost")
WORKERS = 2
PATIENCE = 120


def first_line(child, pattern):
    for line in child.stderr:
        if found := re.search(pattern, line):
            return found[1]
    sys.exit(f"reclaim.sh: {child.args} said nothing like {pattern}")


def run(percent, warm_up, seconds, segment_mib, work):
    spool = tempfile.mkdtemp(dir=work)
    sink = subprocess.Popen([SERVER, "sink", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, text=True)
    port = first_line(sink, r"127\.0\.0\.1:(\d+)")
    server = subprocess.Popen([SERVER, "serve", "--spool", spool, "--workers", str(WORKERS), "--listen", "127.0.0.1:0",
                               "--segment-size", f"{segment_mib}MiB", "--route", "wait.test=127.0.0.1:9",
                               "--route", f"*=127.0.0.1:{port}", "--retry-schedule", "2d"],
                              stderr=subprocess.PIPE, text=True)
    try:
        listen = first_line(server, r"listening on \S+:(\d+)")
        domains = os.path.join(spool, "..", f"domains-{percent}")
        with open(domains, "w") as file:
            file.write(f"example.test {100 - percent}\n" + (f"wait.test {percent}\n" if percent else ""))
        def load(seconds):
            begun = time.monotonic()
            subprocess.run([SERVER, "load", "--to", f"127.0.0.1:{listen}", "--duration", f"{seconds}s", "--connections",
                            "16", "--domain-list", domains, "--json"], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=PATIENCE + seconds)
            took = time.monotonic() - begun
            out = subprocess.run([SERVER, "queue", "summary", "--json", "--spool", spool], check=True, capture_output=True)
            return took, json.loads(out.stdout)["report"]["counters"]

        _, before = load(warm_up)
        took, counters = load(seconds)
        grown = {k: counters[k] - before[k] for k in ("delivered_recipients", "written_bytes", "accepted_bytes")}
        files = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(spool) for f in fs if f.startswith("seg-"))
        return {"rate": grown["delivered_recipients"] / took,
                "amplification": grown["written_bytes"] / grown["accepted_bytes"],
                "files": files, "live": counters["live_bytes_now"], "waiting": counters["queued_recipients_now"]}
    finally:
        for child in (server, sink):
            child.send_signal(signal.SIGTERM)
            child.wait(PATIENCE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", type=int, default=20)
    parser.add_argument("-w", type=int, default=20)
    parser.add_argument("-m", type=int, default=4)
    parser.add_argument("-r", type=int, default=3)
    parser.add_argument("percent", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reclaim-", dir=os.environ["WORK_DIR"]) as work:
        results = {p: [] for p in args.percent}
        for _ in range(args.r):
            for percent in args.percent:
                results[percent].append(run(percent, args.w, args.s, args.m, work))
        print(f"durability disk, {WORKERS} workers, segments of {args.m} MiB, {args.s} s, {args.r} rounds, medians")
        print("| deferred | delivered/s | written/mail | waiting | live | segment files | files/live |")
        print("|---:|---:|---:|---:|---:|---:|---:|")
        for percent, rounds in results.items():
            m = {k: median(r[k] for r in rounds) for k in ("rate", "amplification", "files", "live", "waiting")}
            factor = f"{m['files'] / m['live']:.2f}" if m["live"] > args.m << 20 else "–"
            print(f"| {percent} % | {m['rate']:,.0f} | {m['amplification']:.3f} | {m['waiting']:,.0f} | {m['live'] / 1e6:.1f} MB "
                  f"| {m['files'] / 1e6:.1f} MB | {factor} |")


main()
PY
