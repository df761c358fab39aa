"""What is said of a silent host: since when, until when, how much is at risk."""

from __future__ import annotations

import time

from dispatcher.core.lease import KILL_GRACE_S, MARGIN_S
from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.risk import risks
from dispatcher.store.rows import Attempt, Lease, Progress, Silence

JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="dive", name="s", auv="x", created_at=0.0,
    state=JobState.RUNNING, step=Step.RUN, stage=Stage.TRAINING, host="h", attempt=6,
)  # fmt: skip
SILENCE = Silence(host="h", since=1000.0, message="no route")
ATTEMPT = Attempt(
    job="j", attempt=6, stage=Stage.TRAINING, host="h", gpu=None, state="running", epoch=1,
    committed_at=90.0, started_at=100.0,
)  # fmt: skip
PROGRESS = Progress(fraction=0.43, message="", numbers={}, updated_at=999.0)


def lease(lease_s: float) -> Lease:
    return Lease(job="j", attempt=6, host="h", lease_s=lease_s, renewed_at=990.0)


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def test_the_line_has_since_until_share_and_work() -> None:
    (risk,) = risks([SILENCE], [JOB], [lease(1800.0)], {"j": ATTEMPT}, {"j": PROGRESS})
    assert (risk.work_s, risk.fraction) == (900.0, 0.43)
    requeue = 990.0 + 1800.0 + KILL_GRACE_S + MARGIN_S
    assert risk.requeue_at == requeue
    line = risk.line(requeue - 125.0)
    assert f"h silent since {clock(1000.0)}" in line
    assert "Training of j, 43% done after 900 s" in line
    assert f"requeued at {clock(requeue)} (in 02:05)" in line
    assert "due to be requeued now" in risk.line(requeue + 1.0)


def test_without_a_lease_only_the_operator_decides() -> None:
    (risk,) = risks([SILENCE], [JOB], [lease(0.0)], {"j": ATTEMPT}, {})
    assert risk.requeue_at is None
    assert "cosma job retry j --abandon" in risk.line(2000.0)
    assert "an unknown share" in risk.line(2000.0)


def test_only_live_attempts_of_silent_hosts_are_at_risk() -> None:
    resting = Job(
        id="k", kind=JobKind.RECONSTRUCT, acquisition="dive", name="s", auv="x", created_at=0.0,
        host="h",
    )  # fmt: skip
    assert risks([SILENCE], [resting], [], {}, {}) == []
    other = Silence(host="other", since=1.0, message="")
    assert risks([other], [JOB], [lease(1.0)], {"j": ATTEMPT}, {}) == []
