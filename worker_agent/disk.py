"""The verb `reclaim`: remove what is proven useless, and give the blocks back to the storage."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from worker_agent.epoch import check_epoch
from worker_agent.exclusive import alone
from worker_agent.frames import sha256_of, verify_frames
from worker_agent.paths import inside, run_directory, work_directory
from worker_agent.protocol import ReclaimReport, ReclaimRequest
from worker_agent.refusal import RefusedError

_PROTECTED = frozenset({"attempts", "lock"})
_TRIM_TIMEOUT_S = 300.0


def reclaim(request: ReclaimRequest) -> ReclaimReport:
    """Remove the paths, trim the file system, report both. Paths already gone are fine.

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
        verify_frames(run_dir, request.verified_by)
        proven = True
    _verify_hashes(run_dir, request)
    for path in targets:
        _require_proof(run_dir, path, request, proven=proven)
    before = _free(run_dir)
    removed, removed_bytes = [], 0
    for relative, path in zip(request.paths, targets, strict=True):
        if path.exists():
            removed_bytes += _tree_bytes(path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(relative)
    if removed and request.trim != "off":
        os.sync()  # blocks still in the journal are not free yet, and cannot be trimmed
    trimmed, note = trim(run_dir, request.trim)
    return ReclaimReport(
        removed=tuple(removed),
        removed_bytes=removed_bytes,
        trimmed_bytes=trimmed,
        trim_note=note,
        free_before=before,
        free_after=_free(run_dir),
        remaining_input_bytes=_tree_bytes(run_dir / "input"),
    )


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


def _free(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def _tree_bytes(path: Path) -> int:
    """Bytes of the regular files at or below `path`; symbolic links count and lead nowhere."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(facts.st_mode):
        return facts.st_size
    return sum(_tree_bytes(Path(entry)) for entry in os.scandir(path))


def trim(path: Path, mode: str) -> tuple[int | None, str]:
    """(bytes given back, mount point), or (None, why not). `mode`: auto | off | sudo."""
    if mode == "off":
        return None, "switched off (trim: off)"
    if shutil.which("fstrim") is None:
        return None, "fstrim is not installed (package util-linux)"
    mount, kind = mount_of(path)
    command = ["fstrim", "-v", mount]
    if mode == "sudo" or os.geteuid() != 0:
        if shutil.which("sudo") is None:
            return None, f"{mount}: fstrim needs root and sudo is not installed"
        command = ["sudo", "-n", *command]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TRIM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{mount} ({kind}): {error}"
    match = re.search(r"\((\d+) bytes\)", answer.stdout)
    if answer.returncode == 0 and match is not None:
        return int(match.group(1)), mount
    reason = " ".join(answer.stdout.split()) or f"exit code {answer.returncode}"
    return None, f"{mount} ({kind}): {reason}"


def mount_of(path: Path) -> tuple[str, str]:
    """(mount point, file system type) that holds `path`, from /proc/self/mountinfo."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    kind = "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split()[4])
        if mounted == str(place):
            kind = rest.split()[0]  # the last one listed is the one on top
    return str(place), kind
