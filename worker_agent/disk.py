"""The verb `reclaim`: remove what is proven useless. The verb `trim` gives the blocks back."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from worker_agent.epoch import check_epoch
from worker_agent.exclusive import alone
from worker_agent.frames import sha256_of, verify_counts, verify_frames
from worker_agent.partial import part_path
from worker_agent.paths import inside, run_directory, work_directory
from worker_agent.protocol import ReclaimReport, ReclaimRequest, RemovedPath
from worker_agent.refusal import RefusedError

_PROTECTED = frozenset({"attempts", "lock"})
_BLOCK = 512  # st_blocks: see inode(7)


def reclaim(request: ReclaimRequest) -> ReclaimReport:
    """Remove the paths, and what lies beside them of an attempt to make them that broke off; report
    it. Paths already gone are fine.

    Raises RefusedError and removes nothing when a path leaves the run directory, when something
    under input/ is proven by neither `verified_by` nor `expected_sha256`, or when a proof fails.
    """
    run_dir = run_directory(request.run_dir)
    check_epoch(work_directory(run_dir), request.epoch)
    with alone(run_dir):
        return _reclaim(run_dir, request)


def _reclaim(run_dir: Path, request: ReclaimRequest) -> ReclaimReport:
    targets = [_target(run_dir, relative) for relative in request.paths]
    proven = False
    if request.verified_by is not None and any(path.exists() for path in targets):
        verify_counts(run_dir, request.verified_by)
        verify_frames(run_dir, request.verified_by)
        proven = True
    _verify_hashes(run_dir, request)
    for path in targets:
        _require_proof(run_dir, path, request, proven=proven)
    before = after = free_bytes(run_dir)
    removed: list[RemovedPath] = []
    for relative, target in zip(request.paths, targets, strict=True):
        found = [path for path in (target, *_unfinished(target)) if path.exists()]
        length = blocks = 0
        for path in found:
            size = tree_bytes(path)
            length, blocks = length + size[0], blocks + size[1]
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if found:
            had, after = after, free_bytes(run_dir)
            removed.append(
                RemovedPath(
                    path=relative, removed_bytes=length, freed_bytes=blocks,
                    free_before=had, free_after=after,
                )
            )  # fmt: skip
    return ReclaimReport(
        removed=tuple(one.path for one in removed),
        removed_bytes=sum(one.removed_bytes for one in removed),
        freed_bytes=sum(one.freed_bytes for one in removed),
        free_before=before,
        free_after=after,
        remaining_input_bytes=tree_bytes(run_dir / "input")[0],
        each=tuple(removed),
    )


def _unfinished(path: Path) -> Iterator[Path]:
    """What a transfer or a stage that broke off had of it."""
    yield part_path(path)
    yield from path.parent.glob(f".{glob.escape(path.name)}.*")


def _target(run_dir: Path, relative: str) -> Path:
    path = inside(run_dir, relative)
    if path.relative_to(run_dir).parts[0] in _PROTECTED:
        raise RefusedError("bad_request", f"{path} is the agent's own record: not removed")
    return path


def _verify_hashes(run_dir: Path, request: ReclaimRequest) -> None:
    for relative, digest in request.expected_sha256.items():
        path = inside(run_dir, relative)
        if path.is_file() and sha256_of(path) != digest:
            raise RefusedError(
                "agent_failed", f"{path} is not the file that was copied: nothing was removed"
            )


def _require_proof(run_dir: Path, path: Path, request: ReclaimRequest, *, proven: bool) -> None:
    if proven or path.relative_to(run_dir).parts[0] != "input":
        return
    known = {run_dir / relative for relative in request.expected_sha256}
    files = [path] if path.is_file() else [p for p in path.rglob("*") if not p.is_dir()]
    for file in files:
        if file not in known:
            raise RefusedError(
                "bad_request",
                f"{file} is an input: name the listing or the SHA-256 that proves it useless",
            )


def free_bytes(path: Path) -> int:
    """That this user may still write to the file system."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def tree_bytes(path: Path) -> tuple[int, int]:
    """(length, blocks in bytes) of the files at or below `path`; symbolic links count and lead
    nowhere."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return 0, 0
    blocks = facts.st_blocks * _BLOCK
    if not stat.S_ISDIR(facts.st_mode):
        return facts.st_size, blocks
    below = [tree_bytes(Path(entry)) for entry in os.scandir(path)]
    return sum(length for length, _ in below), blocks + sum(size for _, size in below)
