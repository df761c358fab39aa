"""Builds the agent that is pushed to the hosts: one zipapp, named by its SHA-256.

The packages are found, never imported: the dispatcher runs without what they need.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("stitch", "worker_agent")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can hold
_MODE = 0o100644 << 16
# Where the archive lies unpacked for the stages (worker_agent.bundle), the same code starts in half
# the time: there it is compiled.
_ENTRY = b"""\
import hashlib
import os
import sys

with open(sys.path[0], "rb") as stream:
    digest = hashlib.sha256(stream.read()).hexdigest()
unpacked = os.path.join(os.path.dirname(os.path.abspath(sys.path[0])), digest)
if os.path.isdir(unpacked):
    sys.path[0] = unpacked

from worker_agent.__main__ import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class AgentBundle:
    """`data` is a zipapp to run with `python3`; `sha256` is in hex and names it."""

    data: bytes
    sha256: str


def build() -> AgentBundle:
    """The agent of this installation: the same sources give the same bytes.

    Raises FileNotFoundError when a package is not installed.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        _add(archive, "__main__.py", _ENTRY)
        for package in PACKAGES:
            root = _locate(package)
            files = [*root.rglob("*.py"), *root.rglob("py.typed")]
            for path in sorted(files, key=lambda p: p.relative_to(root).as_posix()):
                _add(archive, f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes())
    data = b"#!/usr/bin/env python3\n" + target.getvalue()
    return AgentBundle(data, hashlib.sha256(data).hexdigest())


def _locate(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"package {package} is not installed beside the dispatcher")
    return Path(spec.submodule_search_locations[0])


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = _MODE
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
