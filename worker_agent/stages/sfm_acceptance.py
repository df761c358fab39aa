"""Whether a reconstruction can be trusted: pure functions over plain numbers.

"Registered" as a mapper counts it includes cameras with a handful of points that lie a million
kilometres away, so an image counts here only with enough points and a sane centre.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_agent.messages import FailureCode

__all__ = [
    "Candidate",
    "Limits",
    "MatchFacts",
    "PosedImage",
    "Refusal",
    "best_candidate",
    "explain_no_model",
    "gravity_spread_deg",
    "insane_images",
    "judge",
    "judge_matches",
    "judge_published",
    "loose_images",
    "registered",
    "unsupported",
]

Vector = tuple[float, float, float]

MIN_POINTS_PER_IMAGE = 12  # a pose needs 6; junk cameras were seen with 22 and 30
MIN_POINTS_SHARE = 0.05  # of the median image's points
MAX_CENTRE_DISTANCE = 20.0  # in units of (median distance of the centres + median depth)
FOCAL_RANGE = (0.3, 3.0)  # in units of the longer image side
MIN_POINTS_PER_REGISTERED = 20  # 3D points of the model for each registered image
MIN_TRIANGULATION_DEG = 1.0  # median over the points
MAX_GRAVITY_SPREAD_DEG = 10.0  # a good underwater model has 0.1
MIN_LINK = 15  # points that carry the scale: as many as matches make a pair
MIN_KEYPOINTS = 60  # median image; below it there is nothing to match
MIN_RELIEF = 0.002  # a filmed picture has below 0.001, a rippled seabed seen from 2 m 0.008
ALL_PLANAR = 0.99  # footage with relief has 0.45 to 0.9 of its pairs planar
STATIC_MOTION = 0.004  # of the image width: no pair of frames shows more displacement
REFRAME = "Choose footage with overlap and sideways motion, or raise frames.fps."


@dataclass(frozen=True, slots=True, kw_only=True)
class PosedImage:
    """One image a mapper placed. Centre and depth are in the model's own unit."""

    name: str
    points: int
    centre: Vector
    depth: float  # median distance from the centre to the points it sees; 0 without points
    rotation: tuple[Vector, Vector, Vector]  # world_from_cam, rows

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PosedImage:
        rows = data["rotation"]
        return cls(
            name=data["name"],
            points=int(data["points"]),
            centre=_vector(data["centre"]),
            depth=float(data["depth"]),
            rotation=(_vector(rows[0]), _vector(rows[1]), _vector(rows[2])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The largest model one mapper made of one set of matches."""

    mapper: str  # global | incremental
    pairs: str  # sequential | exhaustive
    path: str
    images: tuple[PosedImage, ...]
    points: int
    reprojection_px: float
    focal_px: float
    triangulation_deg: float  # median over the points
    relief: float  # median distance of the points to their plane, over the median depth
    links: tuple[int, ...]  # of `sfm_links`, between images in order of their names

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(
            mapper=data["mapper"],
            pairs=data["pairs"],
            path=data["path"],
            images=tuple(PosedImage.from_dict(image) for image in data["images"]),
            points=int(data["points"]),
            reprojection_px=float(data["reprojection_px"]),
            focal_px=float(data["focal_px"]),
            triangulation_deg=float(data["triangulation_deg"]),
            relief=float(data["relief"]),
            links=tuple(int(count) for count in data["links"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchFacts:
    """What features and matching left in the database."""

    images: int
    keypoints_median: float
    verified_pairs: int
    motion_share: float  # largest median displacement of a verified pair, over the image width
    planar_share: float  # of the verified pairs, those that one homography explains


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    frames: int
    longer_side_px: int
    min_registered_share: float
    max_reprojection_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    reason: FailureCode
    message: str
    advice: str
    evidence: dict[str, Any] = field(default_factory=dict)


def judge_matches(facts: MatchFacts) -> Refusal | None:
    """Why mapping need not be tried; None when it may be."""
    evidence = {
        "images": facts.images,
        "keypoints_median": facts.keypoints_median,
        "verified_pairs": facts.verified_pairs,
        "motion_share": round(facts.motion_share, 5),
        "planar_share": round(facts.planar_share, 4),
    }
    if facts.keypoints_median < MIN_KEYPOINTS:
        return Refusal(
            reason=FailureCode.FRAMES_UNUSABLE,
            message=f"the median frame has {facts.keypoints_median:.0f} features; "
            f"{MIN_KEYPOINTS} are needed: the frames are dark, blurred or without texture",
            advice="Look at the frames; leave the clip out, or extract them at a larger size.",
            evidence=evidence,
        )
    if facts.verified_pairs == 0:
        return Refusal(
            reason=FailureCode.REGISTRATION_FAILED,
            message=f"no two of {facts.images} frames show the same scene",
            advice=REFRAME,
            evidence=evidence,
        )
    if facts.motion_share < STATIC_MOTION:
        return Refusal(
            reason=FailureCode.NO_PARALLAX,
            message=f"the camera does not move: between any two of {facts.images} frames the "
            f"picture shifts by at most {100 * facts.motion_share:.2f} % of its width",
            advice="A still camera cannot be reconstructed; leave the clip out.",
            evidence=evidence,
        )
    return None


def explain_no_model(facts: MatchFacts, refusal: Refusal | None) -> Refusal | None:
    """NO_PARALLAX for frames that match well and yet gave no good model, because every pair is one
    homography: a turning or shaking camera, or a flat picture. None when that is not the cause."""
    if facts.verified_pairs < facts.images - 1 or facts.planar_share < ALL_PLANAR:
        return None
    evidence = refusal.evidence if refusal else {"images": facts.images}
    return Refusal(
        reason=FailureCode.NO_PARALLAX,
        message=f"the frames have no parallax: in {100 * facts.planar_share:.0f} % of "
        f"{facts.verified_pairs} matched pairs the whole picture moves as one plane",
        advice="The camera turns or shakes without moving along; leave the clip out.",
        evidence=evidence | {"planar_share": round(facts.planar_share, 4)},
    )


def insane_images(images: Sequence[PosedImage]) -> list[str]:
    """Names of images whose pose is not supported: few points, or a centre far from all others."""
    if not images:
        return []
    least = max(
        MIN_POINTS_PER_IMAGE, MIN_POINTS_SHARE * statistics.median(i.points for i in images)
    )
    placed = [image.centre for image in images if all(map(math.isfinite, image.centre))]
    # Per axis: half of the cameras may be junk before this moves.
    middle = tuple(
        statistics.median([centre[axis] for centre in placed] or [0.0]) for axis in range(3)
    )
    spans = [math.dist(image.centre, middle) for image in images]
    depth = statistics.median(image.depth for image in images)
    reach = statistics.median([span for span in spans if math.isfinite(span)] or [0.0])
    furthest = MAX_CENTRE_DISTANCE * (reach + depth)
    return [
        image.name
        for image, span in zip(images, spans, strict=True)
        if image.points < least or not span <= furthest
    ]


def loose_images(names: Sequence[str], links: Sequence[int]) -> list[str]:
    """Those outside the largest part of a model that holds together: how large what they show is,
    against the rest, nothing tells. `names` in order, with the `sfm_links` between them."""
    parts = [list(names[:1])]
    for name, link in zip(names[1:], links, strict=True):
        if link < MIN_LINK:
            parts.append([])
        parts[-1].append(name)
    largest = max(parts, key=len)
    return [name for part in parts if part is not largest for name in part]


def unsupported(candidate: Candidate) -> list[str]:
    """Names of the images that do not count."""
    return sorted({*insane_images(candidate.images), *_loose(candidate)})


def _loose(candidate: Candidate) -> list[str]:
    return loose_images(sorted(image.name for image in candidate.images), candidate.links)


def registered(candidate: Candidate) -> list[PosedImage]:
    """The images of a candidate that count."""
    junk = set(unsupported(candidate))
    return [image for image in candidate.images if image.name not in junk]


def gravity_spread_deg(images: Sequence[PosedImage], gravity: Mapping[str, Vector]) -> float | None:
    """Mean angle between each image's measured gravity, turned into the model, and their mean.

    In a rigid model all agree; a bent one turns its own gravity. None with fewer than 3 images
    that have a reading.
    """
    downs = [
        tuple(sum(r * g for r, g in zip(row, gravity[image.name], strict=True)) for row in rows)
        for image in images
        if image.name in gravity
        for rows in (image.rotation,)
    ]
    if len(downs) < 3:
        return None
    mean = [sum(down[axis] for down in downs) for axis in range(3)]
    length = math.hypot(*mean)
    if length < 1e-9:
        return 180.0
    cosines = (
        sum(a * b for a, b in zip(down, mean, strict=True)) / (length * math.hypot(*down))
        for down in downs
    )
    return statistics.fmean(math.degrees(math.acos(max(-1.0, min(1.0, c)))) for c in cosines)


def judge(
    candidate: Candidate, limits: Limits, gravity: Mapping[str, Vector] | None = None
) -> Refusal | None:
    """Why this model is not good enough; None when it is accepted."""
    good = registered(candidate)
    share = len(good) / limits.frames
    spread = gravity_spread_deg(good, gravity or {})
    loose = set(_loose(candidate)).difference(insane_images(candidate.images))
    evidence: dict[str, Any] = {
        "mapper": candidate.mapper,
        "pairs": candidate.pairs,
        "registered": len(good),
        "dropped": len(candidate.images) - len(good),
        "loose": len(loose),
        "frames": limits.frames,
        "points": candidate.points,
        "reprojection_px": round(candidate.reprojection_px, 4),
        "focal_px": round(candidate.focal_px, 2),
        "triangulation_deg": round(candidate.triangulation_deg, 3),
        "relief": round(candidate.relief, 5),
        "gravity_spread_deg": None if spread is None else round(spread, 3),
    }

    def refuse(reason: FailureCode, message: str, advice: str) -> Refusal:
        return Refusal(reason=reason, message=message, advice=advice, evidence=evidence)

    if candidate.points and candidate.triangulation_deg < MIN_TRIANGULATION_DEG:
        return refuse(
            FailureCode.NO_PARALLAX,
            f"the frames have no parallax: rays meet at {candidate.triangulation_deg:.2f} degrees "
            f"(median), {MIN_TRIANGULATION_DEG:g} are needed",
            "The camera turns without moving; leave the clip out.",
        )
    if len(good) >= 3 and candidate.relief < MIN_RELIEF:
        return refuse(
            FailureCode.NO_PARALLAX,
            f"the frames have no parallax: the scene is flat to {100 * candidate.relief:.2f} % of "
            f"its distance, {100 * MIN_RELIEF:g} % are needed to tell shape from lens",
            "It looks like footage of a flat picture; leave the clip out.",
        )
    if len(good) < 3 or share < limits.min_registered_share / 2:
        return refuse(
            FailureCode.REGISTRATION_FAILED,
            f"only {len(good)} of {limits.frames} frames could be registered",
            REFRAME,
        )
    if share < limits.min_registered_share:
        return refuse(
            FailureCode.REGISTRATION_WEAK,
            f"{len(good)} of {limits.frames} frames were registered; "
            f"{100 * limits.min_registered_share:.0f} % are needed"
            + f"; {len(loose)} more hang on them by fewer than {MIN_LINK} points"
            * bool(loose),
            f"{REFRAME} To accept it as it is, lower sfm.min_registered_share and retry.",
        )
    low, high = (factor * limits.longer_side_px for factor in FOCAL_RANGE)
    if not low <= candidate.focal_px <= high:
        return refuse(
            FailureCode.REGISTRATION_WEAK,
            f"the focal length came out as {candidate.focal_px:.0f} px, outside {low:.0f} to "
            f"{high:.0f}: the camera model does not fit the lens",
            "Set sfm.camera_model and sfm.camera_params from a calibration, then retry.",
        )
    if not candidate.reprojection_px <= limits.max_reprojection_px:
        return refuse(
            FailureCode.REGISTRATION_WEAK,
            f"the reprojection error is {candidate.reprojection_px:.2f} px, above "
            f"{limits.max_reprojection_px:g}",
            "Set sfm.camera_model to fit the lens (OPENCV_FISHEYE for wide modes), then retry.",
        )
    if candidate.points < MIN_POINTS_PER_REGISTERED * len(good):
        return refuse(
            FailureCode.REGISTRATION_WEAK,
            f"{candidate.points} points for {len(good)} frames are too few to train on",
            "Raise sfm.max_features or the frame size, then retry.",
        )
    if spread is not None and spread > MAX_GRAVITY_SPREAD_DEG:
        return refuse(
            FailureCode.REGISTRATION_WEAK,
            f"the model is bent: the camera's gravity readings disagree by {spread:.1f} degrees",
            "Set sfm.camera_params from a calibration, or split the segment, then retry.",
        )
    return None


def judge_published(figures: Mapping[str, Any], limits: Limits) -> Refusal | None:
    """Why a model that was accepted is not good enough any more once its lens and keypoints are
    refined; None when it still is. `figures`: what the mapping process says of it."""
    error, focal = float(figures["reprojection_px"]), float(figures["focal_px"])
    loose = loose_images(figures["names"], figures["links"])
    firm = len(figures["names"]) - len(loose)
    evidence = {"reprojection_px": error, "focal_px": focal, "registered": firm}
    low, high = (factor * limits.longer_side_px for factor in FOCAL_RANGE)
    if not (error <= limits.max_reprojection_px and low <= focal <= high):
        return Refusal(
            reason=FailureCode.REGISTRATION_WEAK,
            message=f"the model does not stand refinement: focal length {focal:.4g} px, "
            f"reprojection error {error:.3g} px; {low:.0f} to {high:.0f} and "
            f"{limits.max_reprojection_px:g} are allowed",
            advice="Set sfm.camera_model and sfm.camera_params from a calibration, then retry.",
            evidence=evidence,
        )
    if loose and firm < limits.min_registered_share * limits.frames:
        return Refusal(
            reason=FailureCode.REGISTRATION_WEAK,
            message=f"the model has a hinge: {len(loose)} of its {firm + len(loose)} frames hang "
            f"on the others by fewer than {MIN_LINK} points, so that nothing tells their size",
            advice=f"{REFRAME} Or ingest what lies before and after as segments of their own.",
            evidence=evidence,
        )
    return None


def best_candidate(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one with most images that count; the earlier of equals."""
    return max(candidates, key=lambda c: (len(registered(c)), c.points), default=None)


def _vector(values: Sequence[float]) -> Vector:
    x, y, z = values
    return float(x), float(y), float(z)
