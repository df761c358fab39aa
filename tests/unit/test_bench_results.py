"""What `make bench` writes down of a benchmark that met, missed or never told its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as benchmarks
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


def test_the_options_of_a_single_benchmark_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(name: str, options: Sequence[str] = ()) -> Outcome:
        ran.append([name, *options])
        return outcome(row(1.0, 2.0))

    monkeypatch.setattr(benchmarks, "run", run)
    out = ["--out", str(tmp_path / "results.md")]
    for words in (["reconstruct", "--sets", "reef", "karma", "--repeats", "10"], ["merge", "push"]):
        assert benchmarks.main([*words, *out]) == 0
        assert benchmarks.main([*out, *words]) == 0
    its_own = ["reconstruct", "--sets", "reef", "karma", "--repeats", "10"]
    assert ran == [its_own, its_own, ["merge"], ["push"], ["merge"], ["push"]]
    for words in (["--sets", "reef"], ["merge", "push", "--full"]):
        with pytest.raises(SystemExit) as refused:
            benchmarks.main([*words, *out])
        assert refused.value.code == 2
