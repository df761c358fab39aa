"""report.html: what became of an acquisition, in one file that needs nothing else.

Pure: no file is read or written. Pictures are embedded, nothing is fetched, every value that comes
from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import Any

from dispatcher.amounts import human_bytes, human_seconds

_NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    name: str
    address: str
    jobs: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A job that is held or failed: why, and the command that goes on from there."""

    job: str
    state: str
    reason: str
    message: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    label: str
    path: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDetails:
    """What the summary does not hold. `pictures`: segment name -> JPEG, render beside truth."""

    title: str
    subtitle: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    hosts: Sequence[HostRow] = ()
    problems: Sequence[Problem] = ()
    files: Sequence[FileRow] = ()


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    show: Callable[[Mapping[str, Any]], str]  # returns HTML
    classes: str = ""


def build_report(summary: Mapping[str, Any], details: ReportDetails) -> str:
    """The page. `summary` is the object that `cosma demo --json` prints."""
    template = resources.files("dispatcher").joinpath("report_template.html").read_text("utf-8")
    sections = [
        _section("Segments", _table(_SEGMENT_COLUMNS, summary["segments"])),
        _section("Stitches", _table(_STITCH_COLUMNS, summary["stitches"])),
        _section("Needs attention", _problems(details.problems) if details.problems else ""),
        _section("Held-out views: rendered (left) and filmed (right)", _pictures(details.pictures)),
        _section("Hosts", _hosts(details.hosts) if details.hosts else ""),
        _section("Files", _files(details.files) if details.files else ""),
    ]
    return Template(template).substitute(
        title=escape(details.title),
        subtitle=escape(details.subtitle),
        facts=_facts(summary),
        sections="\n".join(filter(None, sections)),
    )


def amount(value: float | None, show: Callable[[float], str]) -> str:
    """What is not known is a dash."""
    return _NONE if value is None else show(value)


def _text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: escape(str(row[key])) if row.get(key) not in (None, "") else _NONE


def _number(key: str, pattern: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: escape(pattern.format(row[key])) if row.get(key) is not None else _NONE


def _state(row: Mapping[str, Any]) -> str:
    state = escape(str(row["state"]), quote=True)
    return f'<span class="{state}">{state}</span>'


def _registered(row: Mapping[str, Any]) -> str:
    if row.get("registered") is None or not row.get("frames"):
        return _NONE
    share = row["registered"] / row["frames"]
    return f"{row['registered']:d} / {row['frames']:d} ({share:.0%})"


_SEGMENT_COLUMNS = (
    _Column("Segment", _text("name"), "t"),
    _Column("AUV", _text("auv"), "t"),
    _Column("State", _state, "t"),
    _Column("Frames registered", _registered),
    _Column("Reprojection, px", _number("reprojection_px", "{:.2f}")),
    _Column("PSNR, dB", _number("psnr", "{:.1f}")),
    _Column("SSIM", _number("ssim", "{:.3f}")),
    _Column("Gaussians", _number("gaussians", "{:,}")),
    _Column("Time", lambda row: amount(row.get("seconds"), human_seconds)),
)
_STITCH_COLUMNS = (
    _Column(
        "Scene",
        lambda row: "all AUVs" if row["level"] == "cross_auv" else escape(str(row["auv"])),
        "t",
    ),
    _Column("State", _state, "t"),
    _Column("Error against truth", _number("error_m", "{:.3f} m")),
    _Column("of the extent", _number("error_fraction", "{:.2%}")),
    _Column("PLY", lambda row: f"<code>{_text('output_ply')(row)}</code>", "t wrap"),
)


def _table(columns: Sequence[_Column], rows: Iterable[Mapping[str, Any]]) -> str:
    def cell(tag: str, column: _Column, content: str) -> str:
        return f'<{tag} class="{column.classes}">{content}</{tag}>'

    head = "".join(cell("th", column, escape(column.heading)) for column in columns)
    body = "\n".join(
        "<tr>" + "".join(cell("td", column, column.show(row)) for column in columns) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>" if content else ""


def _facts(summary: Mapping[str, Any]) -> str:
    segments, stitches = summary["segments"], summary["stitches"]
    facts = {
        "Segments done": f"{_done(segments)} of {len(segments)}",
        "Stitches done": f"{_done(stitches)} of {len(stitches)}",
        "Gaussians": f"{sum(row.get('gaussians') or 0 for row in segments):,}",
        "Source video left": amount(summary.get("source_bytes_left"), human_bytes),
        "Given back by fstrim": amount(summary.get("trimmed_bytes"), human_bytes),
        "Total time": amount(summary.get("seconds"), human_seconds),
    }
    return "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())


def _done(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["state"] == "done" for row in rows)


def _pictures(pictures: Mapping[str, bytes]) -> str:
    figures = []
    for name, data in sorted(pictures.items()):
        encoded = base64.b64encode(data).decode()
        label = escape(name, quote=True)
        figures.append(
            f'<figure><img alt="Held-out view of {label}" src="data:image/jpeg;base64,{encoded}">'
            f"<figcaption>{label}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _problems(problems: Sequence[Problem]) -> str:
    columns = (
        _Column("Job", _text("job"), "t"),
        _Column("State", _state, "t"),
        _Column("Reason", _text("reason"), "t"),
        _Column("What happened", _text("message"), "t wrap"),
        _Column("Go on with", lambda row: f"<code>{_text('command')(row)}</code>", "t"),
    )
    rows = [
        {
            "job": problem.job,
            "state": problem.state,
            "reason": problem.reason,
            "message": problem.message,
            "command": problem.command,
        }
        for problem in problems
    ]
    return _table(columns, rows)


def _hosts(hosts: Sequence[HostRow]) -> str:
    columns = (
        _Column("Host", _text("name"), "t"),
        _Column("Address", _text("address"), "t"),
        _Column("Jobs", _text("jobs"), "t wrap"),
    )
    rows = [{"name": h.name, "address": h.address, "jobs": ", ".join(h.jobs)} for h in hosts]
    return _table(columns, rows)


def _files(files: Sequence[FileRow]) -> str:
    columns = (
        _Column("File", _text("label"), "t"),
        _Column("Path", lambda row: f"<code>{_text('path')(row)}</code>", "t wrap"),
        _Column("Size", lambda row: human_bytes(row["bytes"])),
    )
    return _table(columns, [{"label": f.label, "path": f.path, "bytes": f.bytes} for f in files])
