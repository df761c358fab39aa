"""Reconstruction on real and synthetic clips: what registers, how exactly, how well it trains.

Data: COSMA_TEST_DATA, by default ../shared/data. A set whose files are not there is left out, and
named on stderr; its figures are missing, never made up.

For each set, all stages up to ColmapReconstruction at the settings of `SETS`:
registered_share: frames that count as registered, of those extracted.
reprojection_px, gravity_spread_deg: of the accepted model.
centre_error_cm, focal_error_percent: synthetic sets: centres after one similarity to the truth.
identical_share: of --repeats runs of SfM with one thread and one seed, those whose poses and camera
    are bit for bit those of the first.

On the reef: training at 320 pixels by the plans of bench/trained.py. psnr and ssim are of the
held-out views; cpu_s the CPU-seconds of the training (without loading frames and kernels).
raster_over_torch: CPU-seconds of one forward and backward pass of bench/torch_raster.py over those
    of the rasterizer, the trained gaussians from a held-out view, interleaved, one thread each.
gradient_error: largest relative error (norm) over the parameters against float64 autograd, the
    worst of five drawings of gaussians, and of the trained gaussians in all held-out views;
    gradient_error_torch: the same of torch's own float32 autograd.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """One clip; `truth` is its file of exact poses. Targets of None are only told."""

    clip: str
    fps: float
    width: int | None  # None: as it was filmed
    truth: str = ""
    reprojection_px: float | None = None
    gravity_deg: float | None = None


SETS = {
    "reef": Set(
        clip="gopro_reef_hero10/reef_clip.mp4",
        fps=6.0,
        width=960,
        reprojection_px=0.65,
        gravity_deg=0.5,
    ),
    "karma": Set(clip="gopro_karma_hero5/karma.mp4", fps=4.0, width=960),
    "drone_a": Set(clip="drone_two_vehicles/segments/vehA_seg1.mp4", fps=2.0, width=960),
    "drone_b1": Set(clip="drone_two_vehicles/segments/vehB_seg1.mp4", fps=2.0, width=960),
    "drone_b2": Set(clip="drone_two_vehicles/segments/vehB_seg2.mp4", fps=2.0, width=960),
    **{
        f"synth_{name.lower()}": Set(
            clip=f"synth_seabed/{name}.mp4",
            fps=2.5,
            width=640,
            truth=f"synth_seabed/{name}.json",
        )
        for name in ("A1", "A2", "A3", "B1", "B2")
    },
}
MAX_CENTRE_ERROR_CM = 0.3
MAX_FOCAL_ERROR_PERCENT = 0.2


TRAINED = "reef"


def stages_up_to_sfm(run_dir: Path, clip: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Everything before SfM, in this process."""
    from worker_agent.stages import frames, manifest, metadata, validate
    from worker_agent.stages.inputs import OWN

    (run_dir / "input").mkdir(parents=True)
    shutil.copyfile(clip, run_dir / "input" / clip.name)
    if (log := clip.with_suffix(".gps.csv")).is_file():
        shutil.copyfile(log, run_dir / "input" / (clip.name + OWN))
    for stage in (validate, frames, metadata, manifest):
        made = run_stage(stage.main, run_dir, clip.name, config)
    return made


def run_stage(
    main: Callable[..., Any], run_dir: Path, clip: str, config: dict[str, Any]
) -> dict[str, Any]:
    from worker_agent.protocol import AttemptSpec
    from worker_agent.stages.api import Reporter
    from worker_agent.stages.inputs import OWN

    log = {"nav": clip + OWN} if (run_dir / "input" / (clip + OWN)).is_file() else {}
    spec = AttemptSpec(
        protocol=1,
        epoch=1,
        acquisition="bench",
        job="bench",
        attempt=1,
        stage="",
        run_dir=str(run_dir),
        config=config,
        inputs={"clips": [{"name": clip, "order": 0, **log}], "segment": "bench"},
    )
    events = os.open(run_dir / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        metrics: dict[str, Any] = main(spec, Reporter(events, 1)).metrics
    finally:
        os.close(events)
    return metrics


def config_for(chosen: Set) -> dict[str, Any]:
    """The product's defaults at the set's frame rate and width, one thread."""
    config = PipelineConfig().as_dict()
    config["frames"] |= {"fps": chosen.fps, "width": chosen.width}
    config["sfm"] |= {"threads": 1}
    return config


def registered(name: str, chosen: Set, data: Path, run_dir: Path, repeats: int) -> list[Result]:
    from worker_agent.stages import sfm
    from worker_agent.stages.api import StageFailure

    config = config_for(chosen)
    clip = data / chosen.clip
    stages_up_to_sfm(run_dir, clip, config)
    digests: list[str] = []
    facts: dict[str, Any] = {}
    for _ in range(max(1, repeats)):
        shutil.rmtree(run_dir / "sfm", ignore_errors=True)
        began = _cpu_s()
        try:
            facts = run_stage(sfm.main, run_dir, clip.name, config)
        except StageFailure as failure:
            print(f"{name}: {failure.reason}: {failure.message}", file=sys.stderr)
            return [_share(name, 0.0)]
        seconds = _cpu_s() - began
        digests.append(_digest(run_dir / "sfm" / "model"))
    results = [
        _share(name, facts["registered_share"]),
        Result(
            name=f"reprojection_px[{name}]",
            value=facts["reprojection_px"],
            unit="px",
            better="lower",
            target=chosen.reprojection_px,
        ),
        Result(name=f"sfm_cpu_s[{name}]", value=seconds, unit="s", better="lower"),
    ]
    if facts["gravity_spread_deg"] is not None:
        results.append(
            Result(
                name=f"gravity_spread_deg[{name}]",
                value=facts["gravity_spread_deg"],
                unit="deg",
                better="lower",
                target=chosen.gravity_deg,
            )
        )
    if chosen.truth:
        results += against_truth(name, data / chosen.truth, run_dir)
    if repeats > 1:
        same = digests.count(digests[0]) / len(digests)
        results.append(
            Result(
                name=f"identical_share[{name}]", value=same, unit="", better="higher", target=1.0
            )
        )
    return results


def _share(name: str, value: float) -> Result:
    return Result(
        name=f"registered_share[{name}]", value=value, unit="", better="higher", target=1.0
    )


def _cpu_s() -> float:
    """Of this process and its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _digest(model: Path) -> str:
    """Of every pose and camera, bit for bit."""
    import pycolmap

    reconstruction = pycolmap.Reconstruction(str(model))
    digest = hashlib.sha256()
    for image in sorted(reconstruction.images.values(), key=lambda image: str(image.name)):
        digest.update(str(image.name).encode())
        if image.has_pose:
            digest.update(image.cam_from_world().matrix().tobytes())
    for camera in reconstruction.cameras.values():
        digest.update(camera.params.tobytes())
    return digest.hexdigest()


def against_truth(name: str, path: Path, run_dir: Path) -> list[Result]:
    import numpy as np
    import pycolmap

    from stitch.sidecar import Sidecar
    from worker_agent.demo.truth import align_centres, load_truth

    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    truth = load_truth(path)
    expected, _ = truth.at(sidecar.keyframe_time_s)
    found = sidecar.centres()
    apart = align_centres(found, expected).apply(found) - expected
    error_cm = 100 * float(np.sqrt((apart**2).sum(1).mean()))
    camera = next(iter(pycolmap.Reconstruction(str(run_dir / "sfm" / "model")).cameras.values()))
    facts = json.loads(path.read_text())
    focal = facts["fx"] * camera.width / facts["width"]
    off = 100 * abs(camera.mean_focal_length() / focal - 1)
    return [
        Result(
            name=f"centre_error_cm[{name}]",
            value=error_cm,
            unit="cm",
            better="lower",
            target=MAX_CENTRE_ERROR_CM,
        ),
        Result(
            name=f"focal_error_percent[{name}]",
            value=off,
            unit="%",
            better="lower",
            target=MAX_FOCAL_ERROR_PERCENT,
        ),
    ]


def told(result: Result) -> Result:
    """Said at once: the whole takes long."""
    verdict = "" if result.ok else "  MISSED"
    print(f"{result.name} {result.value:.4g} {result.unit}{verdict}", file=sys.stderr, flush=True)
    return result


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    options.add_argument("--repeats", type=int, default=3, help="runs of SfM of each set")
    options.add_argument("--no-train", action="store_true", help="SfM only")
    given = options.parse_args()
    data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as base:
        for name in given.sets:
            chosen = SETS[name]
            if not (data / chosen.clip).is_file():
                print(f"{name} is left out: {data / chosen.clip} is not there", file=sys.stderr)
                continue
            run_dir = Path(base) / name
            for result in registered(name, chosen, data, run_dir, given.repeats):
                results.append(told(result))
            if name == TRAINED and not given.no_train and (run_dir / "sfm" / "model").is_dir():
                from bench.trained import figures  # torch and numba, for nothing else here

                for result in figures(name, run_dir):
                    results.append(told(result))
            shutil.rmtree(run_dir)
    if not results:
        print(f"no set is there: set COSMA_TEST_DATA (now {data})", file=sys.stderr)
        return 1
    return show("reconstruct", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
