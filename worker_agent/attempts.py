"""Attempt directories on this host: their files, the run lock, and what state they prove.

A run directory is `<work_dir>/<acquisition>/<job>`; its `lock` is held (flock) by the supervisor
and by the stage of the one attempt that runs, and the lock file's text is that attempt's number.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker_agent.clock import boot_id
from worker_agent.durable import write_json
from worker_agent.messages import (
    AttemptRef,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    ExitRecord,
    ProtocolError,
    StageOutcome,
)
from worker_agent.paths import run_directory
from worker_agent.processes import is_alive
from worker_agent.refusal import is_disk_full


@dataclass(frozen=True, slots=True)
class AttemptFiles:
    """Where everything of one attempt lies. Attempt directories are used once."""

    run_dir: Path
    attempt: int

    @classmethod
    def of(cls, run_dir: str, attempt: int) -> AttemptFiles:
        """Raises RefusedError when `run_dir` is not an absolute path of the right depth."""
        return cls(run_directory(run_dir), attempt)

    @property
    def directory(self) -> Path:
        return self.run_dir / "attempts" / str(self.attempt)

    @property
    def started(self) -> Path:
        return self.directory / "started.json"

    @property
    def exit(self) -> Path:
        return self.directory / "exit.json"

    @property
    def result(self) -> Path:
        return self.directory / "result.json"

    @property
    def events(self) -> Path:
        return self.directory / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def lease(self) -> Path:
        return self.directory / "lease.json"

    @property
    def cancel(self) -> Path:
        return self.directory / "cancel.json"

    @property
    def processes(self) -> Path:
        return self.directory / "processes.json"

    def reserve(self, name: str) -> Path:
        """The preallocated file for the record `name`: see worker_agent.reserve."""
        return self.directory / f"reserve.{name}"

    @property
    def lock(self) -> Path:
        return self.run_dir / "lock"

    @property
    def cookie(self) -> str:
        """Value of COSMA_ATTEMPT in the environment of every process of the attempt."""
        return f"{self.run_dir}#{self.attempt}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when the file is absent or torn."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_spec(files: AttemptFiles) -> AttemptSpec | None:
    """The spec in started.json; None when the attempt was never started."""
    started = read_json(files.started)
    return None if started is None else AttemptSpec.from_dict(started.get("spec"))


def lock_is_held(files: AttemptFiles) -> bool:
    """Whether any process runs in this run directory."""
    try:
        descriptor = os.open(files.lock, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_holder(files: AttemptFiles) -> int | None:
    """The attempt that took the lock last."""
    try:
        text = files.lock.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(text) if text.isdigit() else None


def is_abandoned(files: AttemptFiles) -> bool:
    """Whether supervisor and stage are both known to be dead, whoever inherited their lock."""
    known = read_json(files.processes) or {}
    for name in ("supervisor", "stage"):
        pid, ticks = known.get(name), known.get(f"{name}_start_ticks")
        if not isinstance(pid, int) or not isinstance(ticks, int) or is_alive(pid, ticks):
            return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def status(files: AttemptFiles) -> AttemptStatus:
    """The lock before exit.json: the reverse order reports attempts as vanished that were just
    finishing. started.json before the lock: else one that is just starting looks vanished."""
    started = read_json(files.started)
    held = lock_is_held(files)
    holder = lock_holder(files) if held else None
    record = _exit_record(files)
    rebooted = False
    if record is not None:
        state = AttemptState.FINISHED
    elif started is None:
        state = AttemptState.NEVER_STARTED
    elif held and holder == files.attempt and not is_abandoned(files):
        state = AttemptState.RUNNING
    else:
        record = _harvest(files, started)
        state = AttemptState.VANISHED if record is None else AttemptState.FINISHED
        rebooted = record is None and started.get("boot_id") != boot_id()
    return AttemptStatus(
        run_dir=str(files.run_dir),
        attempt=files.attempt,
        state=state,
        exit=record,
        rebooted=rebooted,
        events_bytes=_size(files.events),
        log_bytes=_size(files.log),
    )


def _exit_record(files: AttemptFiles) -> ExitRecord | None:
    """One that cannot be understood is as good as none: it must not spoil the answer for all."""
    value = read_json(files.exit)
    try:
        return None if value is None else ExitRecord.from_dict(value)
    except ProtocolError:
        return None


def read_outcome(files: AttemptFiles) -> StageOutcome | None:
    """What the stage said of itself; None when it did not get so far."""
    value = read_json(files.result)
    if value is None:
        return None
    try:
        return StageOutcome.from_dict(value)
    except ProtocolError:
        return None


def _harvest(files: AttemptFiles, started: dict[str, Any]) -> ExitRecord | None:
    """A stage that outlived its supervisor and left its result is finished, not vanished."""
    outcome = read_outcome(files)
    if outcome is None:
        return None
    returncode = 0 if outcome.ok else 1
    ended = files.result.stat().st_mtime
    return _unsupervised(files, started, "exited", ended, outcome=outcome, returncode=returncode)


def ended_record(files: AttemptFiles, cause: str, ended: float) -> ExitRecord | None:
    """The exit record of an attempt that was killed while it had no supervisor; None when it was
    never started."""
    started = read_json(files.started)
    if started is None:
        return None
    return _unsupervised(files, started, cause, ended, outcome=read_outcome(files), number=9)


def _unsupervised(
    files: AttemptFiles,
    started: dict[str, Any],
    cause: str,
    ended: float,
    *,
    outcome: StageOutcome | None,
    returncode: int | None = None,
    number: int | None = None,
) -> ExitRecord | None:
    """What can be known of an attempt that nobody waited for: its own word on what it used."""
    try:
        spec = AttemptSpec.from_dict(started.get("spec"))
    except ProtocolError:
        return None
    usage = (read_json(files.result) or {}).get("usage")
    if not isinstance(usage, dict):
        usage = {}
    began = float(started.get("time", 0.0))
    return ExitRecord(
        attempt=files.attempt,
        stage=spec.stage,
        returncode=returncode,
        signal=number,
        cause=cause,
        outcome=outcome,
        started_at=began,
        ended_at=ended,
        wall_s=max(0.0, ended - began),
        cpu_s=float(usage.get("cpu_s", 0.0)),
        peak_rss_mib=float(usage.get("peak_rss_mib", 0.0)),
        peak_vram_mib=None,
        events_bytes=_size(files.events),
        log_bytes=_size(files.log),
        boot_id=str(started.get("boot_id", "")),
    )


def write_exit(files: AttemptFiles, record: ExitRecord) -> None:
    """Durable before the lock goes, also on a full disk; there a record that is too long for its
    reserve goes without the stage's evidence and metrics."""
    reserve = files.reserve("exit")
    try:
        write_json(files.exit, json.loads(record.to_json()), reserve=reserve)
    except OSError as error:
        if not is_disk_full(error):
            raise
        outcome = record.outcome
        if outcome is not None:
            outcome = replace(outcome, evidence={}, metrics={})
        short = replace(record, outcome=outcome)
        write_json(files.exit, json.loads(short.to_json()), reserve=reserve)


def attempts_of(run_dir: Path) -> tuple[int, ...]:
    """The numbers of all attempts that were ever started in a run directory, ascending."""
    numbers = [
        int(path.parent.name)
        for path in run_dir.glob("attempts/*/started.json")
        if path.parent.name.isdigit()
    ]
    return tuple(sorted(numbers))


def list_attempts(work_dir: Path) -> Iterator[AttemptStatus]:
    """Every attempt under a work directory, in order of acquisition, job and number."""
    for run_dir in sorted(path.parent for path in work_dir.glob("*/*/attempts")):
        if run_dir.parent.name.startswith("."):
            continue
        for attempt in attempts_of(run_dir):
            yield status(AttemptFiles(run_dir, attempt))


def of_reference(reference: AttemptRef) -> AttemptFiles:
    return AttemptFiles.of(reference.run_dir, reference.attempt)
