"""Which pairs are worth registering: all pairs of 1,000 members would be half a million."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stitch.sidecar import Sidecar

ALL_PAIRS_UP_TO = 16
"""With so few members every pair is tried: 120 of them take a minute at most."""

_FOLLOWING = 2  # members come in the order of their clips
_VOTED = 8  # for each member, those that look most like it
_MIN_VOTES = 3
_SAMPLE = 400  # descriptors of each member that vote
_TABLES, _BITS = 8, 22
_CROWD = 24  # members in a bucket: what so many share is no evidence
_METRES_PER_DEGREE = 111_320.0
_GPS_MARGIN_M = 15.0
_SEED = 7
Pair = tuple[int, int]


def candidates(sidecars: Sequence[Sidecar]) -> tuple[Pair, ...]:
    """Pairs (lower, higher number), ascending: those that hold a common frame, follow one another,
    lie near each other by GPS, or of whose descriptors many fall into the same buckets."""
    count = len(sidecars)
    if count <= ALL_PAIRS_UP_TO:
        return tuple((i, j) for i in range(count) for j in range(i + 1, count))
    found = {(i, j) for i in range(count) for j in range(i + 1, min(count, i + _FOLLOWING + 1))}
    found |= _common_frames(sidecars) | _near(sidecars) | _alike(sidecars)
    return tuple(sorted(found))


def _common_frames(sidecars: Sequence[Sidecar]) -> set[Pair]:
    frames = [np.unique(s.keyframe_hashes[s.keyframe_hashes != 0]) for s in sidecars]
    owners = np.repeat(np.arange(len(frames)), [len(f) for f in frames])
    return set(_pairs_in_buckets(np.concatenate(frames), owners))


def _near(sidecars: Sequence[Sidecar]) -> set[Pair]:
    """By the middle of each member's fixes and how far they spread; members without do not tell."""
    known = []
    for number, sidecar in enumerate(sidecars):
        fixes = sidecar.gps[np.isfinite(sidecar.gps[:, :2]).all(axis=1), :2]
        if len(fixes):
            known.append((number, np.median(fixes, axis=0), fixes))
    if len(known) < 2:
        return set()
    middles = np.array([middle for _, middle, _ in known])
    scale = _METRES_PER_DEGREE * np.array([1.0, np.cos(np.radians(middles[:, 0].mean()))])
    places = (middles - middles[0]) * scale
    reach = np.array([np.linalg.norm((fixes - m) * scale, axis=1).max() for _, m, fixes in known])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    close = apart <= reach[:, None] + reach[None] + _GPS_MARGIN_M
    rows, columns = np.nonzero(np.triu(close, 1))
    return {(known[i][0], known[j][0]) for i, j in zip(rows, columns, strict=True)}


def _alike(sidecars: Sequence[Sidecar]) -> set[Pair]:
    """Votes of locality-sensitive hashes: the signs of random projections."""
    tables, owners = [], []
    for number, sidecar in enumerate(sidecars):
        best = np.argsort(-sidecar.track_length.astype(np.int64), kind="stable")[:_SAMPLE]
        tables.append(sidecar.descriptors[best].astype(np.float32))
        owners.append(np.full(len(best), number))
    every, owner = np.concatenate(tables), np.concatenate(owners)
    every -= every.mean(axis=0)
    rng = np.random.default_rng(_SEED)
    votes: dict[Pair, int] = {}
    for _ in range(_TABLES):
        planes = rng.normal(size=(128, _BITS)).astype(np.float32)
        word = (every @ planes > 0) @ (1 << np.arange(_BITS, dtype=np.int64))
        for pair in _pairs_in_buckets(word, owner):
            votes[pair] = votes.get(pair, 0) + 1
    strongest: dict[int, list[tuple[int, Pair]]] = {}
    for pair, number_of in votes.items():
        if number_of >= _MIN_VOTES:
            for member in pair:
                strongest.setdefault(member, []).append((number_of, pair))
    return {pair for mine in strongest.values() for _, pair in sorted(mine)[-_VOTED:]}


def _pairs_in_buckets(keys: npt.NDArray[np.integer], owners: npt.NDArray[np.integer]) -> list[Pair]:
    """Pairs of owners, once for each key that both have and that is not everybody's."""
    if len(keys) == 0:
        return []
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    pairs: list[Pair] = []
    for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        if end - start < 2:
            continue
        inside = np.unique(owners[start:end]).tolist()
        if 2 <= len(inside) <= _CROWD:
            pairs += [(a, b) for k, a in enumerate(inside) for b in inside[k + 1 :]]
    return pairs
