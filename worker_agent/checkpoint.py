"""`output/.checkpoint.json`: which stages of a job are done, and whether that still holds.

The keys job_id .. completed_stages are a public format, read by other tools; stage_hashes, attempt,
artifacts and metrics are ours. A stage is resumed, not run, when its hash (of its name, the config
it depends on, its declared inputs, the hash of the stage before it and the tools' versions) is the
stored one and every artifact verifies by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from worker_agent.attempts import AttemptFiles
from worker_agent.frames import verify_frames
from worker_agent.messages import Artifact, AttemptSpec, ProtocolError, StageOutcome
from worker_agent.refusal import RefusedError
from worker_agent.stages.api import Artifacts, artifact, write_json

PATH = Path("output") / ".checkpoint.json"
MAX_AGE_S = 24 * 3600.0

# What every reader of the public format may expect to find.
_COMPLETED_KEYS = (
    "video_count",
    "total_frames",
    "manifest_path",
    "colmap_sparse_path",
    "colmap_points",
    "gaussian_count",
    "ply_path",
    "splat_path",
)


def stage_hash(
    stage: str,
    config: Mapping[str, Any],
    sections: Sequence[str],
    inputs: Mapping[str, Any],
    previous: str,
    tools: Mapping[str, str],
) -> str:
    """SHA-256 over the canonical JSON of everything that decides what a stage makes.

    `sections` are the keys of `config` the stage depends on, `previous` the hash of the stage
    before it ("" for the first).
    """
    value = {
        "stage": stage,
        "config": {name: config.get(name) for name in sections},
        "inputs": inputs,
        "previous": previous,
        "tools": tools,
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def verifies(run_dir: Path, item: Artifact) -> bool:
    """Whether the file is there with its recorded size and SHA-256; a listing of frames stands
    for all the frames in it."""
    path = run_dir / item.path
    if not path.is_file() or path.stat().st_size != item.bytes:
        return False
    if artifact(run_dir, path, item.kind).sha256 != item.sha256:
        return False
    if item.kind != "frames":
        return True
    try:
        verify_frames(run_dir, item.path)
    except RefusedError:
        return False
    return True


@dataclass(slots=True)
class Checkpoint:
    """The checkpoint of one run directory. `timestamp` is in Unix seconds."""

    run_dir: Path
    job_id: str
    stage: str = ""
    attempt: int = 0
    timestamp: float = 0.0
    completed_stages: dict[str, Any] = field(default_factory=dict)
    stage_hashes: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, tuple[Artifact, ...]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, run_dir: Path, job_id: str) -> Self:
        """The stored checkpoint; an empty one when there is none, or it is of another job, or
        does not have the format (then nothing of it can be trusted)."""
        try:
            text = (run_dir / PATH).read_bytes()
        except FileNotFoundError:
            text = b""
        return cls._parse(run_dir, job_id, text) or cls(run_dir, job_id)

    @classmethod
    def adopt(cls, run_dir: Path, job_id: str, text: bytes) -> None:
        """Take over the checkpoint of another host, durably, unless the one here is of a later
        attempt. Its folders become those of this host; what it claims of the files is believed
        only where they verify, as always."""
        found = cls._parse(run_dir, job_id, text)
        if found is None or found.attempt < cls.load(run_dir, job_id).attempt:
            return
        there = str(json.loads(text).get("temp_folder", ""))
        for key, value in found.completed_stages.items():
            if there and isinstance(value, str) and value.startswith(f"{there}/"):
                found.completed_stages[key] = f"{run_dir}/{value.removeprefix(f'{there}/')}"
        write_json(run_dir / PATH, found.to_dict())

    @classmethod
    def _parse(cls, run_dir: Path, job_id: str, text: bytes) -> Self | None:
        try:
            data = json.loads(text)
            if data["job_id"] != job_id:
                return None
            return cls(
                run_dir=run_dir,
                job_id=job_id,
                stage=str(data["stage"]),
                attempt=int(data.get("attempt", 0)),
                timestamp=datetime.fromisoformat(data["timestamp"]).timestamp(),
                completed_stages=dict(data["completed_stages"]),
                stage_hashes=dict(data.get("stage_hashes", {})),
                artifacts={
                    stage: tuple(Artifact.from_dict(item) for item in items)
                    for stage, items in data.get("artifacts", {}).items()
                },
                metrics=dict(data.get("metrics", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
            return None

    def resume(self, stage: str, digest: str, now: float) -> StageOutcome | None:
        """The outcome to report when the stage need not run; None when it must."""
        age = now - self.timestamp
        if not 0.0 <= age <= MAX_AGE_S or self.stage_hashes.get(stage) != digest:
            return None
        items = self.artifacts.get(stage)
        if items is None or not all(verifies(self.run_dir, item) for item in items):
            return None
        return StageOutcome(
            ok=True, artifacts=items, metrics=self.metrics.get(stage, {}), resumed=True
        )

    def record(self, spec: AttemptSpec, digest: str, made: Artifacts, now: float) -> None:
        """Remember a stage that is done, durably."""
        self.stage = spec.stage
        self.attempt = spec.attempt
        self.timestamp = now
        self.completed_stages.update(made.completed)
        self.stage_hashes[spec.stage] = digest
        self.artifacts[spec.stage] = made.files
        self.metrics[spec.stage] = made.metrics
        reserve = AttemptFiles(self.run_dir, spec.attempt).reserve("checkpoint")
        write_json(self.run_dir / PATH, self.to_dict(), reserve=reserve)

    def to_dict(self) -> dict[str, Any]:
        """The public format, folders absolute, time in ISO 8601 UTC."""
        return {
            "job_id": self.job_id,
            "stage": self.stage,
            "input_folder": str(self.run_dir / "input"),
            "output_folder": str(self.run_dir / "output"),
            "temp_folder": str(self.run_dir),
            "timestamp": datetime.fromtimestamp(self.timestamp, UTC).isoformat(),
            "completed_stages": {
                **dict.fromkeys(_COMPLETED_KEYS),
                **self.completed_stages,
            },
            "stage_hashes": self.stage_hashes,
            "attempt": self.attempt,
            "artifacts": {
                stage: [json.loads(item.to_json()) for item in items]
                for stage, items in self.artifacts.items()
            },
            "metrics": self.metrics,
        }


def previous_hash(checkpoint: Checkpoint, stage: str, order: Sequence[str]) -> str:
    """The stored hash of the stage before `stage` in `order`; "" for the first or an unknown."""
    index = order.index(stage) if stage in order else 0
    return checkpoint.stage_hashes.get(order[index - 1], "") if index else ""
