"""Which reconstructions are trusted, and what is said of the others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.protocol import FailureCode
from worker_agent.stages.sfm_acceptance import (
    Candidate,
    Limits,
    MatchFacts,
    PosedImage,
    best_candidate,
    explain_no_model,
    gravity_spread_deg,
    insane_images,
    judge,
    judge_matches,
    judge_published,
    registered,
    unsupported,
)

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
DOWN = (0.0, 1.0, 0.0)
LIMITS = Limits(frames=40, longer_side_px=960, min_registered_share=0.8, max_reprojection_px=2.0)
MATCHES = MatchFacts(
    images=40, keypoints_median=900, verified_pairs=300, motion_share=0.3, planar_share=0.6
)


def transect(count: int, points: int = 1000) -> tuple[PosedImage, ...]:
    return tuple(
        PosedImage(
            name=f"f{i:06d}.jpg",
            points=points,
            centre=(0.2 * i, 0.01 * i, 0.0),
            depth=2.0,
            rotation=IDENTITY,
        )
        for i in range(count)
    )


def candidate(images: tuple[PosedImage, ...], **changes: Any) -> Candidate:
    base = Candidate(
        mapper="global",
        pairs="sequential",
        path="sfm/candidates/0",
        images=images,
        points=6000,
        reprojection_px=0.5,
        focal_px=620.0,
        triangulation_deg=12.0,
        relief=0.02,
        links=(300,) * max(0, len(images) - 1),
    )
    return dataclasses.replace(base, **changes)


def test_a_good_model_is_accepted() -> None:
    assert judge(candidate(transect(40)), LIMITS) is None
    assert judge(candidate(transect(32)), LIMITS) is None


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"focal_px": 2900.0}, FailureCode.REGISTRATION_WEAK, "focal length came out as 2900"),
        ({"focal_px": 200.0}, FailureCode.REGISTRATION_WEAK, "camera model does not fit"),
        ({"reprojection_px": 2.4}, FailureCode.REGISTRATION_WEAK, "2.40 px, above 2"),
        ({"reprojection_px": math.nan}, FailureCode.REGISTRATION_WEAK, "reprojection"),
        ({"points": 700}, FailureCode.REGISTRATION_WEAK, "700 points"),
        ({"triangulation_deg": 0.4}, FailureCode.NO_PARALLAX, "rays meet at 0.40"),
        ({"relief": 0.0004}, FailureCode.NO_PARALLAX, "flat to 0.04 %"),
    ],
)
def test_each_defect_has_its_reason(
    changes: dict[str, float], reason: FailureCode, words: str
) -> None:
    refusal = judge(candidate(transect(40), **changes), LIMITS)
    assert refusal is not None
    assert refusal.reason is reason
    assert words in refusal.message
    assert refusal.advice
    assert refusal.evidence["registered"] == 40


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (2, FailureCode.REGISTRATION_FAILED),
        (15, FailureCode.REGISTRATION_FAILED),
        (16, FailureCode.REGISTRATION_WEAK),
        (31, FailureCode.REGISTRATION_WEAK),
    ],
)
def test_too_few_registered_frames(count: int, reason: FailureCode) -> None:
    refusal = judge(candidate(transect(count)), LIMITS)
    assert refusal is not None
    assert refusal.reason is reason
    assert f"{count} of 40" in refusal.message


def test_cameras_with_a_handful_of_points_or_at_infinity_do_not_count() -> None:
    images = list(transect(40))
    images[3] = dataclasses.replace(images[3], points=30)
    images[7] = dataclasses.replace(images[7], centre=(1e9, 0.0, 0.0))
    images[9] = dataclasses.replace(images[9], centre=(math.inf, 0.0, 0.0))
    images[11] = dataclasses.replace(images[11], centre=(0.0, math.nan, 0.0))
    expected = [images[i].name for i in (3, 7, 9, 11)]
    assert insane_images(images) == expected
    good = registered(candidate(tuple(images)))
    assert len(good) == 36
    assert not {image.name for image in good} & set(expected)


def test_what_hangs_on_the_rest_by_a_few_points_does_not_count() -> None:
    links = [300] * 39
    links[37] = 14  # the last two frames
    ends = candidate(transect(40), links=tuple(links))
    assert unsupported(ends) == ["f000038.jpg", "f000039.jpg"]
    assert judge(ends, LIMITS) is None
    links[17] = 3  # a hinge in the middle
    bent = judge(candidate(transect(40), links=tuple(links)), LIMITS)
    assert bent is not None and bent.reason is FailureCode.REGISTRATION_WEAK
    assert "20 of 40" in bent.message and "20 more hang on them" in bent.message


@pytest.mark.parametrize(
    ("figures", "stands"),
    [
        ({"reprojection_px": 0.1, "focal_px": 620.0}, True),
        ({"reprojection_px": 2.2e151, "focal_px": 620.0}, False),
        ({"reprojection_px": math.nan, "focal_px": 620.0}, False),
        ({"reprojection_px": 0.1, "focal_px": 9000.0}, False),
    ],
)
def test_a_model_is_judged_again_as_it_is_published(
    figures: dict[str, float], stands: bool
) -> None:
    names = {"names": [f"f{i}" for i in range(40)], "links": [300] * 39}
    assert (judge_published(figures | names, LIMITS) is None) is stands


@pytest.mark.parametrize(("at", "stands"), [(36, True), (20, False)])
def test_a_hinge_that_refinement_shows_is_told(at: int, stands: bool) -> None:
    links = [300] * 39
    links[at] = 9
    names = [f"f{i:06d}.jpg" for i in range(40)]
    figures = {"reprojection_px": 0.1, "focal_px": 620.0, "names": names, "links": links}
    refusal = judge_published(figures, LIMITS)
    assert (refusal is None) is stands
    assert refusal is None or "19 of its 40 frames" in refusal.message


def test_a_vehicle_that_hovers_before_it_leaves_is_sane() -> None:
    hovering = [dataclasses.replace(i, centre=(0.0, 0.0, 0.0)) for i in transect(30)]
    leaving = [
        dataclasses.replace(i, name=f"g{n}", centre=(0.5 * n, 0.0, 0.0))
        for n, i in enumerate(transect(10))
    ]
    assert insane_images([*hovering, *leaving]) == []
    assert insane_images([]) == []


@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    far=st.integers(0, 39),
)
def test_sanity_does_not_depend_on_the_unit_or_origin_of_the_model(
    scale: float, shift: tuple[float, float, float], far: int
) -> None:
    def moved(image: PosedImage) -> PosedImage:
        centre = tuple(scale * c + s for c, s in zip(image.centre, shift, strict=True))
        return dataclasses.replace(
            image, centre=(centre[0], centre[1], centre[2]), depth=scale * image.depth
        )

    images = list(transect(40))
    images[far] = dataclasses.replace(images[far], centre=(0.0, 1e6, 0.0))
    assert insane_images([moved(image) for image in images]) == [images[far].name]


def turned(image: PosedImage, degrees: float) -> PosedImage:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return dataclasses.replace(image, rotation=((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))


def test_gravity_agrees_in_a_rigid_model_and_not_in_a_bent_one() -> None:
    images = transect(40)
    readings = {image.name: DOWN for image in images}
    assert gravity_spread_deg(images, readings) == pytest.approx(0.0, abs=1e-5)
    assert gravity_spread_deg(images[:2], readings) is None
    assert gravity_spread_deg(images, {}) is None
    bent = tuple(turned(image, 1.5 * i) for i, image in enumerate(images))
    spread = gravity_spread_deg(bent, readings)
    assert spread == pytest.approx(15.0, abs=0.5)
    refusal = judge(candidate(bent), LIMITS, readings)
    assert refusal is not None
    assert refusal.reason is FailureCode.REGISTRATION_WEAK
    assert "bent" in refusal.message
    assert judge(candidate(images), LIMITS, readings) is None


def test_the_candidate_with_most_frames_that_count_is_the_best() -> None:
    junk = tuple(dataclasses.replace(i, points=3) for i in transect(40)[20:])
    many_but_junk = candidate(transect(20) + junk)
    fewer_but_good = candidate(transect(25), mapper="incremental")
    assert best_candidate([many_but_junk, fewer_but_good]) is fewer_but_good
    assert best_candidate([]) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keypoints_median": 30.0}, FailureCode.FRAMES_UNUSABLE),
        ({"verified_pairs": 0, "motion_share": 0.0}, FailureCode.REGISTRATION_FAILED),
        ({"motion_share": 0.001}, FailureCode.NO_PARALLAX),
    ],
)
def test_matches_that_make_mapping_pointless(
    changes: dict[str, float], reason: FailureCode
) -> None:
    facts = dataclasses.replace(MATCHES, **changes)
    refusal = judge_matches(facts)
    assert refusal is not None
    assert refusal.reason is reason
    assert judge_matches(MATCHES) is None


def test_frames_that_all_move_as_one_plane_have_no_parallax() -> None:
    flat = dataclasses.replace(MATCHES, planar_share=1.0)
    refusal = explain_no_model(flat, None)
    assert refusal is not None
    assert refusal.reason is FailureCode.NO_PARALLAX
    assert "300 matched pairs" in refusal.message
    assert explain_no_model(MATCHES, None) is None
    # A few planar pairs say nothing when most frames match nothing.
    assert explain_no_model(dataclasses.replace(flat, verified_pairs=12), None) is None
