"""Training: gaussians from frames/ and sfm/model/, measured on held-out views."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.depth_maps import DEPTHS
from worker_agent.stages.masks import unpacked
from worker_agent.stages.registry import feed_forward
from worker_agent.stages.train_limits import perceptual, within_memory

if TYPE_CHECKING:
    from stitch.gaussians import Gaussians
    from worker_agent.training.backend import Backend
    from worker_agent.training.dataset import Dataset
    from worker_agent.training.evaluation import Quality
    from worker_agent.training.lpips import Lpips
    from worker_agent.training.settings import TrainSettings

GAUSSIANS = Path("train/gaussians.npz")
CHECKPOINT = Path("train/checkpoint.pt")
REPORT = Path("output/training.json")
PREVIEW = Path("output/preview.jpg")
_PREVIEW_ROWS = 3


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Reads frames/ and sfm/model/; writes the files named above; the checkpoint is
    removed at the end.

    Raises StageFailure: TOOL_MISSING, CONFIG_INVALID, REGISTRATION_WEAK (a model that cannot be
    trained on), TRAINING_DIVERGED, GPU_OUT_OF_MEMORY; by a program that is not ours, those of
    `train_command` or `train_lingbot`.
    """
    if feed_forward(spec.config):
        return _by_lingbot(spec, report)
    try:
        import torch

        from worker_agent.training.backend import out_of_memory
        from worker_agent.training.dataset import DatasetUnusable, load_dataset
        from worker_agent.training.evaluation import write_preview
        from worker_agent.training.gaussians import to_world
        from worker_agent.training.settings import SettingsInvalid
        from worker_agent.training.trainer import Progress, Trainer, TrainingDiverged
    except ImportError as error:
        raise _missing(error) from None

    root = Path(spec.run_dir)
    try:
        backend, settings = _plan(spec, report)
        lpips = perceptual(settings, backend)
    except SettingsInvalid as error:
        raise StageFailure(
            FailureCode.CONFIG_INVALID,
            f"training configuration: {error}",
            advice="correct the value in the settings and retry the job",
        ) from None
    except torch.OutOfMemoryError as error:
        raise _gpu_full(error, spec.gpu, {}) from None
    try:
        dataset = load_dataset(
            root / "frames",
            root / "sfm" / "model",
            width=settings.width,
            test_every=settings.test_every,
            stride=settings.frame_stride,
            masks=unpacked(root),
            depths=root / DEPTHS if settings.depth_weight else None,
        )
    except DatasetUnusable as error:
        raise StageFailure(
            FailureCode.REGISTRATION_WEAK,
            f"cannot train: {error}",
            advice="rerun the job from ColmapReconstruction",
        ) from None

    if spec.config.get("reconstruct", {}).get("backend") == "command":
        try:
            return _by_command(spec, report, dataset, backend, lpips)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise _gpu_full(error, spec.gpu, {"width": settings.width}) from None

    def on_progress(now: Progress) -> None:
        report.progress(
            now.step / now.steps,
            f"step {now.step} of {now.steps}",
            step=now.step,
            steps=now.steps,
            loss=round(now.loss, 5),
            gaussians=now.gaussians,
        )

    try:
        trainer = Trainer(
            dataset,
            settings,
            backend,
            checkpoint=root / CHECKPOINT,
            warn=report.warning,
            lpips=lpips,
        )
        result = trainer.run(on_progress)
        rows = dataset.test[:_PREVIEW_ROWS]
        write_preview(root / PREVIEW, trainer.render, trainer.truth, rows, trainer.in_air)
    except TrainingDiverged as error:
        raise StageFailure(
            FailureCode.TRAINING_DIVERGED,
            f"training diverged: {error}",
            advice="look at the registration of the segment, or train with another seed",
            evidence={"device": backend.description, "seed": settings.seed},
        ) from None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise _gpu_full(error, spec.gpu, {"cap": settings.cap, "width": settings.width}) from None

    numbers = {
        **_quality(result.quality),
        "gaussians": result.gaussians,
        "steps": result.steps,
        "ended": result.ended,
        "floaters": result.floaters,
        "seconds": round(result.seconds, 2),
        "peak_vram_mib": None if result.peak_vram_mib is None else round(result.peak_vram_mib),
    }
    if settings.cap < spec.config["train"][backend.name]["cap"]:
        numbers["cap_by_memory"] = settings.cap  # what it took says nothing of the whole plan
    gaussians = to_world(trainer.parameters, dataset.normalisation)
    more = {
        "device": backend.description,
        "resumed_from_step": result.resumed_from,
        "water": trainer.water,
    }
    made = _published(root, gaussians, dataset, numbers, more)
    # Three times the size of the result, and of no use once that is on the disk.
    (root / CHECKPOINT).unlink(missing_ok=True)
    return made


def _published(
    root: Path,
    gaussians: Gaussians,
    dataset: Dataset,
    numbers: dict[str, Any],
    more: dict[str, Any],
) -> Artifacts:
    gaussians.save_npz(root / GAUSSIANS)
    write_json(
        root / REPORT,
        {
            **numbers,
            **more,
            "views_train": len(dataset.train),
            "views_test": len(dataset.test),
            "width": dataset.size[0],
            "height": dataset.size[1],
        },
    )
    files = (
        artifact(root, root / GAUSSIANS, "gaussians"),
        artifact(root, root / REPORT, "training_report"),
        artifact(root, root / PREVIEW, "preview"),
    )
    return Artifacts(
        files=files, metrics=numbers, completed={"gaussian_count": numbers["gaussians"]}
    )


def _by_command(
    spec: AttemptSpec, report: Reporter, dataset: Dataset, backend: Backend, lpips: Lpips | None
) -> Artifacts:
    """By the operator's program; measured here."""
    from worker_agent.stages.train_command import by_command
    from worker_agent.training.evaluation import write_preview
    from worker_agent.training.measuring import measure

    root = Path(spec.run_dir)
    began = time.monotonic()
    output = by_command(spec, report, [dataset.names[view] for view in dataset.test])
    seconds = time.monotonic() - began
    gaussians = _left(output, "reconstruct.command")
    quality, rendering, truth = measure(gaussians, dataset, backend, lpips)
    write_preview(root / PREVIEW, rendering, truth, dataset.test[:_PREVIEW_ROWS])
    numbers = {
        **_quality(quality),
        "gaussians": len(gaussians),
        "seconds": round(seconds, 2),
    }
    program = Path(spec.config["reconstruct"]["command"][0]).name
    made = _published(root, gaussians, dataset, numbers, {"device": f"command {program}"})
    shutil.rmtree(output.parent)
    return made


def _by_lingbot(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """A cloud in a frame of its own: there are no poses to measure it from."""
    from worker_agent.stages.train_lingbot import by_lingbot

    root = Path(spec.run_dir)
    began = time.monotonic()
    output = by_lingbot(spec, report)
    seconds = time.monotonic() - began
    gaussians = _left(output, "lingbot-map")
    gaussians.save_npz(root / GAUSSIANS)
    numbers = {"gaussians": len(gaussians), "seconds": round(seconds, 2)}
    write_json(root / REPORT, {**numbers, "device": "lingbot-map"})
    (root / PREVIEW).unlink(missing_ok=True)  # of a reconstruction that this one replaces
    shutil.rmtree(output.parent)
    files = (
        artifact(root, root / GAUSSIANS, "gaussians"),
        artifact(root, root / REPORT, "training_report"),
    )
    return Artifacts(files=files, metrics=numbers, completed={"gaussian_count": len(gaussians)})


def _left(output: Path, program: str) -> Gaussians:
    """What a program that is not ours made. Raises StageFailure."""
    from stitch.errors import FileUnreadable
    from worker_agent.stages.point_cloud import read_any

    try:
        return read_any(output)
    except FileUnreadable as error:
        raise StageFailure(
            FailureCode.STAGE_CRASHED,
            f"what {program} left is not usable: {error}",
            advice="See docs/backends.md for what a program must leave.",
        ) from None


def _plan(spec: AttemptSpec, report: Reporter) -> tuple[Backend, TrainSettings]:
    """gsplat on the promised GPU; on a CPU, or without a usable GPU, the CPU rasterizer."""
    import torch

    from worker_agent.training.backend import (
        RasterizerUnavailable,
        cpu_backend,
        cuda_backend,
        cuda_usable,
    )
    from worker_agent.training.settings import TrainSettings

    train = spec.config.get("train", {})
    if spec.gpu_kind == "cuda":
        if cuda_usable():
            settings = TrainSettings.from_config(train, "cuda")
            try:
                backend = cuda_backend()
                free, _ = torch.cuda.mem_get_info(backend.device)
                return backend, within_memory(settings, spec, free / 2**20, report)
            except RasterizerUnavailable as error:
                raise _missing(error) from None
        report.warning(
            f"torch sees no CUDA device although {spec.gpu} was promised; training on the CPU "
            "with the settings for one (check the driver with nvidia-smi and torch's CUDA build)"
        )
    settings = TrainSettings.from_config(train, "cpu")
    return cpu_backend(settings.threads), settings


def _quality(measured: Quality) -> dict[str, float | None]:
    return {
        "psnr": round(measured.psnr, 3),
        "ssim": round(measured.ssim, 4),
        "lpips": None if measured.lpips is None else round(measured.lpips, 4),
    }


def _gpu_full(error: Exception, gpu: str | None, evidence: dict[str, Any]) -> StageFailure:
    return StageFailure(
        FailureCode.GPU_OUT_OF_MEMORY,
        f"GPU {gpu}: out of memory: {_line(error)}",
        advice="free the GPU, use a larger one, or lower train.cuda.cap or train.cuda.width",
        evidence={"gpu": gpu, **evidence},
    )


def _missing(error: Exception) -> StageFailure:
    return StageFailure(
        FailureCode.TOOL_MISSING,
        f"training lacks a tool on this host: {_line(error)}",
        advice="run: cosma worker bootstrap for this host",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
