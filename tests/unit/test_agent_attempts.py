"""The truth table: run lock x started.json x exit.json x result.json -> state."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker_agent import attempts, clock
from worker_agent.attempts import AttemptFiles
from worker_agent.durable import write_json
from worker_agent.epoch import check_epoch
from worker_agent.processes import parse_cookie
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    AttemptSpec,
    AttemptState,
    ExitRecord,
    FailureCode,
    StageOutcome,
)
from worker_agent.refusal import RefusedError


@pytest.fixture
def files(tmp_path: Path) -> AttemptFiles:
    run_dir = tmp_path / "reef" / "a-1"
    (run_dir / "attempts" / "2").mkdir(parents=True)
    return AttemptFiles(run_dir, 2)


def put_started(files: AttemptFiles, boot_id: str | None = None) -> None:
    spec = AttemptSpec(
        protocol=PROTOCOL_VERSION,
        epoch=1,
        acquisition="reef",
        job="a-1",
        attempt=files.attempt,
        stage="Training",
        run_dir=str(files.run_dir),
    )
    body = {"spec": json.loads(spec.to_json()), "boot_id": boot_id or clock.boot_id(), "time": 5.0}
    write_json(files.started, body)


def put_exit(files: AttemptFiles) -> None:
    record = ExitRecord(
        attempt=files.attempt,
        stage="Training",
        returncode=0,
        signal=None,
        cause="exited",
        outcome=None,
        started_at=5.0,
        ended_at=6.0,
        wall_s=1.0,
        cpu_s=1.0,
        peak_rss_mib=1.0,
        peak_vram_mib=None,
        events_bytes=0,
        log_bytes=0,
        boot_id=clock.boot_id(),
    )
    write_json(files.exit, json.loads(record.to_json()))


@contextmanager
def locked_by(files: AttemptFiles, attempt: int) -> Iterator[None]:
    descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, f"{attempt}\n".encode())
        yield
    finally:
        os.close(descriptor)


def test_nothing_there_is_never_started(files: AttemptFiles) -> None:
    assert attempts.status(files).state is AttemptState.NEVER_STARTED
    gone = AttemptFiles(files.run_dir / "absent", 1)
    assert attempts.status(gone).state is AttemptState.NEVER_STARTED


def test_lock_held_by_it_is_running(files: AttemptFiles) -> None:
    put_started(files)
    with locked_by(files, 2):
        assert attempts.status(files).state is AttemptState.RUNNING


def test_lock_held_by_another_attempt_is_not_running(files: AttemptFiles) -> None:
    put_started(files)
    with locked_by(files, 3):
        assert attempts.status(files).state is AttemptState.VANISHED


def test_exit_record_is_finished_though_the_lock_is_still_held(files: AttemptFiles) -> None:
    put_started(files)
    put_exit(files)
    with locked_by(files, 2):
        status = attempts.status(files)
    assert status.state is AttemptState.FINISHED
    assert status.exit is not None
    assert status.exit.wall_s == 1.0


def test_free_lock_without_exit_record_is_vanished(files: AttemptFiles) -> None:
    put_started(files)
    status = attempts.status(files)
    assert status.state is AttemptState.VANISHED
    assert not status.rebooted


def test_another_boot_is_told(files: AttemptFiles) -> None:
    put_started(files, boot_id="another boot")
    status = attempts.status(files)
    assert status.state is AttemptState.VANISHED
    assert status.rebooted


def test_result_without_exit_record_is_harvested(files: AttemptFiles) -> None:
    put_started(files)
    outcome = StageOutcome(ok=False, reason=FailureCode.NO_PARALLAX, message="camera stood still")
    write_json(files.result, json.loads(outcome.to_json()))
    with locked_by(files, 2):
        assert attempts.status(files).state is AttemptState.RUNNING
    status = attempts.status(files)
    assert status.state is AttemptState.FINISHED
    assert status.exit is not None
    assert status.exit.outcome == outcome
    assert status.exit.returncode == 1


def test_list_names_every_started_attempt_and_nothing_else(
    tmp_path: Path, files: AttemptFiles
) -> None:
    put_started(files)
    put_started(AttemptFiles(files.run_dir, 10))
    put_started(AttemptFiles(tmp_path / "bay" / "b-1", 1))
    put_started(AttemptFiles(tmp_path / ".cosma" / "x", 1))
    (files.run_dir / "attempts" / "11").mkdir()
    found = [(s.run_dir, s.attempt) for s in attempts.list_attempts(tmp_path)]
    assert found == [
        (str(tmp_path / "bay" / "b-1"), 1),
        (str(files.run_dir), 2),
        (str(files.run_dir), 10),
    ]


def test_epoch_only_rises(tmp_path: Path) -> None:
    check_epoch(tmp_path, 7)
    check_epoch(tmp_path, 7)
    with pytest.raises(RefusedError) as refused:
        check_epoch(tmp_path, 6)
    assert refused.value.refusal.error == "stale_epoch"
    check_epoch(tmp_path, 8)
    with pytest.raises(RefusedError):
        check_epoch(tmp_path, 7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/w/a#b/j#12", ("/w/a#b/j", 12)), ("/w/a/j", None), ("#1", None), ("/w/a/j#x", None)],
)
def test_cookie_names_run_directory_and_attempt(
    value: str, expected: tuple[str, int] | None
) -> None:
    assert parse_cookie(value) == expected
