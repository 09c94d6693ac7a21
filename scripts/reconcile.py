#!/usr/bin/env python3
"""Balances the books of a crash test.

reconcile.py ACK-LOG SEEN-LOG [DUMP]

ACK-LOG: a line per delivery the load source was told is accepted (`ringpost load --ack-log`).
SEEN-LOG: a line per delivery the sink received (`ringpost sink --seen-log`).
DUMP: `ringpost spool dump --header X-Ringpost-Load --json`: what still waits.
Prints acknowledged, seen, queued, lost, duplicated, and up to five of the lost.
"""
import json
import sys


def queued(path):
    """Names of the deliveries that wait, as the logs of source and sink name them."""
    names = set()
    for line in open(path):
        message = json.loads(line)
        stamp = message.get("headers", {}).get("X-Ringpost-Load")
        if stamp is None:
            continue
        name, recipients = stamp.split()[0], int(stamp.split()[-1])
        for recipient in message["recipients"]:
            if recipient["state"] == "pending":
                number = recipient["address"].split("@")[0].lstrip("r")
                names.add(f"{name}/{number}" if recipients > 1 else name)
    return names


def main():
    acked = set(open(sys.argv[1]).read().split())
    seen = open(sys.argv[2]).read().split()
    waiting = queued(sys.argv[3]) if len(sys.argv) > 3 else set()
    lost = acked - set(seen) - waiting
    print(
        f"acknowledged {len(acked)}, seen {len(set(seen))}, queued {len(waiting)}, "
        f"lost {len(lost)}, duplicated {len(seen) - len(set(seen))}"
    )
    for name in sorted(lost)[:5]:
        print("lost:", name)


main()
