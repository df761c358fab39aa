"""Tables for people, TSV for pipes, JSON for scripts. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Glyph and word and colour: never colour alone.
MARKS: dict[str, tuple[str, str]] = {
    "queued": ("·", "dim"),
    "claimed": ("○", "cyan"),
    "extracting": ("◔", "cyan"),
    "running": ("●", "blue"),
    "done": ("✓", "green"),
    "held": ("!", "yellow"),
    "error": ("✗", "red"),
    "cancelled": ("–", "dim"),
    "reachable": ("✓", "green"),
}


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on a terminal; off it tab separated values of full width with a header line."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_flat(row.get(column)) for column in columns))
        return
    Console().print(table(columns, rows))


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    grid = Table(title=title or None, title_justify="left", header_style="bold", expand=False)
    for column in columns:
        grid.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(column, row.get(column)) for column in columns))
    return grid


def mark(state: str) -> str:
    """The state with its glyph and colour, as rich markup."""
    glyph, style = MARKS.get(state, ("?", "yellow"))
    return f"[{style}]{glyph} {escape(state)}[/]"


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """Two units at most: `47 s`, `1 min 20 s`, `3 h 5 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, unit, smaller, name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    raise AssertionError("unreachable")


def clock_text(at: float, now: float) -> str:
    """Local time; with the date when it is not today."""
    then, today = time.localtime(at), time.localtime(now)
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", then)


def _cell(column: str, value: Any) -> str:
    if column == "state" and isinstance(value, str):
        return mark(value)
    return escape(_flat(value))


def _flat(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value).replace("\t", " ").replace("\n", " ")
