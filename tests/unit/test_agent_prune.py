"""Records of attempts go once they are old, but never what a running or coming one needs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from worker_agent.attempts import AttemptFiles, attempts_of
from worker_agent.exclusive import alone
from worker_agent.protocol import PruneReport, PruneRequest
from worker_agent.prune import prune
from worker_agent.refusal import RefusedError

DAY_S = 86_400.0


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    return tmp_path / "work"


def attempt(work_dir: Path, job: str, number: int, *, days: float, log: int = 5000) -> AttemptFiles:
    """One that ended so many days ago."""
    files = AttemptFiles(work_dir / "reef" / job, number)
    files.directory.mkdir(parents=True)
    files.log.write_bytes(b"l" * log)
    for path in (files.started, files.exit):
        path.write_text(json.dumps({}))
    then = time.time() - days * DAY_S
    for path in files.directory.iterdir():
        os.utime(path, (then, then))
    files.lock.touch()
    return files


def run(work_dir: Path, *over: str, epoch: int = 1) -> PruneReport:
    request = PruneRequest(epoch=epoch, work_dir=str(work_dir), keep_s=30 * DAY_S, over=over)
    return prune(request)


def test_old_ones_go_and_the_newest_stays_until_its_job_is_over(work_dir: Path) -> None:
    for number, days in ((1, 90), (2, 40), (10, 35)):
        attempt(work_dir, "a", number, days=days)
    report = run(work_dir)
    assert attempts_of(work_dir / "reef" / "a") == (10,)
    assert (report.attempts, report.removed_bytes, report.waiting) == (2, 2 * 5004, ("reef/a",))
    assert report.freed_bytes >= 2 * 4096
    assert run(work_dir).attempts == 0
    over = run(work_dir, "reef/a")
    assert (over.attempts, over.waiting) == (1, ())
    assert list((work_dir / "reef" / "a" / "attempts").iterdir()) == []


def test_what_ended_lately_stays(work_dir: Path) -> None:
    for number, days in ((1, 29), (2, 1)):
        attempt(work_dir, "a", number, days=days)
    late = attempt(work_dir, "b", 1, days=90)
    late.events.write_text("something was written since\n")
    assert run(work_dir, "reef/a", "reef/b") == PruneReport(
        attempts=0, removed_bytes=0, freed_bytes=0
    )


def test_nothing_goes_where_one_runs_or_another_verb_is_at_work(work_dir: Path) -> None:
    running = attempt(work_dir, "a", 1, days=90)
    attempt(work_dir, "b", 1, days=90)
    with running.lock.open() as stream, alone(work_dir / "reef" / "b"):
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert run(work_dir, "reef/a", "reef/b").attempts == 0
    assert run(work_dir, "reef/a", "reef/b").attempts == 2


def test_one_that_was_removed_in_part_is_found_again(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = attempt(work_dir, "a", 1, days=90)
    unlink = Path.unlink

    def killed(path: Path, **options: bool) -> None:
        if path == files.started:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        run(work_dir, "reef/a")
    monkeypatch.undo()
    assert [path.name for path in files.directory.iterdir()] == ["started.json"]
    assert run(work_dir, "reef/a").attempts == 1
    assert not files.directory.exists()


def test_an_older_dispatcher_removes_nothing(work_dir: Path) -> None:
    files = attempt(work_dir, "a", 1, days=90)
    run(work_dir, epoch=5)
    with pytest.raises(RefusedError, match="epoch"):
        run(work_dir, "reef/a", epoch=4)
    assert files.log.exists()
