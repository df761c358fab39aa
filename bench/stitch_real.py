"""Stitches of films: `python -m bench.stitch_real [--json] [--work DIR] [--sets synth reef drone]`

Segments of COSMA_TEST_DATA (by default ../shared/data) are reconstructed by the product's own
stages at its defaults, each into a frame of its own; pairs are registered, judged and solved as in
a stitch, with what gravity and positions say. With --work what SfM made is kept there and taken
from there the next time, and only the sidecars are made again. Sets whose files are not there are
left out, and named on stderr.

placed.SET             members that hang together, of all
point_rmse_cm.SET      synth_a (A1 A2 A3), synth_b (B1 B2), synth_axb (all five): all points of the
                       stitch against where their own cameras' exact poses put them, the whole
                       brought to the truth once
gx_offset              GX01 and GX02 of the reef, 1.4 s in common: root mean square of GX02's points
                       from where the poses of the whole clip put them, over the extent of both
camera_error_m.drone   two vehicles over 153 x 183 m: root mean square of the cameras of the worst
                       segment from the joint solution, in metres by GPS; camera_level_error_m:
                       of that, what is not height
gps_residual_m         drone, drone_joint: the same cameras, and those of the joint solution, from
                       their GPS after one similarity, not counting height: root mean square
bent_refused.reef      of two halves of the reef clip, solved as if their lens had no distortion,
                       which bends both: pairs refused (both; each with a sound half; and each of
                       these again by points alone). sound_accepted.reef: the halves as the lens is
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation, Slerp

from bench.reconstruct import DATA, SETS, Set, config_for, run_stage, stages_up_to_sfm
from bench.results import Result, parser, show, told
from bench.stitch import RATIO, THRESHOLDS
from stitch.evidence import Party, gather
from stitch.from_model import from_reconstruction
from stitch.known_edges import KnownEdges
from stitch.pairs import Known, register_pair
from stitch.score import judge
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3, umeyama
from worker_agent.demo.truth import align_cameras, load_truth
from worker_agent.stages.sfm_georeference import to_enu
from worker_agent.stages.stitch_world import all_readings, fit

_CHAPTERS = {
    "gx01": ("gopro_reef_hero10/segments/GX010042.MP4", 0.0),
    "gx02": ("gopro_reef_hero10/segments/GX020042.MP4", 2.8),
}
_REFERENCE_FPS = 6.0
_HALVES = {"first": (0.0, 0.65), "second": (0.35, 1.0)}
SYNTH = {
    "synth_a": ("A1", "A2", "A3"),
    "synth_b": ("B1", "B2"),
    "synth_axb": ("A1", "A2", "A3", "B1", "B2"),
}


class Films:
    def __init__(self, data: Path, work: Path) -> None:
        self.data, self._work = data, work

    def run_dir(self, name: str) -> Path:
        """Of a segment that was reconstructed, now or before."""
        from worker_agent.stages import sfm

        chosen = self._set(name)
        folder, clip = self._work / name, self.data / chosen.clip
        if not (folder / "output" / "registration.npz").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            config = config_for(chosen)
            config["sfm"] |= lens_of(clip)
            stages_up_to_sfm(folder, clip, config)
            run_stage(sfm.main, folder, clip.name, config)
        return folder

    def sidecar(self, name: str) -> Sidecar:
        folder = self.run_dir(name)
        made = remade(pycolmap.Reconstruction(str(folder / "sfm" / "model")), folder)
        stored = Sidecar.load(folder / "output" / "registration.npz")
        return dataclasses.replace(made, gps=stored.gps, gravity=stored.gravity)

    def has(self, *names: str) -> bool:
        missing = [
            clip for name in names if not (clip := self.data / self._set(name).clip).exists()
        ]
        for clip in missing:
            print(f"left out: {clip} is not there", file=sys.stderr)
        return not missing

    def _set(self, name: str) -> Set:
        if name in _CHAPTERS:
            return dataclasses.replace(SETS["reef"], clip=_CHAPTERS[name][0])
        return SETS[name]


def lens_of(clip: Path) -> dict[str, Any]:
    """Settings of SfM from what the pictures' EXIF said, where it is known: straight above level
    ground a focal length can hardly be told from an altitude."""
    table = clip.with_suffix(".gps.csv")
    if not table.is_file():
        return {}
    with table.open() as stream:
        row = next(csv.DictReader(stream))
    cameras = json.loads((clip.parents[1] / "reference_poses.json").read_text())["cameras"]
    camera = next(iter(cameras.values()))
    width, height = camera["width"], camera["height"]
    focal = width * float(row["focal35"]) / 36.0
    return {
        "camera_model": "SIMPLE_RADIAL",
        "camera_params": [focal, width / 2, height / 2, 0.0],
    }


def remade(model: pycolmap.Reconstruction, folder: Path) -> Sidecar:
    """The sidecar of a model of a run's frames."""
    rows = json.loads((folder / "output" / "manifest.json").read_text())["frames"]
    return from_reconstruction(
        model,
        folder / "sfm" / "database.db",
        images=folder / "frames",
        times={row["name"]: row["time_s"] for row in rows},
        gravity={},
        gps={},
        quality={},
    )


class Scene:
    """Members as one stitch, with what their gravity and positions say: `poses` of those in its
    largest part."""

    def __init__(self, sidecars: Sequence[Sidecar]) -> None:
        parties = [Party(Known(Path(), sidecar), str(k)) for k, sidecar in enumerate(sidecars)]
        readings, _ = all_readings(sidecars)
        found = gather(parties, readings, fit, THRESHOLDS, RATIO, KnownEdges(RATIO))
        for edge, verdict in zip(found.edges, found.verdicts, strict=True):
            print(
                f"  {edge.source} to {edge.target}: {verdict.accepted} {verdict.reason}",
                file=sys.stderr,
            )
        self.placed = found.solution.members
        self.poses = {i: found.solution.poses[i] for i in self.placed}


def turned(sidecar: Sidecar) -> Rotation:
    """World from camera, of all keyframes."""
    return Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1)).inv()


def synthetic(films: Films, name: str) -> list[Result]:
    members = SYNTH[name]
    sidecars = [films.sidecar(f"synth_{member.lower()}") for member in members]
    truths = []
    for member, sidecar in zip(members, sidecars, strict=True):
        truth = load_truth(films.data / "synth_seabed" / f"{member}.json")
        centres, rotations = truth.at(sidecar.keyframe_time_s)
        truths.append(align_cameras(sidecar.centres(), turned(sidecar), centres, rotations))
    scene = Scene(sidecars)
    found = [scene.poses[i].apply(sidecars[i].points) for i in scene.placed]
    wanted = [truths[i].apply(sidecars[i].points.astype(np.float64)) for i in scene.placed]
    error = np.linalg.norm(_off(np.concatenate(found), np.concatenate(wanted)), axis=1)
    return [
        _placed(name, scene, len(members)),
        told(f"point_rmse_cm.{name}", 100 * _rms(error), "cm", 1.0),
    ]


def chapters(films: Films) -> list[Result]:
    text = (films.data / "gopro_reef_hero10/reference_poses_6fps_960px.json").read_text()
    images = sorted(json.loads(text)["images"].items())
    times = np.array([(int(name[1:5]) - 1) / _REFERENCE_FPS for name, _ in images])
    centres = np.array([image["centre"] for _, image in images])
    rotations = Rotation.from_matrix([image["R_cw"] for _, image in images]).inv()
    sidecars, truths = [], []
    for name, (_, start) in _CHAPTERS.items():
        sidecar = films.sidecar(name)
        at = np.clip(sidecar.keyframe_time_s + start, times[0], times[-1])
        there = np.stack([np.interp(at, times, column) for column in centres.T], axis=1)
        truths.append(
            align_cameras(sidecar.centres(), turned(sidecar), there, Slerp(times, rotations)(at))
        )
        sidecars.append(sidecar)
    scene = Scene(sidecars)
    results = [_placed("gx", scene, 2)]
    if len(scene.placed) == 2:
        points = sidecars[1].points.astype(np.float64)
        through = truths[0].apply(scene.poses[1].apply(points))
        straight = truths[1].apply(points)
        both = np.concatenate([straight, truths[0].apply(sidecars[0].points.astype(np.float64))])
        low, high = np.percentile(both, [5, 95], axis=0)
        off = _rms(np.linalg.norm(through - straight, axis=1)) / float(np.linalg.norm(high - low))
        results.append(told("gx_offset", off, "of the extent", 0.01))
    return results


def drone(films: Films) -> list[Result]:
    folder = films.data / "drone_two_vehicles"
    joint = json.loads((folder / "reference_poses.json").read_text())["images"]
    centres = {Path(name).name: np.array(image["centre"]) for name, image in joint.items()}
    photos: dict[str, list[str]] = {}
    fixes: dict[str, tuple[float, float, float]] = {}
    clips = {name: Path(SETS[name].clip).stem for name in ("drone_a", "drone_b1", "drone_b2")}
    for name, clip in clips.items():
        with (folder / "segments" / f"{clip}.gps.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        photos[name] = [row["image"] for row in rows]
        for row in rows:
            fixes[row["image"]] = (float(row["lat"]), float(row["lon"]), float(row["alt_m"]))
    # East by one latitude for all: by each one's own, the map would be sheared by 178 m.
    metres = dict(zip(fixes, to_enu(list(fixes.values()))[0], strict=True))
    names = sorted(centres)
    to_metres = umeyama(np.array([centres[n] for n in names]), np.array([metres[n] for n in names]))
    sidecars = [films.sidecar(name) for name in clips]
    scene = Scene(sidecars)
    found, wanted, told_by_gps = [], [], []
    for i in scene.placed:
        rows_of = np.round(sidecars[i].keyframe_time_s * SETS["drone_a"].fps).astype(int)
        shown = [photos[list(clips)[i]][row] for row in rows_of]
        found.append(scene.poses[i].apply(sidecars[i].centres()))
        wanted.append(to_metres.apply(np.array([centres[photo] for photo in shown])))
        told_by_gps.append(np.array([metres[photo] for photo in shown]))
    off = _off(np.concatenate(found), np.concatenate(wanted))
    ends = np.cumsum([len(each) for each in found])[:-1]
    worst, level = (
        max(_rms(np.linalg.norm(each, axis=1)) for each in np.split(part, ends))
        for part in (off, off[:, :2])
    )
    gps = np.concatenate(told_by_gps)
    residual = {
        name: _rms(np.linalg.norm(_off(np.concatenate(each), gps)[:, :2], axis=1))
        for name, each in (("drone", found), ("drone_joint", wanted))
    }
    return [
        _placed("drone", scene, 3),
        told("camera_error_m.drone", worst, "m", 2.0),
        told("camera_level_error_m.drone", level, "m", 2.0),
        *(told(f"gps_residual_m.{name}", value, "m", None) for name, value in residual.items()),
    ]


def halves(films: Films) -> list[Result]:
    folder = films.run_dir("reef")
    whole = films.sidecar("reef")
    made: dict[str, dict[str, Sidecar]] = {"sound": {}, "bent": {}}
    for kind, found in made.items():
        for half, (first, end) in _HALVES.items():
            count = len(whole.keyframe_names)
            names = whole.keyframe_names[int(first * count) : int(end * count)]
            found[half] = _half(folder, kind, half, names)
            print(
                f"  {kind} {half} half: {len(found[half].keyframe_names)} frames, "
                f"{found[half].error_px.mean():.2f} px", file=sys.stderr,
            )  # fmt: skip
    bent, sound = made["bent"], made["sound"]
    pairs = [(bent["first"], bent["second"])]
    pairs += [(bent["first"], sound["second"]), (sound["first"], bent["second"])]
    refused = []
    for target, source in pairs + [(_nameless(a), b) for a, b in pairs]:
        refused.append(not _accepted(source, target))
    accepted = [
        _accepted(sound["second"], target) for target in (sound["first"], _nameless(sound["first"]))
    ]
    return [
        told("bent_refused.reef", float(np.mean(refused)), f"of {len(refused)}", 1.0, "higher"),
        told("sound_accepted.reef", float(np.mean(accepted)), "of 2", 1.0, "higher"),
    ]


def _half(folder: Path, kind: str, half: str, names: Sequence[str]) -> Sidecar:
    """Some frames solved from the features of the whole; the lens is held as it is given."""
    out = folder / "halves" / f"{kind}_{half}"
    if not (out / "0").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copyfile(folder / "sfm" / "database.db", out / "database.db")
        model = pycolmap.Reconstruction(str(folder / "sfm" / "model"))
        lens = next(iter(model.cameras.values()))
        if kind == "bent":
            focal, middle = lens.mean_focal_length(), (lens.width / 2, lens.height / 2)
            plain: dict[str, Any] = {"model": "SIMPLE_PINHOLE", "width": lens.width}
            plain |= {"height": lens.height, "params": [focal, *middle]}
            plain |= {"camera_id": lens.camera_id}
            lens = pycolmap.Camera(**plain)
        lens.has_prior_focal_length = True
        with pycolmap.Database.open(str(out / "database.db")) as database:
            database.update_camera(lens)
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed = 1, 0
        options.multiple_models = False
        options.image_names = list(names)
        options.constant_cameras = {lens.camera_id}
        options.mapper.init_min_tri_angle, options.mapper.init_max_forward_motion = 4.0, 1.0
        pycolmap.incremental_mapping(out / "database.db", folder / "frames", out, options=options)
    return remade(pycolmap.Reconstruction(str(out / "0")), folder)


def _nameless(sidecar: Sidecar) -> Sidecar:
    """The same, with no frame that another would know."""
    unknown = np.zeros(len(sidecar.keyframe_names), np.uint64)
    return dataclasses.replace(sidecar, keyframe_hashes=unknown)


def _accepted(source: Sidecar, target: Sidecar) -> bool:
    edge = register_pair(1, Known(Path(), source), 0, Known(Path(), target), RATIO)
    verdict = judge(edge, THRESHOLDS)
    print(f"  {edge.method}: {verdict.accepted} {verdict.reason}", file=sys.stderr)
    return verdict.accepted


def _off(found: F64, wanted: F64) -> F64:
    """What is left (N,3) after one similarity."""
    frame: Sim3 = umeyama(found, wanted)
    return frame.apply(found) - wanted


def _rms(error: F64) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _placed(name: str, scene: Scene, of: int) -> Result:
    return told(f"placed.{name}", len(scene.placed), f"of {of}", of, "higher")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, help="folder that keeps what SfM made")
    options.add_argument("--sets", nargs="+", choices=("synth", "reef", "drone"), metavar="SET")
    given = options.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    wanted = given.sets or ("synth", "reef", "drone")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
        films = Films(data, given.work or Path(scratch))
        for name, members in SYNTH.items():
            if "synth" in wanted and films.has(*(f"synth_{m.lower()}" for m in members)):
                results += synthetic(films, name)
        if "reef" in wanted and films.has("reef", *_CHAPTERS):
            results += [*chapters(films), *halves(films)]
        if "drone" in wanted and films.has("drone_a", "drone_b1", "drone_b2"):
            results += drone(films)
    if not results:
        print(f"no set is there: set COSMA_TEST_DATA (now {data})", file=sys.stderr)
        return 1
    return show("stitch_real", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
