"""Clips of stones that a moving camera films, and all stages up to SfM on them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from worker_agent.protocol import AttemptSpec
from worker_agent.stages import frames, manifest, metadata, sfm, validate
from worker_agent.stages.api import Artifacts, Reporter

WIDTH, HEIGHT, FOCAL = 480, 270, 300.0
SFM: dict[str, Any] = {
    "camera_model": "auto",
    "camera_params": None,
    "max_features": 800,
    "max_image_size": 1000,
    "overlap": 5,
    "seed": 0,
    "threads": 1,
    "min_registered_share": 0.8,
    "max_reprojection_px": 2.0,
    "memory_limit_mib": None,
}


def spec_for(run_dir: Path, config: dict[str, Any], clips: list[str]) -> AttemptSpec:
    return AttemptSpec(
        protocol=1,
        epoch=1,
        acquisition="survey",
        job="survey-a1",
        attempt=1,
        stage="",
        run_dir=str(run_dir),
        config=config,
        inputs={"clips": [{"name": n, "order": i} for i, n in enumerate(clips)], "segment": "a1"},
    )


def reconstruct(run_dir: Path, fps: float = 5.0, **settings: Any) -> Artifacts:
    """All stages up to SfM on whatever lies in `input/`."""
    names = sorted(path.name for path in (run_dir / "input").iterdir())
    config = {
        "frames": {"fps": fps, "width": 640, "height": None, "min_frames": 8},
        "sfm": SFM | settings,
    }
    spec = spec_for(run_dir, config, names)
    events = os.open(run_dir / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for stage in (validate, frames, metadata, manifest, sfm):
            made = stage.main(spec, Reporter(events, 1, interval_s=0.0))
    finally:
        os.close(events)
    return made


def film(target: Path, pictures: list[Image.Image], rate: int = 5) -> None:
    target.parent.mkdir(parents=True)
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{WIDTH}x{HEIGHT}", "-r", str(rate), "-i", "pipe:0", "-threads", "1"]
    data = b"".join(picture.tobytes() for picture in pictures)
    command += ["-preset", "veryfast", "-crf", "16", "-pix_fmt", "yuv420p", str(target)]
    subprocess.run(command, input=data, check=True)


def gravel(count: int, step: float) -> tuple[list[Image.Image], np.ndarray[Any, Any]]:
    """`count` views of stones at depths 1.5 to 2.5, the camera moving `step` along x (and a little
    along y and z) between them; and its centres."""
    rng = np.random.default_rng(3)
    number = 2600
    stones = np.column_stack(
        [
            rng.uniform(-2.2, 2.2 + count * 0.12, number),
            rng.uniform(-1.5, 1.5, number),
            rng.uniform(1.5, 2.5, number),
        ]
    )
    size = rng.uniform(0.008, 0.05, number)
    shade = rng.integers(20, 235, (number, 3))
    order = np.argsort(-stones[:, 2])
    centres = np.array(
        [[step * i, 0.6 * step * np.sin(0.9 * i), 0.3 * step * i % 0.1] for i in range(count)]
    )
    pictures = []
    for centre in centres:
        picture = Image.new("RGB", (WIDTH, HEIGHT), (96, 110, 104))
        draw = ImageDraw.Draw(picture)
        for k in order:
            x, y, z = stones[k] - centre
            u, v, r = FOCAL * x / z + WIDTH / 2, FOCAL * y / z + HEIGHT / 2, FOCAL * size[k] / z
            if -9 < u < WIDTH + 9 and -9 < v < HEIGHT + 9:
                draw.ellipse((u - r, v - r, u + r, v + r), fill=tuple(int(c) for c in shade[k]))
        pictures.append(picture.filter(ImageFilter.GaussianBlur(0.7)))
    return pictures, centres
