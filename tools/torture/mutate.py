"""Broken files and texts, each a function of a generator: bits, ends, fields, magic numbers; values, types, depth."""

import copy
import gzip
import json
import random
import re
import struct
import zlib
from typing import Any

MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\0",
    b"MM\0*",
    b"NRRD0005",
    b"\x1f\x8b\x08\0",
    b"n+1\0",
    b"\0\0\0\1",
    b"DICM",
)
INTEGERS = (0, 1, -1, 2, 127, -128, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, -(2**63))
REALS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 3.4e38)
WORDS = (b"0", b"-1", b"1", b"99999", b"2147483648", b"99999999999999999999", b"1e308", b"nan", b"-inf", b"x", b"0.0000001")


def broken(raw: bytes, rng: random.Random) -> bytes:
    """A file with one to three faults; half of those that are packed, or have checksums, are broken inside and packed again."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if raw[:2] == b"\x1f\x8b" and rng.random() < 0.6:
            try:
                raw = gzip.compress(_once(gzip.decompress(raw), rng), 1)
                continue
            except (OSError, EOFError, zlib.error):
                pass  # broken already
        raw = _once(raw, rng)
    return _sealed(raw) if raw.startswith(MAGIC[0]) and rng.random() < 0.7 else raw


def _once(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    ways = (_flip, _field, _field, _field, _text, _text, _cut, _insert, _delete, _fill, _magic, _repeat)
    rng.choice(ways)(data, rng)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """Somewhere, and more often near the start, where headers are."""
    length = max(len(data), 1)
    return rng.randrange(min(length, 400)) if rng.random() < 0.7 else rng.randrange(length)


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _field(data: bytearray, rng: random.Random) -> None:
    order = rng.choice("<>")
    if rng.random() < 0.75:
        size = rng.choice((1, 2, 2, 4, 4, 8))
        value = (rng.choice(INTEGERS) % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")
    else:
        value = struct.pack(order + rng.choice("fd"), rng.choice(REALS))
    at = _place(data, rng) // 2 * 2
    data[at : at + len(value)] = value


def _text(data: bytearray, rng: random.Random) -> None:
    """A number or a word of a header that is text."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?|[A-Za-z_]{3,}", bytes(data[:1000])))
    if found:
        match = rng.choice(found)
        data[match.start() : match.end()] = rng.choice(WORDS)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 7, 64, 3000)))


def _delete(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 7, 64))]


def _fill(data: bytearray, rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((1, 4, 16, 100))
    data[at : at + size] = rng.choice((b"\0", b"\xff", b" ", b"\n", b"9")) * size


def _magic(data: bytearray, rng: random.Random) -> None:
    kind = rng.choice(MAGIC)
    data[: len(kind)] = kind


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((4, 32, 300))
    data[at:at] = data[at : at + size] * rng.choice((1, 3, 50))


def _sealed(raw: bytes) -> bytes:
    """A PNG whose checksums are right, so that what was broken is looked at."""
    data, at = bytearray(raw), 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + size > len(data):
            break
        data[at + 8 + size : at + 12 + size] = zlib.crc32(data[at + 4 : at + 8 + size]).to_bytes(4, "big")
        at += 12 + size
    return bytes(data)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2.5, 10**6, 2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"), 1e308, "", "x", "0",
    "\ud800", "é" * 300, "../../etc/passwd", "/etc/passwd", "\0", [], {}, [0], [[]], [None], {"": None}, {"0": "x"}, ["x"] * 50,
)  # fmt: skip


def other_json(content: Any, rng: random.Random) -> bytes:
    """A JSON text with a value replaced, a key gone or renamed, or broken as a text."""
    content = copy.deepcopy(content)
    if rng.random() < 0.15:
        return broken(json.dumps(content).encode(), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _change(content, rng)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.04:  # deep
        depth = rng.choice((500, 5000, 200000))
        text = text.replace("null", "[" * depth + "]" * depth) if "null" in text else '{"a":' * depth + text + "}" * depth
    if rng.random() < 0.03:
        text = text.replace("0", "9" * 5000, 1)  # more digits than Python takes for a number
    return text.encode("utf-8", "surrogatepass")


def _change(content: Any, rng: random.Random) -> Any:
    places = list(_places(content))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    parent, key = rng.choice(places)
    way = rng.random()
    if way < 0.15:
        del parent[key]
    elif way < 0.25 and isinstance(parent, dict):
        parent[rng.choice(("x", "", "\0", "0", str(key) + "2", str(key).upper()))] = parent.pop(key)
    elif way < 0.35 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def _places(content: Any) -> Any:
    """Every (container, key) in a content of JSON; those near the top again and again, as they matter most."""
    if isinstance(content, (dict, list)):
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        for key in keys:
            yield from [(content, key)] * (1 if isinstance(content, list) else 3)
            yield from _places(content[key])


def other_table(text: str, rng: random.Random) -> bytes:
    """A table with a cell, a separator or a line replaced, or broken as a text."""
    if rng.random() < 0.3:
        return broken(text.encode(), rng)
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        at = rng.randrange(len(row)) if row else 0
        value = rng.choice(VALUES) if rng.random() < 0.6 else rng.choice(rng.choice(rows) or [""])
        cell = value if isinstance(value, str) else json.dumps(value)
        way = rng.randrange(8)
        if way < 3:
            row[at : at + 1] = [cell]
        elif way < 5:
            row.insert(rng.choice((at, len(row))), cell)
        elif way < 7:
            rows.append(list(row))
        else:
            rng.shuffle(rows)
    quote = rng.choice(("", "", "", "", '"', "\ufeff"))
    end = rng.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    return (quote + end.join(",".join(row) for row in rows)).encode(
        rng.choice(("utf-8", "utf-8", "utf-16", "latin-1")), "replace"
    )
