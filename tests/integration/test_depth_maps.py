"""Depth maps by a real ONNX model: aligned with the sparse points, and read again for training."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pycolmap
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from tests.training_world import Events
from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages.api import Artifacts, StageFailure
from worker_agent.stages.depth_maps import DEPTHS, model_of, with_depths
from worker_agent.training.backend import cpu_backend
from worker_agent.training.dataset import load_dataset
from worker_agent.training.depth_files import read_disparities
from worker_agent.training.settings import TrainSettings
from worker_agent.training.trainer import Trainer

F64 = npt.NDArray[np.float64]
WIDTH, HEIGHT, FOCAL, VIEWS = 160, 120, 150.0, 4
NAMES = [f"f{view + 1:06d}.jpg" for view in range(VIEWS)]
UNIT = 7.0  # of the SfM model, per metre
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def depth_at(u: F64, v: F64) -> F64:
    """Metres, of what every camera sees at a pixel: each stands before a wavy wall of its own."""
    return 2.0 + 0.8 * np.sin(u / 30) + v / HEIGHT


def make_run(root: Path) -> None:
    """Frames whose red is the inverse depth, the last one's is nothing, and a fifth of all points
    somewhere else."""
    (root / "frames").mkdir(parents=True)
    (root / "sfm" / "model").mkdir(parents=True)
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model="PINHOLE", width=WIDTH, height=HEIGHT, camera_id=1,
        params=[FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2],
    )  # fmt: skip
    reconstruction.add_camera_with_trivial_rig(camera)
    generator = np.random.default_rng(0)
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for view, name in enumerate(NAMES):
        red = 255 * (0.1 + 0.9 / depth_at(u, v))
        if name == NAMES[-1]:
            red = generator.uniform(0, 255, red.shape)
        picture = np.repeat(red.round().astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(picture).save(root / "frames" / name, quality=100, subsampling=0)
        shift = np.array([10.0 * view, 0.0, 0.0])
        places = generator.uniform((1, 1), (WIDTH - 1, HEIGHT - 1), (80, 2))
        deep = UNIT * depth_at(*places.T)
        deep[::5] *= generator.uniform(0.3, 3.0, len(deep[::5]))
        image = pycolmap.Image(
            name=name, camera_id=1, image_id=view + 1,
            points2D=pycolmap.Point2DList([pycolmap.Point2D(place) for place in places]),
        )  # fmt: skip
        reconstruction.add_image_with_trivial_frame(
            image, pycolmap.Rigid3d(pycolmap.Rotation3d(), -shift)
        )
        rays = np.column_stack([(places - (WIDTH / 2, HEIGHT / 2)) / FOCAL, np.ones(len(places))])
        for at, world in enumerate(rays * deep[:, None] + shift):
            track = pycolmap.Track([pycolmap.TrackElement(view + 1, at)])
            reconstruction.add_point3D(world, track, np.zeros(3, np.uint8))
    reconstruction.write(str(root / "sfm" / "model"))


def make_model(path: Path, height: int | str = "h", width: int | str = "w") -> Path:
    """Says 3 * red + 2: it undoes what the colours go through on their way in."""
    scale, shift = 3 * DEVIATION[0], 3 * MEAN[0] + 2
    weights = helper.make_tensor("w0", TensorProto.FLOAT, (1, 3, 1, 1), [scale, 0.0, 0.0])
    bias = helper.make_tensor("b0", TensorProto.FLOAT, (1,), [shift])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w0", "b0"], ["disparity"])],
        "red",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, height, width))],
        [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, (1, 1, height, width))],
        [weights, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def spec_for(root: Path, model: Path, **depth: Any) -> AttemptSpec:
    settings = {"model": str(model), "output": "disparity", "side": 112} | depth
    return AttemptSpec(
        protocol=1, epoch=1, acquisition="survey", job="j", attempt=1, stage="", run_dir=str(root),
        config={
            "sfm": {"threads": 1},
            "depth": {"mean": MEAN, "deviation": DEVIATION, **settings},
        },
    )  # fmt: skip


def made(spec: AttemptSpec, events: Events) -> Artifacts:
    model = model_of(spec)
    assert model is not None
    return with_depths(Artifacts(files=(), metrics={"registered": 4}), model, spec, events.reporter)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("depth")
    make_run(root)
    make_model(root / "any_size.onnx")
    make_model(root / "fixed.onnx", 84, 126)
    return root


@pytest.mark.parametrize("model", ["any_size.onnx", "fixed.onnx"])
def test_maps_are_in_the_units_of_the_model_and_one_that_disagrees_is_left_out(
    run: Path, tmp_path: Path, model: str
) -> None:
    spec = spec_for(run, run / model)
    artifacts = made(spec, Events(tmp_path / "events"))
    assert [file.kind for file in artifacts.files] == ["depth_maps"]
    assert artifacts.metrics["registered"] == 4 and artifacts.metrics["depth_maps"] == 3
    assert artifacts.metrics["depth_error"] < 0.02

    with zipfile.ZipFile(run / DEPTHS) as packed:
        index = json.loads(packed.read("depth.json"))
        assert sorted(packed.namelist()) == ["depth.json", *(f"{name}.png" for name in NAMES[:3])]
    assert [one["points"] for one in index["frames"].values()] == pytest.approx([64] * 3, abs=6)
    found = read_disparities(run / DEPTHS, NAMES, (WIDTH, HEIGHT))
    assert not found[3].any()
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    error = np.abs(found[:3] * UNIT * depth_at(u, v) - 1)
    assert float(np.median(error)) < 0.02 and float(np.quantile(error, 0.99)) < 0.06

    dataset = load_dataset(
        run / "frames", run / "sfm" / "model", width=80, test_every=2, depths=run / DEPTHS
    )
    assert dataset.disparities is not None and dataset.disparities.shape == (4, 30, 40)
    apart = float(dataset.disparities[0].median()) * dataset.normalisation.scale
    assert apart == pytest.approx(float(np.median(found[0])), rel=0.02)


def test_maps_pull_at_a_training_where_they_weigh_and_only_there(run: Path, tmp_path: Path) -> None:
    made(spec_for(run, run / "any_size.onnx"), Events(tmp_path / "events"))
    backend, means = cpu_backend(1), []
    for depths, weight in ((None, 5.0), (run / DEPTHS, 0.0), (run / DEPTHS, 5.0)):
        dataset = load_dataset(
            run / "frames", run / "sfm" / "model", width=80, test_every=4, depths=depths
        )
        settings = TrainSettings(
            seed=0, test_every=4, checkpoint_every_s=600.0, ssim_weight=0.2, width=80, steps=2,
            cap=300, sh_degree=0, depth_weight=weight,
        )  # fmt: skip
        checkpoint = tmp_path / f"{len(means)}.pt"
        trainer = Trainer(dataset, settings, backend, checkpoint=checkpoint, warn=print)
        trainer.run(lambda _: None)
        means.append(trainer.parameters["means"].detach())
    without, unweighted, pulled = means
    assert torch.equal(without, unweighted)
    assert float((pulled - unweighted).abs().max()) > 1e-5


def test_the_same_input_gives_the_same_file(run: Path, tmp_path: Path) -> None:
    spec = spec_for(run, run / "any_size.onnx")
    first, again = (made(spec, Events(tmp_path / f"events{n}")).files[0] for n in range(2))
    assert first.sha256 == again.sha256


def test_a_model_that_says_something_else_makes_no_file(run: Path, tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    artifacts = made(spec_for(run, run / "any_size.onnx", output="depth"), events)
    assert artifacts.files == () and not (run / DEPTHS).exists()
    (warning,) = events.of_kind("warning")
    assert "in none of 4 frames" in warning["message"]


def test_without_a_model_there_is_nothing_to_do(run: Path) -> None:
    assert model_of(dataclasses.replace(spec_for(run, run), config={})) is None


@pytest.mark.parametrize("how", ["no file", "no model", "two inputs"])
def test_a_model_that_cannot_be_used_is_told_before_the_work(
    run: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "model.onnx"
    if how == "no model":
        path.write_bytes(b"not a model")
    elif how == "two inputs":
        model = onnx.load(str(make_model(path)))
        extra = helper.make_tensor_value_info("focal", TensorProto.FLOAT, (1,))
        model.graph.input.append(extra)
        onnx.save(model, str(path))
    with pytest.raises(StageFailure) as caught:
        model_of(spec_for(run, path))
    assert caught.value.reason is FailureCode.CONFIG_INVALID
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert caught.value.advice
