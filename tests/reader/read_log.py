#!/usr/bin/env python3
"""Reads a ringpost spool, from docs/LOG_FORMAT.md alone.

It shares no code with the server: what it finds must be what `ringpost spool dump` finds, or the
document or one of the two is wrong. It is written to be read next to the document, not to be fast.

read_log.py SPOOL          one JSON object per unfinished message, oldest first
read_log.py SPOOL DIR      and each message as the file DIR/ID
Needs: pip install xxhash. Exits with 77 where that is missing.
"""
import ipaddress
import json
import os
import re
import struct
import sys

try:
    import xxhash
except ImportError:
    sys.exit(77)

SEGMENT, GROUP, DIRECTORY, FRAME, SEAL, INDEX = (
    0x9A3C51E700000001,
    0xC1D80F2500000002,
    0x5E7B92A400000003,
    0xE84F6D1300000004,
    0x3D96B8F100000005,
    0x7AC41E5D00000006,
)
# Where no segment header says so: the least that a block can be.
SMALLEST_BLOCK = 512
COMMIT, FRAGMENT, ABORT, OUTCOME, CHANGE = 1, 2, 3, 4, 5
PENDING, DONE, DEFERRED = 0, 1, 2
MUST_UNDERSTAND = 0x8000


def u(fmt, data, at):
    return struct.unpack_from("<" + fmt, data, at)[0]


def identity(spool):
    """`key value` lines; two copies, of which one may be damaged."""
    for name in ("identity", "identity.copy"):
        try:
            lines = dict(line.split() for line in open(os.path.join(spool, name)))
            number, secret = int(lines["id"], 16), int(lines["secret"], 16)
            check = xxhash.xxh3_64_intdigest(struct.pack("<Q", number), seed=secret)
            if lines["ringpost-spool"] == "1" and int(lines["check"], 16) == check:
                return number, secret
        except (OSError, KeyError, ValueError):
            continue
    sys.exit(f"{spool} has no identity")


class Log:
    def __init__(self, spool, number):
        self.id, self.secret = identity(spool)
        self.number = number
        self.files = []
        directory = os.path.join(spool, f"log-{number:04}")
        for name in sorted(os.listdir(directory)):
            if re.fullmatch(r"seg-\d+", name):
                self.files.append(open(os.path.join(directory, name), "rb").read())
        self.tail = 0
        self.drafts, self.ended, self.fragments = {}, set(), {}
        self.indexed = self.copies = 0

    # Section 1
    def sum(self, domain, generation, at, data):
        key = xxhash.xxh3_64_intdigest(struct.pack("<QHI", self.secret, self.number, generation))
        return xxhash.xxh3_64_intdigest(data, seed=key ^ domain ^ (at << 16))

    # Section 2
    def segment_header(self, data):
        head = data[:96]
        if head[:8] != b"rpSEGM\r\n":
            return None
        generation = u("I", head, 12)
        ok = (
            u("H", head, 8) == 1
            and u("H", head, 10) == self.number
            and u("Q", head, 16) == self.id
            and u("Q", head, 88) == self.sum(SEGMENT, generation, 0, head[:88])
        )
        if not ok:
            return None
        closes = (u("I", head, 60), u("I", head, 64)) if u("I", head, 56) == 1 else None
        return {"generation": generation, "tail": u("Q", head, 40), "closes": closes, "block": u("I", head, 24)}

    # Section 3
    def group_header(self, data, offset, generation=None):
        head = data[offset : offset + 96]
        if len(head) < 96 or head[:8] != b"rpGROU\r\n":
            return None
        own = u("I", head, 12)
        ok = (
            u("H", head, 8) == 1
            and u("H", head, 10) == self.number
            and u("Q", head, 16) == self.id
            and u("I", head, 64) == offset
            and (generation is None or own == generation)
            and u("Q", head, 88) == self.sum(GROUP, own, offset, head[:88])
        )
        if not ok:
            return None
        return {
            "generation": own,
            "sequence": u("Q", head, 24),
            "tail": u("Q", head, 48),
            "offset": offset,
            "bytes": u("I", head, 68),
            "directory": u("I", head, 72),
            "frames": u("I", head, 76),
        }

    def groups(self, data, generation, block, end):
        offset = block
        while offset + 96 <= end:
            group = self.group_header(data, offset, generation)
            if group is None:
                offset += block
                continue
            yield group
            offset += max(group["bytes"], block)

    def frames(self, data, group):
        start, count = group["offset"], group["frames"]
        directory = start + group["directory"]
        size = (4 * count + 7) // 8 * 8
        entries = data[directory : directory + size]
        if u("Q", data, directory + size) == self.sum(DIRECTORY, group["generation"], start, entries):
            for n in range(count):
                frame = self.frame(data, start + u("I", entries, 4 * n), group["generation"])
                if frame:
                    yield frame
            return
        at = start + 96
        for _ in range(count):
            frame = self.frame(data, at, group["generation"])
            if frame is None:
                return
            yield frame
            at = start + (at - start + 24 + len(frame["payload"]) + 7) // 8 * 8

    # Section 4
    def frame(self, data, at, generation):
        if at + 24 > len(data):
            return None
        payload_bytes = u("I", data, at + 12)
        body = data[at + 8 : at + 24 + payload_bytes]
        checksum = u("Q", data, at)
        if len(body) != 16 + payload_bytes or checksum != self.sum(FRAME, generation, at, body):
            return None
        return {
            "at": (generation, at),
            "checksum": checksum,
            "kind": data[at + 8],
            "id": u("Q", data, at + 16),
            "payload": body[16:],
        }

    # Section 8
    def index(self, data, header):
        at = len(data) - header["block"]
        seal = data[at : at + 96]
        ok = (
            seal[:8] == b"rpSEAL\r\n"
            and u("H", seal, 8) == 1
            and u("H", seal, 10) == self.number
            and u("I", seal, 12) == header["generation"]
            and u("Q", seal, 16) == self.id
            and u("Q", seal, 88) == self.sum(SEAL, header["generation"], at, seal[:88])
        )
        if not ok:
            return None
        start, size = u("I", seal, 64), u("I", seal, 68)
        index = data[start : start + size]
        if u("Q", seal, 72) != self.sum(INDEX, header["generation"], start, index):
            return None
        entries, at = [], 0
        while at < size:
            length = u("I", index, at + 12)
            payload = index[at + 24 : at + 24 + length]
            entries.append((u("I", index, at), u("I", index, at + 4), index[at + 8], u("Q", index, at + 16), payload))
            at += (24 + length + 7) // 8 * 8
        return {"first": u("Q", seal, 24), "last": u("Q", seal, 32), "entries": entries}

    def check_index(self, index, groups):
        """What the index says of each frame is what the frame says."""
        sequences = [group["sequence"] for group, _ in groups]
        assert sequences == list(range(index["first"], index["last"] + 1)), "the seal counts its groups"
        frames = [frame for _, frames in groups for frame in frames]
        assert len(frames) == len(index["entries"]), "the index has every frame"
        for frame, (offset, size, kind, number, payload) in zip(frames, index["entries"]):
            whole = frame["payload"]
            assert (offset, size) == (frame["at"][1], 24 + len(whole)), "where the frame stands"
            assert (kind, number) == (frame["kind"], frame["id"]), "what it is"
            if kind == COMMIT:
                assert payload == whole[: len(whole) - u("I", whole, 16)], "a commit without its body"
            elif kind == FRAGMENT:
                assert payload == struct.pack("<Q", frame["checksum"]), "a fragment's checksum"
            elif kind == OUTCOME:
                known = [(n, v) for n, v in fields(whole) if n & MUST_UNDERSTAND]
                assert [(n, v[:20] if n == 2 | MUST_UNDERSTAND else v) for n, v in known] == list(fields(payload))
            else:
                assert payload == whole, "anything else as it is"
        self.indexed += 1

    # Section 9
    def read(self):
        segments, ends = [], {}
        for data in self.files:
            header = self.segment_header(data)
            if header:
                self.tail = max(self.tail, header["tail"])
                if header["closes"]:
                    generation, offset = header["closes"]
                    ends[generation] = min(offset, ends.get(generation, offset))
                segments.append((header["generation"], data, header["block"], self.index(data, header)))
                continue
            found = [self.group_header(data, at) for at in range(SMALLEST_BLOCK, len(data), SMALLEST_BLOCK)]
            generations = [group["generation"] for group in found if group]
            if generations:
                segments.append((max(generations), data, SMALLEST_BLOCK, None))
        for generation, data, block, index in sorted(segments, key=lambda s: s[0]):
            groups = []
            for group in self.groups(data, generation, block, min(len(data), ends.get(generation, len(data)))):
                self.tail = max(self.tail, group["tail"])
                groups.append((group, list(self.frames(data, group))))
                for frame in groups[-1][1]:
                    self.apply(group, frame)
            if index and generation not in ends:
                self.check_index(index, groups)
        return {k: d for k, d in sorted(self.drafts.items()) if d["sequence"] >= self.tail}

    # Section 5
    def apply(self, group, frame):
        payload, number = frame["payload"], frame["id"]
        if frame["kind"] == COMMIT:
            self.commit(group, number, payload)
        elif frame["kind"] == FRAGMENT:
            self.fragments[frame["at"]] = (number, frame["checksum"], payload[8:])
        elif frame["kind"] == ABORT:
            for (aborted,) in struct.iter_unpack("<Q", payload):
                self.drafts.pop(aborted, None)
        elif frame["kind"] == OUTCOME:
            for field, value in fields(payload):
                if field == 2 | MUST_UNDERSTAND:
                    deferred = value[2] == DEFERRED
                    self.state(number, u("H", value, 0), value[3] if deferred else None, u("Q", value, 4))
        elif frame["kind"] == CHANGE and number in self.drafts:
            self.change(self.drafts[number], payload)

    def change(self, message, payload):
        """What an operator has decided: (at, mark, destination, reason) of each recipient."""
        at, recipients, mark, destination, reason = 0, [], 0, None, ""
        for field, value in fields(payload):
            bare = field & ~MUST_UNDERSTAND
            if bare == 1:
                at = u("Q", value, 0)
            elif bare == 2:
                recipients = [recipient for (recipient,) in struct.iter_unpack("<H", value)]
            elif bare == 3:
                mark = value[0]
            elif bare == 4:
                destination = value.decode()
            elif bare == 5:
                reason = value.decode()
            elif field & MUST_UNDERSTAND:
                message["held"] = True
        for recipient in recipients:
            if at >= message["decided"].get(recipient, (0,))[0]:
                message["decided"][recipient] = (at, mark, destination, reason)

    def commit(self, group, number, payload):
        recipients, fragments, envelope, states, _ = struct.unpack_from("<5I", payload)
        at, body = 24, b""
        for n in range(fragments):
            generation, offset, _, _, _, checksum = struct.unpack_from("<IIIIQQ", payload, at + 32 * n)
            found = self.fragments.get((generation, offset))
            if found is None or found[:2] != (number, checksum):
                return
            body += found[2]
        at += 32 * fragments
        message = {"sequence": group["sequence"], "recipients": [], "client": None, "user": None, "held": False}
        message.update({"ret": None, "envid": None, "requiretls": False, "smtputf8": False})
        message.update({"notify": {}, "original": {}, "decided": {}})
        for field, value in fields(payload[at : at + envelope]):
            self.envelope_field(message, field, value)
        at += envelope
        known = [struct.unpack_from("<BB6xQ", payload, at + 16 * n) for n in range(states)]
        message["states"] = [list(s) for s in known] or [[PENDING, 0, 0] for _ in range(recipients)]
        message["body"] = body + payload[at + 16 * states :]
        if number in self.ended:
            return
        older = self.drafts.get(number, {"states": [], "decided": {}})
        self.copies += states > 0
        for state, old in zip(message["states"], older["states"]):
            if old[0] == DONE:
                state[0] = DONE
        for recipient, decision in older["decided"].items():
            if decision[0] > message["decided"].get(recipient, (0,))[0]:
                message["decided"][recipient] = decision
        self.drafts[number] = message
        self.end(number)

    # Section 6
    def envelope_field(self, message, field, value):
        bare = field & ~MUST_UNDERSTAND
        if bare == 1:
            message["sender"] = value.decode()
        elif bare == 2:
            message["recipients"].append(value.decode())
        elif bare == 3:
            message["body_kind"] = ("7bit", "8bit", "binary")[value[0]]
        elif bare == 4:
            message["dots_doubled"] = value[0] == 0
        elif bare == 5:
            message["received"] = u("Q", value, 0)
        elif bare == 6:
            message["client"] = str(ipaddress.ip_address(value))
        elif bare == 7:
            for (recipient,) in struct.iter_unpack("<H", value[8:]):
                self.state(u("Q", value, 0), recipient, None, 0)
        elif bare == 28:
            self.change(message, value)
        elif bare == 23:
            message["user"] = value.decode()
        elif bare == 16:
            message["ret"] = ("full", "hdrs")[value[0]]
        elif bare == 17:
            message["envid"] = value.decode()
        elif bare == 18:
            words = [word for bit, word in enumerate(("success", "failure", "delay")) if value[0] >> bit & 1]
            message["notify"][len(message["recipients"]) - 1] = words or ["never"]
        elif bare == 19:
            message["original"][len(message["recipients"]) - 1] = value.decode()
        elif bare == 20:
            message["requiretls"] = True
        elif bare == 21:
            message["smtputf8"] = True
        elif field & MUST_UNDERSTAND:
            message["held"] = True

    def state(self, number, recipient, attempts, due):
        states = self.drafts.get(number, {}).get("states", [])
        if recipient >= len(states) or states[recipient][0] == DONE:
            return
        if attempts is None:
            states[recipient] = [DONE, 0, 0]
        else:
            known = states[recipient][1]
            told = (attempts | known) & 0x80
            if attempts & 0x7F >= known & 0x7F:
                states[recipient] = [PENDING, attempts | told, due]
            else:
                states[recipient][1] |= told
        self.end(number)

    def end(self, number):
        if all(state[0] == DONE for state in self.drafts[number]["states"]):
            del self.drafts[number]
            self.ended.add(number)


def decision(message, recipient):
    _, mark, destination, reason = message["decided"].get(recipient, (0, 0, None, ""))
    if message["states"][recipient][0] == DONE or (mark == 0 and destination is None):
        return None
    return {"mark": ("none", "held", "failing")[mark], "destination": destination, "reason": reason}


def fields(data):
    at = 0
    while at + 6 <= len(data):
        number, length = struct.unpack_from("<HI", data, at)
        yield number, data[at + 6 : at + 6 + length]
        at += 6 + length


def text_of(number):
    """The text form of a message id: base 32, 13 characters."""
    digits = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(digits[number >> 5 * (12 - n) & 31] for n in range(13))


def file_of(message):
    if not message["dots_doubled"]:
        return message["body"]
    lines = message["body"].split(b"\n")
    return b"\n".join(line[1:] if line.startswith(b".") else line for line in lines)


def main():
    spool = sys.argv[1]
    directory = sys.argv[2] if len(sys.argv) > 2 else None
    for name in sorted(os.listdir(spool)):
        match = re.fullmatch(r"log-(\d+)", name)
        if not match:
            continue
        log = Log(spool, int(match[1]))
        messages = log.read()
        said = f"log {log.number}: {log.indexed} indexes agree with their segments, {log.copies} copies"
        print(said, file=sys.stderr)
        for number, message in messages.items():
            if directory:
                with open(os.path.join(directory, text_of(number)), "wb") as file:
                    file.write(file_of(message))
            recipients = [
                {
                    "address": address,
                    "state": ("pending", "done")[state],
                    "attempts": attempts & 0x7F,
                    "told_of_delay": attempts & 0x80 != 0,
                    "next_attempt_secs": due // 1_000_000 or None,
                    "notify": message["notify"].get(n),
                    "original": message["original"].get(n),
                    "decided": decision(message, n),
                }
                for n, (address, (state, attempts, due)) in enumerate(
                    zip(message["recipients"], message["states"])
                )
            ]
            listed = {
                "id": text_of(number),
                "log": log.number,
                "sender": message["sender"],
                "client": message["client"],
                "user": message["user"],
                "body_kind": message["body_kind"],
                "smtputf8": message["smtputf8"],
                "requiretls": message["requiretls"],
                "ret": message["ret"],
                "envid": message["envid"],
                "received_us": message["received"],
                "held": message["held"],
                "bytes": len(file_of(message)),
                "recipients": recipients,
            }
            print(json.dumps(listed))


main()
