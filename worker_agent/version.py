"""Which agent this is: its version, and the hash of the archive it runs from."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

AGENT_VERSION = "0.1.0"

SOURCE_TREE = "source"
_DIGEST_CHARS = 64


def archive_path() -> Path | None:
    """The zipapp this process was started from; None when that was a source tree. Its code may
    come from where it lies unpacked, a directory beside it that is named by its SHA-256."""
    root = code_root()
    if root.is_file():
        return root
    started = Path(sys.argv[0]).resolve()
    unpacked = len(root.name) == _DIGEST_CHARS and started.parent == root.parent
    return started if unpacked else None


def code_root() -> Path:
    """What holds the packages: a directory, or the zipapp itself."""
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
