"""A drill where namespaces are not allowed: it says what could not happen. And what the checker
makes of its evidence when one thing in it is spoilt."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dispatcher.chaos.checker import INVARIANTS, check
from dispatcher.chaos.collect import collect, sha256
from dispatcher.chaos.evidence import Evidence
from dispatcher.chaos.loopback import LoopbackHosts
from dispatcher.chaos.schedule import Kind, plan

LIMIT_S = 300.0  # it takes a fraction of it
HOSTS, JOBS, SEED = ("host-1", "host-2"), 2, 5


@dataclass(frozen=True, slots=True)
class Drilled:
    """What a drill has left, and what it said."""

    directory: Path
    code: int
    stdout: str
    stderr: str
    sources: dict[Path, str]

    def run_log(self, host: str) -> Path:
        return self.directory / "hosts" / host / "runs.jsonl"

    def evidence(self, work: Path | None = None) -> Evidence:
        """`work`: where the hosts' work directories lie, when not in `directory`."""
        hosts = (work or self.directory) / "hosts"
        return collect(
            self.directory / "cosma.db",
            {name: hosts / name / "work" for name in HOSTS},
            {name: self.run_log(name) for name in HOSTS},
            sources=self.sources,
            processes_left=(),
            expected_held=(),
        )

    def copy(self, directory: Path) -> Drilled:
        """All that is small. Footage and work directories are read where they are."""
        for path in self.directory.glob("cosma.db*"):
            shutil.copy2(path, directory)
        copied = replace(self, directory=directory)
        for host in HOSTS:
            copied.run_log(host).parent.mkdir(parents=True)
            shutil.copy2(self.run_log(host), copied.run_log(host))
        return copied

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.directory / "cosma.db")) as writer, writer:
            yield writer


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Drilled:
    base = tmp_path_factory.mktemp("drill")
    refuses = base / "bin" / "unshare"
    refuses.parent.mkdir()
    refuses.write_text("#!/bin/sh\nexit 1\n")
    refuses.chmod(0o755)
    words = ["--hosts", len(HOSTS), "--jobs", JOBS, "--seed", SEED, "--out", base / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher.cli", "chaos", *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env={**os.environ, "PATH": f"{refuses.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    clips = (base / "out" / "footage").rglob("*.MP4")
    sources = {clip: sha256(clip) or "" for clip in clips}
    return Drilled(base / "out", done.returncode, done.stdout, done.stderr, sources)


def test_faults_that_cannot_happen_are_named_and_no_success(drilled: Drilled) -> None:
    possible = LoopbackHosts(1, Path()).possible
    impossible = set(Kind) - possible
    assert impossible and Kind.POWER_CUT in impossible
    summary, named, *broken = drilled.stdout.splitlines()
    assert broken == [], drilled.stdout
    assert drilled.code == 3, "a farm that was not put to every test must not look green"
    assert named == f"not possible here: {', '.join(sorted(impossible))}"
    faults = plan(SEED, list(HOSTS), JOBS, JOBS * 8, [kind for kind in Kind if kind in possible])
    assert summary.startswith(f"seed {SEED}: {JOBS} of {JOBS} jobs done, 0 held")
    assert f", {len(faults)} faults, " in summary
    assert drilled.stderr.startswith("no namespaces can be made here")
    for fault in faults:
        assert f": {fault.kind} on " in drilled.stderr


def test_its_evidence_is_whole(drilled: Drilled) -> None:
    evidence = drilled.evidence()
    assert check(evidence) == []
    assert len(evidence.runs) >= 8 * JOBS
    assert len(evidence.host_attempts) == len(evidence.attempts) >= 8 * JOBS
    assert evidence.logs and drilled.sources


# --- one thing spoilt ---


def write_again(found: Drilled, **changes: Any) -> None:
    """The first line of a run log once more, changed. One host may have had nothing to do."""
    log = max((found.run_log(host) for host in HOSTS), key=lambda path: path.stat().st_size)
    with log.open("r+") as stream:
        first = json.loads(stream.readline())
        stream.seek(0, os.SEEK_END)
        stream.write(json.dumps({**first, **changes}) + "\n")


def started_twice(found: Drilled) -> None:
    """As if `start` did not know that the attempt had been started."""
    write_again(found, pid=-1)


def outlived_its_end(found: Drilled) -> None:
    write_again(found, kind="alive", at=time.clock_gettime(time.CLOCK_BOOTTIME))


def sql(statement: str) -> Callable[[Drilled], None]:
    """One row changes: of `:job`, a reconstruction, or `:event`, which came from an agent."""

    def spoil(found: Drilled) -> None:
        with found.database() as writer:
            job = "SELECT min(id) FROM jobs WHERE kind = 'reconstruct'"
            event = "SELECT max(id) FROM events WHERE source = 'agent' AND kind = 'progress'"
            (values,) = writer.execute(f"SELECT ({job}), ({event})").fetchall()
            names = dict(zip(("job", "event"), values, strict=True))
            assert writer.execute(statement, names).rowcount == 1

    return spoil


def footage_changed(found: Drilled) -> None:
    clip, digest = next(iter(found.sources.items()))
    copy = found.directory / clip.name
    copy.write_bytes(clip.read_bytes()[:-1])
    found.sources[copy] = digest


SPOILT: dict[str, tuple[str, Callable[[Drilled], None]]] = {
    "started twice": ("one_run_per_attempt", started_twice),
    "outlived its end": ("one_live_attempt_of_a_stage", outlived_its_end),
    "a log chunk twice": (
        "log_bytes_exactly_once",
        sql(
            "INSERT INTO logs SELECT job, attempt, position + length(data), data FROM logs"
            " WHERE (job, attempt, position) IN"
            " (SELECT job, attempt, max(position) FROM logs GROUP BY job, attempt LIMIT 1)"
        ),
    ),
    "a log chunk lost": (
        "log_bytes_exactly_once",
        sql("DELETE FROM logs WHERE rowid = (SELECT min(rowid) FROM logs)"),
    ),
    "an event twice": (
        "events_exactly_once",
        sql(
            "INSERT INTO events (at, kind, job, attempt, host, payload, stimulus, source) SELECT"
            " at, kind, job, attempt, host, payload, stimulus, source FROM events"
            " WHERE id = :event"
        ),
    ),
    "an event lost": (
        "events_exactly_once",
        sql("DELETE FROM events WHERE id = :event"),
    ),
    "inputs removed before the frames were verified": (
        "inputs_kept_until_verified",
        # Where the first answer was lost, the second says that nothing was left to remove.
        sql(
            "UPDATE events SET id = 0, payload = json_set(payload, '$.removed_bytes', 1)"
            " WHERE id = (SELECT min(id) FROM events WHERE"
            " kind = 'inputs_reclaimed' AND job = :job)"
        ),
    ),
    "footage changed": ("inputs_kept_until_verified", footage_changed),
    "finished work taken for lost": (
        "finished_work_is_harvested",
        sql(
            "UPDATE attempts SET state = 'failed', reason = 'attempt_vanished'"
            " WHERE job = :job AND attempt = (SELECT min(attempt) FROM attempts"
            " WHERE job = :job AND state = 'succeeded')"
        ),
    ),
    "a job that does not end": (
        "every_job_ends",
        sql("UPDATE jobs SET state = 'running' WHERE id = :job"),
    ),
    "a job held for nothing": (
        "only_named_jobs_are_held",
        sql(
            "UPDATE jobs SET state = 'held', reason = 'no_parallax', message = 'why'"
            " WHERE id = :job"
        ),
    ),
    "a reservation kept": (
        "no_reservation_leak",
        sql(
            "INSERT INTO reservations (job, attempt, host, slot, mib, disk_bytes)"
            " VALUES (:job, 1, 'host-1', 'train', 0, 0)"
        ),
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_whatever_is_spoilt_breaks_its_invariant(
    drilled: Drilled, tmp_path: Path, what: str
) -> None:
    invariant, spoil = SPOILT[what]
    copied = replace(drilled.copy(tmp_path), sources=dict(drilled.sources))
    spoil(copied)
    assert {found.invariant for found in check(copied.evidence(drilled.directory))} == {invariant}


def test_a_process_left_behind_is_found_on_its_host(tmp_path: Path) -> None:
    """By its environment alone: it has left its parent, its group and its directory."""
    with LoopbackHosts(2, tmp_path) as hosts:
        cookie = f"{hosts.work_dir('host-1')}/reef/job#1"
        left: subprocess.Popen[Any] = subprocess.Popen(
            ["sleep", "60"], env={**os.environ, "COSMA_ATTEMPT": cookie}, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        try:
            assert left.pid in hosts.pids("host-1")
            assert left.pid not in hosts.pids("host-2")
        finally:
            left.kill()
            left.wait()
        assert left.pid not in hosts.pids("host-1")


def test_every_invariant_is_spoilt_here() -> None:
    spoilt = {invariant for invariant, _ in SPOILT.values()}
    assert set(INVARIANTS) - spoilt == {"no_process_left"}  # the test above
