"""What the operator reads of a transfer, and the cap on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.executors.pace import Pace
from dispatcher.input_progress import Arriving
from dispatcher.progress import job_row, percent
from dispatcher.store.rows import Progress

MIB = 1 << 20


def test_bytes_rate_and_time_left_of_all_files_together() -> None:
    arriving = Arriving(3000 * MIB)
    assert arriving.look(100.0) == "inputs: 0 B of 2.9 GiB"
    arriving.there["a"] = 200 * MIB
    arriving.there["b"] = 100 * MIB
    assert arriving.look(103.0) == "inputs: 300.0 MiB of 2.9 GiB, 100.0 MiB/s, 27 s left"
    assert arriving.look(105.0).endswith("60.0 MiB/s, 45 s left")
    for now in range(106, 117):
        line = arriving.look(float(now))
    assert line == "inputs: 300.0 MiB of 2.9 GiB, nothing for 10 s"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    arriving = Arriving(1000 * MIB)
    for second in range(60):
        arriving.there["a"] = (min(second, 10) * 50 + max(0, second - 10)) * MIB
        line = arriving.look(float(second))
    assert "1.0 MiB/s" in line and "7 min 31 s left" in line


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(1e3, 1e9),
    blocks=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50),
    pauses=st.lists(st.floats(0, 5), max_size=50),
)
def test_no_more_than_the_cap_goes_but_for_a_short_time_ahead(
    rate: float, blocks: list[int], pauses: list[float]
) -> None:
    clock = Clock()
    pace = Pace(rate, clock)
    gone = 0
    for number, block in enumerate(blocks):
        clock.now += pauses[number] if number < len(pauses) else 0.0
        clock.now += pace.delay_s(block)
        assert gone <= rate * (clock.now + 0.25) * (1 + 1e-9)
        gone += block


def test_without_a_cap_nobody_waits() -> None:
    assert Pace(None).delay_s(1 << 40) == 0.0


@pytest.mark.parametrize("step", [Step.TRANSFER, Step.RUN])
def test_what_arrives_is_told_while_it_does_and_is_no_part_of_the_stage(step: Step) -> None:
    job = Job(
        id="a-1", kind=JobKind.RECONSTRUCT, acquisition="reef", name="a-1", auv="a", created_at=0.0,
        state=JobState.CLAIMED, step=step,
        stage=Stage.VALIDATION, host="gpu-a",
    )  # fmt: skip
    line = "inputs: 1.0 GiB of 3.0 GiB, 100.0 MiB/s, 20 s left"
    numbers = {"transfer": 1_000_000_000, "of": 3_000_000_000}
    progress = Progress(fraction=0.0, message=line, numbers=numbers, updated_at=1.0)
    row = job_row(job, progress, None)
    assert (row.message == line) is (step is Step.TRANSFER)
    assert percent(job, progress) == 0.0
