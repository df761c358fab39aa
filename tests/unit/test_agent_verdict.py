"""A SIGKILL of the kernel, of a person, and of ours; a GPU that broke and a program that did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker_agent import oom
from worker_agent.gpu_health import FaultWatch, hardware_xids, parse_health
from worker_agent.protocol import FailureCode, StageOutcome
from worker_agent.verdict import judge

KILLS = {"host": 1}
FAULT = {"ecc_uncorrected": 2}
CRASHED = StageOutcome(ok=False, reason=FailureCode.STAGE_CRASHED, evidence={"line": 3})
FINE = StageOutcome(ok=True, metrics={"frames": 7})
NO_VIDEO = StageOutcome(ok=False, reason=FailureCode.INPUT_NO_VIDEO)


@pytest.mark.parametrize(
    ("cause", "number", "outcome", "kills", "faults", "expected"),
    [
        ("signalled", 9, None, KILLS, {}, ("oom_killed", FailureCode.OUT_OF_MEMORY)),
        ("signalled", 9, None, {}, {}, ("signalled", None)),
        ("signalled", 11, None, KILLS, {}, ("signalled", None)),
        ("exited", None, None, KILLS, {}, ("exited", None)),
        ("exited", None, CRASHED, KILLS, {}, ("exited", FailureCode.OUT_OF_MEMORY)),
        ("exited", None, CRASHED, {}, {}, ("exited", FailureCode.STAGE_CRASHED)),
        ("exited", None, NO_VIDEO, KILLS, FAULT, ("exited", FailureCode.INPUT_NO_VIDEO)),
        ("cancelled", 9, None, KILLS, FAULT, ("cancelled", None)),
        ("lease_expired", 9, None, KILLS, {}, ("lease_expired", None)),
        ("exited", None, CRASHED, {}, FAULT, ("exited", FailureCode.GPU_FAULT)),
        ("signalled", 6, None, {}, FAULT, ("signalled", FailureCode.GPU_FAULT)),
        ("exited", None, FINE, KILLS, FAULT, ("exited", None)),
    ],
)
def test_verdicts(
    cause: str,
    number: int | None,
    outcome: StageOutcome | None,
    kills: dict[str, int],
    faults: dict[str, Any],
    expected: tuple[str, FailureCode | None],
) -> None:
    found, judged = judge("Training", cause, number, outcome, oom_kills=kills, gpu_faults=faults)
    assert (found, None if judged is None else judged.reason) == expected
    if outcome is not None and outcome.ok:
        assert judged == outcome


def test_evidence_of_both_is_kept() -> None:
    _, judged = judge("Training", "exited", None, CRASHED, oom_kills=KILLS, gpu_faults={})
    assert judged is not None
    assert judged.evidence == {"line": 3, "oom_kills": KILLS, "said": FailureCode.STAGE_CRASHED}


@pytest.mark.parametrize(
    ("cgroups", "events"),
    [
        ("0::/user.slice/a", "user.slice/a/memory.events"),
        ("7:cpu:/x\n4:memory:/a b\n0::/", "memory/a b/memory.oom_control"),
    ],
)
def test_counters_of_both_kinds_of_cgroups(tmp_path: Path, cgroups: str, events: str) -> None:
    vmstat, own, root = tmp_path / "vmstat", tmp_path / "own", tmp_path / "cgroup"
    vmstat.write_text("pgfault 12\noom_kill 3\n")
    own.write_text(cgroups + "\n")
    (root / events).parent.mkdir(parents=True)
    (root / events).write_text("oom 9\noom_kill 2\n")
    before = oom.kills(vmstat=vmstat, own=own, root=root)
    assert before == {"host": 3, "cgroup": 2}
    vmstat.write_text("pgfault 13\noom_kill 4\n")
    assert oom.since(before, oom.kills(vmstat=vmstat, own=own, root=root)) == {"host": 1}


def test_without_counters_nothing_is_claimed(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert oom.kills(vmstat=absent, own=absent, root=absent) == {}
    assert oom.since({}, {"host": 5}) == {}


def test_xids_of_the_hardware_and_of_this_gpu_only() -> None:
    log = (
        "4,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"
        "4,1,3,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=python, MMU fault\n"
        "4,1,4,-;NVRM: Xid (PCI:0000:af:00): 48, pid=7, DBE\n"
        "4,1,5,-;NVRM: Xid (PCI:0000:3b:00): 63, pid=7, row remapping\n"
    )
    assert hardware_xids(log, "00000000:3B:00.0") == [79, 63]


def test_health_rows() -> None:
    rows = parse_health("GPU-a, 00000000:3B:00.0, 4\nGPU-b, 00000000:AF:00.0, [N/A]\nnonsense\n")
    assert (rows["GPU-a"].uncorrected, rows["GPU-b"].uncorrected) == (4, None)
    assert rows["GPU-b"].bus == "00000000:AF:00.0"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ('echo "GPU-a, 00000000:3B:00.0, 3"', {"ecc_uncorrected": 3}),
        ('echo "GPU-a, 00000000:3B:00.0, 0"', {}),
        ('echo "GPU-b, 00000000:AF:00.0, 0"', {"lost": "nvidia-smi no longer lists GPU-a"}),
        ('echo "Unable to determine the device handle for GPU0: GPU is lost"; exit 15',
         {"lost": "nvidia-smi failed with exit code 15: Unable to determine the device handle "
          "for GPU0: GPU is lost"}),
        ('echo "driver mismatch"; exit 9', {}),
    ],
)  # fmt: skip
def test_faults_are_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, expected: dict[str, Any]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/asked ]; then\n{second}\nelse\n"
        f': > {tmp_path}/asked\necho "GPU-a, 00000000:3B:00.0, 0"\nfi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    watch = FaultWatch("GPU-a")
    assert watch.faults() == expected
