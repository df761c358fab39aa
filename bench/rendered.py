"""What a stitch does to pictures: held-out views of two segments, alone and merged.

`python -m bench.rendered [--json] [--pair A1 A2] [--steps N] [--degree N] [--no-aspects]
[--keep DIR]`

Data: COSMA_TEST_DATA (by default ../shared/data). The segments of --pair are reconstructed and
trained one by one on the CPU, as the farm does it, placed as in a stitch and merged; every held-out
view of both is then rendered from its own segment, from the other one (moved to it) and from the
merged scene. What there is (bench/rendered_segments.py):

A1 A2 A3 B1 B2               made-up seabed: tracks of two vehicles, neighbours or (A2 B1) crossing
gx01 gx02                    reef, one swim: the first looks ahead over ground of the second
drone_a drone_b1 drone_b2    photographs of a survey from above: two vehicles, the second one twice

Names:

rendered_loss_alone_db      where only the view's own segment holds ground: PSNR lost by the merge
rendered_gain_overlap_db    where both do: PSNR of the merged scene over that of the better segment,
                             each over the held-out views of both
rendered_over_own_db        there, view by view, over the segment that the view itself is of (in its
                             own views a segment is at its best; the merged scene is of both)
rendered_over_mean_db       there, view by view, over the mean of both segments
rendered_holes              share of the pixels where the view's own segment is solid (opacity 0.9)
                             and the merged scene is not (0.5)
rendered_own_db             PSNR of the segments on their own held-out views, for scale
rendered_density            gaussians at the seam over those of a single capture

With --no-aspects the scene is merged without `stitch.aspects`. With --keep what was trained stays
in DIR and is taken from there the next time; beside the scene are its pictures: for each held-out
view what was filmed, and what its own segment, the other one and the scene show.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.reconstruct import DATA
from bench.rendered_segments import FILMS, TRACKS, Trained, trained
from bench.results import parser, show, told

HELD = 0.5  # opacity of a rendered pixel that counts as ground that a segment holds
SOLID = 0.9
MOST_PIXELS = 0.02  # of a view: fewer say nothing


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
    names: list[str], segments: list[Trained], folder: Path, aspects: bool = True
) -> dict[str, list[float]]:
    import torch

    from bench.stitch_real import Scene
    from stitch.merge import Finish, merge_gaussians
    from stitch.ply import read_ply
    from stitch.sim3 import transform_gaussians
    from stitch.territory import Member

    placed = Scene([one.sidecar for one in segments]).poses
    if len(placed) < len(segments):
        raise SystemExit(f"{' and '.join(names)} are not one scene")
    poses = [placed[number] for number in range(len(segments))]
    members = [Member(n, p, s.sidecar) for n, p, s in zip(names, poses, segments, strict=True)]
    path = folder / f"{'_'.join(names)}{'_no_aspects' * (not aspects)}" / "scene.ply"
    path.parent.mkdir(exist_ok=True)
    merged = merge_gaussians(
        members, [one.ply for one in segments], path, finish=Finish(aspects=aspects)
    )
    scene = read_ply(path)
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
            truth = own.dataset.images[view].float() / 255
            pictures = [rendered(g, own.dataset, view) for g in (own.gaussians, other, whole)]
            (mine, here), (theirs, there), (both, merged_there) = pictures
            name = f"{names[number]}_{own.dataset.names[view]}"
            _save(path.with_name(name).with_suffix(".png"), [truth, mine, theirs, both])
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


def _save(path: Path, pictures: list[Any]) -> None:
    """Side by side."""
    import torch
    from PIL import Image

    row = torch.cat(pictures, dim=1)
    Image.fromarray((255 * row).round().byte().numpy()).save(path)


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--pair", nargs=2, choices=TRACKS + FILMS, default=["A1", "A2"], metavar="SEGMENT"
    )
    options.add_argument("--steps", type=int, default=500, help="of each training")
    options.add_argument("--degree", type=int, default=1, help="of the spherical harmonics")
    options.add_argument("--no-aspects", action="store_true")
    options.add_argument("--keep", type=Path, metavar="DIR", help="holds runs, scene and pictures")
    given = options.parse_args()
    data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
    with tempfile.TemporaryDirectory(prefix="cosma-bench-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        segments = [trained(name, data, folder, given.steps, given.degree) for name in given.pair]
        found = compared(given.pair, segments, folder, not given.no_aspects)
    figures: list[tuple[str, str, str, str, float | None]] = [
        ("loss_alone_db", "loss_alone", "dB", "lower", 0.3),
        ("gain_overlap_db", "gain_overlap", "dB", "higher", 0.0),
        ("over_own_db", "over_own", "dB", "higher", None),
        ("over_mean_db", "over_mean", "dB", "higher", None),
        ("holes", "holes", "", "lower", 0.001),
        ("own_db", "own", "dB", "higher", None),
        ("density", "density", "x", "lower", 1.1),
        ("density_low", "density", "x", "higher", 0.9),
    ]
    results = [
        told(f"rendered_{name}", statistics.mean(found[key]), unit, target, better)
        for name, key, unit, better, target in figures
        if found[key]  # in no view may there be ground that only its own segment holds
    ]
    return show("rendered", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
