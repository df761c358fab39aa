"""What a drill says of itself: faults that found no moment, and the seed that broke something."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.chaos.faults import Injector
from dispatcher.chaos.loopback import LoopbackHosts
from dispatcher.chaos.process import DispatcherProcess
from dispatcher.chaos.run import Drill, Verdict, own_findings
from dispatcher.chaos.schedule import Fault, Kind
from dispatcher.cli import app
from dispatcher.cli import chaos as command


@pytest.fixture
def injector() -> Injector:
    """Of a drill that never began."""
    nowhere = Path("/nonexistent")
    dispatcher = DispatcherProcess(list, nowhere, nowhere)
    return Injector(LoopbackHosts(1, nowhere), dispatcher, nowhere, random.Random(0))


def invariants(injector: Injector, *missed: Fault, in_time: bool = True) -> list[str]:
    return [found.invariant for found in own_findings(injector, list(missed), in_time=in_time)]


def test_a_drill_that_went_as_planned_says_nothing(injector: Injector) -> None:
    assert invariants(injector) == []


def test_what_went_otherwise_breaks_an_invariant(injector: Injector) -> None:
    fault = Fault(kind=Kind.POWER_CUT, host="host-1", after=3)
    assert invariants(injector, fault) == ["every_fault_happens"]
    assert invariants(injector, in_time=False) == ["the_drill_ends"]
    injector.findings.append("a second dispatcher ended with exit code 0, not 11")
    injector.dispatcher.crashes.append(1)
    assert invariants(injector) == ["faults_are_answered", "dispatcher_never_dies_by_itself"]


def test_a_broken_invariant_is_told_with_its_seed_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verdict = Verdict(
        seed=77, hosts=3, jobs=6, done=5, held=0, faults=9, broken_invariants=1,
        details={
            "seconds": 60.0,
            "broken": {"one_run_per_attempt": ["attempt 2 of a ran 2 times"]},
            "expected_held": [],
            "not_possible": [],
            "directory": str(tmp_path),
            "replay": "cosma chaos --hosts 3 --jobs 6 --seed 77",
        },
    )  # fmt: skip
    monkeypatch.setattr(Drill, "run", lambda _: verdict)
    monkeypatch.setattr(command, "namespaces_allowed", lambda: True)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        said = CliRunner().invoke(app, ["chaos", "--seed", "77", "--out", str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert said.exit_code == 1
    assert said.output.splitlines() == [
        "seed 77: 5 of 6 jobs done, 0 held (0 named in advance), 9 faults, 60 s",
        "broken: one_run_per_attempt",
        "  attempt 2 of a ran 2 times",
        f"replay: cosma chaos --hosts 3 --jobs 6 --seed 77; evidence: {tmp_path}",
    ]
