"""Which agent this is: its version, and the hash of the archive it runs from."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

AGENT_VERSION = "0.1.0"

SOURCE_TREE = "source"


def archive_path() -> Path | None:
    """The zipapp this process runs from; None when it runs from a source tree."""
    package = Path(__file__).resolve().parent
    archive = package.parent
    return archive if archive.is_file() else None


def code_root() -> Path:
    """The directory that holds the packages, when this process runs from a source tree."""
    return Path(__file__).resolve().parent.parent


def agent_hash() -> str:
    """SHA-256 of the zipapp in hex, or "source"."""
    archive = archive_path()
    if archive is None:
        return SOURCE_TREE
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def interpreter() -> str:
    """The version of the running Python, as "3.11.7"."""
    return ".".join(str(part) for part in sys.version_info[:3])
