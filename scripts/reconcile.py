#!/usr/bin/env python3
"""Balances the books of a crash test.

reconcile.py [--refused REFUSED-LOG] ACK-LOG SEEN-LOG [DUMP]

ACK-LOG: a line per delivery the load source was told is accepted (`ringpost load --ack-log`).
SEEN-LOG: a line per delivery the sink received (`ringpost sink --seen-log`).
DUMP: `ringpost spool dump --header X-Ringpost-Load --json`: what still waits.
REFUSED-LOG: a line per delivery the load source was told is refused (`ringpost load --refused-log`). What the
source was told nothing of may have been delivered or not.
Prints acknowledged, seen, queued, lost, duplicated, refused, delivered although refused, and up to five of the
lost and of the last. Ends with 1 if there are any of these.
"""
import argparse
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--refused")
    parser.add_argument("acked")
    parser.add_argument("seen")
    parser.add_argument("dump", nargs="?")
    args = parser.parse_args()
    acked = set(open(args.acked).read().split())
    seen = open(args.seen).read().split()
    waiting = queued(args.dump) if args.dump else set()
    lost = acked - set(seen) - waiting
    refused = set(open(args.refused).read().split()) if args.refused else set()
    wrong = refused & (set(seen) | waiting)
    print(
        f"acknowledged {len(acked)}, seen {len(set(seen))}, queued {len(waiting)}, "
        f"lost {len(lost)}, duplicated {len(seen) - len(set(seen))}"
        + (f", refused {len(refused)}, delivered although refused {len(wrong)}" if args.refused else "")
    )
    for name in sorted(lost)[:5]:
        print("lost:", name)
    for name in sorted(wrong)[:5]:
        print("delivered although refused:", name)
    sys.exit(bool(lost or wrong))


main()
