"""The live view: one row per GPU and one per job. Pure: rows in, a rich renderable out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dispatcher.amounts import clock_text
from dispatcher.cli.render import mark
from dispatcher.progress import JobRow
from dispatcher.risk import Risk

_BAR = 12
ACTIVE = ("claimed", "extracting", "running")
_ORDER = (*ACTIVE, "queued", "held", "error", "done", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One device of one host; a host that has never shown a device has one row without it."""

    host: str
    state: str  # reachable, or why not
    gpu: str
    used_mib: int
    total_mib: int
    reserved_mib: int
    job: str
    stage: str
    age_s: float | None  # since the last probe that arrived
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    gpus: tuple[GpuRow, ...]
    jobs: tuple[JobRow, ...]
    dispatcher_age_s: float | None  # since its last heartbeat; None: no heartbeat file
    risks: tuple[Risk, ...] = ()
    now: float = 0.0  # wall clock of the snapshot


def render(snapshot: Snapshot, *, height: int) -> RenderableType:
    """Fits `height` terminal lines: settled jobs at the end are counted instead of shown."""
    jobs = sorted(snapshot.jobs, key=lambda row: (_ORDER.index(row.state), row.job))
    room = max(3, height - len(snapshot.gpus) - len(snapshot.risks) - 9)
    shown, hidden = jobs[:room], jobs[room:]
    parts: list[RenderableType] = [
        _header(snapshot),
        _gpu_table(snapshot.gpus),
        _job_table(shown, snapshot.now),
    ]
    parts[1:1] = [Text(f"? {risk.line(snapshot.now)}", style="yellow") for risk in snapshot.risks]
    if hidden:
        counts = Counter(row.state for row in hidden)
        parts.append(Text(f"and {', '.join(f'{n} {s}' for s, n in counts.items())}", style="dim"))
    return Group(*parts)


def _header(snapshot: Snapshot) -> Text:
    counts = Counter(row.state for row in snapshot.jobs)
    text = Text("cosma  ", style="bold")
    text.append(", ".join(f"{counts[s]} {s}" for s in _ORDER if counts[s]) or "no jobs")
    age = snapshot.dispatcher_age_s
    if age is None:
        text.append("   no dispatcher has run here: cosma dispatch", style="yellow")
    elif age > 30:
        text.append(f"   no dispatcher: last heartbeat {age:.0f} s ago", style="yellow")
    return text


def _gpu_table(rows: Sequence[GpuRow]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("host", "state", "GPU", "memory", "reserved", "stage", "job", "probed"):
        table.add_column(name, no_wrap=name != "job", overflow="ellipsis")
    for row in rows:
        table.add_row(
            escape(row.host),
            mark(row.state),
            escape(row.gpu) or escape(row.message) or "-",
            f"{bar(row.used_mib, row.total_mib)} {row.used_mib}/{row.total_mib} MiB"
            if row.total_mib
            else "-",
            f"{row.reserved_mib} MiB" if row.reserved_mib else "-",
            row.stage or "-",
            escape(row.job) or "-",
            "never" if row.age_s is None else f"{row.age_s:.0f} s ago",
        )
    return table


def _job_table(rows: Sequence[JobRow], now: float) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("job", "state", "stage", "progress", "host", "done at", "reason"):
        table.add_column(name, no_wrap=name != "reason", overflow="ellipsis")
    for row in rows:
        why = ": ".join(part for part in (row.reason, row.message) if part)
        table.add_row(
            escape(row.job),
            mark(row.state),
            row.stage,
            f"{bar(row.percent, 100.0)} {row.percent:5.1f} %",
            escape(row.host) or "-",
            "-" if row.eta is None else clock_text(row.eta.likely, now),
            escape(why),
        )
    return table


def bar(value: float, most: float) -> str:
    filled = round(_BAR * min(1.0, max(0.0, value / most))) if most else 0
    return "█" * filled + "░" * (_BAR - filled)
