"""How lingbot-map is started: how many frames the host's RAM holds, and its command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.protocol import FailureCode
from worker_agent.stages.api import StageFailure
from worker_agent.stages.train_lingbot import MIN_FRAMES, command_line, stride_for

PLACES = {"frames": "/run/frames", "output": "/run/out.ply", "work": "/run"}
LINGBOT: dict[str, Any] = {
    "demo": "/opt/lingbot/demo.py", "model": "/opt/long.pt", "python": "/opt/venv/bin/python",
    "window": 64, "options": ["--use_sdpa"],
}  # fmt: skip


@given(
    frames=st.integers(8, 20_000),
    free=st.integers(12_000, 500_000),
    frame=st.floats(1, 60),
    least=st.integers(1, 8),
)
def test_what_is_given_fits_and_the_next_smaller_stride_would_not(
    frames: int, free: int, frame: float, least: int
) -> None:
    try:
        stride = stride_for(frames, free, 9500.0, frame, least)
    except StageFailure as failure:
        assert failure.reason is FailureCode.OUT_OF_MEMORY
        assert 9500.0 + MIN_FRAMES * frame > 0.8 * free - frame
        return
    kept = math.ceil(frames / stride)
    assert stride >= least and 9500.0 + kept * frame <= 0.8 * free
    if stride > least:
        assert 9500.0 + math.ceil(frames / (stride - 1)) * frame > 0.8 * free


def test_all_frames_where_there_is_room() -> None:
    assert stride_for(300, 32_000, 9500.0, 14.0, 1) == 1
    assert stride_for(3000, 32_000, 9500.0, 14.0, 1) == 3
    with pytest.raises(StageFailure, match="needs 9612 MiB of RAM for 8 frames; 8000 of the 10000"):
        stride_for(300, 10_000, 9500.0, 14.0, 1)


def test_its_own_viewer_is_replaced_unless_it_writes_the_file_itself() -> None:
    common = [
        "--image_folder", "/run/frames", "--model_path", "/opt/long.pt", "--mode", "windowed",
        "--window_size", "64", "--stride", "2", "--port", "9",
    ]  # fmt: skip
    python, demo, viewer = LINGBOT["python"], LINGBOT["demo"], Path("/run/viewer.py")
    assert command_line(LINGBOT, PLACES, 2, 9, viewer) == [
        python, "/run/viewer.py", demo, "/run/out.ply", *common, "--use_sdpa",
    ]  # fmt: skip
    writes = {**LINGBOT, "options": ["--export_ply", "{output}"]}
    assert command_line(writes, PLACES, 2, 9, viewer) == [
        python, demo, *common, "--export_ply", "/run/out.ply",
    ]  # fmt: skip
    with pytest.raises(StageFailure, match=r"reconstruct\.lingbot\.options holds '\{model\}'"):
        command_line({**LINGBOT, "options": ["{model}"]}, PLACES, 2, 9, viewer)
