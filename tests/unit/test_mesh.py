"""A mesh is made only where it is asked for, and a host that cannot make one says so at once."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages import export_ply
from worker_agent.stages.api import Reporter, StageFailure
from worker_agent.stages.mesh import open3d_for


def spec(**config: Any) -> AttemptSpec:
    return AttemptSpec(
        protocol=1, epoch=1, acquisition="survey", job="j", attempt=1, stage="PlyExport",
        run_dir="/nowhere", config=config,
    )  # fmt: skip


def test_without_the_setting_open3d_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)  # an import of it would fail
    assert open3d_for(spec()) is None
    assert open3d_for(spec(mesh={"make": False})) is None


def test_a_host_without_open3d_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(StageFailure) as caught:  # before anything is read or written
        export_ply.main(spec(mesh={"make": True}), Reporter(-1, 1))
    assert caught.value.reason is FailureCode.TOOL_MISSING
    assert "cosma[mesh]" in caught.value.advice
