"""A program of the operator's trains: what it is given, what it may leave, how it may fail."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from stitch.errors import FileUnreadable
from stitch.gaussians import Gaussians
from stitch.ply import write_ply
from tests.training_world import Events, linked, make_run, report_of, spec_for
from worker_agent.protocol import FailureCode
from worker_agent.stages import train
from worker_agent.stages.api import Artifacts, StageFailure
from worker_agent.stages.point_cloud import as_gaussians, read_any

# Writes the model's points as the kind of PLY that its last argument names, and leaves a process.
PROGRAM = """
import json, os, subprocess, sys
from pathlib import Path
model, output, job, kind = sys.argv[1:]
told = json.loads(Path(job).read_text())
assert told["held_out"] and sorted(p.name for p in Path(told["frames"]).iterdir())
assert (told["model"], told["output"], told["job"]) == (model, output, job)
assert (told["name"], told["gpu"], told["train"]["seed"]) == ("job1", "", 1)
assert told["work"] == os.getcwd() and os.listdir() == ["job.json"]
assert not {"PYTHONPATH", "PYTHONSAFEPATH"} & set(os.environ)
print("thinking aloud")
print(json.dumps({"fraction": 0.5, "message": "half way"}), flush=True)
viewer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("../viewer.pid").write_text(str(viewer.pid))
if kind == "broken":
    sys.exit("no such camera")
lines = ["0 0 0 9 9 9"] * 899  # one too few
if kind == "points":
    import zlib, pycolmap
    points = pycolmap.Reconstruction(model).points3D.values()
    lines = [" ".join(map(str, [*p.xyz, *p.color])) for p in points]
if kind != "nothing":
    header = ["ply", "format ascii 1.0", "element vertex 900"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    Path(output).write_text("\\n".join([*header, "end_header", *lines]) + "\\n")
if kind == "endless":
    viewer.wait()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("source")
    make_run(run_dir)
    (run_dir / "program.py").write_text(PROGRAM)
    return run_dir


def made_by(source: Path, run_dir: Path, kind: str, events: Events, **settings: Any) -> Artifacts:
    linked(source, run_dir)
    command = [sys.executable, str(source / "program.py"), "{model}", "{output}", "{job}", kind]
    spec = spec_for(run_dir, steps=10)
    reconstruct = {"backend": "command", "command": command, "timeout_s": 120.0} | settings
    return train.main(
        dataclasses.replace(spec, config=spec.config | {"reconstruct": reconstruct}),
        events.reporter,
    )


def is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_points_become_measured_gaussians_and_nothing_is_left_running(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/ours")  # as the supervisor has it
    run_dir, events = tmp_path / "run", Events(tmp_path / "events")
    made = made_by(source, run_dir, "points", events)
    points = pycolmap.Reconstruction(str(source / "sfm" / "model")).points3D
    trained = Gaussians.load_npz(run_dir / "train" / "gaussians.npz")
    assert len(trained) == made.metrics["gaussians"] == len(points) == 900
    expected = np.array([point.xyz for point in points.values()], np.float32)
    assert np.sort(trained.means, axis=0) == pytest.approx(np.sort(expected, axis=0), abs=1e-4)
    assert [f.kind for f in made.files] == ["gaussians", "training_report", "preview"]
    assert made.metrics["psnr"] > 13.0  # points alone show the scene, roughly
    assert report_of(run_dir)["views_test"] == 2
    assert "half way" in [event["message"] for event in events.of_kind("progress")]
    assert not is_there(int((run_dir / "train" / "viewer.pid").read_text()))
    assert not (run_dir / "train" / "command").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "reason", "words"),
    [
        ("broken", {}, FailureCode.STAGE_CRASHED, "exit 1: no such camera"),
        ("nothing", {}, FailureCode.STAGE_CRASHED, "left no output.ply"),
        ("short", {}, FailureCode.STAGE_CRASHED, "1 of 900 vertices are missing"),
        ("endless", {"timeout_s": 2.0}, FailureCode.STAGE_TIMEOUT, "within 2 s"),
        ("", {"command": ["/none/such"]}, FailureCode.TOOL_MISSING, "/none/such"),
        ("", {"command": ["true", "{modle}"]}, FailureCode.CONFIG_INVALID, "'{modle}'"),
    ],
)
def test_what_it_does_wrong_is_said(
    kind: str,
    settings: dict[str, Any],
    reason: FailureCode,
    words: str,
    source: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(StageFailure) as caught:
        made_by(source, tmp_path / "run", kind, Events(tmp_path / "events"), **settings)
    assert caught.value.reason is reason
    assert words in caught.value.message and "\n" not in caught.value.message
    assert caught.value.advice
    viewer = tmp_path / "run" / "train" / "viewer.pid"
    assert not viewer.is_file() or not is_there(int(viewer.read_text()))


def test_files_of_points_and_of_gaussians_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(50, 3)), rng.uniform(size=(50, 3))
    round_ones = as_gaussians(points, colors)
    write_ply(tmp_path / "gaussians.ply", round_ones)
    assert np.array_equal(read_any(tmp_path / "gaussians.ply").scales, round_ones.scales)
    packed = np.zeros(50, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"),
                           ("green", "u1"), ("blue", "u1")])  # fmt: skip
    for place, axis in enumerate("xyz"):
        packed[axis] = points[:, place]
    for place, name in enumerate(("red", "green", "blue")):
        packed[name] = 255 * colors[:, place]
    kinds = ["float"] * 3 + ["uchar"] * 3
    names = packed.dtype.names or ()
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 50\n" + "".join(
        f"property {kind} {name}\n" for kind, name in zip(kinds, names, strict=True)
    )
    (tmp_path / "points.ply").write_bytes(f"{header}end_header\n".encode() + packed.tobytes())
    found = read_any(tmp_path / "points.ply")
    assert found.means == pytest.approx(points, abs=1e-6)
    assert found.sh0 == pytest.approx(round_ones.sh0, abs=0.02)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not a ply", b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
        b"property float z\nend_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        b"property float z\nend_header\n1 2 three\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n",
    ],
)  # fmt: skip
def test_files_that_are_neither_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with pytest.raises(FileUnreadable, match=os.fspath(path)):
        read_any(path)


def test_the_settings_ask_for_a_command_with_its_backend() -> None:
    from dispatcher.stage_settings import ReconstructConfig

    assert json.loads(ReconstructConfig().model_dump_json())["backend"] == "gsplat"
    ReconstructConfig(backend="command", command=("a",))
    for wrong in ({"backend": "command"}, {"command": ("a",)}):
        with pytest.raises(ValueError, match="command"):
            ReconstructConfig(**wrong)
