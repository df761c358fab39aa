"""Where a stage imports its code from: the source tree, or the zipapp unpacked once.

Stages cannot run from the archive itself: numba keeps its compile cache beside the sources.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from worker_agent import version
from worker_agent.refusal import failed


def code_directory() -> Path:
    """The PYTHONPATH of a stage. From an archive it is `<its directory>/<its sha256>`, made by
    an atomic rename, so that concurrent starts agree. Raises RefusedError, OSError."""
    archive = version.archive_path()
    if archive is None:
        return version.code_root()
    target = archive.parent / version.agent_hash()
    if not target.is_dir():
        _unpack(archive, target)
    return target


def _unpack(archive: Path, target: Path) -> None:
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(archive) as source:
            source.extractall(staging)
        _flush(staging)
        staging.rename(target)
    except zipfile.BadZipFile as error:
        raise failed("agent_failed", f"{archive}: {error}: push the agent again") from None
    except OSError:
        # Lost the race to a concurrent start (then the directory is there), or a real error.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(folder: Path) -> None:
    """A power cut must not leave empty files under the final name."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
