#!/usr/bin/env bash
# The whole server under load on loopback: messages per second, CPU per message, peak memory.
#
# Usage: scripts/bench.sh [-n ROUNDS] [-c CASE[,CASE…]] [-q] [BINARY…]
#        scripts/bench.sh --rss [--rate N] [BINARY]
#        scripts/bench.sh --curves [--backlog N[,N…]] [BINARY]
#        scripts/bench.sh --sessions [N] [BINARY]
#        scripts/bench.sh --latency RATE[,RATE…] [BINARY]
#        scripts/bench.sh --hot [-n ROUNDS] [BINARY]
#
# Rounds (7 by default) are interleaved: each round runs every case once, in another order, so that what
# changes on the machine meanwhile meets all of them alike. Given several binaries, each case is run with
# each of them in every round, and the table has the ratio of medians to the first. -q makes runs a quarter
# as long.
#
# --rss runs a million messages and compares the memory after 200,000 with that at the end, each read two
# seconds after the last was delivered: once below capacity, once as fast as it goes. --curves shows what a
# message costs as the work grows:
# more destinations, more connections, a longer queue (10,000 and 100,000 messages, or --backlog), delivered
# from memory where it fits there. --sessions shows the memory of that many open sessions (10,000).
# --latency holds a rate for 20 seconds and shows how long a message waits for its 250, from the moment it
# was due (its commands included), and beside it the commits of the same run: what the bare log took.
#
# --hot relays mail of which nine in ten are for one domain, by one worker and by two, each worker held to a
# fifth of a core: what is left is for source and sink, so that two can do twice as much where they are not in
# each other's way. It needs root, and the cpu controller of cgroup v1 in /sys/fs/cgroup/cpu.
#
# Of the cases, accept ones take mail in alone, relay ones deliver it as well; one-each is a connection for each
# message (so sessions/s are messages/s), all others use theirs again; tls begins each connection with
# STARTTLS, TLS 1.3 where both can, a full handshake (ECDSA P-256) unless the client resumes.
#
# Beside each run a probe of its own does the same little work ten times a second (a spin of fixed length,
# one 4 KiB write with O_DIRECT and O_DSYNC): where that takes longer than in other runs of the case, the
# machine was busy with something else. "quiet" are the medians of the quietest fifth of the runs by the
# spin. "server" is user and system time of all the server's threads; "machine" is all busy time of the
# machine, interrupts included, less that of the source and the sink (and so includes the noise).
#
# Nothing leaves the loopback interface. The spool lies below $WORK_DIR or ./target.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" = 0 ]; then echo -20 >/proc/self/autogroup 2>/dev/null || true; fi
export WORK_DIR=${WORK_DIR:-$PWD/target}
exec python3 - "$@" <<'PY'
import argparse, json, mmap, multiprocessing, os, random, re, resource, shutil, signal, socket, subprocess, sys, tempfile, time
from statistics import mean, median

TICKS = os.sysconf("SC_CLK_TCK")
DEFAULT = os.environ.get("RINGPOST", "target/release/ringpost")
# Made in the directory of the run, with a key for ECDSA P-256.
CERTIFICATE = ["--tls-cert", "{work}/cert.pem", "--tls-key", "{work}/key.pem"]
# name: (messages, flags of serve, flags of load, delivered)
CASES = {
    "accept": (100_000, ["--retry-schedule", "1h"], [], False),
    "accept-one-each": (20_000, ["--retry-schedule", "1h"], ["--messages-per-connection", "1"], False),
    "accept-tls": (60_000, ["--retry-schedule", "1h", *CERTIFICATE], ["--tls", "starttls"], False),
    "accept-tls-one-each": (
        10_000, ["--retry-schedule", "1h", *CERTIFICATE], ["--tls", "starttls", "--messages-per-connection", "1"], False
    ),
    "relay": (100_000, [], [], True),
    "relay-domains": (100_000, [], ["--domains", "50"], True),
    "relay-no-pipelining": (60_000, [], ["--no-pipelining"], True),
    "relay-one-each": (20_000, ["--messages-per-connection", "1"], ["--messages-per-connection", "1"], True),
    "relay-64k": (10_000, [], ["--size", "64KiB"], True),
}
LIMIT = 120
CGROUPS = "/sys/fs/cgroup/cpu"
QUOTA = 0.2
groups = []
children = []


def start(command, **options):
    child = subprocess.Popen(command, **options)
    children.append(child)
    return child


def stop(child):
    child.send_signal(signal.SIGTERM)
    child.wait(LIMIT)
    children.remove(child)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ready(path, pattern):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found = re.search(pattern, open(path).read(), re.M)
        if found:
            return found
        time.sleep(0.02)
    sys.exit(f"no {pattern} in {path}: {open(path).read()}")


def cpu_us(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / TICKS


def busy_us():
    user, nice, system, _idle, _wait, irq, softirq = map(int, open("/proc/stat").readline().split()[1:8])
    return (user + nice + system + irq + softirq) * 1e6 / TICKS


def memory_kb(pid, field):
    return int(re.search(rf"{field}:\s+(\d+)", open(f"/proc/{pid}/status").read())[1])


def probe(path, pipe):
    """Until told to end: a fixed spin and one durable write, ten times a second."""
    block = mmap.mmap(-1, 4096)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o600)
    os.pwrite(file, block, 0)
    spins, writes = [], []
    while not pipe.poll(0.1):
        t0 = time.perf_counter()
        n = 0
        for i in range(20_000):
            n += i
        t1 = time.perf_counter()
        os.pwrite(file, block, 0)
        spins.append((t1 - t0) * 1e3)
        writes.append((time.perf_counter() - t1) * 1e3)
    pipe.send((mean(spins), median(writes)) if spins else (0.0, 0.0))


class Server:
    def __init__(self, binary, work, flags, route):
        self.log = os.path.join(work, "server.log")
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--hostname", "mta.test", "--route", f"*={route}"]
        command += ["--spool", os.path.join(work, "spool"), *flags]
        with open(self.log, "w") as log:
            self.child = start(command, stderr=log)
        ready(self.log, "^ready$")
        self.addr = ready(self.log, r"^listening on (\S+)$")[1]
        self.pid = self.child.pid

    def settle(self):
        """Waits until what happens at the start (preparing segments) is over."""
        before, same = -1.0, 0
        while same < 3:
            now = cpu_us(self.pid)
            same = same + 1 if now == before else 0
            before = now
            time.sleep(0.1)


class Sink:
    def __init__(self, work, port, messages):
        self.report = os.path.join(work, "sink.json")
        self.log = os.path.join(work, "sink.log")
        command = [DEFAULT, "sink", "--listen", f"127.0.0.1:{port}", "--messages", str(messages), "--json"]
        with open(self.report, "w") as out, open(self.log, "w") as log:
            self.child = start(command, stdout=out, stderr=log)
        ready(self.log, "listening on")

    def finish(self):
        self.child.wait(LIMIT)
        children.remove(self.child)
        report = json.load(open(self.report))
        if report["duplicates"] or report["corrupt"]:
            sys.exit(f"duplicated or corrupt mail: {report}")
        return report


def load(addr, messages, flags):
    command = [DEFAULT, "load", "--to", addr, "--messages", str(messages), "--connections", "32", "--json", *flags]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=600)
    report = json.loads(out.stdout)
    if report["accepted"] != messages:
        sys.exit(f"not all was accepted: {report['errors']} {report['error_samples']}")
    return report


def make_certificate(work):
    if not shutil.which("openssl"):
        sys.exit("openssl, which makes the certificate, is not installed; leave the cases with tls out (-c)")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
         "/CN=mta.test", "-out", f"{work}/cert.pem", "-keyout", f"{work}/key.pem"],
        check=True, stderr=subprocess.DEVNULL,
    )


def run(binary, case, share, quota=None):
    messages, serve_flags, load_flags, delivered = CASES[case]
    messages //= share
    work = tempfile.mkdtemp(prefix="bench.", dir=os.environ["WORK_DIR"])
    port = free_port() if delivered else 9
    if "--tls-cert" in serve_flags:
        make_certificate(work)
    with open(os.path.join(work, "hot"), "w") as domains:
        domains.write("hot.test 90\n" + "".join(f"d{n}.test 1\n" for n in range(10)))
    serve_flags, load_flags = ([flag.format(work=work) for flag in flags] for flags in (serve_flags, load_flags))
    server = Server(binary, work, serve_flags, f"127.0.0.1:{port}")
    if quota:
        hold_back(server.pid, quota)
    # Warm: segments are there, connections were made, memory was touched.
    if delivered:
        sink = Sink(work, port, messages // 5)
        load(server.addr, messages // 5, load_flags)
        sink.finish()
    server.settle()
    open(f"/proc/{server.pid}/clear_refs", "w").write("5")
    sink = Sink(work, port, messages) if delivered else None
    here, there = multiprocessing.Pipe()
    prober = multiprocessing.Process(target=probe, args=(os.path.join(work, "probe"), there))
    prober.start()
    cpu, busy, began = cpu_us(server.pid), busy_us(), time.monotonic()
    sent = load(server.addr, messages, load_flags)
    arrived = sink.finish() if sink else None
    cpu, busy = cpu_us(server.pid) - cpu, busy_us() - busy
    rate = messages / (time.monotonic() - began) if not sink else arrived["rate"]
    here.send(None)
    spin_ms, write_ms = here.recv()
    prober.join()
    others = sent["cpu_us_per_message"] + (arrived["cpu_us_per_message"] if arrived else 0)
    result = {
        "rate": sent["rate"] if not sink else rate, "server": cpu / messages,
        "machine": busy / messages - others, "spin": spin_ms, "write": write_ms,
        "peak": memory_kb(server.pid, "VmHWM") / 1024,
    }
    stop(server.child)
    shutil.rmtree(work)
    return result


def latency(args):
    binary = (args.binary or [DEFAULT])[0]
    print(f"{machine()}\n")
    print("| messages/s | 250 after p50 | p99 | commit p50 | p99 | messages per group |\n|---:|---:|---:|---:|---:|---:|")
    for rate in map(int, args.latency.split(",")):
        work = tempfile.mkdtemp(prefix="bench.", dir=os.environ["WORK_DIR"])
        server = Server(binary, work, ["--retry-schedule", "1h"], "127.0.0.1:9")
        server.settle()
        sent = load(server.addr, rate * 20, ["--rate", str(rate)])["latency"]["whole"]
        commits = counters(binary, work)["commit_us"]
        print(f"| {rate:,} | {sent['p50_us'] / 1e3:.2f} ms | {sent['p99_us'] / 1e3:.2f} ms | {commits['p50'] / 1e3:.2f} ms |"
              f" {commits['p99'] / 1e3:.2f} ms | {rate * 20 / commits['count']:.1f} |", flush=True)
        stop(server.child)
        shutil.rmtree(work)


def curve_of(binary, messages, load_flags):
    CASES["curve"] = (messages, [], load_flags, True)
    result = run(binary, "curve", 1)
    return result["server"], result["rate"], result["peak"]


def backlog(binary, messages):
    """Everything waits for its receiver, which then appears."""
    work = tempfile.mkdtemp(prefix="bench.", dir=os.environ["WORK_DIR"])
    port = free_port()
    server = Server(binary, work, ["--retry-schedule", "1h"], f"127.0.0.1:{port}")
    load(server.addr, messages, [])
    server.settle()
    waiting = memory_kb(server.pid, "VmRSS") / 1024
    sink = Sink(work, port, messages)
    cpu = cpu_us(server.pid)
    spool = ["--spool", os.path.join(work, "spool")]
    while sink.child.poll() is None:
        # Connections that failed a moment ago hold the destination back for some seconds.
        subprocess.run([binary, "queue", "retry", *spool, "example.test"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
    arrived = sink.finish()
    result = (cpu_us(server.pid) - cpu) / messages, arrived["rate"], waiting
    stop(server.child)
    shutil.rmtree(work)
    return result


def curves(args):
    binary = (args.binary or [DEFAULT])[0]
    print(f"{machine()}\n")
    print("| what grows | | server µs/message | ÷ first | messages/s | memory |\n|---|---:|---:|---:|---:|---:|")
    rows = [("destinations", n, lambda n: curve_of(binary, max(60_000, 2 * n), ["--domains", str(n)])) for n in (10, 1_000, 10_000, 100_000)]
    rows += [("connections", n, lambda n: curve_of(binary, max(60_000, 10 * n), ["--connections", str(n)])) for n in (64, 1_000, 10_000)]
    lengths = [int(n) for n in args.backlog.split(",")]
    rows += [("queue, emptied", n, lambda n: backlog(binary, n)) for n in lengths]
    first = {}
    for what, n, measure in rows:
        cost, rate, memory = measure(n)
        first.setdefault(what, cost)
        print(f"| {what} | {n:,} | {cost:.1f} | {cost / first[what]:.2f} | {rate:,.0f} | {memory:.0f} MiB |", flush=True)


def sessions(args):
    binary = (args.binary or [DEFAULT])[0]
    work = tempfile.mkdtemp(prefix="bench.", dir=os.environ["WORK_DIR"])
    server = Server(binary, work, ["--retry-schedule", "1h"], "127.0.0.1:9")
    server.settle()
    host, port = server.addr.rsplit(":", 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    before = memory_kb(server.pid, "VmRSS")
    opened = []
    shown = []

    def each(text, lines):
        for s in opened:
            s.sendall(text)
        for s in opened:
            got = b""
            while got.count(b"\r\n") < lines:
                got += s.recv(4096)
        time.sleep(2)
        shown.append((memory_kb(server.pid, "VmRSS") - before) / len(opened))

    for _ in range(args.sessions):
        s = socket.create_connection((host, int(port)))
        s.recv(4096)
        opened.append(s)
    each(b"HELO client.test\r\n", 1)
    each(b"MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n", 3)
    each((b"x" * 72 + b"\r\n") * 20, 0)
    print(f"{machine()}\n")
    print("| open sessions | greeted | in a transaction | in a body of which 1.5 KiB has come |\n|---:|---:|---:|---:|")
    print(f"| {len(opened):,} | " + " | ".join(f"{kb:.1f} KiB each" for kb in shown) + " |")
    for s in opened:
        s.close()
    stop(server.child)
    shutil.rmtree(work)


def hold_back(pid, share):
    """Gives each worker thread this share of a core; the groups go when the threads are gone."""
    for task in os.listdir(f"/proc/{pid}/task"):
        if not open(f"/proc/{pid}/task/{task}/comm").read().startswith("worker-"):
            continue
        group = tempfile.mkdtemp(prefix="ringpost-", dir=CGROUPS)
        groups.append(group)
        for file, value in (("cpu.cfs_period_us", 5000), ("cpu.cfs_quota_us", int(5000 * share)), ("tasks", task)):
            with open(os.path.join(group, file), "w") as out:
                out.write(str(value))


def let_go():
    while groups:
        os.rmdir(groups.pop())


def hot(args):
    binary = (args.binary or [DEFAULT])[0]
    if not os.access(os.path.join(CGROUPS, "cpu.cfs_quota_us"), os.W_OK):
        sys.exit(f"--hot needs root and the cpu controller of cgroup v1 in {CGROUPS}")
    results = {1: [], 2: []}
    for _ in range(args.rounds):
        for workers in results:
            CASES["hot"] = (40_000, ["--workers", str(workers)], ["--domain-list", "{work}/hot"], True)
            results[workers].append(run(binary, "hot", 1, QUOTA))
            let_go()
    print(f"{machine()}; durability disk; {args.rounds} rounds; each worker has {QUOTA:.0%} of a core\n")
    print("| workers | messages/s | least–most | ÷ first | server µs |\n|---:|---:|---:|---:|---:|")
    first = median(r["rate"] for r in results[1])
    for workers, runs in results.items():
        rates = [r["rate"] for r in runs]
        print(f"| {workers} | {median(rates):,.0f} | {min(rates):,.0f}–{max(rates):,.0f} | {median(rates) / first:.2f} |"
              f" {median(r['server'] for r in runs):.1f} |")


def machine():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    where = subprocess.run(["df", "--output=fstype,source", os.environ["WORK_DIR"]], stdout=subprocess.PIPE, text=True)
    kind = " on ".join(where.stdout.split("\n")[1].split())
    memory = int(re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())[1]) / 2**20
    return f"{os.cpu_count()} cores ({model[1] if model else os.uname().machine}), {memory:.0f} GiB, Linux {os.uname().release}, {kind}"


def table(results, binaries):
    several = len(binaries) > 1
    print("| case |" + (" binary |" if several else "") + " messages/s | quiet | server µs | quiet | least–most | machine µs | quiet |"
          " peak RSS | spin | write |" + (" server ÷ first |" if several else ""))
    print("|---|" + ("---|" if several else "") + "---:|" * (10 + several))
    for case in results:
        first = None
        for binary in binaries:
            runs = sorted(results[case][binary], key=lambda r: r["spin"])
            quiet = runs[: -(-len(runs) // 5)]
            mid = lambda field, some=runs: median(r[field] for r in some)
            first = first or mid("server")
            print(f"| {case} |" + (f" {binary} |" if several else "") +
                  f" {mid('rate'):,.0f} | {mid('rate', quiet):,.0f} | {mid('server'):.1f} | {mid('server', quiet):.1f} |"
                  f" {min(r['server'] for r in runs):.1f}–{max(r['server'] for r in runs):.1f} |"
                  f" {mid('machine'):.1f} | {mid('machine', quiet):.1f} | {mid('peak'):.0f} MiB |"
                  f" {mid('spin'):.2f} ms | {mid('write'):.2f} ms |" +
                  (f" {mid('server') / first:.3f} |" if several else ""))


def compare(args):
    binaries = args.binary or [DEFAULT]
    cases = args.cases.split(",") if args.cases else list(CASES)
    results = {case: {binary: [] for binary in binaries} for case in cases}
    for number in range(args.rounds):
        order = [(case, binary) for case in cases for binary in binaries]
        random.shuffle(order)
        for case, binary in order:
            result = run(binary, case, 4 if args.quick else 1)
            results[case][binary].append(result)
            shown = ", ".join(f"{k} {v:.2f}" for k, v in result.items())
            print(f"round {number + 1} of {args.rounds}, {case}, {binary}: {shown}", file=sys.stderr)
    print(f"{machine()}; durability disk; {args.rounds} rounds\n")
    table(results, binaries)


def counters(binary, work):
    command = [binary, "queue", "summary", "--json", "--spool", os.path.join(work, "spool")]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)["report"]["counters"]


def grow(binary, rate):
    work = tempfile.mkdtemp(prefix="bench.", dir=os.environ["WORK_DIR"])
    port = free_port()
    server = Server(binary, work, [], f"127.0.0.1:{port}")
    sink = Sink(work, port, 1_000_000)
    resident = []
    for messages in (200_000, 800_000):
        load(server.addr, messages, ["--rate", str(rate)] if rate else [])
        while counters(binary, work)["queued_messages_now"]:
            time.sleep(0.2)
        time.sleep(2)
        resident.append(memory_kb(server.pid, "VmRSS") / 1024)
    sink.finish()
    time.sleep(10)
    resident += [memory_kb(server.pid, "VmRSS") / 1024, memory_kb(server.pid, "VmHWM") / 1024]
    stop(server.child)
    shutil.rmtree(work)
    a, b, idle, peak = resident
    print(f"| {f'{rate}/s' if rate else 'as fast as it goes'} | {a:.0f} MiB | {b:.0f} MiB | {b / a:.2f} | {idle:.0f} MiB | {peak:.0f} MiB |", flush=True)
    return b / a


def memory(args):
    binary = (args.binary or [DEFAULT])[0]
    print(f"{machine()}; durability disk\n")
    print("| load | after 200,000 | after 1,000,000 | ratio | all delivered, 10 s later | peak |")
    print("|---|---:|---:|---:|---:|---:|")
    steady = grow(binary, args.rate)
    grow(binary, None)
    if steady > 1.1:
        sys.exit("memory grows with the number of messages that have passed")


parser = argparse.ArgumentParser(usage="scripts/bench.sh [-n ROUNDS] [-c CASE,…] [-q] [--rss [--rate N]] [--curves] [--sessions [N]] [--latency RATE,…] [--hot] [BINARY…]")
parser.add_argument("-n", dest="rounds", type=int, default=7)
parser.add_argument("-c", dest="cases")
parser.add_argument("-q", dest="quick", action="store_true")
parser.add_argument("--rss", action="store_true")
parser.add_argument("--rate", type=int, default=10_000)
parser.add_argument("--latency")
parser.add_argument("--hot", action="store_true")
parser.add_argument("--curves", action="store_true")
parser.add_argument("--backlog", default="10000,100000")
parser.add_argument("--sessions", type=int, nargs="?", const=10_000)
parser.add_argument("binary", nargs="*")
args = parser.parse_args()
if not os.access(DEFAULT, os.X_OK):
    sys.exit("build first: cargo build --release")
try:
    if args.rss:
        memory(args)
    elif args.curves:
        curves(args)
    elif args.latency:
        latency(args)
    elif args.hot:
        hot(args)
    elif args.sessions:
        sessions(args)
    else:
        compare(args)
finally:
    for child in children:
        child.kill()
        child.wait()
    let_go()
PY
