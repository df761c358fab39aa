"""A stopped training goes on from its checkpoint: to the same bits, or by a smaller plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stitch.gaussians import Gaussians
from tests.integration.test_training_stage import Events, linked, make_run, report_of, spec_for
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import train
from worker_agent.stages.api import Reporter


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("source")
    make_run(run_dir)
    return run_dir


class Enough(Exception):
    pass


def stopped(spec: AttemptSpec, log: Path, *, at: int) -> None:
    """Trains with a checkpoint after every step, up to the report of step `at`."""

    class Stops(Reporter):
        def progress(self, fraction: float, message: str = "", **numbers: float | int) -> None:
            if numbers.get("step", 0) == at:
                raise Enough

    with pytest.raises(Enough):
        train.main(spec, Stops(os.open(log, os.O_WRONLY | os.O_CREAT), 1))


@pytest.mark.parametrize(
    "learned", [{"exposure": True, "medium": True}, {"strategy": "mcmc"}], ids=["water", "mcmc"]
)
def test_all_that_is_learned_resumes_bit_identically(
    learned: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    events = Events(tmp_path / "events")
    whole, parts = (linked(source, tmp_path / name) for name in ("whole", "parts"))
    train.main(spec_for(whole, steps=60, **learned), events.reporter)
    spec = spec_for(parts, steps=60, checkpoint_every_s=0.0, **learned)
    stopped(spec, tmp_path / "stops", at=40)
    train.main(spec, events.reporter)
    assert report_of(parts)["resumed_from_step"] == 39  # one refinement lies behind, one ahead
    one, two = (Gaussians.load_npz(run / "train" / "gaussians.npz") for run in (whole, parts))
    assert all(np.array_equal(getattr(one, k), getattr(two, k)) for k in ("means", "sh0", "scales"))
    for figure in ("water", "psnr", "gaussians"):
        assert report_of(whole)[figure] == report_of(parts)[figure]
    if "medium" in learned:
        assert set(report_of(whole)["water"]) == {"attenuation", "backscatter", "colour"}
        # Rendering, truth and the scene in air.
        assert Image.open(whole / "output" / "preview.jpg").width >= 3 * 80
    else:
        assert not events.of_kind("warning")


def test_a_smaller_plan_goes_on_from_the_checkpoint(source: Path, tmp_path: Path) -> None:
    run_dir = linked(source, tmp_path / "run")
    spec = spec_for(run_dir, steps=100, checkpoint_every_s=0.0)
    stopped(spec, tmp_path / "stops", at=80)
    cpu = spec.config["train"]["cpu"]
    cpu |= {"cap": 700, "width": 72}
    events = Events(tmp_path / "events")
    train.main(spec, events.reporter)
    (warning,) = (event["message"] for event in events.of_kind("warning"))
    assert "goes on from step 79 with at most 700 gaussians instead of 1500" in warning
    assert "images 72 pixels wide instead of 90" in warning
    assert "800 least opaque gaussians are left out" in warning
    report = report_of(run_dir)
    assert (report["resumed_from_step"], report["width"]) == (79, 72)
    assert 650 <= report["gaussians"] <= 700
    assert report["psnr"] > 22.0


def test_other_images_of_the_same_size_begin_anew(source: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "frames").mkdir(parents=True)
    (run_dir / "sfm").symlink_to(source / "sfm")
    for path in (source / "frames").glob("*.jpg"):
        (run_dir / "frames" / path.name).write_bytes(path.read_bytes())
    spec = spec_for(run_dir, steps=30, checkpoint_every_s=0.0)
    stopped(spec, tmp_path / "stops", at=20)
    changed = run_dir / "frames" / "f000003.jpg"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed, quality=98)
    events = Events(tmp_path / "events")
    train.main(spec, events.reporter)
    assert "starts anew" in events.of_kind("warning")[0]["message"]
    assert report_of(run_dir)["resumed_from_step"] == 0
