#!/usr/bin/env python3
"""The same load through ringpost, Postfix, Haraka and KumoMTA, in interleaved rounds.

Each round gives every server a fresh queue in a temporary directory, sends it N messages with
`ringpost load`, and waits until `ringpost sink` has every one of them. Servers are compared under the same
behaviour of the client, one table for each (--workloads):

  pipelined     kept connections, commands pipelined; a server that cannot take that has no row
  plain         kept connections, each command waits for the reply to the one before
  single        the same, and a connection for each message
  tls           as plain, over STARTTLS, 20 messages on each connection

What is reported per server:

  accepted/s    messages per second the server acknowledged
  delivered/s   messages per second from the first MAIL until the last message was at the sink
  CPU           user and system time of all processes of the server, per message
  RSS, PSS      highest sum over its processes; in PSS memory that they share counts once
  flushes       commands to the disk below --dir to empty its cache, per 1,000 messages: what of the
                durability was really in force. Without any, an acknowledged message can be lost with
                the power. The whole disk is counted, and what it did in the second before the run is
                taken off: keep others off it. "-" where the kernel does not say (tmpfs, or a disk
                without a cache that needs it)
  durability    what the server is set to do before it acknowledges

A ratio is that of the medians to the first server's, with the lowest and highest ratio of a round.
Nothing of the system is touched: Postfix runs with a private config_directory and queue_directory, and
writes its log to a file beside them, for it cannot be without one. It needs root, because its master does.
No other server writes a log. The status is 1 when mail was refused, lost, doubled or damaged by any server,
or when a run failed.
"""
import argparse
import json
import os
import pwd
import grp
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
DELIVERY_PATIENCE_SEC = 60
START_PATIENCE_SEC = 120
# The longest that one run may take, from its first message on.
RUN_PATIENCE_SEC = 1800

# What the client does in each workload.
WORKLOADS = {
    "pipelined": [],
    "plain": ["--no-pipelining"],
    "single": ["--no-pipelining", "--messages-per-connection", "1"],
    "tls": ["--no-pipelining", "--messages-per-connection", "20", "--tls", "starttls"],
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port, process):
    until = time.monotonic() + START_PATIENCE_SEC
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError("the server ended while it started")
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as s:
                s.settimeout(5)
                if s.recv(3) == b"220":
                    s.sendall(b"QUIT\r\n")
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server does not answer")


class Family:
    """CPU and memory of a process and all of its descendants."""

    def __init__(self, pid):
        self.pid = pid
        self.peak = 0
        self.peak_rss = 0

    def members(self):
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat") as f:
                        fields = f.read().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                # Own time, and that of children that were waited for.
                parents[int(name)] = (int(fields[1]), sum(map(int, fields[11:15])))
        family = {self.pid}
        grown = True
        while grown:
            more = {pid for pid, (parent, _) in parents.items() if parent in family} - family
            family |= more
            grown = bool(more)
        return {pid: parents[pid][1] for pid in family if pid in parents}

    def cpu_sec(self):
        return sum(self.members().values()) / TICK

    def sample_memory(self):
        total = {"Pss:": 0, "Rss:": 0}
        for pid in self.members():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as f:
                    for line in f:
                        name, amount = line.split()[:2]
                        if name in total:
                            total[name] += int(amount)
            except OSError:
                pass
        self.peak = max(self.peak, total["Pss:"] * 1024)
        self.peak_rss = max(self.peak_rss, total["Rss:"] * 1024)


def flushes(path):
    """How often the disk that holds `path` was told to empty its cache; None where that is not known."""
    device = os.stat(path).st_dev
    node = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(f"{node}/partition"):
        node = os.path.dirname(node)
    try:
        with open(f"{node}/queue/write_cache") as f:
            # Nothing is sent to a disk that claims to have no cache, and nothing need be.
            if f.read().strip() != "write back":
                return None
        with open(f"{node}/stat") as f:
            return int(f.read().split()[15])
    except (OSError, IndexError, ValueError):
        return None


def flush_rate(path):
    """How often a second others empty the disk's cache."""
    before = flushes(path)
    time.sleep(1)
    return 0 if before is None else flushes(path) - before


class Server:
    """One server under test. `start` returns its process; it listens on `port` and relays to `sink`."""

    name = ""
    durability = ""
    # Workloads it cannot take, and why.
    cannot = {}

    def __init__(self, options):
        self.options = options
        # Certificate and key to offer STARTTLS with, where the workload has TLS.
        self.tls = None

    def version(self):
        return ""

    def start(self, directory, port, sink):
        raise NotImplementedError

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            # It and all of its children: they have a session of their own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Ringpost(Server):
    name = "ringpost"

    def __init__(self, options, durability="disk"):
        super().__init__(options)
        self.level = durability
        if durability != "disk":
            self.name = f"ringpost ({durability})"
        self.durability = {"disk": "synced to disk before 250", "os": "with the kernel before 250"}.get(
            durability, "memory only")

    def version(self):
        return subprocess.run([self.options.ringpost, "--version"], capture_output=True,
                              text=True).stdout.strip().removeprefix("ringpost ")

    def start(self, directory, port, sink):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RINGPOST_")}
        return subprocess.Popen(
            [self.options.ringpost, "serve", "--listen", f"127.0.0.1:{port}", "--hostname", "ringpost.test",
             "--spool", f"{directory}/spool", "--durability", self.level, "--route", f"*=127.0.0.1:{sink}",
             "--destination-connections", str(self.options.connections), "--end-with-parent",
             *(["--tls-cert", self.tls[0], "--tls-key", self.tls[1]] if self.tls else [])],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(f"{directory}/log", "w"), start_new_session=True)


class Postfix(Server):
    name = "Postfix"
    durability = "fsync of the queue file before 250"
    MASTER = "/usr/lib/postfix/sbin/master"

    def version(self):
        return subprocess.run(["postconf", "-dh", "mail_version"], capture_output=True, text=True).stdout.strip()

    def start(self, directory, port, sink):
        owner, drop = pwd.getpwnam("postfix"), grp.getgrnam("postdrop")
        queue, data, config = f"{directory}/queue", f"{directory}/data", f"{directory}/config"
        os.chmod(directory, 0o755)
        for path in (queue, config):
            os.mkdir(path)
        os.mkdir(data)
        os.chown(data, owner.pw_uid, owner.pw_gid)
        for name in ("active bounce corrupt defer deferred flush hold incoming private saved trace "
                     "maildrop public pid").split():
            os.mkdir(f"{queue}/{name}", 0o700)
            if name != "pid":
                os.chown(f"{queue}/{name}", owner.pw_uid, drop.gr_gid if name in ("maildrop", "public") else -1)
        os.chmod(f"{queue}/maildrop", 0o730)
        os.chmod(f"{queue}/public", 0o710)
        os.chmod(f"{queue}/pid", 0o755)
        connections = self.options.connections
        with open(f"{config}/main.cf", "w") as f:
            f.write(f"""compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
daemon_directory = {os.path.dirname(self.MASTER)}
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
relayhost = [127.0.0.1]:{sink}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_limit = 10000
smtpd_peername_lookup = no
disable_dns_lookups = yes
smtp_tls_security_level = none
smtpd_tls_security_level = {"may" if self.tls else "none"}
smtpd_tls_cert_file = {self.tls[0] if self.tls else ""}
smtpd_tls_key_file = {self.tls[1] if self.tls else ""}
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
in_flow_delay = 0
default_process_limit = {connections + 50}
default_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
default_destination_recipient_limit = 50
qmgr_message_active_limit = 40000
qmgr_message_recipient_limit = 40000
message_size_limit = 0
mailbox_size_limit = 0
""")
        with open(f"{config}/master.cf", "w") as f:
            f.write(f"127.0.0.1:{port} inet n - n - - smtpd\n")
            for line in """cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
showq unix n - n - - showq""".splitlines():
                f.write(line + "\n")
        for name in ("main.cf", "master.cf"):
            os.chmod(f"{config}/{name}", 0o644)
        return subprocess.Popen([self.MASTER, "-c", config, "-d"], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=open(f"{directory}/errors", "w"),
                                start_new_session=True)


class Haraka(Server):
    name = "Haraka"
    durability = "written to a queue file before 250, never synced"
    cannot = {"pipelined": "it refuses commands in one packet with the end of a message"}

    def version(self):
        package = os.path.join(os.path.dirname(os.path.realpath(self.options.haraka)), "..", "package.json")
        try:
            with open(package) as f:
                return json.load(f)["version"]
        except (OSError, ValueError, KeyError):
            return ""

    def start(self, directory, port, sink):
        os.makedirs(f"{directory}/config")
        os.makedirs(f"{directory}/plugins")
        os.makedirs(f"{directory}/queue")
        files = {
            "config/smtp.ini": f"listen=127.0.0.1:{port}\nnodes={os.cpu_count()}\n",
            "config/plugins": "tls\naccept_all\n" if self.tls else "accept_all\n",
            "config/me": "haraka.test\n",
            "config/host_list": "",
            "config/loglevel": "error\n",
            "config/log.ini": "[main]\nlevel=error\n",
            "config/connection.ini": "[main]\n[haproxy]\nhosts[]=\n[headers]\nmax_lines=1000\nmax_received=100\n"
                                     "[max]\nbytes=0\nmime_parts=1000\nline_length=4096\ndata_line_length=4096\n"
                                     "[message]\nhelo=ready\nclose=bye\n[uuid]\nbanner_chars=6\ndeny_chars=0\n",
            "config/outbound.ini": f"concurrency_max={self.options.connections}\nlocal_mx_ok=true\n"
                                   "enable_tls=false\npool_concurrency_max=0\n",
            "plugins/accept_all.js": "exports.hook_connect = function (next, connection) "
                                     "{ connection.relaying = true; next(); };\n"
                                     "exports.hook_rcpt = function (next) { next(OK); };\n"
                                     "exports.hook_get_mx = function (next) "
                                     f"{{ next(OK, {{ exchange: '127.0.0.1', port: {sink}, priority: 0 }}); }};\n",
        }
        for name, text in files.items():
            with open(f"{directory}/{name}", "w") as f:
                f.write(text)
        if self.tls:
            shutil.copy(self.tls[0], f"{directory}/config/tls_cert.pem")
            shutil.copy(self.tls[1], f"{directory}/config/tls_key.pem")
        log = open(f"{directory}/log", "w")
        return subprocess.Popen([self.options.haraka, "-c", directory], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, start_new_session=True)


class Kumo(Server):
    name = "KumoMTA"
    durability = "written to RocksDB before 250, not synced"

    def version(self):
        return subprocess.run([self.options.kumod, "--version"], capture_output=True, text=True).stdout.strip()

    def start(self, directory, port, sink):
        tls = f", tls_certificate = '{self.tls[0]}', tls_private_key = '{self.tls[1]}'" if self.tls else ""
        policy = f"""local kumo = require 'kumo'
kumo.on('init', function()
  kumo.define_spool {{ name = 'data', path = '{directory}/data', kind = 'RocksDB' }}
  kumo.define_spool {{ name = 'meta', path = '{directory}/meta', kind = 'RocksDB' }}
  kumo.start_esmtp_listener {{ listen = '127.0.0.1:{port}', relay_hosts = {{ '127.0.0.1' }}{tls} }}
end)
kumo.on('get_queue_config', function()
  return kumo.make_queue_config {{
    protocol = {{ smtp = {{ mx_list = {{ {{ name = 'sink', addr = '127.0.0.1:{sink}' }} }} }} }},
  }}
end)
kumo.on('get_egress_path_config', function()
  return kumo.make_egress_path {{ connection_limit = {self.options.connections}, enable_tls = 'Disabled' }}
end)
"""
        with open(f"{directory}/init.lua", "w") as f:
            f.write(policy)
        log = open(f"{directory}/log", "w")
        return subprocess.Popen([self.options.kumod, "--policy", f"{directory}/init.lua", "--user", "root"],
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def certificate(directory):
    """Makes a certificate nobody has signed; None where openssl is missing."""
    paths = f"{directory}/cert.pem", f"{directory}/key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", "/CN=mail.test", "-out", paths[0], "-keyout", paths[1]]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return paths


def arrivals(sink, log):
    """The report of the sink, and whether it had to be ended. It ends by itself when it has all, or when
    nothing more has come for DELIVERY_PATIENCE_SEC; where nothing ever comes it would wait for ever."""
    begun = time.monotonic()
    while time.monotonic() < begun + RUN_PATIENCE_SEC:
        try:
            return json.loads(sink.communicate(timeout=5)[0]), False
        except subprocess.TimeoutExpired:
            with open(log) as f:
                counts = re.findall(r"(\d+)(?: of \d+)? messages", f.read())
            if not any(map(int, counts)) and time.monotonic() > begun + DELIVERY_PATIENCE_SEC:
                break
    sink.terminate()
    return json.loads(sink.communicate(timeout=30)[0]), True


def measure(server, options, client):
    """One run of one server: a dictionary of figures. `client` is what the source does."""
    directory = tempfile.mkdtemp(prefix="ringpost-compare-", dir=options.dir)
    port, sink_port = free_port(), free_port()
    sink = subprocess.Popen(
        [options.ringpost, "sink", "--listen", f"127.0.0.1:{sink_port}", "--messages",
         str(options.messages * options.recipients), "--quiet-exit", f"{DELIVERY_PATIENCE_SEC}s", "--json"],
        stdout=subprocess.PIPE, stderr=open(f"{directory}/arrivals", "w"))
    process, watcher, done = None, None, threading.Event()
    try:
        process = server.start(directory, port, sink_port)
        wait_for_port(port, process)
        family = Family(process.pid)
        watcher = threading.Thread(target=lambda: watch(family, done))
        watcher.start()
        noise_per_sec = flush_rate(directory)
        cpu_before, flushes_before, begun = family.cpu_sec(), flushes(directory), time.monotonic()
        command = [options.ringpost, "load", "--to", f"127.0.0.1:{port}", "--messages", str(options.messages),
                   "--connections", str(options.connections), "--size", options.size, "--recipients-per-message",
                   str(options.recipients), "--seed", "1", "--json", *client]
        load = subprocess.run(command, capture_output=True, text=True, timeout=RUN_PATIENCE_SEC)
        if not load.stdout:
            raise RuntimeError(f"the source failed: {load.stderr}")
        source = json.loads(load.stdout)
        report, was_ended = arrivals(sink, f"{directory}/arrivals")
        seconds = time.monotonic() - begun
        if report["unique"] < options.messages * options.recipients and not was_ended:
            # The sink has waited for mail that was refused or did not come.
            seconds -= DELIVERY_PATIENCE_SEC
        cpu = family.cpu_sec() - cpu_before
        flushed = None
        if flushes_before is not None:
            flushed = max(flushes(directory) - flushes_before - noise_per_sec * (time.monotonic() - begun), 0)
        done.set()
        watcher.join()
        delivered = max(report["unique"], 1)
        return {
            "accepted_per_sec": source["rate"],
            "delivered_per_sec": report["unique"] / seconds,
            "cpu_us_per_delivery": cpu * 1e6 / delivered,
            "peak_pss_mib": family.peak / (1 << 20),
            "peak_rss_mib": family.peak_rss / (1 << 20),
            "flushes_per_1000": None if flushed is None else flushed * 1000 / delivered,
            "data_p99_ms": source["latency"]["data"]["p99_us"] / 1000,
            "accepted": source["accepted"],
            "errors": source["errors"],
            "error_samples": source["error_samples"],
            "rejected": source["rejected"] + source["unknown"] + source["unsent"],
            # What was acknowledged or is in doubt may arrive, and only the first must.
            "missing": max(source["accepted_recipients"] - report["unique"], 0),
            "failure": source["failure"],
            "duplicates": report["duplicates"],
            "corrupt": report["corrupt"],
        }
    except Exception:
        try:
            with open(f"{directory}/log") as f:
                sys.stderr.write(f.read()[-2000:])
        except OSError:
            pass
        raise
    finally:
        done.set()
        if watcher is not None:
            watcher.join()
        if process is not None:
            server.stop(process)
        if sink.poll() is None:
            sink.kill()
            sink.wait()
        shutil.rmtree(directory, ignore_errors=True)


def watch(family, done):
    while not done.wait(0.25):
        family.sample_memory()


FIGURES = [
    ("accepted_per_sec", "accepted/s", "{:,.0f}"),
    ("delivered_per_sec", "delivered/s", "{:,.0f}"),
    ("cpu_us_per_delivery", "CPU per message", "{:,.0f} µs"),
    ("peak_rss_mib", "peak RSS", "{:,.0f} MiB"),
    ("peak_pss_mib", "peak PSS", "{:,.0f} MiB"),
    ("data_p99_ms", "DATA p99", "{:,.1f} ms"),
    ("flushes_per_1000", "disk flushes per 1,000", "{:,.1f}"),
]


def ratio(runs, base, key):
    """Median ratio to the base with its spread over rounds; runs of one round belong together."""
    pairs = [run[key] / other[key] for run, other in zip(runs, base) if other[key] and run[key] is not None]
    if not pairs or not all(run[key] for run in base):
        return None
    middle = statistics.median(run[key] for run in runs) / statistics.median(run[key] for run in base)
    return {"ratio": middle, "least": min(pairs), "most": max(pairs)}


def filesystem(path):
    best = ("", "unknown")
    with open("/proc/mounts") as f:
        for line in f:
            _, at, kind = line.split()[:3]
            if (os.path.realpath(path) + "/").startswith(at.rstrip("/") + "/") and len(at) >= len(best[0]):
                best = (at, kind)
    return best[1]


def table(servers):
    lines = ["| server | " + " | ".join(title for _, title, _ in FIGURES) + " | durability |",
             "|---" * (len(FIGURES) + 2) + "|"]
    for server in servers:
        cells = []
        for key, _, form in FIGURES:
            values = [run[key] for run in server["runs"]]
            if None in values:
                cells.append("-")
                continue
            text = form.format(statistics.median(values))
            cells.append(f"{text} ({form.format(min(values))} to {form.format(max(values))})")
        lines.append(f"| {server['name']} {server['version']} | " + " | ".join(cells) + f" | {server['durability']} |")
    if len(servers) > 1:
        lines += ["", f"Ratios to {servers[0]['name']} (lowest to highest of a round):", ""]
        lines.append("| server | " + " | ".join(title for _, title, _ in FIGURES) + " |")
        lines.append("|---" * (len(FIGURES) + 1) + "|")
        for server in servers[1:]:
            cells = []
            for key, _, _ in FIGURES:
                r = server["ratios"][key]
                cells.append(f"{r['ratio']:.2f} ({r['least']:.2f} to {r['most']:.2f})" if r else "-")
            lines.append(f"| {server['name']} | " + " | ".join(cells) + " |")
    return lines


def faults(result):
    """What went wrong, a line for each; and what servers said when they refused."""
    wrong, said = [], []
    for workload in result["workloads"]:
        for server in workload["servers"]:
            name = f"{workload['name']}, {server['name']}"
            for key in ("rejected", "missing", "duplicates", "corrupt"):
                count = sum(run[key] for run in server["runs"])
                if count:
                    wrong.append(f"- {name}: {count} {key}")
            wrong += [f"- {name}: {run['failure']}" for run in server["runs"] if run["failure"]]
            samples = {kind: text for run in server["runs"] for kind, text in run["error_samples"].items()}
            said += [f"- {name} said {kind}: {text}" for kind, text in sorted(samples.items())]
    return wrong, said


def markdown(result):
    lines = [f"{result['messages']} messages of {result['size']}, {result['recipients']} recipients each, "
             f"{result['connections']} connections, {result['rounds']} rounds in turns, queues on "
             f"{result['filesystem']}, {result['processors']} processors. Median (lowest to highest)."]
    for workload in result["workloads"]:
        client = " ".join(workload["client"]) or "no option"
        lines += ["", f"### {workload['name']} (ringpost load with {client})", ""]
        lines += table(workload["servers"])
        lines += ["", *workload["left_out"]] if workload["left_out"] else []
    lines += ["", *result["left_out"]] if result["left_out"] else []
    wrong, said = faults(result)
    lines += ["", "Every accepted message arrived exactly once and unchanged." if not wrong else "Faults:"]
    return "\n".join(lines + wrong + said) + "\n"


def parse():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringpost", default=os.path.join(here, "../target/release/ringpost"),
                        help="the ringpost binary (also source and sink)")
    parser.add_argument("--levels", default="disk", help="durabilities of ringpost to run, by comma: disk,os,memory")
    parser.add_argument("--servers", default="ringpost,postfix", help="by comma: ringpost,postfix,haraka,kumod")
    parser.add_argument("--workloads", default="pipelined,plain,single", help="by comma: " + ",".join(WORKLOADS))
    parser.add_argument("--haraka", default=shutil.which("haraka"), help="the haraka program (npm install Haraka)")
    parser.add_argument("--kumod", help="the kumod program")
    parser.add_argument("--messages", type=int, default=10000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--size", default="4KiB")
    parser.add_argument("--recipients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where queues are kept: on the disk to measure")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--markdown", help="write the tables to this file, too")
    return parser.parse_args()


def servers(options):
    """The servers that can run, and why the others cannot."""
    chosen, left_out = [], []
    names = options.servers.split(",") + (["kumod"] if options.kumod and "kumod" not in options.servers else [])
    for name in names:
        if name == "ringpost":
            chosen += [Ringpost(options, level) for level in options.levels.split(",")]
        elif name == "postfix":
            if not os.path.exists(Postfix.MASTER):
                left_out.append("Postfix is left out: it is not installed.")
            elif os.geteuid() != 0:
                left_out.append("Postfix is left out: it needs root.")
            else:
                chosen.append(Postfix(options))
        elif name in ("haraka", "kumod"):
            kind, path = (Haraka, options.haraka) if name == "haraka" else (Kumo, options.kumod)
            if path and os.access(path, os.X_OK):
                chosen.append(kind(options))
            else:
                left_out.append(f"{kind.name} is left out: no program {path or name} (--{name}).")
        else:
            sys.exit(f"there is no server '{name}'")
    for text in left_out:
        print(text, file=sys.stderr)
    return chosen, left_out


def rounds(chosen, options, name, tls):
    """All rounds of one workload: the runs of each server by name, and who was left out."""
    able = [server for server in chosen if name not in server.cannot]
    left_out = [f"{server.name} is left out: {server.cannot[name]}." for server in chosen if name in server.cannot]
    runs = {server.name: [] for server in able}
    for number in range(options.rounds if able else 0):
        # Another order each round, so that none always follows the same one.
        turn = number % len(able)
        for server in able[turn:] + able[:turn]:
            server.tls = tls if name == "tls" else None
            figures = measure(server, options, WORKLOADS[name])
            runs[server.name].append(figures)
            print(f"{name}, round {number + 1}: {server.name}: {figures['delivered_per_sec']:,.0f}/s delivered, "
                  f"{figures['cpu_us_per_delivery']:,.0f} µs CPU each", file=sys.stderr)
    base = runs[able[0].name] if able else []
    return {
        "name": name, "client": WORKLOADS[name], "left_out": left_out,
        "servers": [{
            "name": server.name, "version": server.version(), "durability": server.durability,
            "runs": runs[server.name],
            "ratios": {key: ratio(runs[server.name], base, key) for key, _, _ in FIGURES},
        } for server in able],
    }


def main():
    options = parse()
    if not re.fullmatch(r"\d+(B|KiB|MiB)?", options.size):
        sys.exit("--size is a number with B, KiB or MiB")
    names = options.workloads.split(",")
    for name in names:
        if name not in WORKLOADS:
            sys.exit(f"there is no workload '{name}': there are {', '.join(WORKLOADS)}")
    chosen, left_out = servers(options)
    if not chosen:
        sys.exit("there is no server to measure")
    keys = tempfile.mkdtemp(prefix="ringpost-compare-keys-")
    try:
        # Postfix and its kind read the certificate as root, before they become somebody else.
        tls = certificate(keys) if "tls" in names else None
        if "tls" in names and tls is None:
            left_out.append("The workload tls is left out: openssl made no certificate.")
            print(left_out[-1], file=sys.stderr)
            names.remove("tls")
        workloads = [rounds(chosen, options, name, tls) for name in names]
    finally:
        shutil.rmtree(keys, ignore_errors=True)
    result = {
        "messages": options.messages, "size": options.size, "recipients": options.recipients,
        "connections": options.connections, "rounds": options.rounds, "processors": os.cpu_count(),
        "filesystem": filesystem(options.dir), "kernel": os.uname().release,
        "left_out": left_out, "workloads": workloads,
    }
    text = markdown(result)
    print(text, end="")
    for path, content in ((options.json, json.dumps(result, indent=1) + "\n"), (options.markdown, text)):
        if path:
            with open(path, "w") as f:
                f.write(content)
    sys.exit(1 if faults(result)[0] else 0)


if __name__ == "__main__":
    main()
