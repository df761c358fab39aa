"""`python -m stitch plan|pictures|lift|check REQUEST`: what `cosma stitch` asks where results lie.

The request is a JSON file: {"ratio", "members": [{"name", "ply", "registration" or null}],
"edges": [files of known pairs]}, and

    plan      -> {"pairs": [{"source", "target", "frames", "points", "known", "cpu_s"}],
                  "gaussians", "register_cpu_s", "merge_cpu_s"}
    pictures  "pairs": [[source, target]], "out": directory
              -> [{"source", "target", "inliers", "matches", "residual_depths", "picture"}]
    lift      "pairs": [[source, target]], "clicks": [[column, row, column, row]]
              -> [[[x, y, z], [x, y, z]]], each in its member's own frame
    check     -> [{"name", "kind": "gaussians" or "points", "count"}], when a stitch can take them

The answer goes to stdout as JSON; a failure is one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib  # noqa: F401 - before pycolmap, whose wheel exports a zlib of its own
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stitch.cloud_file import open_member
from stitch.clouds import solid_points
from stitch.evidence import Party, pairs_of
from stitch.known_edges import KnownEdges, contents
from stitch.look import draw_pair, lift, panel
from stitch.pairs import Known, register_pair
from stitch.ply import PlyFile
from stitch.register import Edge
from stitch.sidecar import Sidecar

# Measured on one core: two sidecars of 5,500 points, two clouds from above, a gaussian merged.
_CPU_S_PER_POINT_PAIR = 1.2e-8
_CPU_S_CLOUDS = 4.0
_CPU_S_PER_GAUSSIAN = 1.2e-6

_SOME = 100_000  # points of a cloud that are looked at
_LEAST = 100  # that say anything about the ground


class _Request:
    def __init__(self, request: Mapping[str, Any]) -> None:
        self.raw = request
        self.ratio = float(request["ratio"])
        self.names = [str(member["name"]) for member in request["members"]]
        self.parties = [_party(member) for member in request["members"]]
        self.known = KnownEdges(self.ratio)
        for path in request.get("edges", ()):
            self.known.load(Path(path))

    def edge(self, source: int, target: int) -> Edge | None:
        """As a version before found it."""
        one, other = self.parties[source], self.parties[target]
        return self.known.get((source, one.contents), (target, other.contents))

    def numbers(self) -> list[tuple[int, int]]:
        return [(self.names.index(a), self.names.index(b)) for a, b in self.raw["pairs"]]


def _party(member: Mapping[str, Any]) -> Party:
    ply, registration = Path(member["ply"]), member.get("registration")
    if registration is None:
        return Party(Known(ply, None), contents(ply))
    path = Path(registration)
    return Party(Known(ply, Sidecar.load(path)), contents(path))


def _plan(request: _Request) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for target, source in pairs_of(request.parties, ()):
        one, other = (request.parties[i].known.sidecar for i in (source, target))
        known = request.edge(source, target) is not None
        cost = _CPU_S_CLOUDS
        if one is not None and other is not None:
            cost = len(one.points) * len(other.points) * _CPU_S_PER_POINT_PAIR
        rows.append(
            {
                "source": request.names[source],
                "target": request.names[target],
                "frames": _common_frames(one, other),
                "points": [len(s.points) if s is not None else 0 for s in (one, other)],
                "known": known,
                "cpu_s": 0.0 if known else round(cost, 3),
            }
        )
    gaussians = sum(open_member(party.known.ply).count for party in request.parties)
    return {
        "pairs": rows,
        "gaussians": gaussians,
        "register_cpu_s": round(sum(row["cpu_s"] for row in rows), 2),
        "merge_cpu_s": round(gaussians * _CPU_S_PER_GAUSSIAN, 2),
    }


def _common_frames(one: Sidecar | None, other: Sidecar | None) -> int:
    if one is None or other is None:
        return 0
    return len(set(one.keyframe_hashes.tolist()) & set(other.keyframe_hashes.tolist()) - {0})


def _pictures(request: _Request) -> list[dict[str, Any]]:
    out = Path(request.raw["out"])
    out.mkdir(parents=True, exist_ok=True)
    panels = {i: panel(request.parties[i].known) for pair in request.numbers() for i in pair}
    rows = []
    for source, target in request.numbers():
        one, other = request.parties[source].known, request.parties[target].known
        edge = request.edge(source, target)
        edge = edge or register_pair(source, one, target, other, request.ratio)
        path = out / f"{request.names[source]}--{request.names[target]}.png"
        draw_pair(path, panels[source], panels[target], edge, request.ratio)
        rows.append(
            {
                "source": request.names[source],
                "target": request.names[target],
                "inliers": edge.inliers,
                "matches": edge.matches,
                "residual_depths": round(edge.residual, 5),
                "picture": str(path),
            }
        )
    return rows


def _lift(request: _Request) -> list[Any]:
    ((source, target),) = request.numbers()
    panels = panel(request.parties[source].known), panel(request.parties[target].known)
    found = []
    for column, row, other_column, other_row in request.raw["clicks"]:
        here, there = lift(*panels, (column, row, other_column, other_row))
        found.append([here.tolist(), there.tolist()])
    return found


def _check(request: _Request) -> list[dict[str, Any]]:
    rows = []
    for name, party in zip(request.names, request.parties, strict=True):
        file = open_member(party.known.ply)
        seen, _ = solid_points(party.known.ply, _SOME)  # reads all of it
        if len(seen) < _LEAST:
            raise ValueError(f"{party.known.ply}: only {len(seen)} of its points can be seen")
        kind = "gaussians" if isinstance(file, PlyFile) else "points"
        rows.append({"name": name, "kind": kind, "count": file.count})
    return rows


_VERBS: dict[str, Callable[[_Request], Any]] = {
    "plan": _plan,
    "pictures": _pictures,
    "lift": _lift,
    "check": _check,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stitch")
    parser.add_argument("verb", choices=sorted(_VERBS))
    parser.add_argument("request", type=Path)
    given = parser.parse_args(argv)
    try:
        answer = _VERBS[given.verb](_Request(json.loads(given.request.read_text())))
    except KeyError as error:
        print(f"{given.request}: the request lacks {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # FileUnreadable is one
        print(str(error), file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
