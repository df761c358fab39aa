"""Stage Stitch: members that overlap become one scene, or a refusal with the numbers.

A member is a segment (level per_auv) or a per-AUV scene (level cross_auv): a PLY and the
registration sidecar of the same frame. The scene's frame is that of its first member.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stitch import merge, posegraph
from stitch.candidates import candidates
from stitch.durable import replacing
from stitch.errors import FileUnreadable
from stitch.ply import PlyFile
from stitch.publish import edge_entry, member_entry, seam_entry, stitch_report
from stitch.register import Edge, register
from stitch.score import Thresholds, Verdict, judge
from stitch.shared_frames import register_frames
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from stitch.territory import Member
from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)

_LEVELS = ("per_auv", "cross_auv")
_QUORUM = (2, 3)  # two thirds of an AUV's segments make a scene worth delivering


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    auv: str
    ply: Path
    registration: Path


@dataclass(frozen=True, slots=True)
class _Files:
    """What a stitch leaves in `output`."""

    output: Path
    job: str

    @property
    def ply(self) -> Path:
        return self.output / f"{self.job}.ply"

    @property
    def registration(self) -> Path:
        return self.output / "registration.npz"

    @property
    def report(self) -> Path:
        return self.output / "stitch.json"

    @property
    def masks(self) -> Path:
        """By member: which of its gaussians are in the scene, eight to a byte. With the members'
        poses in the report, a stitch can be undone."""
        return self.output / "masks.npz"


@dataclass(frozen=True, slots=True)
class _Evidence:
    """All pairs, and what the accepted ones say together."""

    edges: tuple[Edge, ...]
    verdicts: tuple[Verdict, ...]
    contradicted: frozenset[int]
    solution: posegraph.Solution

    def entries(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            edge_entry(edge, names, verdict, contradicted=k in self.contradicted)
            for k, (edge, verdict) in enumerate(zip(self.edges, self.verdicts, strict=True))
        ]


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Read the members named in `spec.inputs`, write the scene's PLY, sidecar and stitch.json.

    Raises StageFailure: CONFIG_INVALID, INPUT_MISSING, INPUT_UNREADABLE, STITCH_EVIDENCE_WEAK.
    """
    run_dir = Path(spec.run_dir)
    level, name, inputs = _inputs(spec, run_dir)
    files = _Files(run_dir / "output", spec.job)
    with _readable_members():
        files.output.mkdir(parents=True, exist_ok=True)
        if len(inputs) == 1:
            summary = _pass_through(inputs[0], files)
        else:
            summary = _stitch(spec, level, inputs, files, report)
        write_json(files.report, stitch_report(level=level, name=name, **summary))
    report.progress(1.0, f"{summary['gaussians']} gaussians", gaussians=summary["gaussians"])
    made = [("ply", files.ply), ("registration", files.registration)]
    made += [("stitch_report", files.report)]
    made += [("stitch_masks", files.masks)] if len(inputs) > 1 else []
    made += [("ply_part", files.output / part["ply"]) for part in summary["parts"]]
    return Artifacts(
        files=tuple(artifact(run_dir, path, kind) for kind, path in made),
        metrics={
            "gaussians": summary["gaussians"],
            "members": len(summary["members"]),
            "left_out": len(summary["left_out"]),
            "pairs": len(summary["edges"]),
            "pairs_accepted": sum(edge["accepted"] for edge in summary["edges"]),
        },
        completed={
            "gaussian_count": summary["gaussians"],
            "ply_path": files.ply.relative_to(run_dir).as_posix(),
        },
    )


def _inputs(spec: AttemptSpec, run_dir: Path) -> tuple[str, str, list[_Input]]:
    try:
        level, name = str(spec.inputs["level"]), str(spec.inputs["name"])
        members = [
            _Input(
                name=str(member["name"]),
                auv=str(member["auv"]),
                ply=run_dir / str(member["ply"]),
                registration=run_dir / str(member["registration"]),
            )
            for member in spec.inputs["members"]
        ]
    except (KeyError, TypeError) as error:
        raise _invalid(spec, f"inputs lack {error}") from None
    if level not in _LEVELS:
        raise _invalid(spec, f"level is {level!r}, not one of {', '.join(_LEVELS)}")
    if not members or len({member.name for member in members}) != len(members):
        raise _invalid(spec, f"{len(members)} members, or two of one name")
    for member in members:
        for path in (member.ply, member.registration):
            if not path.is_file():
                raise StageFailure(
                    FailureCode.INPUT_MISSING,
                    f"{path.relative_to(run_dir)} of member {member.name} is not on this host",
                    advice="Retry the stitch: its inputs are brought to the host again.",
                )
    return level, name, members


def _invalid(spec: AttemptSpec, why: str) -> StageFailure:
    return StageFailure(
        FailureCode.CONFIG_INVALID,
        f"stitch {spec.job}: {why}",
        advice="Dispatcher and agent disagree: update cosma on both.",
    )


def _pass_through(member: _Input, files: _Files) -> dict[str, Any]:
    """A single member is the scene, byte for byte."""
    count = PlyFile.open(member.ply).count
    Sidecar.load(member.registration)
    for source, target in (
        (member.ply, files.ply),
        (member.registration, files.registration),
    ):
        with source.open("rb") as reader, replacing(target) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    entry = member_entry(member.name, member.auv, Sim3.identity(), count, count)
    empty: dict[str, Any] = {"edges": [], "left_out": [], "seams": [], "parts": []}
    return {"members": [entry], "gaussians": count, **empty}


def _stitch(
    spec: AttemptSpec,
    level: str,
    inputs: list[_Input],
    files: _Files,
    report: Reporter,
) -> dict[str, Any]:
    names = [member.name for member in inputs]
    sidecars = [Sidecar.load(member.registration) for member in inputs]
    evidence = _register_all(spec, names, sidecars, report)
    entries = evidence.entries(names)
    delivered = evidence.solution.members
    left_out = [
        _left_out(index, names, evidence) for index in range(len(inputs)) if index not in delivered
    ]
    if left_out and not _enough(level, len(delivered), len(inputs)):
        raise _weak(level, names, entries, evidence, left_out)
    for entry in left_out:
        report.warning(f"{entry['name']} is left out: {entry['reason']}")
    apart = [group for group in evidence.solution.components[1:] if len(group) > 1]
    groups = [delivered, *apart]
    scenes: list[dict[str, Any]] = []
    masks: dict[str, Any] = {}
    for number, group in enumerate(groups):
        members = [Member(names[i], evidence.solution.poses[i], sidecars[i]) for i in group]
        path = files.ply.with_stem(f"{spec.job}-part{number + 1}") if number else files.ply
        before = sum(len(earlier) for earlier in groups[:number])

        def told(done: int, members: list[Member] = members, before: int = before) -> None:
            share = (before + done) / sum(map(len, groups))
            report.progress(0.5 + 0.45 * share, f"merged {members[done - 1].name}")

        merged = merge.merge_gaussians(members, [inputs[i].ply for i in group], path, told)
        masks |= {m.name: mask for m, mask in zip(members, merged.masks, strict=True)}
        scenes.append(_scene_entry([inputs[i] for i in group], members, merged))
        if number:
            scenes[-1]["ply"] = path.name
            said = ", ".join(member.name for member in members)
            report.warning(
                f"{said} hang together, but not with the scene: delivered as {path.name}"
            )
        else:
            merge.merge_sidecars(members).save(files.registration)
    with replacing(files.masks) as stream:
        np.savez(stream, **masks)
    return {**scenes[0], "edges": entries, "left_out": left_out, "parts": scenes[1:]}


def _scene_entry(
    inputs: Sequence[_Input], members: Sequence[Member], merged: merge.Merged
) -> dict[str, Any]:
    """The frame is that of the first member."""
    rows = zip(inputs, members, merged.before, merged.kept, strict=True)
    return {
        "members": [
            member_entry(source.name, source.auv, member.pose, before, kept)
            for source, member, before, kept in rows
        ],
        "seams": [seam_entry(seam, members) for seam in merged.seams],
        "gaussians": sum(merged.kept),
    }


def _register_all(
    spec: AttemptSpec, names: list[str], sidecars: list[Sidecar], report: Reporter
) -> _Evidence:
    config = spec.config["stitch"]
    thresholds = Thresholds(
        min_inliers=int(config["min_inliers"]),
        min_share=float(config["min_inlier_share"]),
        min_hull_share=float(config["min_hull_share"]),
    )
    pairs = candidates(sidecars)
    edges: list[Edge] = []
    verdicts: list[Verdict] = []
    for done, (target, source) in enumerate(pairs, start=1):
        edge = register(source, sidecars[source], target, sidecars[target], float(config["ratio"]))
        edge = register_frames(edge, sidecars[source], sidecars[target]) or edge
        edges.append(edge)
        verdicts.append(judge(edge, thresholds))
        if verdicts[-1].doubt:
            report.warning(f"{names[source]} to {names[target]}: {verdicts[-1].doubt}")
        message = f"{names[source]} to {names[target]}: {verdicts[-1].reason}"
        report.progress(0.5 * done / len(pairs), message, inliers=edge.inliers)
    accepted = [k for k, verdict in enumerate(verdicts) if verdict.accepted]
    solution = posegraph.solve(
        [sidecar.extent() for sidecar in sidecars], [edges[k] for k in accepted]
    )
    contradicted = frozenset(accepted[k] for k in solution.rejected)
    return _Evidence(tuple(edges), tuple(verdicts), contradicted, solution)


def _enough(level: str, delivered: int, wanted: int) -> bool:
    share, of = _QUORUM
    return level == "per_auv" and delivered >= 2 and delivered * of >= wanted * share


def _left_out(index: int, names: Sequence[str], evidence: _Evidence) -> dict[str, Any]:
    """The member and the best that can be said for it."""
    mine = [
        entry
        for edge, entry in zip(evidence.edges, evidence.entries(names), strict=True)
        if index in (edge.source, edge.target)
    ]
    best = max(mine, key=lambda entry: (entry["accepted"], entry["inliers"]))
    other = best["target"] if best["source"] == names[index] else best["source"]
    reason = f"best pair is with {other}: {best['reason']}"
    quarantined = any(entry["bent"] for entry in mine)
    quarantined &= not any(entry["accepted"] for entry in mine)
    return {
        "name": names[index],
        "reason": f"quarantined, its reconstruction looks bent; {reason}"
        if quarantined
        else reason,
        "quarantined": quarantined,
        "best_pair": best,
    }


def _weak(
    level: str,
    names: list[str],
    entries: list[dict[str, Any]],
    evidence: _Evidence,
    left_out: list[dict[str, Any]],
) -> StageFailure:
    what = "AUVs" if level == "cross_auv" else "segments"
    worst = left_out[0]
    return StageFailure(
        FailureCode.STITCH_EVIDENCE_WEAK,
        f"{len(left_out)} of {len(names)} {what} cannot be placed on image evidence: "
        f"{worst['name']}, {worst['reason']}",
        advice="Look whether they saw common ground; leave a bad segment out and retry, or lower "
        "stitch.min_inliers, min_inlier_share or min_hull_share if the refused pairs are right.",
        evidence={
            "pairs": entries,
            "components": [
                [names[index] for index in group] for group in evidence.solution.components
            ],
            "left_out": [entry["name"] for entry in left_out],
        },
    )


@contextmanager
def _readable_members() -> Iterator[None]:
    try:
        yield
    except FileUnreadable as error:
        raise StageFailure(
            FailureCode.INPUT_UNREADABLE,
            str(error),
            advice="Run the member's job again from the stage that wrote the file.",
        ) from None
