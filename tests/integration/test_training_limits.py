"""What a host lacks for a training: memory of its GPU, the weights of LPIPS."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training_world import Events, linked, make_run, report_of, spec_for
from tests.unit.test_lpips import alex
from worker_agent.messages import FailureCode
from worker_agent.stages import train
from worker_agent.stages.api import StageFailure
from worker_agent.stages.train_limits import within_memory
from worker_agent.training.backend import cpu_backend
from worker_agent.training.settings import TrainSettings


def test_the_cap_is_lowered_to_what_is_free_and_that_is_said(tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_for(tmp_path, steps=10), gpu="GPU-7", vram_mib=9_000)
    settings = TrainSettings.from_config(spec.config["train"], "cpu")
    settings = dataclasses.replace(settings, cap=4_000_000)
    events = Events(tmp_path / "events")
    assert within_memory(settings, spec, 9_000, events.reporter) == settings
    assert events.of_kind("warning") == []
    assert within_memory(settings, spec, 3_500, events.reporter).cap == 2_000_000
    (warning,) = events.of_kind("warning")
    assert "3500 MiB free of 9000 promised" in warning["message"]
    assert "at most 2000000 gaussians instead of 4000000" in warning["message"]


def test_a_run_with_fewer_gaussians_than_planned_says_so_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "source")
    spec = spec_for(linked(tmp_path / "source", tmp_path / "run"), steps=10)
    spec.config["train"]["cuda"] = spec.config["train"]["cpu"]
    asked = TrainSettings.from_config(spec.config["train"], "cuda")
    backend = dataclasses.replace(cpu_backend(1), name="cuda")
    for cap, told in ((700, 700), (asked.cap, None)):
        plan = backend, dataclasses.replace(asked, cap=cap)
        monkeypatch.setattr(train, "_plan", lambda *_, plan=plan: plan)
        made = train.main(spec, Events(tmp_path / "events").reporter)
        assert made.metrics.get("cap_by_memory") == told


def test_lpips_is_measured_where_its_weights_are(tmp_path: Path) -> None:
    make_run(tmp_path / "source")
    run_dir = linked(tmp_path / "source", tmp_path / "run")
    weights = tmp_path / "weights.pt"
    spec = spec_for(run_dir, steps=10, lpips_weights=str(weights))
    with pytest.raises(StageFailure) as caught:
        train.main(spec, Events(tmp_path / "missing").reporter)
    assert caught.value.reason is FailureCode.CONFIG_INVALID
    assert f"train.lpips_weights: {weights}: is not there" in caught.value.message
    torch.save(alex(), weights)
    made = train.main(spec, Events(tmp_path / "events").reporter)
    assert 0.0 < made.metrics["lpips"] == report_of(run_dir)["lpips"]
    plain = linked(tmp_path / "source", tmp_path / "plain")
    train.main(spec_for(plain, steps=10), Events(tmp_path / "plain-events").reporter)
    assert report_of(plain)["lpips"] is None
