"""Reconstruction on real and synthetic clips: what registers, how exactly, how well it trains.

Data: COSMA_TEST_DATA, by default ../shared/data. A set whose files are not there is left out, and
named on stderr; its figures are missing, never made up.

For each set, all stages up to ColmapReconstruction at the settings of `SETS`:
registered_share: frames that count as registered, of those extracted.
reprojection_px, gravity_spread_deg: of the accepted model.
centre_error_cm, focal_error_percent: synthetic sets: centres after one similarity to the truth.
identical_share: of --repeats runs of SfM with one thread and one seed, those whose poses and camera
    are bit for bit those of the first.

On the reef: training at 320 pixels by the plans of `PLANS`. psnr and ssim are of the held-out
views; cpu_s the CPU-seconds of the training (without the loading of frames and kernels).
raster_over_torch: CPU-seconds of one forward and backward pass of bench/torch_raster.py over those
    of the rasterizer, the trained gaussians from a held-out view, interleaved, one thread each.
gradient_error: largest relative error (norm) over the parameters against float64 autograd.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig

if TYPE_CHECKING:
    from worker_agent.training.trainer import Trainer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """One clip; `truth` is its file of exact poses. Targets of None are only told."""

    clip: str
    fps: float
    width: int
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training within `cpu_s` CPU-seconds and what must come of it."""

    cpu_s: int
    steps: int
    cap: int
    psnr: float
    ssim: float


PLANS = (
    Plan(cpu_s=60, steps=1500, cap=30_000, psnr=24.5, ssim=0.84),
    Plan(cpu_s=180, steps=3600, cap=50_000, psnr=25.5, ssim=0.90),
)
TRAINED = "reef"
ROUNDS = 5  # of the two rasterizers
GRADIENT_GAUSSIANS = 3000  # float64 autograd keeps every pixel of every gaussian


def stages_up_to_sfm(run_dir: Path, clip: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Everything before SfM, in this process."""
    from worker_agent.stages import frames, manifest, metadata, validate

    (run_dir / "input").mkdir(parents=True)
    shutil.copyfile(clip, run_dir / "input" / clip.name)
    for stage in (validate, frames, metadata, manifest):
        made = _stage(stage.main, run_dir, clip.name, config)
    return made


def _stage(
    main: Callable[..., Any], run_dir: Path, clip: str, config: dict[str, Any]
) -> dict[str, Any]:
    from worker_agent.protocol import AttemptSpec
    from worker_agent.stages.api import Reporter

    spec = AttemptSpec(
        protocol=1,
        epoch=1,
        acquisition="bench",
        job="bench",
        attempt=1,
        stage="",
        run_dir=str(run_dir),
        config=config,
        inputs={"clips": [{"name": clip, "order": 0}], "segment": "bench"},
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
            facts = _stage(sfm.main, run_dir, clip.name, config)
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


def trained(name: str, plan: Plan, run_dir: Path) -> tuple[list[Result], Trainer]:
    from worker_agent.training.backend import cpu_backend
    from worker_agent.training.dataset import load_dataset
    from worker_agent.training.settings import TrainSettings
    from worker_agent.training.trainer import Trainer

    train = PipelineConfig().as_dict()["train"]
    train["cpu"] |= {"width": 320, "steps": plan.steps, "cap": plan.cap, "threads": 1}
    settings = TrainSettings.from_config(train, "cpu")
    dataset = load_dataset(
        run_dir / "frames",
        run_dir / "sfm" / "model",
        width=settings.width,
        test_every=settings.test_every,
    )
    backend = cpu_backend(settings.threads)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            dataset,
            settings,
            backend,
            checkpoint=Path(scratch) / "checkpoint.pt",
            warn=lambda line: print(line, file=sys.stderr),
        )
        began = time.process_time()
        result = trainer.run(lambda _: None)
        seconds = time.process_time() - began
    label = f"{plan.cpu_s}[{name}]"
    return [
        Result(
            name=f"psnr_{label}",
            value=result.quality.psnr,
            unit="dB",
            better="higher",
            target=plan.psnr,
        ),
        Result(
            name=f"ssim_{label}",
            value=result.quality.ssim,
            unit="",
            better="higher",
            target=plan.ssim,
        ),
        Result(name=f"cpu_s_{label}", value=seconds, unit="s", better="lower", target=plan.cpu_s),
        Result(name=f"gaussians_{label}", value=result.gaussians, unit="", better="lower"),
    ], trainer


def rasterizers(name: str, trainer: Trainer) -> list[Result]:
    """The two rasterizers on the trained gaussians, and gradients of a part of them."""
    import numba
    import torch

    from bench.torch_raster import rasterize
    from worker_agent.training.rasterize_cpu import rasterization

    numba.set_num_threads(1)
    dataset = trainer.dataset
    view = dataset.test[0]
    width, height = dataset.size
    viewmat, intrinsics = dataset.viewmats[view], dataset.intrinsics[view]
    p = {key: value.detach() for key, value in trainer.parameters.items()}
    trainee = [
        p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(),
        torch.cat([p["sh0"], p["shN"]], dim=1),
    ]  # fmt: skip
    degree = round(trainee[-1].shape[1] ** 0.5) - 1
    weight = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))

    def torch_only(values: list[torch.Tensor]) -> torch.Tensor:
        kind = values[0].dtype
        return rasterize(
            *values, viewmat.to(kind), intrinsics.to(kind), width, height, degree
        )  # fmt: skip

    def tiled(values: list[torch.Tensor]) -> torch.Tensor:
        image, _, _ = rasterization(
            *values,
            viewmats=viewmat[None],
            Ks=intrinsics[None],
            width=width,
            height=height,
            sh_degree=degree,
        )
        return image[0]

    def gradients(
        render: Callable[[list[torch.Tensor]], torch.Tensor],
        values: list[torch.Tensor],
        kind: torch.dtype,
    ) -> tuple[list[torch.Tensor], float]:
        leaves = [value.to(kind).clone().requires_grad_() for value in values]
        began = time.process_time()
        (render(leaves) * weight.to(kind)).sum().backward()
        seconds = time.process_time() - began
        return [leaf.grad for leaf in leaves if leaf.grad is not None], seconds

    ratios = []
    for _ in range(ROUNDS):
        slow = gradients(torch_only, trainee, torch.float32)[1]
        ratios.append(slow / gradients(tiled, trainee, torch.float32)[1])
    order = torch.randperm(len(trainee[0]), generator=torch.Generator().manual_seed(1))
    part = [value[order[:GRADIENT_GAUSSIANS]] for value in trainee]
    mine, truth = (
        gradients(tiled, part, torch.float32)[0],
        gradients(torch_only, part, torch.float64)[0],
    )
    error = max(
        float((one.double() - two).norm() / two.norm())
        for one, two in zip(mine, truth, strict=True)
    )
    return [
        Result(
            name=f"raster_over_torch[{name}]",
            value=statistics.median(ratios),
            unit="x",
            better="higher",
            target=10.0,
        ),
        Result(name=f"gradient_error[{name}]", value=error, unit="", better="lower", target=1e-5),
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    options.add_argument("--repeats", type=int, default=10, help="runs of SfM of each set")
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
            results += registered(name, chosen, data, run_dir, given.repeats)
            if name == TRAINED and not given.no_train and (run_dir / "sfm" / "model").is_dir():
                for plan in PLANS:
                    figures, trainer = trained(name, plan, run_dir)
                    results += figures
                    if plan is PLANS[0]:
                        results += rasterizers(name, trainer)
            shutil.rmtree(run_dir)
    if not results:
        print(f"no set is there: set COSMA_TEST_DATA (now {data})", file=sys.stderr)
        return 1
    return show("reconstruct", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
