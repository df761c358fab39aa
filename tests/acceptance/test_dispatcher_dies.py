"""The dispatcher is killed in the middle of the work: nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.acceptance.cosma import Cosma, kill, running_stage

LONG_TRAINING = {
    "train": {
        "checkpoint_every_s": 1.0,
        "cpu": {"width": 160, "steps": 700, "cap": 6000, "threads": 1},
    }
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_training_goes_on_without_a_dispatcher_and_is_taken_up_again(
    cosma: Cosma, footage: Path, number: signal.Signals
) -> None:
    segment = footage / "auv-a" / "C3441325000001" / "a1"
    assert cosma.ingest(segment, "alone", **LONG_TRAINING).returncode == 0
    first = cosma.start("dispatch", "--once")
    cosma.wait_until("Training reports progress", running_stage("Training"))

    second = cosma.run("dispatch", "--once")
    assert second.returncode == 11
    assert second.stderr.count("\n") == 1
    assert str(first.pid) in second.stderr

    kill(first, number)
    assert first.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 3)

    again = cosma.run("dispatch", "--once")
    assert again.returncode == 0, again.stderr
    (job,) = cosma.jobs()
    assert cosma.jobs()[job]["state"] == "done"

    events = cosma.events(job)
    started = [e["payload"]["stage"] for e in events if e["kind"] == "started"]
    assert len(started) == len(set(started)) == 8, started  # every stage exactly once
    steps = [
        e["payload"]["step"]
        for e in events
        if e["kind"] == "progress" and "loss" in json.dumps(e["payload"])
    ]
    assert steps == sorted(steps)
