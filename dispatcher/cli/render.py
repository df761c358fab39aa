"""Tables for people, TSV for pipes, JSON for scripts. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
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
