"""Which lens a camera's recording was made with: by model, lens mode, shape and medium. Pure.

A wrong family of lens fails in SfM as a whole, so a mode that is not known has no profile here, and
SfM begins with its guess. In water only lenses behind a flat port are listed.

Sources. In air: github.com/gyroflow/lens_profiles (CC0 1.0), which has OpenCV's fisheye model,
without stabilisation. In water: github.com/eceo-epfl/deepreefmap (Apache-2.0), or, where there is
none, Snell's law on the one in air: behind a flat port a ray that has the angle b in water comes
at a with sin a = 1.333 sin b. For the HERO10's Linear mode that gives a focal length of 0.638
widths, k1 0.355, k2 0.380; its calibration has 0.648, 0.362, 0.248. deepreefmap's HERO12 that is
called Wide has the lens of Linear (0.625, 0.364, 0.298), not that of Wide behind a port: it is left
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LENS_MODES", "PROFILES", "Lens", "Profile", "choose", "lens_of", "own_profile_fits"]

# VFOV in the camera's settings (exiftool's GoPro.pm; H: seen in HERO11 files).
LENS_MODES = {"W": "wide", "L": "linear", "N": "narrow", "M": "medium", "S": "super", "H": "hyper"}
SAME_SHAPE = 0.01  # of width over height: 2704x1520 is 16:9


@dataclass(frozen=True, slots=True)
class Lens:
    """What a recording says of its lens; None: it does not say."""

    camera: str | None  # "HERO10 Black"
    mode: str | None  # of LENS_MODES
    stabilised: bool  # the picture is warped and cropped, each frame differently
    zoomed: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "camera": self.camera,
            "mode": self.mode,
            "stabilised": self.stabilised,
            "zoomed": self.zoomed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Lengths in widths of the picture, its centre in the middle; distortion as COLMAP has it."""

    cameras: tuple[str, ...]
    mode: str
    shape: tuple[int, int]
    underwater: bool
    model: str  # of COLMAP
    focal: tuple[float, ...]
    distortion: tuple[float, ...]
    source: str

    @property
    def name(self) -> str:
        medium = "in water" if self.underwater else "in air"
        return f"{self.cameras[0]} {self.mode} {self.shape[0]}:{self.shape[1]} {medium}"

    def params(self, width: int, height: int) -> list[float]:
        """COLMAP's, for a picture of that size."""
        return [*(f * width for f in self.focal), width / 2, height / 2, *self.distortion]


_BOTH = ("HERO10 Black", "HERO11 Black", "HERO11 Black Mini")
_NEWER = _BOTH[1:]
_AIR = "gyroflow/lens_profiles"
_SNELL = "gyroflow/lens_profiles, behind a flat port"

PROFILES = (
    Profile(
        cameras=_BOTH[:1],
        mode="linear",
        shape=(16, 9),
        underwater=True,
        model="RADIAL",
        focal=(0.64772,),
        distortion=(0.36223, 0.2477),
        source="eceo-epfl/deepreefmap",
    ),
    Profile(
        cameras=_NEWER,
        mode="linear",
        shape=(16, 9),
        underwater=True,
        model="RADIAL",
        focal=(0.6378,),
        distortion=(0.3546, 0.3799),
        source=_SNELL,
    ),
    Profile(
        cameras=_BOTH,
        mode="linear",
        shape=(4, 3),
        underwater=True,
        model="RADIAL",
        focal=(0.6399,),
        distortion=(0.3456, 0.404),
        source=_SNELL,
    ),
    Profile(
        cameras=_BOTH,
        mode="wide",
        shape=(16, 9),
        underwater=True,
        model="RADIAL",
        focal=(0.6241,),
        distortion=(-0.1207, 0.1255),
        source=_SNELL,
    ),
    Profile(
        cameras=_BOTH,
        mode="wide",
        shape=(4, 3),
        underwater=True,
        model="RADIAL",
        focal=(0.595,),
        distortion=(-0.1096, 0.108),
        source=_SNELL,
    ),
    # In air Linear is rectilinear to 0.1 % of the width, though it is published as a fisheye.
    Profile(
        cameras=_BOTH,
        mode="linear",
        shape=(16, 9),
        underwater=False,
        model="RADIAL",
        focal=(0.4768,),
        distortion=(0.0072, -0.0055),
        source=_AIR,
    ),
    Profile(
        cameras=_BOTH,
        mode="linear",
        shape=(4, 3),
        underwater=False,
        model="RADIAL",
        focal=(0.4778,),
        distortion=(0.0091, -0.0059),
        source=_AIR,
    ),
    Profile(
        cameras=_BOTH,
        mode="wide",
        shape=(16, 9),
        underwater=False,
        model="OPENCV_FISHEYE",
        focal=(0.46779, 0.46803),
        distortion=(0.034214, 0.067673, -0.07409, 0.029944),
        source=_AIR,
    ),
    Profile(
        cameras=_BOTH,
        mode="wide",
        shape=(4, 3),
        underwater=False,
        model="OPENCV_FISHEYE",
        focal=(0.44677, 0.44694),
        distortion=(0.032858, 0.055737, -0.038399, 0.006865),
        source=_AIR,
    ),
    Profile(
        cameras=_NEWER,
        mode="wide",
        shape=(8, 7),
        underwater=False,
        model="OPENCV_FISHEYE",
        focal=(0.44374, 0.44355),
        distortion=(0.031396, 0.059741, -0.043367, 0.009924),
        source=_AIR,
    ),
)


def lens_of(clips: Sequence[Mapping[str, Any]], said: str | None) -> Lens:
    """Of `output/metadata.json`'s clips, which are of one camera; `said`: the lens mode by the
    operator's settings, which goes before what the file says."""
    settings: Mapping[str, str] = next(
        (clip["settings"] for clip in clips if clip.get("settings")), {}
    )
    device = next((clip["device"] for clip in clips if clip.get("device")), None)
    return Lens(
        camera=settings.get("MINF") or device,
        mode=said or LENS_MODES.get(settings.get("VFOV", "")),
        stabilised=settings.get("EISE") == "Y",
        zoomed=settings.get("DZOM") == "Y" and settings.get("DZST", "0") != "0",
    )


def choose(lens: Lens, size: tuple[int, int], *, underwater: bool) -> tuple[Profile | None, str]:
    """(the profile, what an operator should know of the choice; "" for a camera that is not known
    to have one). `size` of the source video in pixels."""
    if lens.camera is None or not lens.camera.startswith("HERO"):
        return None, ""
    if lens.mode is None:
        return None, (
            f"{lens.camera}: the file does not say its lens mode (sfm.lens_mode does, if you know "
            "it); SfM begins with a guess"
        )
    told = f"{lens.camera}, lens mode {lens.mode}, {size[0]}x{size[1]}"
    if lens.stabilised or lens.zoomed:
        why = "stabilised" if lens.stabilised else "zoomed"
        return None, f"{told}: the picture is {why}, no lens profile fits; SfM begins with a guess"
    for profile in PROFILES:
        if (
            lens.camera in profile.cameras
            and lens.mode == profile.mode
            and underwater == profile.underwater
            and _same_shape(size, profile.shape)
        ):
            return profile, f"{told}: lens profile {profile.name} ({profile.source})"
    return None, (
        f"{told}: no lens profile is known {'in water' if underwater else 'in air'}; SfM begins "
        "with a guess (cosma calibrate makes one of a finished segment)"
    )


def own_profile_fits(
    own: Mapping[str, Any], lens: Lens, size: tuple[int, int], *, underwater: bool
) -> bool:
    """Whether a calibration of the settings (`sfm.profiles`) is of this camera, lens mode, size and
    medium. Whatever stabilisation did is in it when it was on there, too."""
    return (
        lens.camera is not None
        and own["camera"] == lens.camera
        and own["mode"] == lens.mode
        and own["stabilised"] == lens.stabilised
        and own["underwater"] == underwater
        and (own["width"], own["height"]) == size
    )


def _same_shape(one: tuple[int, int], two: tuple[int, int]) -> bool:
    return abs(one[0] * two[1] / (one[1] * two[0]) - 1) <= SAME_SHAPE
