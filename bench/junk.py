"""Clips that tempt SfM: each must end as a right model, or held with the true reason.

Made of the rendered track A1 (exact poses) and real footage (COSMA_TEST_DATA, by default
../shared/data); all stages up to ColmapReconstruction follow.

held[C]: 1 when the case C is held, 0 when its model is accepted.
centre_error[C]: of an accepted model, over the length of the true track (rms, one similarity).
cpu_s[C]: of all stages.
wrong: cases that ended otherwise than they must: accepted where there is nothing to reconstruct,
    accepted with cameras off by more than 2 % of the track, held where there is a scene, or held
    for another reason.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.spatial.transform import Rotation

from bench.reconstruct import DATA, run_stage, stages_up_to_sfm
from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig

TRACK = "synth_seabed/A1"
ELSEWHERE = "synth_seabed/B2"  # crosses the track of A1 in one place, not in what is used here
REEF = "gopro_reef_hero10/reef_clip.mp4"
AERIAL = "drone_two_vehicles/images/B_fc350/DJI_0066.jpg"
SIZE = (640, 360)
RATE = 30
FPS, WIDTH = 1.5, 480
CHEAP = {"threads": 1, "max_features": 800, "overlap": 4}  # the same ladder, sooner
PICTURES = 21  # of those that are drawn
MAX_OFF = 0.02  # of the track's length

F64 = npt.NDArray[np.float64]
Pictures = list[Image.Image]
HELD = ("no_parallax", "registration_weak", "registration_failed", "frames_unusable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`make` writes the clip. `at`: time in the clip -> time on A1, where its model can be checked;
    None: nothing to reconstruct. `reasons`: that it may be held for; none: it may not be held."""

    make: Callable[[Path, Path], None]
    at: Callable[[F64], F64] | None = None
    reasons: Sequence[str] = ()
    config: dict[str, Any] | None = None  # of sfm


def filtered(graph: str, *sources: str, cut: Sequence[str] = ()) -> Callable[[Path, Path], None]:
    """A clip by one filter graph of ffmpeg, whose result is [v]."""

    def make(data: Path, target: Path) -> None:
        command = ["ffmpeg", "-nostdin", "-v", "error"]
        for source in sources:
            command += ["-i", str(data / source)]
        command += ["-filter_complex", graph, "-map", "[v]", "-an", *cut]
        subprocess.run([*command, *ENCODED, str(target)], check=True)

    return make


ENCODED = ("-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p")


def drawn(pictures: Callable[[Path], Pictures], rate: float = FPS) -> Callable[[Path, Path], None]:
    def make(data: Path, target: Path) -> None:
        command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", "{}x{}".format(*SIZE), "-r", str(rate), "-i", "pipe:0"]
        shown = b"".join(picture.convert("RGB").tobytes() for picture in pictures(data))
        subprocess.run([*command, *ENCODED, str(target)], input=shown, check=True)

    return make


def still(data: Path, clip: str, time_s: float) -> Image.Image:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-ss", str(time_s), "-i", str(data / clip)]
    command += ["-frames:v", "1", "-vf", "scale={}:{}".format(*SIZE), "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], check=True, stdout=-1).stdout
    return Image.frombytes("RGB", SIZE, raw)


def panning(data: Path) -> Pictures:
    """A camera on a tripod looks to the sides and up and down: rotations of one view."""
    with Image.open(data / AERIAL) as opened:
        wide = opened.convert("RGB")
    focal_wide, focal = 0.55 * wide.width, 1.1 * SIZE[0]
    inner = np.diag([1 / focal, 1 / focal, 1.0])
    inner[:2, 2] = -np.array(SIZE) / 2 / focal
    middle = wide.width / 2, wide.height / 2
    outer = np.array([[focal_wide, 0, middle[0]], [0, focal_wide, middle[1]], [0, 0, 1.0]])
    seen = []
    for index in range(PICTURES):
        angles = [18 * math.sin(0.25 * index), 7 * math.sin(0.17 * index)]
        turn = Rotation.from_euler("yx", angles, degrees=True).as_matrix()
        seen.append(_warped(wide, outer @ turn @ inner))
    return seen


def swimming(size: int, count: int) -> Callable[[Path], Pictures]:
    """A camera that stands still, and `count` fish of `size` pixels that swim by, each its way."""

    def pictures(data: Path) -> Pictures:
        rng = np.random.default_rng(4)
        ground, skin = still(data, REEF, 2.0), still(data, ELSEWHERE + ".mp4", 3.0)
        fish = []
        for _ in range(count):
            left, top = (int(rng.integers(0, SIZE[axis] - size)) for axis in (0, 1))
            body = skin.crop((left, top, left + size, top + size // 2))
            shape = Image.new("L", body.size, 0)
            y, x = np.mgrid[0 : body.height, 0 : body.width]
            inside = (x / body.width - 0.5) ** 2 + (y / body.height - 0.5) ** 2 < 0.25
            shape = Image.fromarray((255 * inside).astype(np.uint8))
            start, speed = rng.uniform(0, SIZE[0], 2), rng.normal(0, 14, 2)
            fish.append((body, shape, start * (1, SIZE[1] / SIZE[0]), speed))
        seen = []
        for index in range(PICTURES):
            picture = ground.copy()
            for body, shape, start, speed in fish:
                x, y = (start + speed * index) % np.array(SIZE)
                picture.paste(body, (int(x) - size // 2, int(y) - size // 4), shape)
            noise = rng.normal(0, 2, (SIZE[1], SIZE[0], 3))
            noisy = np.clip(np.asarray(picture) + noise, 0, 255)
            seen.append(Image.fromarray(noisy.astype(np.uint8)))
        return seen

    return pictures


def zooming(data: Path) -> Pictures:
    """The picture only grows: a digital zoom."""
    picture = still(data, REEF, 2.0).resize((1280, 720), Image.Resampling.BICUBIC)
    seen = []
    for index in range(PICTURES):
        half = np.array((1280, 720)) / 2 * (1 - 0.018 * index)
        box = (640 - half[0], 360 - half[1], 640 + half[0], 360 + half[1])
        seen.append(picture.resize(SIZE, Image.Resampling.BICUBIC, box=box))
    return seen


def flat_picture(data: Path) -> Pictures:
    """A camera moves along a photograph and turns: full parallax, no relief."""
    with Image.open(data / AERIAL) as opened:
        wide = opened.convert("RGB")
    focal, unit = 1.1 * SIZE[0], 0.55 * wide.width  # of the photograph, at the camera's distance
    inner = np.diag([1 / focal, 1 / focal, 1.0])
    inner[:2, 2] = -np.array(SIZE) / 2 / focal
    outer = np.array([[unit, 0, wide.width / 2], [0, unit, wide.height / 2], [0, 0, 1.0]])
    seen = []
    for index in range(PICTURES):
        turned = Rotation.from_euler("xyz", [9 * math.sin(index), 9 * math.cos(1.3 * index), index],
                                     degrees=True).as_matrix()  # fmt: skip
        slid = np.eye(3)
        slid[:2, 2] = 0.04 * (index - PICTURES / 2), 0.08 * math.sin(0.5 * index)
        seen.append(_warped(wide, outer @ slid @ turned @ inner))
    return seen


def _warped(picture: Image.Image, warp: F64) -> Image.Image:
    """What lies at `warp` of each pixel."""
    eight = (warp / warp[2, 2]).ravel()[:8].tolist()
    return picture.transform(SIZE, Image.Transform.PERSPECTIVE, eight, Image.Resampling.BICUBIC)


def vehicle(data: Path) -> Pictures:
    """A1, and a textured skid of the vehicle that stands in a third of the picture."""
    skid = still(data, REEF, 2.0).crop((0, 0, SIZE[0], SIZE[1] // 3))
    seen = []
    for index in range(PICTURES):
        picture = still(data, TRACK + ".mp4", index / FPS)
        picture.paste(skid, (0, SIZE[1] - skid.height))
        seen.append(picture)
    return seen


SKID = [[[0.0, 0.66], [1.0, 0.66], [1.0, 1.0], [0.0, 1.0]]]
A1, B2 = TRACK + ".mp4", ELSEWHERE + ".mp4"
SCENE = "scale={}:{},setsar=1,fps={}".format(*SIZE, RATE)

CASES = {
    "as it is": Case(make=filtered("[0]null[v]", A1), at=lambda t: t),
    "each picture twice": Case(
        make=filtered("[0]fps=0.75:round=up,fps=1.5,setpts=N/1.5/TB[v]", A1, cut=("-r", "1.5")),
        at=lambda t: np.floor(t * 0.75 + 1e-3) / 0.75,
        reasons=("registration_weak",),
    ),
    "cut to another place": Case(
        make=filtered(
            f"[0]trim=0:7,setpts=PTS-STARTPTS,{SCENE}[a];[1]trim=0:7,setpts=PTS-STARTPTS,{SCENE}[b];"
            "[a][b]concat[v]", A1, REEF,
        ),
        reasons=("registration_weak",),
    ),
    "a glimpse of another place": Case(
        make=filtered(
            f"[0]trim=0:12.4,setpts=PTS-STARTPTS,{SCENE}[a];[1]trim=0:1.6,setpts=PTS-STARTPTS,"
            f"{SCENE}[b];[a][b]concat[v]", A1, REEF,
        ),
        at=lambda t: np.minimum(t, 12.4),
    ),
    "the same track, cut": Case(
        make=filtered(
            "[0]split[x][y];[x]trim=0:5,setpts=PTS-STARTPTS[a];[y]trim=9:14,setpts=PTS-STARTPTS[b];"
            "[a][b]concat[v]", A1,
        ),
        reasons=("registration_weak",),
    ),
    "there and back": Case(
        make=filtered(
            "[0]trim=0:7,setpts=PTS-STARTPTS,split[a][y];[y]reverse[b];[a][b]concat[v]", A1
        ),
        at=lambda t: np.where(t < 7, t, np.maximum(0.0, 14 - 1 / RATE - t)),
    ),
    "looped": Case(
        make=filtered(
            "[0]trim=0:7,setpts=PTS-STARTPTS,split[a][b];[a][b]concat[v]", A1
        ),
        at=lambda t: np.where(t < 7 - 1e-6, t, t - 7),
    ),
    "mirrored from the middle": Case(
        make=filtered(
            "[0]split[x][y];[x]trim=0:7,setpts=PTS-STARTPTS[a];"
            "[y]trim=7:14,setpts=PTS-STARTPTS,hflip[b];[a][b]concat[v]", A1,
        ),
        reasons=("registration_weak",),
    ),
    "half black": Case(
        make=filtered("[0]drawbox=c=black:t=fill:enable='gte(t,7)'[v]", A1),
        reasons=("frames_unusable", "registration_weak"),
    ),
    "a blackout": Case(
        make=filtered("[0]drawbox=c=black:t=fill:enable='between(t,6,6.8)'[v]", A1),
        at=lambda t: t,
        reasons=("registration_weak",),
    ),
    "panning": Case(make=drawn(panning), reasons=("no_parallax",)),
    "zooming": Case(make=drawn(zooming), reasons=("no_parallax",)),
    "a photograph": Case(make=drawn(flat_picture), reasons=("no_parallax",)),
    "small fish": Case(make=drawn(swimming(60, 12)), reasons=("no_parallax",)),
    "large fish": Case(make=drawn(swimming(220, 6)), reasons=HELD[:3]),
    "vehicle in sight": Case(make=drawn(vehicle), at=lambda t: t),
    "vehicle masked": Case(make=drawn(vehicle), at=lambda t: t, config={"mask": SKID}),
}  # fmt: skip


def outcome(case: Case, data: Path, base: Path) -> tuple[dict[str, float], str, str]:
    """(figures, reason and message where it was held)."""
    from worker_agent.stages import sfm
    from worker_agent.stages.api import StageFailure

    base.mkdir()
    clip = base / "clip.mp4"
    case.make(data, clip)
    config = PipelineConfig().as_dict()
    config["frames"] |= {"fps": FPS, "width": WIDTH}
    config["sfm"] |= CHEAP | (case.config or {})
    began = os.times()
    reason, message, off = "", "", math.nan
    try:
        stages_up_to_sfm(base / "run", clip, config)
        run_stage(sfm.main, base / "run", clip.name, config)
        if case.at is not None:
            off = centre_error(base / "run", data / f"{TRACK}.json", case.at)
    except StageFailure as failure:
        reason, message = str(failure.reason.value), f"{failure.message} | {failure.advice}"
    used = os.times()
    seconds = sum(used[:4]) - sum(began[:4])
    return {"centre_error": off, "cpu_s": seconds}, reason, message


def centre_error(run_dir: Path, truth_path: Path, at: Callable[[F64], F64]) -> float:
    from stitch.sidecar import Sidecar
    from worker_agent.demo.truth import align_centres, load_truth

    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    expected, _ = load_truth(truth_path).at(at(np.asarray(sidecar.keyframe_time_s)))
    found = sidecar.centres()
    apart = align_centres(found, expected).apply(found) - expected
    track = float(np.linalg.norm(np.ptp(expected, axis=0)))
    return float(np.sqrt((apart**2).sum(1).mean())) / track


def right(case: Case, reason: str, off: float) -> bool:
    if reason:
        return reason in case.reasons
    return case.at is not None and off <= MAX_OFF


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    given = options.parse_args()
    data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
    if not (data / A1).is_file():
        print(f"{data / A1} is not there: set COSMA_TEST_DATA", file=sys.stderr)
        return 1
    results: list[Result] = []
    wrong = 0
    with tempfile.TemporaryDirectory() as base:
        for number, name in enumerate(given.cases):
            figures, reason, message = outcome(CASES[name], data, Path(base) / str(number))
            good = right(CASES[name], reason, figures["centre_error"])
            wrong += not good
            said = f"{reason}: {message}" if reason else f"off {figures['centre_error']:.2%}"
            verdict = "" if good else "WRONG "
            print(
                f"{verdict}{name} ({figures['cpu_s']:.0f} s): {said}", file=sys.stderr, flush=True
            )
            results.append(
                Result(name=f"held[{name}]", value=float(bool(reason)), unit="", better="lower")
            )
            results += [
                Result(name=f"{key}[{name}]", value=value, unit="", better="lower")
                for key, value in figures.items()
                if not math.isnan(value)
            ]
    results.append(Result(name="wrong", value=float(wrong), unit="", better="lower", target=0.0))
    return show("junk", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
