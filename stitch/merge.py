"""One scene from members that overlap: its PLY, and its own sidecar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from stitch.aspects import Aspect, Shades, aspects
from stitch.cloud_file import CloudFile, open_member
from stitch.cover import Cover
from stitch.floaters import Floaters
from stitch.gaussians import Gaussians
from stitch.harmonise import Tint, tints
from stitch.ply import BLOCK, PlyFile, writing_ply
from stitch.register import footprint_axes
from stitch.seams import CELL_DEPTHS, Seam, Tally, seams
from stitch.sidecar import Sidecar, spread
from stitch.sim3 import F64, transform_gaussians
from stitch.standin import STAND_IN
from stitch.territory import Member, Territory

MAX_SCENE_POINTS = 12_000
"""Points kept of a merged scene: 1.8 MB, and a pair still registers in seconds."""

_FAINT = -2.2  # logit of an opacity of 0.1: such gaussians cover no ground
_SAME_PLACE_DEPTHS = 0.01
_SAME_LOOK = 0.8  # cosine of two descriptors; unrelated ones stay below 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is done to the gaussians beside putting them in their places."""

    floaters: bool = True  # those that hang in the water are left out
    harmonise: bool = False  # one colour of the water and one exposure for all members
    aspects: bool = True  # colours by where they are seen from, of ground that several saw
    label: bool = False  # a column that says from which member each gaussian comes


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of the members' gaussians; all lists by member."""

    before: tuple[int, ...]
    masks: tuple[npt.NDArray[np.uint8], ...]  # kept gaussians, eight to a byte (np.packbits)
    kept: tuple[int, ...]
    floating: tuple[int, ...]  # left out as floaters, wherever they were
    tints: tuple[Tint, ...]  # with `harmonise`
    aspects: tuple[Aspect, ...]  # with `aspects`
    seams: tuple[Seam, ...]


def merge_gaussians(
    members: Sequence[Member],
    plys: Sequence[Path],
    path: Path,
    on_member: Callable[[int], None] = lambda _: None,
    finish: Finish | None = None,
) -> Merged:
    """The scene's PLY at `path` from the members' own, streamed in bounded memory.

    Of overlaps, each place comes from one member. `on_member` is told how many are done. Raises
    FileUnreadable, OSError when the disk is full.
    """
    finish = finish or Finish()
    files = [open_member(ply) for ply in plys]
    axes = ground_axes(members)
    scene = scene_depth(members)
    looked = [
        _look(member, file, axes, CELL_DEPTHS * scene, finish)
        for member, file in zip(members, files, strict=True)
    ]
    land = Territory(members, [look.cover for look in looked], axes[2])
    tinting = tints([look.tally for look in looked]) if finish.harmonise else []
    sides: list[Aspect] = []
    if finish.aspects:
        pairs = itertools.zip_longest(looked, tinting)
        means = [look.shades.means(tint) for look, tint in pairs]
        sides = aspects(members, means, CELL_DEPTHS * scene)
    tallies = [Tally(CELL_DEPTHS * scene) for _ in members]
    masks, kept, floating = [], [], []
    degree = max([file.sh_degree for file in files] + [1] * any(side.moves for side in sides))
    with writing_ply(path, degree, labelled=finish.label) as writer:
        for own, (member, file) in enumerate(zip(members, files, strict=True)):
            parcel, before = land.parcel(own), writer.count
            mask = np.zeros(file.count, np.bool_)
            afloat = 0
            for start, block in zip(itertools.count(step=BLOCK), file.blocks(), strict=False):
                places = _placed(block, member)
                stays = parcel.keeps(places)
                if finish.floaters:
                    floats = looked[own].floaters.among(block.means)
                    afloat += int(floats.sum())
                    stays &= ~floats
                tallies[own].add(places, block.sh0, stays)
                moved = transform_gaussians(block.select(stays), member.pose)
                moved = tinting[own].apply(moved) if tinting else moved
                writer.write(sides[own].apply(moved) if sides else moved, own)
                mask[start : start + len(block)] = stays
            masks.append(np.packbits(mask))
            kept.append(writer.count - before)
            floating.append(afloat)
            on_member(own + 1)
    return Merged(
        before=tuple(file.count for file in files),
        masks=tuple(masks),
        kept=tuple(kept),
        floating=tuple(floating),
        tints=tuple(tinting),
        aspects=tuple(sides),
        seams=tuple(seams(tallies, axes[2])),
    )


def merge_sidecars(
    members: Sequence[Member], quality: Mapping[str, float | str] | None = None
) -> Sidecar:
    """The scene's sidecar: all keyframes, named "member/keyframe", and at most MAX_SCENE_POINTS
    points. Of a place that several members hold, one point stays, else the ratio test of a later
    registration would refuse exactly the best confirmed points. `quality`: what more is known of
    the scene."""
    depth = scene_depth(members)
    # A cloud without descriptors has nothing to be known by.
    members = [m for m in members if STAND_IN not in m.sidecar.quality]
    points = np.concatenate([m.pose.apply(m.sidecar.points) for m in members])
    owner = np.concatenate([np.full(len(m.sidecar.points), i) for i, m in enumerate(members)])
    descriptors = np.concatenate([m.sidecar.descriptors for m in members])
    length = np.concatenate([m.sidecar.track_length for m in members])
    error = np.concatenate([m.sidecar.error_px for m in members])
    single = _without_doubles(points, owner, descriptors, length, _SAME_PLACE_DEPTHS * depth)
    kept = single[spread(points[single], length[single], error[single], MAX_SCENE_POINTS)]
    rotations, translations = zip(*(_poses(m) for m in members), strict=True)
    return Sidecar(
        points=points[kept].astype(np.float32),
        descriptors=descriptors[kept],
        track_length=length[kept],
        error_px=error[kept],
        rgb=np.concatenate([m.sidecar.rgb for m in members])[kept],
        keyframe_names=tuple(
            f"{m.name}/{frame}" for m in members for frame in m.sidecar.keyframe_names
        ),
        keyframe_hashes=np.concatenate([m.sidecar.keyframe_hashes for m in members]),
        keyframe_time_s=np.concatenate([m.sidecar.keyframe_time_s for m in members]),
        rotations=np.concatenate(rotations),
        translations=np.concatenate(translations),
        gravity=np.concatenate([m.sidecar.gravity for m in members]),
        gps=np.concatenate([m.sidecar.gps for m in members]),
        quality={"median_depth": depth, "members": len(members), **(quality or {})},
    )


def ground_axes(members: Sequence[Member]) -> F64:
    """(3,3) unit rows in the scene's frame: across, along and up the ground."""
    points = np.concatenate([m.pose.apply(m.sidecar.points) for m in members])
    _, axes = footprint_axes(points)
    return np.stack([*axes, np.cross(axes[0], axes[1])])


@dataclass(frozen=True, slots=True)
class _Look:
    """What the first pass over a member's gaussians finds."""

    cover: Cover
    floaters: Floaters
    tally: Tally
    shades: Shades


def _look(
    member: Member, file: PlyFile | CloudFile, axes: F64, cell: float, finish: Finish
) -> _Look:
    cover = Cover(axes, member.pose.scale * member.sidecar.median_depth)
    floaters = Floaters(member.sidecar.centres(), member.sidecar.median_depth)
    tally = Tally(cell)
    shades = Shades(cell, member.pose)
    for block in file.blocks():
        places = _placed(block, member)
        cover.add(places[block.opacities > _FAINT])
        if finish.floaters:
            floaters.add(block.means)
        if finish.harmonise:
            tally.add(places, block.sh0, np.ones(len(block), np.bool_))
        if finish.aspects:
            shades.add(places, block)
    cover.close()
    floaters.close()
    return _Look(cover, floaters, tally, shades)


def _placed(block: Gaussians, member: Member) -> F64:
    """(N,3) in the scene's frame. Each axis side by side in memory: what is asked of all places
    takes a third of the time then."""
    own = block.means.T.astype(np.float64, order="C")
    moved = member.pose.scale * member.pose.rotation @ own
    return np.asarray((moved + member.pose.translation[:, None]).T)


def scene_depth(members: Sequence[Member]) -> float:
    """Median distance of what the members' cameras see, scene's unit."""
    return float(np.median([m.pose.scale * m.sidecar.median_depth for m in members]))


def _poses(member: Member) -> tuple[F64, F64]:
    """cam_from_scene of the member's keyframes: quaternions (K,4) wxyz, translations (K,3)."""
    own = Rotation.from_quat(np.roll(member.sidecar.rotations, -1, axis=1))
    turned = own * Rotation.from_matrix(member.pose.rotation).inv()
    centres = member.pose.apply(member.sidecar.centres())
    return np.roll(turned.as_quat(), 1, axis=1), -turned.apply(centres)


def _without_doubles(
    points: F64,
    owner: npt.NDArray[np.int64],
    descriptors: npt.NDArray[np.uint8],
    track_length: npt.NDArray[np.uint16],
    radius: float,
) -> npt.NDArray[np.intp]:
    """Rows left when, of two points of different members at one place that look the same, the
    less observed one goes."""
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    unit = descriptors.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1.0)
    alike = np.einsum("ij,ij->i", unit[pairs[:, 0]], unit[pairs[:, 1]]) > _SAME_LOOK
    first, second = pairs[alike].T
    loser = np.where(track_length[first] < track_length[second], first, second)
    return np.setdiff1d(np.arange(len(points)), loser)
