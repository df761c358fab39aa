"""A promised GPU whose decoder cannot be used: real ffmpeg, and no device it could open."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages import frames, manifest, metadata, validate
from worker_agent.stages.api import Artifacts, Reporter, StageFailure

CLIPS = ("a.mp4", "b.mp4")
# Writes pictures, then dies as ffmpeg does when the driver resets the decoder. Where the CPU is
# asked for it is ffmpeg itself.
DYING = """#!/bin/sh
case " $* " in
*" -hwaccels "*) printf 'Hardware acceleration methods:\\ncuda\\n'; exit 0 ;;
*" -hwaccel cuda "*) echo junk > 000000999999.jpg; echo '[error] decoder went away' >&2; exit 1 ;;
esac
exec {ffmpeg} "$@"
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips") / "two_seconds.mp4"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-t", "2"]
    command += ["-i", "mandelbrot=size=320x180:rate=15", "-pix_fmt", "yuvj420p", str(out)]
    subprocess.run(command, check=True)
    return out


def extracted(root: Path, clip: Path, **values: Any) -> tuple[Artifacts, list[dict[str, Any]]]:
    """All stages up to the manifest, with what they warned of."""
    (root / "input").mkdir(parents=True)
    for name in CLIPS:
        shutil.copyfile(clip, root / "input" / name)
    settings = {"fps": 5.0, "width": 160, "height": None, "min_frames": 8}
    spec = AttemptSpec(
        protocol=1, epoch=1, acquisition="survey", job="j", attempt=1, stage="", run_dir=str(root),
        config={"frames": settings, "sfm": {"camera_model": "auto", "camera_params": None}},
        inputs={
            "clips": [{"name": n, "order": i, "recorded_at": None} for i, n in enumerate(CLIPS)]
        },
    )  # fmt: skip
    events = os.open(root / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    report = Reporter(events, 1)
    try:
        validate.main(spec, report)
        made = frames.main(dataclasses.replace(spec, **values), report)
        metadata.main(spec, report)
        manifest.main(spec, report)
    finally:
        os.close(events)
    lines = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    return made, [line for line in lines if line["kind"] == "warning"]


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host whose driver is broken; on a host without one it changes nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def _dying(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("ffmpeg")
    at.mkdir()
    (at / "ffmpeg").write_text(DYING.format(ffmpeg=real))
    (at / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{at}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("how", ["no device", "dies in the middle"])
def test_the_cpu_decodes_what_the_gpu_does_not_and_the_frames_are_the_same(
    how: str, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, no_device: None
) -> None:
    plain, quiet = extracted(tmp_path / "cpu", clip)
    if how == "dies in the middle":
        _dying(tmp_path / "bin", monkeypatch)
    made, warned = extracted(tmp_path / "gpu", clip, gpu="GPU-1", gpu_kind="cuda")

    assert not quiet
    assert plain.metrics["decoded_on_gpu"] == made.metrics["decoded_on_gpu"] == 0
    (line,) = (line["message"] for line in warned)  # the second clip does not try again
    assert line.startswith("clip a.mp4: the CPU decodes it")
    assert how == "no device" or line.endswith("decoder went away")
    listed = [json.loads((tmp_path / w / "frames/frames.json").read_text()) for w in ("cpu", "gpu")]
    assert len(listed[0]["frames"]) == 20
    assert listed[0] == listed[1]
    clips = json.loads((tmp_path / "gpu/output/manifest.json").read_text())["clips"]
    assert [(c["name"], c["decoder"]) for c in clips] == [(name, "cpu") for name in CLIPS]


def test_a_clip_that_neither_decodes_is_the_clips_own_fault(
    tmp_path: Path, clip: Path, no_device: None
) -> None:
    broken = tmp_path / "broken.mp4"
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 64 : start + 20_000] = bytes(20_000 - 64)
    broken.write_bytes(data)
    with pytest.raises(StageFailure) as caught:
        extracted(tmp_path / "run", broken, gpu="GPU-1", gpu_kind="cuda")
    assert caught.value.reason is FailureCode.DECODE_FAILED
    assert "cuda" not in caught.value.message
