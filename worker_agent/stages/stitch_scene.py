"""Stage Stitch: members that overlap become one scene, or a refusal with the numbers.

A member is a segment (level per_auv) or a per-AUV scene (level cross_auv): a PLY and the
registration sidecar of the same frame. The scene's frame is that of its first member, or the one
that the version before had.
"""

from __future__ import annotations

import json
import shutil
import zlib  # noqa: F401 - before pycolmap, whose wheel exports a zlib of its own
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stitch import merge, priors
from stitch.certainty import Certainty, certainties
from stitch.cloud_file import open_member
from stitch.durable import replacing
from stitch.earlier_poses import Earlier
from stitch.errors import FileUnreadable
from stitch.evidence import Evidence, Party, gather
from stitch.known_edges import KnownEdges, contents
from stitch.pairs import Known
from stitch.publish import (
    earlier_parts,
    member_entry,
    seam_entry,
    stitch_report,
    world_entry,
)
from stitch.register import Edge
from stitch.scale import conflicts, quality_of
from stitch.score import Verdict, false_accepts
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from stitch.standin import STAND_IN, stand_in
from stitch.territory import Member
from stitch.tiles import write_tiles
from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.stitch_inputs import Heard, Input, Settings, Told, told
from worker_agent.stages.stitch_refusal import enough, left_out_entry, too_weak
from worker_agent.stages.stitch_views import Made, draw_maps, draw_pairs
from worker_agent.stages.stitch_world import (
    Origin,
    all_readings,
    fit,
    measured,
    sized,
    upright,
)


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
    def edges(self) -> Path:
        """All pairs, for the next version."""
        return self.output / "edges.json"

    @property
    def graph(self) -> Path:
        return self.output / "graph.svg"

    @property
    def masks(self) -> Path:
        """By member: which of its gaussians are in the scene, eight to a byte, and the steps of
        their colours where there are any. With the members' poses in the report, a stitch can be
        undone."""
        return self.output / "masks.npz"


@dataclass(frozen=True, slots=True)
class _Group:
    """Members with their sidecars (for a cloud, one that stands in), readings and files."""

    told: Told
    parties: list[Party]
    sidecars: list[Sidecar]
    readings: list[priors.Readings]
    origin: Origin | None
    known: KnownEdges
    heard: Heard

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.told.members]

    @property
    def errors_px(self) -> list[float | None]:
        """Mean reprojection error of each reconstruction; None of a cloud alone."""
        known = [party.known.sidecar for party in self.parties]
        return [float(one.error_px.mean()) if one is not None else None for one in known]


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Read the members named in `spec.inputs`, write the scene's PLY, sidecar and stitch.json.

    Raises StageFailure: CONFIG_INVALID, INPUT_MISSING, INPUT_UNREADABLE, STITCH_EVIDENCE_WEAK.
    """
    run_dir = Path(spec.run_dir)
    inputs = told(spec)
    settings = Settings.of(spec.config["stitch"])
    files = _Files(run_dir / "output", spec.job)
    with _readable_members():
        files.output.mkdir(parents=True, exist_ok=True)
        if len(inputs.members) == 1:
            summary, made = _pass_through(inputs.members[0], files)
        else:
            summary, made = _stitch(settings, inputs, files, report)
        whole = stitch_report(level=inputs.level, name=inputs.name, **summary)
        write_json(files.report, whole)
    report.progress(1.0, f"{summary['gaussians']} gaussians", gaussians=summary["gaussians"])
    made += [("stitch_report", files.report)]
    return Artifacts(
        files=tuple(artifact(run_dir, path, kind) for kind, path in made),
        metrics={
            "gaussians": summary["gaussians"],
            "members": len(summary["members"]),
            "left_out": len(summary["left_out"]),
            "pairs": len(summary["edges"]),
            "pairs_accepted": sum(edge["accepted"] for edge in summary["edges"]),
            "pairs_known_before": summary["edges_reused"],
            "members_standing": sum(entry["stands"] for entry in summary["members"]),
        },
        completed={
            "gaussian_count": summary["gaussians"],
            "ply_path": files.ply.relative_to(run_dir).as_posix(),
        },
    )


def _pass_through(member: Input, files: _Files) -> tuple[dict[str, Any], Made]:
    """A single member is the scene, byte for byte."""
    count = open_member(member.ply).count
    own = contents(member.registration or member.ply)
    copies = [("ply", member.ply, files.ply)]
    if member.registration is not None:
        Sidecar.load(member.registration)
        copies.append(("registration", member.registration, files.registration))
    for _, source, target in copies:
        with source.open("rb") as reader, replacing(target) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    entry = member_entry(member.name, member.auv, Sim3.identity(), count, count, contents=own)
    empty: dict[str, Any] = {"edges": [], "left_out": [], "seams": [], "parts": []}
    summary = {"members": [entry], "gaussians": count, "edges_reused": 0, **empty}
    summary["reference"] = member.name
    return summary, [(kind, target) for kind, _, target in copies]


def _stitch(
    settings: Settings, inputs: Told, files: _Files, report: Reporter
) -> tuple[dict[str, Any], Made]:
    group = _load(settings, inputs, report)
    evidence = _gather(settings, group, report)
    entries = evidence.entries(group.names)
    delivered = evidence.solution.members
    left_out = [
        left_out_entry(
            index, group.names, evidence, settings.thresholds, group.readings, group.errors_px
        )
        for index in range(len(group.names))
        if index not in delivered
    ]
    if left_out and not enough(inputs.level, len(delivered), len(group.names)):
        raise too_weak(inputs.level, group.names, entries, evidence, left_out)
    for entry in left_out:
        report.warning(f"{entry['name']} is left out: {entry['reason']}")
    members = _members(group, evidence, delivered)
    measures = measured(evidence.placed, members, delivered, group.heard.rulers)
    for line in conflicts(measures):
        report.warning(line)
    scenes, made = _merge_all(settings, group, evidence, files, quality_of(measures), report)
    world = sized(evidence.placed.world, measures, members)
    maps = None
    if settings.orthomosaic:
        placed = evidence.placed.world
        known_place = placed is not None and placed.metric
        maps, drawn = draw_maps(files.ply, members, world, group.origin if known_place else None)
        made += drawn
    draw_pairs(files.graph, members, world, group.names, entries)
    made.append(("stitch_graph", files.graph))
    contents = [party.contents for party in group.parties]
    group.known.save(
        files.edges,
        {(contents[edge.source], contents[edge.target]) for edge in evidence.edges},
        evidence.solved.parts,
    )
    made.append(("stitch_edges", files.edges))
    if settings.tiles:
        index, data = files.output / "tiles.json", files.output / "scene.tiles"
        write_tiles(files.ply, data, index, upright(members, world).rotation)
        made += [("tiles", index), ("tiles", data)]
    positions = sum(int(np.isfinite(r.positions).all(axis=1).sum()) for r in group.readings)
    summary = {
        **scenes[0],
        "edges": entries,
        "left_out": left_out,
        "parts": scenes[1:],
        **world_entry(evidence.placed, world, group.origin, positions, measures),
        "maps": maps,
        "edges_reused": evidence.reused,
        "parts_reused": evidence.solved.reused,
        "false_accepts": false_accepts(evidence.accepted),
    }
    return summary, made


def _load(settings: Settings, inputs: Told, report: Reporter) -> _Group:
    known = KnownEdges(settings.ratio)
    for path in inputs.edges:
        try:
            known.load(path)
        except FileUnreadable as error:
            report.warning(f"all pairs are registered anew: {error}")
    parties = [
        Party(
            Known(member.ply, Sidecar.load(member.registration) if member.registration else None),
            contents(member.registration or member.ply),
        )
        for member in inputs.members
    ]
    readings, origin = all_readings([party.known.sidecar for party in parties])
    heard = inputs.said([party.contents for party in parties])
    for line in heard.stale:
        report.warning(line)
    return _Group(
        told=inputs,
        parties=parties,
        sidecars=[party.known.sidecar or stand_in(party.known) for party in parties],
        readings=readings,
        origin=origin,
        known=known,
        heard=heard,
    )


def _gather(settings: Settings, group: _Group, report: Reporter) -> Evidence:
    def on_pair(done: int, of: int, edge: Edge, verdict: Verdict) -> None:
        pair = f"{group.names[edge.source]} to {group.names[edge.target]}"
        if verdict.doubt:
            report.warning(f"{pair}: {verdict.doubt}")
        report.progress(0.5 * done / of, f"{pair}: {verdict.reason}", inliers=edge.inliers)

    return gather(
        group.parties,
        group.readings,
        fit,
        settings.thresholds,
        settings.ratio,
        group.known,
        group.heard.pairs,
        _earlier(group.told, report),
        on_pair,
    )


def _earlier(inputs: Told, report: Reporter) -> list[Earlier]:
    """Where the version before had its members."""
    if inputs.before is None:
        return []
    try:
        return earlier_parts(json.loads(inputs.before.read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        report.warning(f"all members are placed anew: {inputs.before}: {error}")
        return []


def _members(group: _Group, evidence: Evidence, numbers: Sequence[int]) -> list[Member]:
    return [Member(group.names[i], evidence.solution.poses[i], group.sidecars[i]) for i in numbers]


def _merge_all(
    settings: Settings,
    group: _Group,
    evidence: Evidence,
    files: _Files,
    quality: Mapping[str, float | str],
    report: Reporter,
) -> tuple[list[dict[str, Any]], Made]:
    """The scene, whose sidecar has this `quality`, then what hangs together apart from it; each in
    the frame of one member."""
    apart = [part for part in evidence.solution.components[1:] if len(part) > 1]
    parts = [evidence.solution.members, *apart]
    sure = certainties(
        evidence.solution,
        [sidecar.extent() for sidecar in group.sidecars],
        evidence.accepted,
    )
    scenes: list[dict[str, Any]] = []
    masks: dict[str, Any] = {}
    made: Made = []
    for number, part in enumerate(parts):
        members = _members(group, evidence, part)
        path = files.ply.with_stem(f"{files.job}-part{number + 1}") if number else files.ply
        before = sum(len(earlier) for earlier in parts[:number])

        def on_member(done: int, members: list[Member] = members, before: int = before) -> None:
            share = (before + done) / sum(map(len, parts))
            report.progress(0.5 + 0.4 * share, f"merged {members[done - 1].name}")

        plys = [group.told.members[i].ply for i in part]
        merged = merge.merge_gaussians(members, plys, path, on_member, settings.finish)
        masks |= {m.name: mask for m, mask in zip(members, merged.masks, strict=True)}
        for member, side in zip(members, merged.aspects, strict=bool(merged.aspects)):
            masks |= {f"{member.name}/{what}": value for what, value in side.arrays().items()}
        entries = _member_entries(group, evidence, part, members, merged, sure)
        frame = evidence.standing.frames[evidence.solution.components.index(part)]
        scenes.append(
            {
                "reference": group.names[frame],
                "members": entries,
                "seams": [seam_entry(seam, members) for seam in merged.seams],
                "gaussians": sum(merged.kept),
            }
        )
        made.append(("ply_part" if number else "ply", path))
        if number:
            scenes[-1]["ply"] = path.name
            said = ", ".join(member.name for member in members)
            report.warning(
                f"{said} hang together, but not with the scene: delivered as {path.name}"
            )
        elif any(STAND_IN not in member.sidecar.quality for member in members):
            merge.merge_sidecars(members, quality).save(files.registration)
            made.append(("registration", files.registration))
    with replacing(files.masks) as stream:
        np.savez(stream, **masks)
    return scenes, [*made, ("stitch_masks", files.masks)]


def _member_entries(
    group: _Group,
    evidence: Evidence,
    part: Sequence[int],
    members: Sequence[Member],
    merged: merge.Merged,
    sure: Mapping[int, Certainty],
) -> list[dict[str, Any]]:
    tints = merged.tints or [None] * len(members)
    return [
        member_entry(
            member.name,
            group.told.members[i].auv,
            member.pose,
            merged.before[k],
            merged.kept[k],
            contents=group.parties[i].contents,
            stands=i in evidence.standing.members,
            floating=merged.floating[k],
            sure=sure.get(i),
            tint=tints[k],
        )
        for k, (i, member) in enumerate(zip(part, members, strict=True))
    ]


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
