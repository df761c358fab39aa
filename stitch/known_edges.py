"""Registrations found before, by the contents of what was registered: a new version of a stitch
computes only what is new to it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stitch.durable import replacing
from stitch.errors import FileUnreadable
from stitch.register import Check, Edge
from stitch.sim3 import Sim3

_PACKAGE, _ENTRY = "stitch", "pairs"  # the module that registers a pair


def contents(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class KnownEdges:
    """Edges by the contents of source and target, and by how they are computed; and `parts` that
    were solved of them (`stitch.known_parts`)."""

    def __init__(self, ratio: float) -> None:
        self._way = _way(ratio)
        self._edges: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, Any] = {}

    def load(self, path: Path) -> None:
        """Those of another stitch, too. Raises FileUnreadable."""
        try:
            stored = json.loads(path.read_text())
            self._edges |= {str(key): dict(value) for key, value in stored["edges"].items()}
            self.parts |= stored.get("parts", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileUnreadable(f"{path}: not the edges of a stitch: {error}") from None

    def get(self, source: tuple[int, str], target: tuple[int, str]) -> Edge | None:
        """`source` and `target` are number and contents of a member."""
        stored = self._edges.get(self._key(source[1], target[1]))
        if stored is None:
            return None
        sim3, check = stored["sim3"], stored["check"]
        made = {
            **stored,
            "sim3": sim3 and Sim3(sim3[0], np.array(sim3[1]), np.array(sim3[2])),
            "check": check and Check(**check),
        }
        return Edge(source[0], target[0], **made)

    def put(self, edge: Edge, source: str, target: str) -> None:
        stored = {
            item.name: getattr(edge, item.name)
            for item in dataclasses.fields(edge)
            if item.name not in ("source", "target")
        }
        if edge.sim3 is not None:
            pose = edge.sim3
            stored["sim3"] = [pose.scale, pose.rotation.tolist(), pose.translation.tolist()]
        if edge.check is not None:
            stored["check"] = dataclasses.asdict(edge.check)
        self._edges[self._key(source, target)] = stored

    def save(
        self, path: Path, keep: set[tuple[str, str]], parts: Mapping[str, Any] | None = None
    ) -> None:
        """Those of the pairs (source, target) in `keep`, and these parts. Atomic and durable."""
        keys = {self._key(*pair) for pair in keep}
        kept = {key: edge for key, edge in sorted(self._edges.items()) if key in keys}
        with replacing(path) as stream:
            stream.write(json.dumps({"edges": kept, "parts": dict(parts or {})}).encode())

    def _key(self, source: str, target: str) -> str:
        return hashlib.sha256(f"{source} {target} {self._way}".encode()).hexdigest()


def code_of_edges() -> dict[str, bytes]:
    """Of all modules that have a say in what an edge is. An edge computed with other code is
    computed anew."""
    return code_of(_ENTRY)


@functools.cache
def code_of(entry: str) -> dict[str, bytes]:
    """Sources of a module of this package and of whatever it imports from it, directly or not, by
    name."""
    found: dict[str, bytes] = {}
    ahead = {entry}
    while ahead:
        name = ahead.pop()
        found[name] = pkgutil.get_data(_PACKAGE, f"{name}.py") or b""
        ahead |= _imported(found[name]) - set(found)
    return dict(sorted(found.items()))


def _imported(source: bytes) -> set[str]:
    names: set[str] = set()
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module == _PACKAGE:
            names |= {f"{_PACKAGE}.{alias.name}" for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module or "")
    return {name.split(".")[1] for name in names if name.startswith(f"{_PACKAGE}.")}


def _way(ratio: float) -> str:
    digest = hashlib.sha256(repr(ratio).encode())
    for name, source in code_of_edges().items():
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()
