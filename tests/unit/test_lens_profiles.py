"""A lens is taken for the camera, mode, shape and medium it is of, and no other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from worker_agent.stages.lens_profiles import PROFILES, Lens, Profile, choose, lens_of
from worker_agent.stages.manifest import camera_of

WATER = 1.333


def hero(mode: str | None = "linear", **other: Any) -> Lens:
    told: dict[str, Any] = {"camera": "HERO11 Black", "mode": mode, "stabilised": False,
                            "zoomed": False}  # fmt: skip
    return Lens(**(told | other))


def radius(profile: Profile, angle: float) -> float:
    """Of a ray at that angle from the axis, in widths."""
    if profile.model == "OPENCV_FISHEYE":
        powers = (1.0, *profile.distortion)
        return profile.focal[0] * sum(k * angle ** (2 * i + 1) for i, k in enumerate(powers))
    t = math.tan(angle)
    k1, k2 = profile.distortion
    return profile.focal[0] * t * (1 + k1 * t**2 + k2 * t**4)


@pytest.mark.parametrize("wet", [one for one in PROFILES if one.underwater], ids=lambda p: p.name)
def test_a_lens_in_water_is_the_one_in_air_behind_a_flat_port(wet: Profile) -> None:
    (dry,) = (
        one
        for one in PROFILES
        if not one.underwater and one.mode == wet.mode and one.shape == wet.shape
    )
    corner = math.hypot(wet.shape[1] / wet.shape[0], 1) / 2
    measured = wet.source == "eceo-epfl/deepreefmap"
    for angle in np.radians(np.arange(1, 48)):
        expected = radius(dry, math.asin(WATER * math.sin(angle)))
        if expected > corner:
            break
        assert radius(wet, angle) == pytest.approx(expected, abs=0.01 if measured else 0.003)


@pytest.mark.parametrize(
    ("lens", "size", "underwater", "name"),
    [
        (hero(), (5312, 2988), True, "HERO11 Black linear 16:9 in water"),
        (hero(camera="HERO10 Black"), (1920, 1080), True, "HERO10 Black linear 16:9 in water"),
        (hero("wide"), (2704, 1520), False, "HERO10 Black wide 16:9 in air"),
        (hero("wide"), (3840, 3360), False, "HERO11 Black wide 8:7 in air"),
    ],
)
def test_what_is_known_is_taken(
    lens: Lens, size: tuple[int, int], underwater: bool, name: str
) -> None:
    profile, note = choose(lens, size, underwater=underwater)
    assert profile is not None and profile.name == name
    assert name in note


@pytest.mark.parametrize(
    ("lens", "size", "words"),
    [
        (hero(None), (1920, 1080), "does not say its lens mode"),
        (hero(stabilised=True), (1920, 1080), "stabilised"),
        (hero(zoomed=True), (1920, 1080), "zoomed"),
        (hero("hyper"), (1920, 1080), "no lens profile is known in water"),
        (hero(), (3840, 3360), "no lens profile"),
        (hero(camera="HERO12 Black"), (1920, 1080), "no lens profile"),
        (hero(camera="DJI FC350"), (1920, 1080), ""),
        (hero(camera=None), (1920, 1080), ""),
    ],
)
def test_what_is_not_known_is_told_and_left_to_sfm(
    lens: Lens, size: tuple[int, int], words: str
) -> None:
    profile, note = choose(lens, size, underwater=True)
    assert profile is None
    assert words in note and (note == "") == (words == "")


def test_linear_is_no_fisheye() -> None:
    assert {one.model for one in PROFILES if one.mode == "linear"} == {"RADIAL"}


def clip(**settings: str) -> dict[str, Any]:
    return {"device": "Camera", "settings": settings}


def test_the_lens_is_what_the_first_clip_with_settings_says() -> None:
    told = clip(MINF="HERO11 Black", VFOV="L", EISE="N", DZOM="Y", DZST="0")
    assert lens_of([{"device": None, "settings": {}}, told], None) == hero()
    assert lens_of([told], "wide").mode == "wide"
    assert lens_of([clip(MINF="HERO11 Black", VFOV="L", EISE="Y")], None).stabilised
    assert lens_of([{"device": "HERO10 Black", "settings": {}}], None) == hero(
        None, camera="HERO10 Black"
    )


AUTO = {"camera_model": "auto", "camera_params": None}
KNOWN = [clip(MINF="HERO11 Black", VFOV="L", EISE="N")]


def test_a_profile_is_a_prior_with_a_guess_to_fall_back_on() -> None:
    camera, note = camera_of(AUTO, KNOWN, (3840, 2160), (960, 540))
    assert camera["model"] == "RADIAL" and camera["prior_focal"]
    assert camera["params"] == pytest.approx([0.6378 * 960, 480, 270, 0.3546, 0.3799])
    assert camera["fallback"]["model"] == "SIMPLE_RADIAL" and not camera["fallback"]["prior_focal"]
    assert "HERO11 Black linear 16:9 in water" in camera["source"] and note


def test_the_operators_own_goes_before_it() -> None:
    own = {
        "camera": "HERO11 Black", "mode": "linear", "width": 3840, "height": 2160,
        "underwater": True, "stabilised": False, "camera_model": "SIMPLE_RADIAL",
        "camera_params": [2400.0, 1920.0, 1080.0, 0.3],
    }  # fmt: skip
    for change, source in (
        ({}, "calibration"),
        ({"mode": "wide"}, "profile"),
        ({"width": 1920}, "profile"),
        ({"underwater": False}, "profile"),
        ({"stabilised": True}, "profile"),
    ):
        settings = AUTO | {"profiles": [own | change]}
        camera, _ = camera_of(settings, KNOWN, (3840, 2160), (960, 540))
        assert camera["source"].split()[0] == source
    camera, _ = camera_of(
        {"camera_model": "SIMPLE_PINHOLE", "camera_params": None}, KNOWN, (3840, 2160), (960, 540)
    )
    assert (camera["model"], camera["source"]) == ("SIMPLE_PINHOLE", "guess")
