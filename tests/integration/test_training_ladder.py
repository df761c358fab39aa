"""A GPU that runs full: the dispatcher's ladder of smaller plans, and the training that goes on
from its checkpoint by each of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dispatcher.core.model import Reason, Stage
from dispatcher.core.work_size import shrunk
from tests.training_world import Events, linked, report_of, source, spec_for
from tests.unit.jobs import at_run, drive, failed
from worker_agent.messages import FailureCode
from worker_agent.stages import train
from worker_agent.stages.api import StageFailure
from worker_agent.training.draw import draw

__all__ = ["source"]


def test_fewer_gaussians_then_smaller_images_each_from_the_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    room = {"gaussians": 1000, "width": 96}

    def limited(*given: Any, **named: Any) -> Any:
        if len(given[1]["means"]) > room["gaussians"] or given[5][0] > room["width"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return draw(*given, **named)

    monkeypatch.setattr("worker_agent.training.trainer.draw", limited)
    spec = spec_for(linked(source, tmp_path / "run"), steps=100, checkpoint_every_s=0.0)
    spec = dataclasses.replace(spec, gpu="GPU-7")
    asked, job = spec.config, at_run(Stage.TRAINING)
    events, plans = Events(tmp_path / "events"), []
    for _ in range(2):
        with pytest.raises(StageFailure) as caught:
            train.main(spec, events.reporter)
        assert caught.value.reason is FailureCode.GPU_OUT_OF_MEMORY
        after = drive(job, [failed(job, Reason(caught.value.reason))])
        # Placed anew, and running.
        job = at_run(Stage.TRAINING, shrink=after.shrink, retries=after.retries)
        spec = dataclasses.replace(spec, config=shrunk(asked, job.shrink, job.stride))
        plans.append(spec.config["train"]["cpu"])
        room["width"] = 80  # another program took some
    assert [(plan["cap"], plan["width"]) for plan in plans] == [(900, 96), (900, 72)]
    train.main(spec, events.reporter)
    report = report_of(tmp_path / "run")
    assert report["resumed_from_step"] > 20 and report["steps"] == 100
    assert 800 < report["gaussians"] <= 900 and report["width"] < 80
    said = [event["message"] for event in events.of_kind("warning")]
    assert "at most 900 gaussians instead of 1500" in said[0]
    assert "pixels wide instead of" in said[-1]
