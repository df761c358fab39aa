"""report.html: complete, self-contained, and safe against what files and hosts are called."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from typing import Any

from dispatcher.amounts import human_bytes
from dispatcher.report import (
    FileRow,
    HostRow,
    Problem,
    ReportDetails,
    amount,
    build_report,
)

EVIL = '<script>alert("1")</script>&$title'
SUMMARY: dict[str, Any] = {
    "segments": [
        {
            "name": "a1", "auv": "auv-a", "state": "done", "frames": 23, "registered": 22,
            "reprojection_px": 0.2468, "psnr": 27.81, "ssim": 0.8123, "gaussians": 12345,
            "seconds": 74.6,
        },
        {
            "name": "a2", "auv": "auv-a", "state": "held", "frames": None, "registered": None,
            "reprojection_px": None, "psnr": None, "ssim": None, "gaussians": None, "seconds": None,
        },
    ],
    "stitches": [
        {
            "level": "per_auv", "auv": "auv-a", "state": "done", "error_m": 0.0123,
            "error_fraction": 0.00181, "output_ply": "/out/a.ply",
        },
        {
            "level": "cross_auv", "auv": None, "state": "error", "error_m": None,
            "error_fraction": None, "output_ply": None,
        },
    ],
    "source_bytes_left": 0,
    "trimmed_bytes": None,
    "seconds": 312.0,
    "report": "/out/report.html",
}  # fmt: skip


class Page(HTMLParser):
    """Text, links and tags of a page, with a check that the tags nest."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def details(**changes: Any) -> ReportDetails:
    values: dict[str, Any] = {"title": "Survey", "subtitle": "2026-06-01"}
    return ReportDetails(**(values | changes))


def test_the_numbers_are_there() -> None:
    text = Page(build_report(SUMMARY, details())).text
    for expected in (
        "22 / 23 (96%)", "0.25", "27.8", "0.812", "12,345", "1 min 15 s", "0.012 m", "0.18%",
        "all AUVs", "/out/a.ply", "1 of 2", "5 min 12 s", "0 B",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("–") >= 8  # unknown is shown as unknown, never as zero


def test_nothing_is_fetched() -> None:
    page = Page(build_report(SUMMARY, details(pictures={"a1": b"\xff\xd8picture"})))
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for _, name, value in page.attributes if name in {"src", "href"}]
    assert sources == ["data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8picture").decode()]


def test_everything_from_outside_is_escaped() -> None:
    row = dict.fromkeys(SUMMARY["segments"][0], EVIL) | {
        "frames": 3, "registered": 3, "reprojection_px": 1.0, "psnr": 1.0, "ssim": 1.0,
        "gaussians": 1, "seconds": 1.0,
    }  # fmt: skip
    stitch = {
        "level": EVIL, "auv": EVIL, "state": EVIL, "error_m": None, "error_fraction": None,
        "output_ply": EVIL,
    }  # fmt: skip
    html = build_report(
        SUMMARY | {"segments": [row], "stitches": [stitch]},
        details(
            title=EVIL,
            subtitle=EVIL,
            pictures={EVIL: b"x"},
            hosts=[HostRow(name=EVIL, address=EVIL, jobs=[EVIL])],
            problems=[Problem(job=EVIL, state=EVIL, reason=EVIL, message=EVIL, command=EVIL)],
            files=[FileRow(label=EVIL, path=EVIL, bytes=1)],
        ),
    )
    page = Page(html)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count(EVIL) >= 14  # title, subtitle, cells: each whole, none substituted


def test_a_problem_has_its_reason_and_its_command() -> None:
    problem = Problem(
        job="x-a2",
        state="held",
        reason="no_parallax",
        message="a2: the camera does not move",
        command="cosma job retry x-a2",
    )
    text = Page(build_report(SUMMARY, details(problems=[problem]))).text
    assert "Needs attention" in text
    assert "cosma job retry x-a2" in text
    assert "no_parallax" in text
    assert "Needs attention" not in Page(build_report(SUMMARY, details())).text


def test_hosts_and_files_are_listed() -> None:
    text = Page(
        build_report(
            SUMMARY,
            details(
                hosts=[HostRow(name="host-1", address="127.0.0.1:2222", jobs=["x-a1", "x-b1"])],
                files=[FileRow(label="scene", path="/out/scene.ply", bytes=5_000_000)],
            ),
        )
    ).text
    assert {"host-1", "127.0.0.1:2222", "x-a1, x-b1", "/out/scene.ply", "4.8 MiB"} <= set(text)


def test_what_is_not_known_is_a_dash() -> None:
    assert amount(None, human_bytes) == "–"
    assert amount(0, human_bytes) == "0 B"
