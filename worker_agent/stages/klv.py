"""GoPro's key-length-value format (GPMF): entries, numbers, and the settings of a recording.

https://github.com/gopro/gpmf-parser (README, "GPMF Deeper Dive"). Containers hold entries; numbers
are big-endian, and every value is padded to four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["GpmfError", "Klv", "find", "parse", "read_settings", "samples", "scaled", "streams"]

MAX_DEPTH = 8  # of nested containers; GoPro's writers use 3
MAX_SETTING_BYTES = 256  # longer ones are tables

# Type characters of the format -> struct codes; Q numbers (q, Q) and '?' are handled apart.
CODES = {
    "b": "b",
    "B": "B",
    "s": "h",
    "S": "H",
    "l": "i",
    "L": "I",
    "j": "q",
    "J": "Q",
    "f": "f",
    "d": "d",
}


class GpmfError(ValueError):
    """The bytes are not GPMF; the text says where."""


@dataclass(frozen=True, slots=True)
class Klv:
    """One entry: four-letter key, type character, bytes of one sample, repeat count, its data."""

    key: str
    kind: str
    size: int
    repeat: int
    data: bytes


def parse(data: bytes) -> Iterator[Klv]:
    """Entries of one level, in order. Raises GpmfError for a length that runs past the end."""
    offset = 0
    while offset + 8 <= len(data):
        key, kind, size, repeat = struct.unpack_from(">4sBBH", data, offset)
        if key == b"\0\0\0\0":  # padding at the end of a payload
            return
        if not all(32 <= c < 127 for c in key):
            raise GpmfError(f"no key at byte {offset}")
        offset += 8
        length = size * repeat
        if offset + length > len(data):
            raise GpmfError(f"{key.decode()} at byte {offset - 8} runs past the end")
        yield Klv(key.decode(), chr(kind), size, repeat, data[offset : offset + length])
        offset += length + -length % 4


def streams(data: bytes) -> Iterator[tuple[str, list[Klv]]]:
    """(device name, entries) of every STRM under every DEVC of a payload."""
    yield from _streams(data, "", 0)


def _streams(data: bytes, device: str, depth: int) -> Iterator[tuple[str, list[Klv]]]:
    if depth > MAX_DEPTH:
        raise GpmfError("containers are nested too deep")
    entries = list(parse(data))
    for entry in entries:
        if entry.key == "DVNM":
            device = text(entry)
    for entry in entries:
        if entry.key == "STRM":
            yield device, list(parse(entry.data))
        elif entry.kind == "\0":
            yield from _streams(entry.data, device, depth + 1)


def text(entry: Klv) -> str:
    return entry.data.split(b"\0", 1)[0].decode("latin-1").strip()


def samples(entry: Klv, types: str | None = None) -> list[tuple[float, ...]]:
    """Raw numbers of an entry, one tuple a sample; `types` is the TYPE of a complex ('?') entry."""
    kinds = types if entry.kind == "?" else None
    if kinds is None:
        code = CODES.get(entry.kind)
        if code is None:
            raise GpmfError(f"{entry.key}: numbers of type {entry.kind!r} are not supported")
        width = struct.calcsize(">" + code)
        if entry.size % width:
            raise GpmfError(f"{entry.key}: sample size {entry.size} does not fit its type")
        layout = ">" + code * (entry.size // width)
    else:
        if any(kind not in CODES for kind in kinds):
            raise GpmfError(f"{entry.key}: TYPE {kinds!r} is not supported")
        layout = ">" + "".join(CODES[kind] for kind in kinds)
    if struct.calcsize(layout) != entry.size:
        raise GpmfError(f"{entry.key}: sample size {entry.size} does not fit its type")
    return [tuple(map(float, row)) for row in struct.iter_unpack(layout, entry.data)]


def scaled(entries: Sequence[Klv], key: str) -> list[tuple[float, ...]]:
    """Samples of `key` divided by the stream's SCAL; empty when the stream has none."""
    found = find(entries, key)
    if found is None or not found.data:
        return []
    kind = find(entries, "TYPE")
    rows = samples(found, text(kind) if kind is not None else None)
    scale = find(entries, "SCAL")
    if scale is None:
        return rows
    divisors = [value for row in samples(scale) for value in row]
    if any(d == 0 for d in divisors):
        raise GpmfError(f"{key}: its scale is zero")
    width = len(rows[0])
    if len(divisors) == 1:
        divisors *= width
    if len(divisors) != width:
        raise GpmfError(f"{key}: {width} columns but {len(divisors)} scales")
    return [tuple(v / d for v, d in zip(row, divisors, strict=True)) for row in rows]


def read_settings(data: bytes) -> dict[str, str]:
    """The camera's settings of a recording (`moov.udta.GPMF`): texts by key, and numbers as text.

    MINF model, VFOV field of view, PRJT projection, EISE stabilisation, DZOM zoom, VRES size, ...
    The first device that says a key counts. Raises GpmfError.
    """
    found: dict[str, str] = {}
    for entries in _containers(data, 0):
        for entry in entries:
            if entry.key in found or not entry.data:
                continue
            if entry.kind in ("c", "F"):
                found[entry.key] = text(entry)
            elif entry.kind in CODES and entry.size * entry.repeat <= MAX_SETTING_BYTES:
                values = [value for row in samples(entry) for value in row]
                found[entry.key] = " ".join(f"{value:g}" for value in values)
    return found


def _containers(data: bytes, depth: int) -> Iterator[list[Klv]]:
    """The entries of every container; newer cameras keep settings right below DEVC."""
    if depth > MAX_DEPTH:
        raise GpmfError("containers are nested too deep")
    entries = list(parse(data))
    yield entries
    for entry in entries:
        if entry.kind == "\0":
            yield from _containers(entry.data, depth + 1)


def find(entries: Sequence[Klv], key: str) -> Klv | None:
    return next((entry for entry in entries if entry.key == key), None)
