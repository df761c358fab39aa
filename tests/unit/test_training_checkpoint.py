"""Checkpoints come back whole, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker_agent.training.checkpoint import (
    Checkpoint,
    CheckpointUnusable,
    Size,
    changed,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint() -> Checkpoint:
    return Checkpoint(
        step=7,
        identity="abc",
        size=(100, 64, "d1"),
        parameters={"means": torch.randn(5, 3)},
        adam={"steps": 7, "first": {"means": torch.randn(5, 3)}, "second": {}},
        strategy={"score": torch.rand(5), "stalled": 1},
        exposure={"values": torch.randn(3, 6)},
        medium={},
        history=[0.25, 0.5],
        seconds=1.5,
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path / "train" / "c.pt", saved)
    found = load_checkpoint(tmp_path / "train" / "c.pt", "abc")
    assert found is not None
    assert (found.step, found.seconds, found.adam["steps"]) == (7, 1.5, 7)
    assert torch.equal(found.parameters["means"], saved.parameters["means"])
    assert torch.equal(found.strategy["score"], saved.strategy["score"])
    assert torch.equal(found.exposure["values"], saved.exposure["values"])
    assert found.history == [0.25, 0.5]
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["c.pt"]


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.pt", "abc") is None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", checkpoint())
    with pytest.raises(CheckpointUnusable, match="other frames, model or settings"):
        load_checkpoint(tmp_path / "c.pt", "xyz")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    with pytest.raises(CheckpointUnusable, match="damaged") as caught:
        load_checkpoint(path, "abc")
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_size_is_said_in_words_and_other_images_are_refused() -> None:
    before = Size(100, 64, "d1")
    assert changed(before, Size(100, 64, "d1")) is None
    assert changed(before, Size(60, 64, "d1")) == "at most 60 gaussians instead of 100"
    assert changed(before, Size(100, 48, "d2")) == "images 48 pixels wide instead of 64"
    with pytest.raises(CheckpointUnusable, match="other images"):
        changed(before, Size(60, 64, "d2"))
