"""Where collected results lie: a directory, `<root>/<acquisition>/<job>/<file>`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Small or final results come back; frames, features and training state stay on the host.
COLLECTED_KINDS = frozenset(
    {
        "validation",
        "metadata",
        "manifest",
        "sfm_report",
        "registration",
        "training_report",
        "preview",
        "ply",
        "splat",
        "stitch_report",
    }
)
CHECKPOINT = "output/.checkpoint.json"


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    root: Path

    def directory(self, acquisition: str, job: str) -> Path:
        return self.root / acquisition / job

    def path(self, acquisition: str, job: str, relative: str) -> Path:
        """Local path of a file that lies at `relative` in the run directory.

        Raises ValueError for a path that would leave the job's directory.
        """
        parts = PurePosixPath(relative).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"not a path inside a run directory: {relative!r}")
        kept = parts[1:] if parts[0] == "output" and len(parts) > 1 else parts
        return self.directory(acquisition, job).joinpath(*kept)
