"""Segments for bench/rendered.py, reconstructed and trained on the CPU as the product does it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.reconstruct import run_stage, stages_up_to_sfm
from dispatcher.settings import PipelineConfig
from stitch.sidecar import Sidecar

FPS, WIDTH, SFM_WIDTH = 2.0, 240, 480  # tracks; films: as bench/stitch_real.py reconstructs them
CAP = 12_000
TRACKS = ("A1", "A2", "A3", "B1", "B2")
FILMS = ("gx01", "gx02", "drone_a", "drone_b1", "drone_b2")
FILMS_TEST_EVERY = 5  # of the 10 to 26 frames that a film has


@dataclass(frozen=True, slots=True)
class Trained:
    """`gaussians` in the frame of the segment's own reconstruction."""

    ply: Path
    sidecar: Sidecar
    dataset: Any
    gaussians: Any


def trained(name: str, data: Path, folder: Path, steps: int, degree: int) -> Trained:
    """Of TRACKS or FILMS; what `folder` holds already is taken from there."""
    from stitch.ply import read_ply, write_ply
    from worker_agent.training.backend import cpu_backend
    from worker_agent.training.dataset import load_dataset
    from worker_agent.training.gaussians import to_world
    from worker_agent.training.settings import TrainSettings
    from worker_agent.training.trainer import Trainer

    train = PipelineConfig().as_dict()["train"]
    train["cpu"] |= {"width": WIDTH, "steps": steps, "cap": CAP, "threads": 1, "sh_degree": degree}
    if name in FILMS:
        train["test_every"] = FILMS_TEST_EVERY
    settings = TrainSettings.from_config(train, "cpu")
    run_dir = reconstructed(name, data, folder)
    dataset = load_dataset(
        run_dir / "frames", run_dir / "sfm" / "model", width=WIDTH, test_every=settings.test_every
    )
    ply = run_dir / f"steps{steps}_degree{degree}.ply"
    if not ply.is_file():
        trainer = Trainer(
            dataset,
            settings,
            cpu_backend(settings.threads),
            checkpoint=ply.with_suffix(".pt"),
            warn=lambda line: print(line, file=sys.stderr),
        )
        trainer.run(lambda _: None)
        write_ply(ply, to_world(trainer.parameters, dataset.normalisation))
    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    return Trained(ply, sidecar, dataset, read_ply(ply))


def reconstructed(name: str, data: Path, folder: Path) -> Path:
    """The run directory of a segment."""
    from bench.stitch_real import Films
    from worker_agent.stages import sfm

    if name in FILMS:
        return Films(data, folder).run_dir(name)
    run_dir, clip = folder / name, data / "synth_seabed" / f"{name}.mp4"
    if not (run_dir / "output" / "registration.npz").is_file():
        config = PipelineConfig().as_dict()
        config["frames"] |= {"fps": FPS, "width": SFM_WIDTH}
        config["sfm"] |= {"threads": 1}
        stages_up_to_sfm(run_dir, clip, config)
        run_stage(sfm.main, run_dir, clip.name, config)
    return run_dir
