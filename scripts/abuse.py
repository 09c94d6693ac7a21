#!/usr/bin/env python3
"""Attacks on a ringpost server of our own on loopback, and how good mail fares beside each.

A server is started with a sink behind it. `ringpost load` sends it good mail at a fixed rate, first alone and
then beside one attack after the other, each from processes and addresses (127.66.0.0/16) of its own, which may
not relay unless the attack says so. What is shown per attack:

  good mail     accepted of what was due; p50 and p99 of the time from the intended time to the 250
  attackers     what they did in all, and how the server ended it
  memory        most resident memory of the server during the attack, beyond what it had before
  after         sessions left open two seconds after the attackers have gone: beyond zero, something leaks

The waits that end silence are minutes by default. But for the idle connections they are set to seconds here
(--command-wait, --data-wait), so that they are seen to work. Ends with status 1 if good mail was refused or lost, if its p99 beside an attack
exceeds --bound, if the idle sessions in the clear take more memory than --idle-bytes each, or if sessions were
left behind. Idle sessions under TLS (a certificate is made with openssl, where it is installed) are measured and
reported apart: rustls keeps keys and state of its own for each.

Attackers take processor time from the server and the good client as well: on a machine of their own they
would not, so the figures are on the careful side.
"""
import argparse
import json
import multiprocessing
import os
import random
import resource
import selectors
import signal
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

RESET = struct.pack("ii", 1, 0)
SHORT = ["--command-wait", "4s", "--data-wait", "4s"]


def source(index):
    """An address of an attacker."""
    return f"127.66.{index // 200 % 200}.{1 + index % 200}"


def connect(to, index=0, relay=False, buffer=None):
    s = socket.socket()
    if buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    if not relay:
        s.bind((source(index), 0))
    s.settimeout(10)
    s.connect(to)
    return s


def answer(s):
    """One whole reply, or what came of it before the end."""
    text = b""
    while True:
        piece = s.recv(4096)
        text += piece
        lines = text.split(b"\r\n")
        if not piece or (len(lines) > 1 and lines[-1] == b"" and lines[-2][3:4] != b"-"):
            return text


def dialogue(s, *commands):
    answer(s)
    for command in commands:
        s.sendall(command)
        reply = answer(s)
    return reply


class Attack:
    """One kind of attack. `run` is called in processes of its own until `stop` is set, and returns counts."""

    name = ""
    processes = 1
    # Whether the server must have a certificate for it.
    needs_tls = False
    # How the good mail beside it differs from the rest: options of `ringpost load`.
    good = ()

    def __init__(self, options):
        self.options = options

    def run(self, to, index, stop):
        raise NotImplementedError


class Crowd(Attack):
    """Connections that are held for as long as the server lets them; `feed` is called for each every second."""

    size = 500

    def open(self, to, number):
        return connect(to, number)

    def feed(self, s):
        pass

    def run(self, to, index, stop):
        counts = {"opened": 0, "closed by the server": 0}
        held = selectors.DefaultSelector()
        first, last = self.size * index // self.processes, self.size * (index + 1) // self.processes
        for number in range(first, last):
            s = self.open(to, number)
            s.setblocking(False)
            held.register(s, selectors.EVENT_READ)
            counts["opened"] += 1
        fed = 0
        while not stop.is_set():
            for key, _ in held.select(0.2):
                try:
                    piece = key.fileobj.recv(65536) if self.reads else b"?"
                except BlockingIOError:
                    continue
                except OSError:
                    piece = b""
                if not piece:
                    held.unregister(key.fileobj)
                    key.fileobj.close()
                    counts["closed by the server"] += 1
            if time.monotonic() - fed >= 1:
                fed = time.monotonic()
                for key in list(held.get_map().values()):
                    try:
                        self.feed(key.fileobj)
                    except BlockingIOError:
                        pass
                    except OSError:
                        held.unregister(key.fileobj)
                        key.fileobj.close()
                        counts["closed by the server"] += 1
        for key in list(held.get_map().values()):
            key.fileobj.close()
        return counts

    reads = True


class Idle(Crowd):
    name = "idle connections"
    processes = 2

    @property
    def size(self):
        return self.options.idle

    def open(self, to, number):
        s = connect(to, number)
        dialogue(s, b"EHLO idle.test\r\n")
        return s


class IdleTls(Idle):
    name = "idle connections under TLS"
    needs_tls = True

    @property
    def size(self):
        return self.options.idle_tls

    def open(self, to, number):
        s = connect(to, number)
        dialogue(s, b"EHLO idle.test\r\n", b"STARTTLS\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        s = context.wrap_socket(s)
        s.sendall(b"EHLO idle.test\r\n")
        answer(s)
        return s


class SlowCommands(Crowd):
    name = "one byte of a command per second"

    def feed(self, s):
        s.send(b"N")


class SlowBody(Crowd):
    name = "bodies of one byte per second, from clients that may relay"
    size = 300

    def open(self, to, number):
        s = connect(to, relay=True)
        dialogue(s, b"EHLO slow.test\r\n", b"MAIL FROM:<a@slow.test>\r\n", b"RCPT TO:<b@slow.test>\r\n", b"DATA\r\n")
        s.sendall(b"Subject: slow\r\n\r\n" + b"x" * 70 + b"\r\n")
        return s

    def feed(self, s):
        s.send(b"y")


class LargeBodies(SlowBody):
    name = "large bodies that stop at 40 KB, then one byte per second, beside good mail of 64 KiB"
    size = 600
    good = ("--size", "64KiB", "--rate", "100/s")

    def open(self, to, number):
        s = super().open(to, number)
        s.sendall((b"x" * 70 + b"\r\n") * 560)
        return s


class SlowReaders(Crowd):
    name = "commands without end, replies not read"
    size = 300
    reads = False

    def open(self, to, number):
        return connect(to, number, buffer=2048)

    def feed(self, s):
        s.send(b"EHLO deaf.test\r\n" * 2000)


class HalfOpenTls(Crowd):
    name = "TLS handshakes never finished"
    needs_tls = True

    def open(self, to, number):
        s = connect(to, number)
        if not dialogue(s, b"EHLO half.test\r\n", b"STARTTLS\r\n").startswith(b"220"):
            raise RuntimeError("no handshake may begin")
        s.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        return s

    def feed(self, s):
        s.send(b"\x00")


class Repeat(Attack):
    """The same thing over and over."""

    def once(self, to, counts):
        raise NotImplementedError

    def run(self, to, index, stop):
        counts = {}
        self.number = index * 1000
        while not stop.is_set():
            self.number += 1
            try:
                self.once(to, counts)
            except (ConnectionError, TimeoutError, OSError) as error:
                # Out of ports for a moment: as good as a pause.
                self.count(counts, type(error).__name__)
                time.sleep(0.005)
        return counts

    @staticmethod
    def count(counts, what, by=1):
        counts[what] = counts.get(what, 0) + by


class Leave(Repeat):
    name = "connect and leave"

    def once(self, to, counts):
        connect(to, self.number).close()
        self.count(counts, "connections")


class Resets(Repeat):
    name = "RST floods, half of them in the middle of a command"

    def once(self, to, counts):
        s = connect(to, self.number)
        if self.number % 2:
            s.sendall(b"EHLO gone.test\r\nMAIL FR")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        s.close()
        self.count(counts, "resets")


class Commands(Repeat):
    name = "command floods"

    def once(self, to, counts):
        kinds = (b"NOOP\r\n", b"RSET\r\n", b"HELP\r\n", b"VRFY x\r\n", b"EHLO flood.test\r\n", b"HTTP\r\n", b"\x00\r\n")
        batch = random.choice(kinds) * 2000
        with connect(to, self.number) as s:
            s.sendall(batch)
            reply = b""
            while piece := s.recv(65536):
                reply += piece
            lines = reply.count(b"\r\n")
            self.count(counts, "commands answered", lines)
            self.count(counts, "closed with 421", reply.count(b"421 "))


class Recipients(Repeat):
    name = "recipients without end, from clients that may relay"

    def once(self, to, counts):
        with connect(to, relay=True) as s:
            dialogue(s, b"EHLO many.test\r\n", b"MAIL FROM:<a@many.test>\r\n")
            batch = b"".join(b"RCPT TO:<r%d@many.test>\r\n" % n for n in range(2000))
            for _ in range(500):
                s.sendall(batch)
                seen = 0
                while seen < 2000:
                    piece = s.recv(65536)
                    if not piece:
                        self.count(counts, "closed by the server")
                        return
                    seen += piece.count(b"\r\n")
                    self.count(counts, "taken", piece.count(b"250 "))
                    self.count(counts, "refused", piece.count(b"452 "))
            self.count(counts, "a million sent")


class LongLines(Repeat):
    name = "lines of 1 MB, and lines without end"

    def once(self, to, counts):
        megabyte = b"x" * (1 << 20)
        with connect(to, self.number) as s:
            answer(s)
            try:
                for _ in range(64):
                    s.sendall(megabyte)
                    self.count(counts, "MB sent")
                    if self.number % 2:
                        s.sendall(b"\r\n")
            except OSError:
                self.count(counts, "closed by the server")


ATTACKS = [Idle, IdleTls, SlowCommands, SlowBody, LargeBodies, SlowReaders, HalfOpenTls, Leave, Resets, Commands, Recipients, LongLines]


class Server:
    """The server under attack, with a sink behind it."""

    def __init__(self, options, directory, waits):
        os.mkdir(directory)
        self.spool = f"{directory}/spool"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RINGPOST_")}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self.sink = subprocess.Popen([options.ringpost, "sink", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE,
                                     text=True, env=environment, **quiet)
        at = self.sink.stderr.readline().split()[-1]
        command = [options.ringpost, "serve", "--listen", "127.0.0.1:0", "--hostname", "mta.test", "--spool",
                   self.spool, "--route", f"*={at}", "--relay-from", "127.0.0.1/32", "--max-connections",
                   str(options.idle + 1000), *waits]
        if openssl := shutil.which("openssl"):
            pair = [f"{directory}/cert", f"{directory}/key"]
            subprocess.run([openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-subj", "/CN=mta.test", "-out", pair[0], "-keyout", pair[1]], check=True,
                           stderr=subprocess.DEVNULL, **quiet)
            command += ["--tls-cert", pair[0], "--tls-key", pair[1]]
        self.options = options
        self.log = open(f"{directory}/log", "w+")
        self.process = subprocess.Popen(command, stderr=self.log, env=environment, **quiet)
        until = time.monotonic() + 60
        while True:
            with open(f"{directory}/log") as f:
                text = f.read()
            if "\nready" in text:
                break
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server does not start: {text}")
            time.sleep(0.05)
        host, port = next(l for l in text.splitlines() if l.startswith("listening on ")).split()[-1].rsplit(":", 1)
        self.to = (host, int(port))

    def memory(self):
        """Bytes in memory that are the process's own."""
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

    def cpu_sec(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sessions(self):
        text = subprocess.run([self.options.ringpost, "queue", "summary", "--json", "--spool", self.spool],
                              capture_output=True, text=True).stdout
        return json.loads(text)["report"]["counters"]["sessions_now"]

    def stop(self):
        for process in (self.process, self.sink):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def good_mail(kind, options, server):
    """Good mail at the fixed rate; what became of it."""
    command = [options.ringpost, "load", "--to", "{}:{}".format(*server.to), "--connections", "16", "--rate",
               f"{options.rate}/s", "--duration", f"{options.seconds}s", "--tolerate-errors", "--seed", "1", "--json"]
    for option, value in zip(*[iter(kind.good if kind else ())] * 2):
        if option in command:
            command[command.index(option) + 1] = value
        else:
            command += [option, value]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def attacker(kind, options, to, index, stop, results):
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    begun = time.process_time()
    counts = kind(options).run(to, index, stop)
    results.put((counts, time.process_time() - begun))


def measure(kind, options, server):
    """Good mail beside one attack (or none)."""
    figures = {"attack": kind.name if kind else "none"}
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    before = server.memory()
    attackers = []
    if kind:
        for index in range(kind.processes):
            process = multiprocessing.Process(target=attacker, args=(kind, options, server.to, index, stop, results))
            process.start()
            attackers.append(process)
        if issubclass(kind, Idle):
            figures |= settle(kind(options).size, server, before)
        else:
            time.sleep(1)
    used = server.cpu_sec()
    good, most = good_mail(kind, options, server), 0
    while good.poll() is None:
        most = max(most, server.memory())
        time.sleep(0.1)
    report = json.loads(good.stdout.read())
    figures["server_cpu_share"] = (server.cpu_sec() - used) / options.seconds
    stop.set()
    counts, attacker_cpu = {}, 0
    for _ in attackers:
        part, cpu = results.get(timeout=60)
        attacker_cpu += cpu
        for what, count in part.items():
            counts[what] = counts.get(what, 0) + count
    for process in attackers:
        process.join(10)
    time.sleep(2)
    whole = report["latency"]["whole"]
    return figures | {
        "accepted": report["accepted"], "failed": report["rejected"] + report["unknown"] + report["unsent"],
        "errors": report["error_samples"], "p50_ms": whole["p50_us"] / 1e3, "p99_ms": whole["p99_us"] / 1e3,
        "memory_mib": (most - before) / (1 << 20), "counts": counts, "attacker_cpu_sec": attacker_cpu,
        "sessions_after": server.sessions(),
    }


def settle(size, server, before):
    """Waits until all idle connections stand and the server has put them by; the memory of one."""
    until = time.monotonic() + 90
    while server.sessions() < size and time.monotonic() < until:
        time.sleep(0.2)
    standing = server.sessions()
    time.sleep(4)
    return {"wanted": size, "standing": standing, "idle_bytes": (server.memory() - before) / max(standing, 1)}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringpost", default=os.path.join(here, "../target/release/ringpost"))
    parser.add_argument("--idle", type=int, default=15000, help="idle connections")
    parser.add_argument("--idle-tls", type=int, default=2000, help="idle connections under TLS")
    parser.add_argument("--idle-bytes", type=int, default=4096, help="most memory of the server for each of them")
    parser.add_argument("--rate", type=int, default=1000, help="good messages per second")
    parser.add_argument("--seconds", type=int, default=8, help="how long each attack lasts")
    parser.add_argument("--bound", type=float, default=250, help="most ms in the p99 of good mail beside an attack")
    parser.add_argument("--only", help="attacks whose name has this in it")
    parser.add_argument("--dir", default=os.path.join(here, "../target"), help="where the spool is made")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()
    available = [kind for kind in ATTACKS if shutil.which("openssl") or not kind.needs_tls]
    for kind in set(ATTACKS) - set(available):
        print(f"skipped: {kind.name}: openssl is not installed", file=sys.stderr)
    chosen = [kind for kind in available if not options.only or options.only in kind.name]
    faults, rows = [], []
    with tempfile.TemporaryDirectory(prefix="abuse-", dir=options.dir) as directory:
        silent = [kind for kind in chosen if issubclass(kind, Idle)]
        others = [kind for kind in chosen if not issubclass(kind, Idle)]
        for name, kinds, waits in (("silent", silent, []), ("others", others, SHORT)):
            if not kinds:
                continue
            server = Server(options, f"{directory}/{name}", waits)
            try:
                measure(None, options, server)  # The first mail makes segments, caches and threads.
                for kind in [None, *kinds, None]:
                    figures = measure(kind, options, server)
                    rows.append(figures)
                    show(figures)
                    faults += judge(figures, options)
            finally:
                server.stop()
    if options.json:
        with open(options.json, "w") as f:
            json.dump(rows, f, indent=1)
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "Good mail came through all of it.")
    sys.exit(bool(faults))


def show(figures):
    if figures["attack"] == "none" and not show.begun:
        print("| attack | good mail accepted, failed | p50 | p99 | memory | server's processors | attackers |")
        print("|---|---:|---:|---:|---:|---:|---|")
        show.begun = True
    counts = ", ".join(f"{count:,} {what}" for what, count in figures["counts"].items()) or "none"
    if "idle_bytes" in figures:
        counts = f"{figures['standing']:,} at once, {figures['idle_bytes']:,.0f} bytes each; {counts}"
    print(f"| {figures['attack']} | {figures['accepted']:,}, {figures['failed']} | {figures['p50_ms']:.1f} ms "
          f"| {figures['p99_ms']:.1f} ms | {figures['memory_mib']:+.1f} MiB | {figures['server_cpu_share']:.2f} "
          f"| {counts} |", flush=True)


show.begun = False


def judge(figures, options):
    name = figures["attack"]
    if figures["failed"]:
        yield f"{name}: {figures['failed']} good messages failed: {figures['errors']}"
    if figures["p99_ms"] > options.bound and name != "none":
        yield f"{name}: p99 of good mail is {figures['p99_ms']:.0f} ms"
    if figures["sessions_after"]:
        yield f"{name}: {figures['sessions_after']} sessions were left behind"
    if name == Idle.name and figures["idle_bytes"] > options.idle_bytes:
        yield f"{name}: {figures['idle_bytes']:.0f} bytes for each"
    if figures.get("standing", 0) < figures.get("wanted", 0):
        yield f"{name}: only {figures['standing']} could connect"


if __name__ == "__main__":
    main()
