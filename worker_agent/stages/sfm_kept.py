"""What an attempt at SfM leaves for the next one: features, matches, and the answers of its steps.

They lie under `sfm/` and count while `database.key` there says that they were made the same way.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker_agent.clock import boot_id
from worker_agent.stages.masks import PER_FRAME
from worker_agent.stages.registry import STAGES, tool_versions
from worker_agent.stages.sfm_mapping import Request
from worker_agent.version import agent_hash

__all__ = ["WORK", "begin", "digest_of", "for_all_pairs", "is_kept", "remove_work"]

KEY = Path("sfm/database.key")
WORK = Path("sfm/work")
"""Models and answers of the steps, below the run directory."""


def digest_of(run_dir: Path, request: Request, polygons: Sequence[Any]) -> str:
    """Of all that decides what the steps give. Of this boot, too: COLMAP writes its database with
    synchronous = OFF, and a power cut may leave any part of it."""
    wanted = asdict(request) | {"threads": 0, "memory_limit_mib": 0, "patience": 0}
    tools = tool_versions(STAGES["ColmapReconstruction"])
    said = [wanted, polygons, tools, agent_hash(), boot_id()]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    masks = sorted((run_dir / PER_FRAME).glob("*.png"))
    for path in (run_dir / "frames" / "frames.json", *masks):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def is_kept(run_dir: Path, digest: str) -> bool:
    key = run_dir / KEY
    return key.is_file() and key.read_text() == digest


def begin(run_dir: Path, digest: str) -> None:
    """Remove what was made otherwise."""
    if is_kept(run_dir, digest):
        return
    key = run_dir / KEY
    key.unlink(missing_ok=True)  # first: what is removed by halves is nobody's any more
    if key.parent.exists():
        shutil.rmtree(key.parent)
    key.parent.mkdir()
    key.write_text(digest)


def for_all_pairs(database: Path) -> Path:
    """A copy of `database` for more matches, so that a mapping of its own that was broken off finds
    it as it was. Raises sqlite3.Error, as for a full disk."""
    copy = database.with_name(f"{database.stem}_exhaustive.db")
    if not copy.is_file():
        part = copy.with_suffix(".part")
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(database)) as link, closing(sqlite3.connect(part)) as other:
            link.backup(other)
        part.replace(copy)
    return copy


def remove_work(run_dir: Path) -> None:
    """Remove models and answers, all at once for the next attempt."""
    work = run_dir / WORK
    trash = work.with_name(".work")
    shutil.rmtree(trash, ignore_errors=True)
    if work.exists():
        work.replace(trash)
        shutil.rmtree(trash)
