"""Keeps every path the dispatcher names inside the run directory it names."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from worker_agent.refusal import RefusedError


def run_directory(run_dir: str) -> Path:
    """The run directory as a path. Raises RefusedError unless it is absolute and normal."""
    path = Path(run_dir)
    if not path.is_absolute() or os.path.normpath(run_dir) != run_dir.rstrip("/"):
        raise RefusedError("bad_request", f"run_dir {run_dir!r} is not an absolute, normal path")
    if len(path.parts) < 4:
        raise RefusedError(
            "bad_request", f"run_dir {run_dir!r} is not <work_dir>/<acquisition>/<job>"
        )
    return path


def work_directory(run_dir: Path) -> Path:
    """`<work_dir>` of `<work_dir>/<acquisition>/<job>`."""
    return run_dir.parent.parent


def inside(run_dir: Path, relative: str) -> Path:
    """`run_dir/relative`, proven to lie inside.

    Raises RefusedError (bad_request) for an absolute path, for "..", for the run directory itself,
    and where any existing component below the run directory is a symbolic link.
    """
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise RefusedError("bad_request", f"path {relative!r} is not inside the run directory")
    path = run_dir
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise RefusedError(
                "bad_request", f"{path}: a component of the path is not a directory"
            ) from None
        if stat.S_ISLNK(mode):
            raise RefusedError("bad_request", f"{path} is a symbolic link: not followed")
    return path
