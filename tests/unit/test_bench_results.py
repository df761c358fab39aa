"""What `make bench` writes down of a benchmark that met, missed or never told its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.__main__ import Outcome, document
from bench.results import Result


def row(value: float, target: float | None, better: str = "lower") -> dict[str, Any]:
    result = Result(name="figure", value=value, unit="ms", better=better, target=target)
    return {**asdict(result), "ok": result.ok}


def outcome(*rows: dict[str, Any]) -> Outcome:
    return Outcome(name="one", seconds=1.0, report={"name": "one", "results": list(rows)})


def text(*outcomes: Outcome) -> str:
    return document(outcomes, date="2026-01-02", machine="a box", commit="abc1234")


def test_targets_decide_and_figures_without_one_do_not() -> None:
    met = outcome(row(1.0, 2.0), row(9.0, None), row(3.0, 3.0, "higher"))
    missed = outcome(row(1.0, 2.0), row(1.0, 1.5, "higher"))
    assert met.ok
    assert not missed.ok
    assert "## one: ok" in text(met)
    assert "| figure | 9 | ms |  |  |" in text(met)
    assert "## one: MISSED" in text(missed)
    assert "| figure | 1 | ms | >= 1.5 | MISSED |" in text(missed)


def test_a_benchmark_without_results_is_a_failure_and_hides_no_other() -> None:
    broken = Outcome(name="two", seconds=1.0, report=None, error="exit 1, no results")
    assert not broken.ok
    written = text(broken, outcome(row(1.0, 2.0)))
    assert "## two: FAILED" in written
    assert "exit 1, no results" in written
    assert "## one: ok" in written
    assert "2026-01-02, commit abc1234, a box" in written
