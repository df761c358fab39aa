"""Training on an NVIDIA GPU at full resolution, beside gsplat's own trainer on the same card.

Clips as in bench/reconstruct.py, in the size they were filmed in. For each of --sets and --presets
(standard: 7,000 steps, best: 30,000) and each strategy ours, and `simple_trainer` after as many
steps of its 30,000 (bench/simple_trainer.py): psnr and ssim of the held-out views, seconds of
training, peak_vram_mib that torch reserved, gaussians. By the default strategy PSNR must be no
lower and the seconds no more than those of simple_trainer.

Ends with 1 where no GPU is usable. gsplat's kernels must have been compiled there:
`python -m worker_agent.training.gsplat_kernels`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.reconstruct import DATA, SETS, registered, told
from bench.results import Result, parser, show
from bench.simple_trainer import simple_trainer
from dispatcher.stage_settings import TrainConfig
from worker_agent.training.backend import Backend, cuda_backend, cuda_usable
from worker_agent.training.dataset import Dataset, load_dataset
from worker_agent.training.settings import STRATEGIES, TrainSettings
from worker_agent.training.trainer import Trainer

CHOSEN = ("reef", "drone_a", "drone_b1")
WIDEST = 16_384  # frames are never enlarged


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training."""

    psnr: float
    ssim: float
    seconds: float
    vram_mib: float
    gaussians: int


def settings_for(preset: str, strategy: str) -> TrainSettings:
    train = TrainConfig.model_validate(
        {"preset": preset, "strategy": strategy, "cuda": {"width": WIDEST}}
    )
    return TrainSettings.from_config(train.model_dump(mode="json"), "cuda")


def ours(dataset: Dataset, backend: Backend, settings: TrainSettings) -> Row:
    _fresh(backend)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            dataset,
            settings,
            backend,
            checkpoint=Path(scratch) / "checkpoint.pt",
            warn=lambda line: print(line, file=sys.stderr),
        )
        result = trainer.run(lambda _: None)
    return Row(
        psnr=result.quality.psnr,
        ssim=result.quality.ssim,
        seconds=result.seconds,
        vram_mib=result.peak_vram_mib or 0.0,
        gaussians=result.gaussians,
    )


def theirs(dataset: Dataset, backend: Backend, steps: int) -> Row:
    _fresh(backend)
    result = simple_trainer(dataset, backend, steps=steps)
    return Row(
        psnr=result.quality.psnr,
        ssim=result.quality.ssim,
        seconds=result.seconds,
        vram_mib=torch.cuda.max_memory_reserved(backend.device) / 2**20,
        gaussians=result.gaussians,
    )


def _fresh(backend: Backend) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(backend.device)


def compared(name: str, preset: str, dataset: Dataset, backend: Backend) -> Iterator[Result]:
    """The rows of one clip by one preset."""
    steps = settings_for(preset, STRATEGIES[0]).steps
    reference = theirs(dataset, backend, steps)
    yield from _results(f"{name}, {preset}, simple_trainer", reference, None)
    for strategy in STRATEGIES:
        row = ours(dataset, backend, settings_for(preset, strategy))
        bound = reference if strategy == STRATEGIES[0] else None
        yield from _results(f"{name}, {preset}, {strategy}", row, bound)


def _results(label: str, row: Row, bound: Row | None) -> Iterator[Result]:
    psnr, seconds = (None, None) if bound is None else (bound.psnr, bound.seconds)
    yield Result(name=f"psnr[{label}]", value=row.psnr, unit="dB", better="higher", target=psnr)
    yield Result(name=f"ssim[{label}]", value=row.ssim, unit="", better="higher")
    yield Result(
        name=f"seconds[{label}]", value=row.seconds, unit="s", better="lower", target=seconds
    )
    yield Result(name=f"peak_vram_mib[{label}]", value=row.vram_mib, unit="MiB", better="lower")
    yield Result(name=f"gaussians[{label}]", value=row.gaussians, unit="", better="lower")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=CHOSEN, metavar="SET")
    options.add_argument("--presets", nargs="+", choices=("standard", "best"), default=["standard"])
    given = options.parse_args()
    if not cuda_usable():
        print("no NVIDIA GPU that torch can use", file=sys.stderr)
        return 1
    backend = cuda_backend()
    print(backend.description, file=sys.stderr)
    data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as base:
        for name in given.sets:
            run_dir = Path(base) / name
            chosen = dataclasses.replace(SETS[name], width=None)
            registered(name, chosen, data, run_dir, 1)
            dataset = load_dataset(
                run_dir / "frames", run_dir / "sfm" / "model", width=WIDEST, test_every=8
            )
            for preset in given.presets:
                for result in compared(name, preset, dataset, backend):
                    results.append(told(result))
    return show("gpu_training", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
