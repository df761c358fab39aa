"""ColmapReconstruction on real pictures: what registers, what is refused and why, what survives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from stitch.sidecar import Sidecar
from tests.sfm_world import HEIGHT, SFM, WIDTH, film, gravel, reconstruct, spec_for
from worker_agent.protocol import FailureCode
from worker_agent.stages import sfm, sfm_lens, sfm_mapping, sfm_process
from worker_agent.stages.api import Artifacts, Reporter, StageFailure
from worker_agent.stages.masks import pack, prepare, unpacked
from worker_agent.stages.sfm_mapping import Request
from worker_agent.stages.sfm_process import StepCrashed, StepHung, _verdict, counts, run_step


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifacts, np.ndarray[Any, Any]]:
    run_dir = tmp_path_factory.mktemp("run")
    pictures, centres = gravel(14, 0.12)
    film(run_dir / "input" / "GX010001.MP4", pictures)
    return run_dir, reconstruct(run_dir), centres


Done = tuple[Path, Artifacts, np.ndarray[Any, Any]]


def test_a_moving_camera_is_registered_where_it_was(done: Done) -> None:
    run_dir, made, centres = done
    facts = json.loads((run_dir / "output" / "sfm.json").read_text())
    assert facts["registered"] == facts["frames"] == 14
    assert facts["registered_share"] == 1.0
    assert facts["reprojection_px"] < 0.3
    assert facts["refined"] is True
    # A camera that only slides tells no focal length: the mapper's is kept.
    assert facts["focal_uncertainty"] > 0.05
    assert facts["mapper"] == "global, sequential pairs"
    assert facts["gravity_spread_deg"] is None
    assert made.completed["colmap_points"] == facts["points"]
    assert (facts["camera"]["width"], facts["camera"]["params"][1]) == (WIDTH, WIDTH / 2)
    model = pycolmap.Reconstruction(str(run_dir / "sfm" / "model"))
    found = np.array(
        [i.projection_center() for i in sorted(model.images.values(), key=lambda i: i.name)]
    )
    # Similarity to the truth (Umeyama, by singular values): residual against the path's length.
    a, b = found - found.mean(0), centres - centres.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, np.linalg.det(u @ vt)])
    scale = np.trace(np.diag(s) @ sign) / (a**2).sum()
    rest = b - scale * a @ (u @ sign @ vt).T
    assert np.sqrt((rest**2).sum(1).mean()) < 0.01 * np.linalg.norm(centres[-1] - centres[0])


def test_the_model_is_coloured_and_its_sidecar_agrees(done: Done) -> None:
    run_dir, made, _ = done
    model = pycolmap.Reconstruction(str(run_dir / "sfm" / "model"))
    colours = np.array([point.color for point in model.points3D.values()])
    assert colours.std() > 10
    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    assert len(sidecar.keyframe_names) == 14
    assert sidecar.keyframe_time_s == pytest.approx([0.2 * i for i in range(14)])
    assert sidecar.quality["registered"] == 14
    error = model.compute_mean_reprojection_error()  # of what is published, not of what began it
    assert sidecar.quality["reprojection_px"] == pytest.approx(error, rel=1e-6)
    kinds = {item.kind for item in made.files}
    assert kinds == {"sfm_report", "registration", "sfm_model"}
    assert not (run_dir / "sfm" / "work").exists()


@pytest.mark.parametrize(
    ("distortion", "kept"), [(0.0, "SIMPLE_PINHOLE"), (0.015, "SIMPLE_RADIAL")]
)
def test_a_lens_without_distortion_gets_none(distortion: float, kept: str) -> None:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 12
    options.num_points3D = 900
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [1280.0, 512.0, 384.0, distortion]
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    for image in model.images.values():
        for point in image.points2D:
            point.xy = point.xy + rng.normal(0, 0.3, 2)
    found = sfm_lens.fitted(pycolmap, model, given=None, threads=1).model
    assert [camera.model.name for camera in found.cameras.values()] == [kept]


def test_progress_is_told_and_never_goes_back(done: Done) -> None:
    lines = [json.loads(line) for line in (done[0] / "events.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["kind"] == "progress"]
    messages = " ".join(line["message"] for line in told)
    assert "frames registered" in messages
    last = next(i for i in reversed(range(len(told))) if "of 14 frames" in told[i]["message"])
    first = next(i for i, line in enumerate(told) if line["message"].startswith("features of"))
    shares = [line["fraction"] for line in told[first : last + 1]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


class Enough(Exception):
    pass


def only_extract(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
    if step != "extract":
        raise Enough
    return run_step(step, ordered, tick)


LOWER_HALF = [[[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]]
# Hides the lower half of every frame; says how often it was run.
PROGRAM = """
import pathlib, sys
from PIL import Image
frames, masks, count = (pathlib.Path(word) for word in sys.argv[1:])
for frame in frames.glob("*.jpg"):
    mask = Image.new("L", (2, 2), 255)
    mask.paste(0, (0, 1, 2, 2))
    mask.save(masks / f"{frame.name}.png")
count.write_text(count.read_text() + "x" if count.exists() else "x")
"""


def extract_only(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> None:
    for name in ("frames", "output"):
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(done[0] / name)
    monkeypatch.setattr(sfm, "run_step", only_extract)
    spec = spec_for(tmp_path, {"sfm": SFM | settings}, [])
    with (tmp_path / "events.jsonl").open("ab") as events, pytest.raises(Enough):
        sfm.main(spec, Reporter(events.fileno(), 1))


@pytest.mark.parametrize("by", ["polygons", "a program"])
def test_what_a_mask_hides_has_no_features(
    by: str, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mask.py").write_text(PROGRAM)
    program = [sys.executable, str(tmp_path / "mask.py"), "{frames}", "{masks}"]
    program.append(str(tmp_path / "count"))
    settings = {"mask": LOWER_HALF} if by == "polygons" else {"mask_command": program}
    for _ in range(2 if by == "a program" else 1):
        extract_only(done, tmp_path, monkeypatch, **settings)
    if by == "a program":  # the masks that it made are taken again
        assert (tmp_path / "count").read_text() == "x"
    with pycolmap.Database.open(str(tmp_path / "sfm" / "database.db")) as link:
        images = link.read_all_images()
        found = [link.read_keypoints(i.image_id)[:, 1] for i in images]
    assert len(found) == 14
    assert all(len(heights) > 100 and heights.max() < 0.51 * HEIGHT for heights in found)


@pytest.mark.parametrize(
    ("program", "reason", "words"),
    [
        (["sh", "-c", "echo no model of a diver; exit 3"], FailureCode.STAGE_CRASHED, "of a diver"),
        (["/none/segment"], FailureCode.TOOL_MISSING, "/none/segment"),
        (["sh", "{images}"], FailureCode.CONFIG_INVALID, "sfm.mask_command"),
    ],
)
def test_a_program_for_masks_that_fails_holds_the_job(
    program: list[str], reason: FailureCode, words: str, done: Done, tmp_path: Path
) -> None:
    (tmp_path / "frames").symlink_to(done[0] / "frames")
    spec = spec_for(tmp_path, {"sfm": SFM | {"mask_command": program}}, [])
    with (tmp_path / "events.jsonl").open("ab") as events, pytest.raises(StageFailure) as caught:
        sfm.main(spec, Reporter(events.fileno(), 1))
    assert caught.value.reason is reason
    assert words in caught.value.message


def test_masks_go_with_the_job_to_another_host(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    made = prepare(tmp_path, ["f000001.jpg", "f000002.jpg"], (40, 20), LOWER_HALF)
    assert made is not None
    first = pack(tmp_path).read_bytes()
    assert pack(tmp_path).read_bytes() == first
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    shutil.rmtree(made)
    assert unpacked(tmp_path) == made
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert not unpacked(tmp_path / "elsewhere").exists()


def test_a_frame_may_have_a_mask_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "masks"
    own.mkdir()
    Image.fromarray(np.array([[255, 0]], np.uint8)).save(own / "f000002.jpg.png")
    names = ["f000001.jpg", "f000002.jpg"]
    assert prepare(tmp_path, ["f000001.jpg"], (40, 20), []) is None
    prepare(tmp_path, names, (40, 20), [[[0, 0.5], [1, 0.5], [1, 1], [0, 1]]])
    one, two = (np.asarray(Image.open(tmp_path / "sfm" / "masks" / f"{n}.png")) for n in names)
    assert (one[2] == 255).all() and (one[-3] == 0).all()
    assert (two[2, :19] == 255).all() and (two[2, 21:] == 0).all() and (two[-3] == 0).all()


@pytest.mark.parametrize("mask", [[[[0, 0], [1, 1]]], [[[0, 0], [1, 0], [1, 1], [0, 1]]]])
def test_a_mask_that_cannot_be_is_refused(
    mask: Any, done: tuple[Path, Artifacts, np.ndarray[Any, Any]]
) -> None:
    with pytest.raises(StageFailure, match=r"sfm\.mask") as caught:
        prepare(done[0], ["f000001.jpg"], (WIDTH, HEIGHT), mask)
    assert caught.value.reason is FailureCode.CONFIG_INVALID


def test_rungs_are_climbed_until_one_holds(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mappers make nothing until they get strong features of all pairs."""
    climbed: list[str] = []
    candidates: list[dict[str, Any]] = []

    def played(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
        climbed.append(f"{'strong ' * ordered.strong}{ordered.pairs} {step}")
        if step == "match":
            return {
                "images": 14, "keypoints_median": 30 if not ordered.strong else 500,
                "verified_pairs": 40, "motion_share": 0.2, "planar_share": 0.5,
            }  # fmt: skip
        if step == "finish":
            return {"points": 1, "reprojection_px": 1.0, "world": {}}
        if ordered.strong and ordered.pairs == "exhaustive" and step == "map_global":
            return {"candidate": candidates[0]}
        return {"candidate": None}

    model = pycolmap.Reconstruction(str(done[0] / "sfm" / "model"))
    candidates.append(
        sfm_mapping._largest(request(done, tmp_path), {0: model}, "global", tmp_path)["candidate"]
    )
    for name in ("frames", "output"):
        (tmp_path / name).symlink_to(done[0] / name)
    monkeypatch.setattr(sfm, "run_step", played)
    monkeypatch.setattr(sfm._Ladder, "publish", lambda _, found: found.mapper)
    with (tmp_path / "events.jsonl").open("ab") as events:
        made: Any = sfm.main(spec_for(tmp_path, {"sfm": SFM}, []), Reporter(events.fileno(), 1))
    assert made == "global"
    # All pairs of too few features are no better than some of them.
    assert climbed == [
        "sequential extract", "sequential match",
        "strong sequential extract", "strong sequential match",
        "strong sequential map_global", "strong sequential map_incremental",
        "strong exhaustive match", "strong exhaustive map_global",
    ]  # fmt: skip


def request(done: Done, tmp_path: Path, **changes: Any) -> Request:
    run_dir = done[0]
    facts = json.loads((run_dir / "output" / "manifest.json").read_text())
    values: dict[str, Any] = {
        "database": str(tmp_path / "database.db"),
        "images": str(run_dir / "frames"),
        "work": str(tmp_path / "work"),
        "answer": str(tmp_path / "work" / "answer.json"),
        "names": [row["name"] for row in facts["frames"]],
        "camera": facts["camera"],
        "max_features": 300,
        "max_image_size": 480,
        "overlap": 3,
        "seed": 0,
        "threads": 1,
        "memory_limit_mib": None,
        "focal_uncertainty": 0.02,
    }
    return Request(**(values | changes))


def strike(monkeypatch: pytest.MonkeyPatch, sign: signal.Signals) -> list[int]:
    """Every child gets the signal as soon as it is there; the processes that got it."""
    follow, struck = sfm_process._follow, []

    def first(child: subprocess.Popen[bytes], *rest: Any) -> Any:
        child.send_signal(sign)
        struck.append(child.pid)
        return follow(child, *rest)

    monkeypatch.setattr(sfm_process, "_follow", first)
    return struck


def mapping_of(done: Done, tmp_path: Path, **changes: Any) -> Request:
    return request(done, tmp_path, database=str(done[0] / "sfm" / "database.db"), **changes)


def no_tick(_: int) -> int:
    return 0


def test_stronger_features_are_more_of_them(done: Done, tmp_path: Path) -> None:
    found = []
    for strong in (False, True):
        database = tmp_path / f"{strong}.db"
        few = request(done, tmp_path, database=str(database), strong=strong, max_features=4000)
        few = replace(few, answer=str(tmp_path / f"{strong}.json"))
        run_step("extract", replace(few, names=few.names[:1]), no_tick)
        with pycolmap.Database.open(str(database)) as link:
            found.append(len(link.read_keypoints(link.read_all_images()[0].image_id)))
    assert found[1] > 1.5 * found[0]


def test_images_that_do_not_count_are_taken_out_of_the_model(done: Done, tmp_path: Path) -> None:
    whole = done[0] / "sfm" / "model"
    ordered = request(
        done,
        tmp_path,
        database=str(done[0] / "sfm" / "database.db"),
        accepted=str(whole),
        drop=["f000003.jpg"],
        manifest=str(done[0] / "output" / "manifest.json"),
        model=str(tmp_path / "model"),
        registration=str(tmp_path / "registration.npz"),
        quality={"registered": 13},
    )
    assert len(run_step("finish", ordered, no_tick)["names"]) == 13
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert sorted(i.name for i in model.images.values() if not i.has_pose) in ([], ["f000003.jpg"])
    assert model.num_reg_images() == 13
    assert "f000003.jpg" not in Sidecar.load(tmp_path / "registration.npz").keyframe_names


def finished(done: Done, tmp_path: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], Sidecar]:
    """The accepted model published by another manifest: where it was put, and its sidecar."""
    manifest_path = tmp_path / "manifest.json"
    manifest_path.write_text(json.dumps(facts))
    ordered = request(
        done,
        tmp_path,
        database=str(done[0] / "sfm" / "database.db"),
        accepted=str(done[0] / "sfm" / "model"),
        manifest=str(manifest_path),
        model=str(tmp_path / "model"),
        registration=str(tmp_path / "registration.npz"),
    )
    world = run_step("finish", ordered, no_tick)["world"]
    return world, Sidecar.load(tmp_path / "registration.npz")


def test_a_model_with_positions_and_gravity_is_published_in_metres(
    done: Done, tmp_path: Path
) -> None:
    """The camera looks level along +y of the world and moves east, 10 m a unit of the truth."""
    facts = json.loads((done[0] / "output" / "manifest.json").read_text())
    east, up = 10.0 * done[2][:, 0], -10.0 * done[2][:, 1]
    north = 10.0 * done[2][:, 2]
    for row, e, n, u in zip(facts["frames"], east, north, up, strict=True):
        row["gravity"] = [0.0, 1.0, 0.0]
        at = [n / 110574.3, e / 111319.5, u]  # at the equator
        row["position"] = {"at": at, "frame": "wgs84", "sigma_m": None, "source": "gps"}
    world, sidecar = finished(done, tmp_path, facts)
    assert world["upright"] and world["metric"]
    assert world["drift_m"] < 0.3
    centres = sidecar.centres()
    truth = np.column_stack([east, north, up])
    assert centres - centres.mean(0) == pytest.approx(truth - truth.mean(0), abs=0.8)
    assert world["scale_from"] == "positions" and world["scale_uncertainty"] < 0.05


def test_an_altimeter_gives_a_model_without_positions_its_metre(done: Done, tmp_path: Path) -> None:
    """The camera's own "down" is along its view here, so that the wall it films is the ground."""
    facts = json.loads((done[0] / "output" / "manifest.json").read_text())
    model = pycolmap.Reconstruction(str(done[0] / "sfm" / "model"))
    ahead = np.median(
        [
            (image.cam_from_world() * model.points3D[point.point3D_id].xyz)[2]
            for image in model.images.values()
            if image.has_pose
            for point in image.get_observation_points2D()
        ]
    )
    for row in facts["frames"]:
        row["gravity"] = [0.0, 0.0, 1.0]
        row["altitude_m"], row["depth_m"] = 2.5, 30.0
    world, sidecar = finished(done, tmp_path, facts)
    assert (world["metric"], world["scale_from"]) == (True, "altitude")
    assert sidecar.quality["scale_from"] == "altitude"
    found = sidecar.centres()
    before = np.array([i.projection_center() for i in model.images.values() if i.has_pose])
    grown = np.linalg.norm(found.max(0) - found.min(0)) / np.linalg.norm(np.ptp(before, axis=0))
    assert grown == pytest.approx(2.5 / ahead, rel=0.15)
    assert np.median(found[:, 2]) == pytest.approx(-30.0, abs=1e-6)


def test_a_native_abort_ends_in_one_line_and_not_the_stage(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike(monkeypatch, signal.SIGABRT)
    with pytest.raises(StepCrashed, match="extract was ended by SIGABRT"):
        run_step("extract", request(done, tmp_path), no_tick)


def test_a_kill_from_outside_is_not_taken_for_too_little_memory(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for a fault of the mapper: the ladder does not go on without it."""
    strike(monkeypatch, signal.SIGKILL)
    with pytest.raises(StageFailure, match=r"map_global.*SIGKILL") as caught:
        run_step("map_global", mapping_of(done, tmp_path), no_tick)
    assert caught.value.reason is FailureCode.STAGE_SIGNALLED


def test_a_child_that_stands_still_is_ended(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = strike(monkeypatch, signal.SIGSTOP)
    with pytest.raises(StepHung, match=r"map_global of 14 frames .* next to no CPU time") as caught:
        run_step("map_global", mapping_of(done, tmp_path, patience=0.002), no_tick)
    assert caught.value.failure({}).reason is FailureCode.STAGE_TIMEOUT
    (child,) = stopped
    assert not Path(f"/proc/{child}").exists()


def test_an_exception_of_the_library_is_told_in_its_own_words(done: Done, tmp_path: Path) -> None:
    with pytest.raises(StepCrashed, match="extract ended with exit 1") as caught:
        run_step("extract", request(done, tmp_path, images=str(tmp_path / "none")), no_tick)
    assert "Traceback" not in caught.value.message


@pytest.mark.parametrize("limit", [256, 300])
def test_a_memory_limit_is_kept_and_named(limit: int, done: Done, tmp_path: Path) -> None:
    with pytest.raises(StageFailure) as caught:
        run_step("extract", request(done, tmp_path, memory_limit_mib=limit), no_tick)
    assert caught.value.reason is FailureCode.OUT_OF_MEMORY
    assert f"{limit} MiB" in caught.value.message


@pytest.mark.parametrize(
    ("limit", "peak_mib", "memory"), [(500, 480.0, True), (500, 200.0, False), (None, 480.0, False)]
)
def test_native_code_that_dies_at_its_limit_had_too_little_memory(
    limit: int | None, peak_mib: float, memory: bool, done: Done, tmp_path: Path
) -> None:
    ordered = request(done, tmp_path, memory_limit_mib=limit)
    found = _verdict("extract", -signal.SIGSEGV, "", ordered, peak_mib, for_memory=False)
    assert isinstance(found, StageFailure if memory else StepCrashed)


def test_counts_follow_the_database(done: Done, tmp_path: Path) -> None:
    assert counts(tmp_path / "none.db") == (0, 0)
    images, pairs = counts(done[0] / "sfm" / "database.db")
    assert images == 14
    # Distances 1, 2, 4 and 8, as the library lays them out: what progress is measured against.
    assert pairs == sfm.sequential_pairs(14, SFM["overlap"]) == 13 + 12 + 10 + 6


@pytest.mark.slow
def test_the_reef_registers_whole(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "input").mkdir()
    source = real_data / "gopro_reef_hero10" / "reef_clip.mp4"
    (tmp_path / "input" / "GX010042.MP4").write_bytes(source.read_bytes())
    reconstruct(tmp_path, max_features=1500, overlap=6)
    facts = json.loads((tmp_path / "output" / "sfm.json").read_text())
    assert facts["registered"] == facts["frames"] == 36
    assert facts["reprojection_px"] < 0.7
    assert facts["gravity_spread_deg"] < 1.0
