"""What every stage is written against: its spec, its reporter, its failure. Stdlib only.

A stage is a module with `main(spec, report) -> Artifacts`. `python -m worker_agent.stages SPEC`
runs one in its own process, with the run directory as working directory, and writes
`attempts/<n>/result.json` and `output/.checkpoint.json`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker_agent.durable import append_line, write_json
from worker_agent.messages import Artifact, AttemptSpec, FailureCode
from worker_agent.refusal import is_disk_full

__all__ = ["Artifacts", "AttemptSpec", "Reporter", "StageFailure", "artifact", "write_json"]


class StageFailure(Exception):
    """The stage ends here, with a code the dispatcher can decide on.

    `message` is one line: what, where, why. `advice` says what the operator can do.
    """

    def __init__(
        self,
        reason: FailureCode,
        message: str,
        *,
        advice: str = "",
        evidence: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.advice = advice
        self.evidence = evidence or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """What a stage made. `completed` adds to `completed_stages` of the public checkpoint."""

    files: tuple[Artifact, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    completed: dict[str, Any] = field(default_factory=dict)


class Reporter:
    """Appends events to the attempt's events.jsonl, each line whole or not at all.

    `progress` is coalesced to one line per `interval_s`, the last value of a stage always goes out.
    On a full disk progress is left out, and the other kinds take their room from `reserve`.
    """

    def __init__(
        self,
        descriptor: int,
        attempt: int,
        *,
        interval_s: float = 0.5,
        reserve: Path | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._reserve = reserve
        self._lock = threading.Lock()
        self._attempt = attempt
        self._interval_s = interval_s
        self._last = float("-inf")

    def emit(self, kind: str, **payload: Any) -> None:
        """Raises OSError (ENOSPC) when the disk is full and the reserve is used up."""
        self._append(kind, payload, self._reserve)

    def _append(self, kind: str, payload: dict[str, Any], reserve: Path | None) -> None:
        line = json.dumps(
            {"time": round(time.time(), 3), "attempt": self._attempt, "kind": kind, **payload},
            separators=(",", ":"),
        )
        with self._lock:
            append_line(self._descriptor, line.encode() + b"\n", reserve)

    def progress(self, fraction: float, message: str = "", **numbers: float | int) -> None:
        """`fraction` of this stage, 0 to 1."""
        now = time.monotonic()
        if fraction >= 1.0 or now - self._last >= self._interval_s:
            self._last = now
            payload = {"fraction": round(fraction, 4), "message": message, **numbers}
            try:
                self._append("progress", payload, None)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                # The reserve is for lines that say more, and the stage may still get through.

    def warning(self, message: str, **payload: Any) -> None:
        self.emit("warning", message=message, **payload)


def artifact(run_dir: Path, path: Path, kind: str) -> Artifact:
    """Hash one finished file under the run directory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return Artifact(
        kind=kind,
        path=path.relative_to(run_dir).as_posix(),
        bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
    )
