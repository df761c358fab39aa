"""The self-test of a host: right where the host is right, and clear where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, script
from worker_agent.protocol import SelftestReport, SelftestRequest
from worker_agent.stages import selftest_decode, selftest_train

STAGES = ["decode", "sift", "train"]


def report(tmp_path: Path, python: Path | str, **changes: str) -> tuple[int, SelftestReport]:
    client = AgentClient(tmp_path / "work")
    request = SelftestRequest(
        work_dir=str(client.work_dir), stage_python=str(python), stages=True, **changes
    )
    answer = client.call("selftest", request)
    return answer.code, SelftestReport.from_dict(answer.one)


@pytest.mark.usefixtures("kernels")  # compiling them is not what is asked here
def test_this_host_knows_the_answers(tmp_path: Path) -> None:
    code, found = report(tmp_path, sys.executable, gpu="CPU-abc", gpu_kind="cuda")
    assert [(check.name, check.message) for check in found.checks if not check.ok] == []
    assert (code, found.ok) == (0, True)
    assert [check.name for check in found.checks][-3:] == STAGES
    assert list((tmp_path / "work" / ".cosma").glob("selftest-*")) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo no such module >&2; exit 1", "exit code 1: no such module"),
        ('echo \'{"message": "pixels are wrong"}\'', "pixels are wrong"),
        ("exit 0", "no output"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_host_that_fails_says_how(tmp_path: Path, body: str, said: str) -> None:
    code, found = report(tmp_path, script(tmp_path / "python", f"#!/bin/sh\n{body}\n"))
    assert (code, found.ok) == (1, False)
    bad = [check for check in found.checks if not check.ok]
    assert [check.name for check in bad] == STAGES
    assert all(said in check.message for check in bad)


def test_decoder_that_drops_or_changes_frames_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for body, said in (
        ("head -c 4608 /dev/zero", "1 frames came out of 6"),
        ("head -c 27648 /dev/zero", "pixels"),
        ("echo broken >&2; exit 3", "exit code 3: broken"),
    ):
        script(program, f"#!/bin/sh\ncat > /dev/null\n{body}\n")
        assert said in selftest_decode.check()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "cannot be run" in selftest_decode.check()


def test_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert selftest_train.check() == ""
    right = selftest_train.known()
    wrong = {**right, "opacity gradient": [right["opacity gradient"][0] + 0.01]}
    monkeypatch.setattr(selftest_train, "known", lambda: wrong)
    assert selftest_train.check().startswith("opacity gradient is")
