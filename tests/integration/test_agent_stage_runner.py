"""The stage runner with a real stage: outcome, checkpoint, resume."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_client import AgentClient
from worker_agent.attempts import AttemptFiles
from worker_agent.checkpoint import PATH
from worker_agent.protocol import AttemptSpec, AttemptState, ExitRecord, FailureCode

CONFIG: dict[str, Any] = {
    "frames": {"fps": 5.0, "width": 160, "height": None, "min_frames": 4},
    "sfm": {"camera_model": "auto"},
}
INPUTS = {
    "clips": [{"name": "GX010123.MP4", "order": 0, "recorded_at": None}],
    "segment": "s1",
    "auv": "a",
}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    client = AgentClient(tmp_path / "work")
    yield client
    client.end_all()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    source = "testsrc2=size=320x180:rate=25:duration=3"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(path)], check=True)
    return path.read_bytes()


def run(agent: AgentClient, attempt: int, **changes: Any) -> tuple[AttemptSpec, ExitRecord]:
    values = {"attempt": attempt, "config": CONFIG, "inputs": INPUTS, **changes}
    spec = agent.spec(sys.executable, **values)
    agent.call("start", spec)
    over = agent.wait(spec)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    return spec, over.exit


def kinds(spec: AttemptSpec) -> list[str]:
    events = AttemptFiles(Path(spec.run_dir), spec.attempt).events.read_text()
    return [json.loads(line)["kind"] for line in events.splitlines()]


def test_failure_is_a_code_and_one_line(agent: AgentClient) -> None:
    spec, record = run(agent, 1)
    assert (record.cause, record.returncode) == ("exited", 1)
    assert record.outcome is not None
    assert record.outcome.reason is FailureCode.INPUT_MISSING
    assert "GX010123.MP4" in record.outcome.message
    assert "Traceback" not in AttemptFiles(Path(spec.run_dir), 1).log.read_text()
    assert not (Path(spec.run_dir) / PATH).exists()


def test_done_stage_is_resumed_even_without_its_video(agent: AgentClient, video: bytes) -> None:
    clip = Path(agent.spec(None).run_dir) / "input" / "GX010123.MP4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(video)
    spec, first = run(agent, 1)
    assert first.outcome is not None
    assert (first.outcome.ok, first.outcome.resumed) == (True, False)
    assert first.cpu_s > 0
    assert first.peak_rss_mib > 5
    data = json.loads((Path(spec.run_dir) / PATH).read_text())
    assert data["completed_stages"]["video_count"] == 1
    assert data["stage"] == "Validation"

    clip.unlink()
    spec, second = run(agent, 2)
    assert second.outcome is not None
    assert (second.outcome.ok, second.outcome.resumed) == (True, True)
    assert second.outcome.artifacts == first.outcome.artifacts
    assert "resumed" in kinds(spec)

    for attempt, config in enumerate(
        ({**CONFIG, "fresh": True}, {**CONFIG, "frames": {**CONFIG["frames"], "fps": 4.0}}), 3
    ):
        spec, changed = run(agent, attempt, config=config)
        assert changed.outcome is not None
        assert changed.outcome.reason is FailureCode.INPUT_MISSING
        assert "resumed" not in kinds(spec)


def test_crash_leaves_its_traceback_in_the_log_only(agent: AgentClient) -> None:
    _, record = run(agent, 1, inputs={"clips": 5})
    assert record.outcome is not None
    assert record.outcome.reason in (FailureCode.STAGE_CRASHED, FailureCode.CONFIG_INVALID)
    assert "\n" not in record.outcome.message
    assert "Traceback" not in record.to_json()
