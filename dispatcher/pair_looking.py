"""Asks the stitch library about members whose results lie here, in a process of its own: this side
knows no numpy."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher.errors import CosmaError, UsageError
from dispatcher.jobspec import EDGES_KIND, MEMBER_KINDS
from dispatcher.store.base import Store
from dispatcher.store.rows import ArtifactRow, Stitch

_ENOUGH_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFiles:
    """Of one member, here. `sha256`: of its sidecar, or of its PLY where it has none."""

    name: str
    ply: str
    registration: str | None
    sha256: str


async def member_files(store: Store, members: Sequence[str]) -> list[MemberFiles]:
    """`members` are jobs or stitches. Raises UsageError for one whose results are not here."""
    found = []
    for name in members:
        stitch = await store.stitch(name)
        made_by = name
        if stitch is not None:
            made_by = stitch.members[0] if stitch.passthrough else stitch.job or name
        rows = {r.kind: r for r in await store.artifacts(job=made_by) if r.kind in MEMBER_KINDS}
        here = {kind: row for kind, row in rows.items() if _is_here(row)}
        if "ply" not in here or len(here) < len(rows):
            raise UsageError(
                "its results are not here", where=name, fix="wait until it is done; cosma fsck "
                "--fix collects again what was lost",
            )  # fmt: skip
        sidecar = here.get("registration")
        found.append(
            MemberFiles(
                name=name,
                ply=here["ply"].local_path or "",
                registration=sidecar.local_path if sidecar else None,
                sha256=(sidecar or here["ply"]).sha256,
            )
        )
    return found


async def known_edges(store: Store, stitch: Stitch) -> list[str]:
    """Files with the pairs that versions of the stitch up to this one have registered."""
    return [
        row.local_path
        for one in await store.stitches(acquisition=stitch.acquisition)
        if (one.level, one.auv) == (stitch.level, stitch.auv) and one.version <= stitch.version
        for row in await store.artifacts(job=one.job or "")
        if row.kind == EDGES_KIND and row.local_path and _is_here(row)
    ]


def _is_here(row: ArtifactRow) -> bool:
    return Path(row.local_path or "").is_file()


def ask_library(verb: str, members: Sequence[MemberFiles], ratio: float = 1.0, **more: Any) -> Any:
    """What `python -m stitch VERB` answers. Raises CosmaError with its own line."""
    request: Mapping[str, Any] = {
        "ratio": ratio,
        "members": [
            {"name": one.name, "ply": one.ply, "registration": one.registration} for one in members
        ],
        **more,
    }
    with tempfile.TemporaryDirectory(prefix="cosma-stitch-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request))
        command = [sys.executable, "-m", "stitch", verb, str(path)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=_ENOUGH_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CosmaError(
                "the pairs cannot be looked at", why=f"not done within {_ENOUGH_S:g} s"
            ) from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        lacks = "No module named" in why
        raise CosmaError(
            "the pairs cannot be looked at", why=why,
            fix="pip install 'cosma[stitch]' on this machine" if lacks else "",
        )  # fmt: skip
    return json.loads(done.stdout)
