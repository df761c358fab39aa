"""A stopped training goes on from its checkpoint: to the same bits, or by a smaller plan."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stitch.gaussians import Gaussians
from tests.training_world import Events, linked, report_of, source, spec_for
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import train
from worker_agent.stages.api import Reporter

__all__ = ["source"]

RUN = """
import json, sys
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import train
from worker_agent.stages.api import Reporter
train.main(AttemptSpec.from_json(sys.argv[1]), Reporter(1, 1, interval_s=0.0))
"""


def test_a_killed_training_resumes_to_bit_identical_gaussians(source: Path, tmp_path: Path) -> None:
    whole, killed = (linked(source, tmp_path / name) for name in ("whole", "killed"))
    train.main(spec_for(whole, steps=120), Events(tmp_path / "events").reporter)

    spec = spec_for(killed, steps=120, checkpoint_every_s=0.0)  # a checkpoint at every step
    command = [sys.executable, "-c", RUN, spec.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Past the first refinements, and with the state of one under way.
        reached = next(
            event["step"]
            for event in map(json.loads, process.stdout)
            if event["kind"] == "progress" and event["step"] >= 60
        )
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and reached < 120
    assert not (killed / "train" / "gaussians.npz").exists()

    train.main(spec_for(killed, steps=120), Events(tmp_path / "resumed").reporter)
    report = json.loads((killed / "output" / "training.json").read_text())
    assert 50 <= report["resumed_from_step"] < 120
    one, two = (Gaussians.load_npz(run / "train" / "gaussians.npz") for run in (whole, killed))
    for name in ("means", "scales", "quats", "opacities", "sh0", "shN"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_the_process_that_meets_no_compiled_kernels_trains_as_all_later_ones(
    source: Path, tmp_path: Path
) -> None:
    made = []
    for name in ("first", "later"):
        run_dir = linked(source, tmp_path / name)
        subprocess.run(
            [sys.executable, "-c", RUN, spec_for(run_dir, steps=3).to_json()],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        made.append(Gaussians.load_npz(run_dir / "train" / "gaussians.npz"))
    assert any((tmp_path / "kernels").rglob("*.nbi"))
    first, later = made
    assert np.array_equal(first.means, later.means)
    assert np.array_equal(first.quats, later.quats)


def test_another_configuration_does_not_resume(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = linked(source, tmp_path / "run")
    with monkeypatch.context() as patched:

        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(train, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            train.main(spec_for(run_dir, steps=20), Events(tmp_path / "first").reporter)
    events = Events(tmp_path / "second")
    train.main(spec_for(run_dir, steps=30), events.reporter)
    assert "starts anew" in events.of_kind("warning")[0]["message"]
    report = json.loads((run_dir / "output" / "training.json").read_text())
    assert (report["steps"], report["resumed_from_step"]) == (30, 0)
    assert [path.name for path in (run_dir / "train").iterdir()] == ["gaussians.npz"]


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
    "learned",
    [{"exposure": True, "medium": True}, {"strategy": "mcmc"}, {"strategy": "default"}],
    ids=["water", "mcmc", "default"],
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
