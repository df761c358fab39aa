"""Thin pools below virtual hosts' disks: what one last said, and whether it lets new work in. Pure.

A pool that runs full stops every machine on it at once. At its high watermark, of data or of
metadata, no host whose disk lies in it starts or gets anything; it opens again REOPEN below, so
that a pool at the mark does not open and shut with every reading. Figures too old to go by keep new
work out, too, with a reason of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dispatcher.core.model import Reason

REOPEN = 0.01  # shares of the pool
STALE_S = 120.0  # older figures say nothing about the pool now


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool and who lies in it. With several watermarks given, the lowest counts for all."""

    hypervisor: str
    vg: str
    name: str
    high_watermark: float
    hosts: tuple[str, ...]

    @property
    def key(self) -> str:
        return pool_key(self.hypervisor, self.vg, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """As `lvs` says: shares of the pool that are in use, and its size."""

    data: float
    metadata: float
    bytes: int

    @property
    def words(self) -> str:
        return f"{self.data:.1%} full of data and {self.metadata:.1%} of metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """What is known of one pool. `read_at` is on the clock of whoever holds it."""

    key: str
    figures: Figures | None = None  # the last ones, also while it cannot be read
    read_at: float | None = None
    shut: bool = False  # at the last reading, see `shuts`
    message: str = ""  # why the last reading failed


def pool_key(hypervisor: str, vg: str, name: str) -> str:
    return f"{hypervisor}:{vg}/{name}"


def pools(named: Iterable[tuple[str, str, str, str, float]]) -> dict[str, Pool]:
    """By key, of (host, hypervisor, volume group, pool, high watermark)."""
    found: dict[str, Pool] = {}
    for host, hypervisor, vg, name, mark in named:
        key = pool_key(hypervisor, vg, name)
        known = found.get(key)
        found[key] = Pool(
            hypervisor=hypervisor,
            vg=vg,
            name=name,
            high_watermark=min(mark, known.high_watermark) if known else mark,
            hosts=(*(known.hosts if known else ()), host),
        )
    return found


def figures_of(report: bytes) -> Figures:
    """Of `lvs --reportformat json --units b --nosuffix -o lv_size,data_percent,metadata_percent`.

    Raises ValueError, in words, for anything that is not the report of one thin pool.
    """
    try:
        volumes = [lv for part in json.loads(report)["report"] for lv in part["lv"]]
        (volume,) = volumes
        return Figures(
            data=_share(volume["data_percent"]),
            metadata=_share(volume["metadata_percent"]),
            bytes=int(volume["lv_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, _NotThin):
            raise
        raise ValueError(f"not the report of one thin pool: {report[:120]!r}") from None


class _NotThin(ValueError):
    pass


def _share(percent: Any) -> float:
    if percent == "":
        raise _NotThin("lvs knows no usage of it: it is no thin pool, or it is not active")
    share = float(str(percent).replace(",", ".")) / 100.0  # some locales write a comma
    if not 0.0 <= share <= 1.0:
        raise ValueError(percent)
    return share


def shuts(figures: Figures, high_watermark: float, *, before: bool) -> bool:
    """Whether the pool lets nothing new in; `before`: whether it did not at the reading before."""
    fullest = max(figures.data, figures.metadata)
    return fullest >= high_watermark or (before and fullest > high_watermark - REOPEN)


def refusal(pool: Pool, state: PoolState | None, now: float) -> tuple[Reason, str] | None:
    """Why a host whose disk lies in the pool takes nothing new; None: it does. `now` is on the
    clock of `state.read_at`."""
    here = f"its disk lies in the thin pool {pool.key}"
    if state is None:
        return Reason.PROBE_STALE, f"{here}, which is being read for the first time"
    failed = f": {state.message}" if state.message else ""
    if state.figures is None or state.read_at is None:
        return Reason.POOL_UNKNOWN, f"{here}, which cannot be read{failed}"
    age_s = now - state.read_at
    if age_s > STALE_S:
        # In whole minutes: with every other word the host would be decided on again.
        return Reason.POOL_UNKNOWN, (
            f"{here}, which was last read {age_s // 60:.0f} min ago (limit {STALE_S:.0f} s), "
            f"{state.figures.words} then{failed}"
        )
    if state.shut:
        mark = pool.high_watermark
        return Reason.POOL_FULL, (
            f"{here}, {state.figures.words} (high watermark {mark:.1%}, opens again below "
            f"{mark - REOPEN:.1%}); free or extend the pool"
        )
    return None
