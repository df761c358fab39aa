"""What a stitch does to pictures: held-out views of two segments, alone and merged.

`python -m bench.rendered [--json] [--pair A1 A2] [--steps N] [--keep DIR]`

Data: COSMA_TEST_DATA/synth_seabed (by default ../shared/data). Two tracks, neighbours of one
vehicle or (A2 B1) crossing ones of two, are reconstructed and trained one by one on the CPU, as the
farm does it, registered by their sidecars and merged; every held-out view of both is then rendered
from its own segment, from the other one (moved to it) and from the merged scene. Names:

rendered_loss_alone_db      where only the view's own segment holds ground: PSNR lost by the merge
rendered_gain_overlap_db    where both do: PSNR of the merged scene over that of the better segment,
                             each over the held-out views of both tracks
rendered_over_own_db        there, view by view, over the segment that the view itself is of (on its
                             own track a segment is at its best; the merged scene is of both)
rendered_over_mean_db       there, view by view, over the mean of both segments
rendered_holes              share of the pixels where the view's own segment is solid (opacity 0.9)
                             and the merged scene is not (0.5)
rendered_own_db             PSNR of the segments on their own held-out views, for scale
rendered_density            gaussians at the seam over those of a single capture

With --aspects the scene is merged with `stitch.aspects`.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.reconstruct import DATA, run_stage, stages_up_to_sfm
from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig

FPS, WIDTH, SFM_WIDTH = 2.0, 240, 480
CAP = 12_000
HELD = 0.5  # opacity of a rendered pixel that counts as ground that a segment holds
SOLID = 0.9
MOST_PIXELS = 0.02  # of a view: fewer say nothing


@dataclass(frozen=True, slots=True)
class Trained:
    """`gaussians` in the frame of the segment's own reconstruction."""

    ply: Path
    sidecar: Any
    dataset: Any
    gaussians: Any


def trained(name: str, clip: Path, folder: Path, steps: int) -> Trained:
    from stitch.ply import write_ply
    from stitch.sidecar import Sidecar
    from worker_agent.stages import sfm
    from worker_agent.training.backend import cpu_backend
    from worker_agent.training.dataset import load_dataset
    from worker_agent.training.gaussians import to_world
    from worker_agent.training.settings import TrainSettings
    from worker_agent.training.trainer import Trainer

    run_dir = folder / name
    config = PipelineConfig().as_dict()
    config["frames"] |= {"fps": FPS, "width": SFM_WIDTH}
    config["sfm"] |= {"threads": 1}
    config["train"]["cpu"] |= {"width": WIDTH, "steps": steps, "cap": CAP, "threads": 1}
    stages_up_to_sfm(run_dir, clip, config)
    run_stage(sfm.main, run_dir, clip.name, config)
    settings = TrainSettings.from_config(config["train"], "cpu")
    dataset = load_dataset(
        run_dir / "frames", run_dir / "sfm" / "model", width=WIDTH, test_every=settings.test_every
    )
    trainer = Trainer(
        dataset,
        settings,
        cpu_backend(settings.threads),
        checkpoint=run_dir / "checkpoint.pt",
        warn=lambda line: print(line, file=sys.stderr),
    )
    trainer.run(lambda _: None)
    gaussians = to_world(trainer.parameters, dataset.normalisation)
    ply = run_dir / "own.ply"
    write_ply(ply, gaussians)
    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    return Trained(ply, sidecar, dataset, gaussians)


def rendered(gaussians: Any, dataset: Any, view: int) -> tuple[Any, Any]:
    """Colours (H,W,3) and opacity (H,W) of gaussians in the frame of the dataset's model."""
    import torch

    from worker_agent.training.gaussians import from_world
    from worker_agent.training.rasterize_cpu import rasterization

    p = {key: value.detach() for key, value in from_world(gaussians, dataset.normalisation).items()}
    width, height = dataset.size
    with torch.no_grad():
        image, alpha, _ = rasterization(
            p["means"],
            p["quats"] / p["quats"].norm(dim=1, keepdim=True),
            p["scales"].exp(),
            p["opacities"].sigmoid(),
            torch.cat([p["sh0"], p["shN"]], dim=1),
            dataset.viewmats[view][None],
            dataset.intrinsics[view][None],
            width,
            height,
            sh_degree=gaussians.sh_degree,
        )
    return image[0].clamp(0, 1), alpha[0].reshape(height, width)


def compared(
    names: list[str], segments: list[Trained], folder: Path, aspects: bool = False
) -> dict[str, list[float]]:
    import numpy as np
    import torch

    from stitch.merge import Finish, merge_gaussians
    from stitch.pairs import Known, register_pair
    from stitch.ply import read_ply
    from stitch.score import Thresholds, judge
    from stitch.sim3 import Sim3, transform_gaussians
    from stitch.territory import Member

    known = [Known(one.ply, one.sidecar) for one in segments]
    edge = register_pair(1, known[1], 0, known[0], 0.85)
    verdict = judge(edge, Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1))
    print(verdict.reason, file=sys.stderr)
    if edge.sim3 is None or not verdict.accepted:
        raise SystemExit(f"the pair is refused: {verdict.reason}")
    poses = [Sim3.identity(), edge.sim3]
    members = [Member(n, p, s.sidecar) for n, p, s in zip(names, poses, segments, strict=True)]
    merged = merge_gaussians(
        members,
        [one.ply for one in segments],
        folder / "scene.ply",
        finish=Finish(aspects=aspects),
    )
    scene = read_ply(folder / "scene.ply")
    found: dict[str, list[float]] = {
        name: [] for name in ("loss_alone", "over_own", "over_mean", "own", "holes")
    }
    squares = [0.0, 0.0, 0.0]  # where both hold ground: by each segment, and merged
    found["density"] = [seam.density for seam in merged.seams]

    def ratio(image: Any, truth: Any, mask: Any) -> float:
        return float(-10 * torch.log10(((image - truth)[mask] ** 2).mean()))

    for number, own in enumerate(segments):
        back = poses[number].inverse()
        other = transform_gaussians(segments[1 - number].gaussians, back @ poses[1 - number])
        whole = transform_gaussians(scene, back)
        for view in own.dataset.test:
            truth = torch.from_numpy(np.asarray(own.dataset.images[view])).float()
            truth = truth / 255 if truth.max() > 1.5 else truth
            pictures = [rendered(g, own.dataset, view) for g in (own.gaussians, other, whole)]
            (mine, here), (theirs, there), (both, merged_there) = pictures
            bare = (here > SOLID) & (merged_there < HELD)
            found["holes"].append(float(bare.float().mean()))
            alone = (here > HELD) & (there < 0.1)
            overlap = (here > HELD) & (there > HELD)
            found["own"].append(ratio(mine, truth, here > -1))
            if alone.float().mean() > MOST_PIXELS:
                found["loss_alone"].append(ratio(mine, truth, alone) - ratio(both, truth, alone))
            if overlap.float().mean() > MOST_PIXELS:
                three, one = ratio(both, truth, overlap), ratio(mine, truth, overlap)
                found["over_own"].append(three - one)
                found["over_mean"].append(three - (one + ratio(theirs, truth, overlap)) / 2)
                for which, picture in ((number, mine), (1 - number, theirs), (2, both)):
                    squares[which] += float(((picture - truth)[overlap] ** 2).sum())
    best = min(squares[:2])
    found["gain_overlap"] = [10 * math.log10(best / squares[2])]
    return found


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--pair", nargs=2, default=["A1", "A2"], metavar="TRACK")
    options.add_argument("--steps", type=int, default=500, help="of each training")
    options.add_argument("--aspects", action="store_true")
    options.add_argument("--keep", metavar="DIR", help="leave the runs and the scene there")
    given = options.parse_args()
    clips = Path(os.environ.get("COSMA_TEST_DATA", DATA)) / "synth_seabed"
    with tempfile.TemporaryDirectory(prefix="cosma-bench-") as scratch:
        folder = Path(given.keep or scratch)
        segments = [
            trained(name, clips / f"{name}.mp4", folder, given.steps) for name in given.pair
        ]
        found = compared(given.pair, segments, folder, given.aspects)
    results = [
        Result(
            name="rendered_loss_alone_db", value=statistics.mean(found["loss_alone"]), unit="dB",
            better="lower", target=0.3,
        ),
        Result(
            name="rendered_gain_overlap_db", value=statistics.mean(found["gain_overlap"]),
            unit="dB", better="higher", target=0.0,
        ),
        Result(
            name="rendered_over_own_db", value=statistics.mean(found["over_own"]), unit="dB",
            better="higher",
        ),
        Result(
            name="rendered_over_mean_db", value=statistics.mean(found["over_mean"]), unit="dB",
            better="higher",
        ),
        Result(
            name="rendered_holes", value=statistics.mean(found["holes"]), unit="",
            better="lower", target=0.001,
        ),
        Result(
            name="rendered_own_db", value=statistics.mean(found["own"]), unit="dB", better="higher"
        ),
        Result(
            name="rendered_density", value=statistics.mean(found["density"]), unit="x",
            better="lower", target=1.1,
        ),
        Result(
            name="rendered_density_low", value=statistics.mean(found["density"]), unit="x",
            better="higher", target=0.9,
        ),
    ]  # fmt: skip
    return show("rendered", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
