"""Clips made by ffmpeg, and the stages before SfM run on them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from worker_agent.protocol import AttemptSpec
from worker_agent.stages import frames, manifest, metadata, validate
from worker_agent.stages.api import Artifacts, Reporter, StageFailure

EXTRACTING = (validate, frames, metadata, manifest)
CONFIG: dict[str, Any] = {
    "frames": {"fps": 5.0, "width": 320, "height": None, "min_frames": 8},
    "sfm": {"camera_model": "auto", "camera_params": None},
}
TEXTURE = "mandelbrot=size=640x360:rate=30"


class Run:
    """A run directory with clips in it, and the stages run on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "input").mkdir(parents=True)

    def add(self, name: str, data: bytes) -> Run:
        (self.path / "input" / name).write_bytes(data)
        return self

    def do(self, *stages: Any, **frame_settings: Any) -> Artifacts:
        inputs = sorted(path.name for path in (self.path / "input").iterdir())
        names = [name for name in inputs if not name.endswith(".csv")]
        log = next((name for name in inputs if name.endswith(".csv")), None)
        spec = AttemptSpec(
            protocol=1,
            epoch=1,
            acquisition="survey",
            job="survey-a1",
            attempt=1,
            stage="",
            run_dir=str(self.path),
            config=CONFIG | {"frames": CONFIG["frames"] | frame_settings},
            inputs={
                "clips": [
                    {"name": n, "order": i, "recorded_at": None, "nav": log}
                    for i, n in enumerate(names)
                ],
                "segment": "a1",
                "auv": "auv-a",
            },
        )
        events = os.open(self.path / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for stage in stages:
                made: Artifacts = stage.main(spec, Reporter(events, 1, interval_s=0.0))
        finally:
            os.close(events)
        return made

    def json(self, relative: str) -> Any:
        return json.loads((self.path / relative).read_text())

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "100% run")  # a % would be a pattern to ffmpeg


def encode(target: Path, source: str, seconds: float, *options: str) -> Path:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-t", str(seconds)]
    command += ["-i", source, *options, "-threads", "1", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s of 640x360 at 30 fps, its index first, as a copy that can be cut short."""
    out = tmp_path_factory.mktemp("clips") / "whole.mp4"
    fast = ("-preset", "ultrafast", "-g", "30", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    return encode(out, TEXTURE, 4, *fast)


def refused(run: Run, *stages: Any, **settings: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        run.do(*stages, **settings)
    failure = caught.value
    assert "\n" not in failure.message
    assert failure.advice
    return failure
