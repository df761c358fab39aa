"""Alignment and evaluation against sidecars whose error is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stitch.sidecar import Sidecar
from worker_agent.demo.evaluate import evaluate, main
from worker_agent.demo.film import truth_of
from worker_agent.demo.survey import PRESETS, Track, track_of
from worker_agent.demo.truth import (
    Similarity,
    TruthError,
    align_cameras,
    align_centres,
    load_truth,
)

SURVEY = PRESETS["demo"]
EVERY = 4  # frames between keyframes


def some_similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=rng).as_matrix()
    return Similarity(float(rng.uniform(0.2, 4)), rotation, rng.uniform(-5, 5, 3))


def inverse(t: Similarity) -> Similarity:
    return Similarity(1 / t.scale, t.rotation.T, -t.rotation.T @ t.translation / t.scale)


def ground_points(track: Track, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = track.centres[rng.integers(0, len(track.centres), 400)]
    return np.column_stack([middle[:, :2] + rng.uniform(-1.5, 1.5, (400, 2)), np.zeros(400)])


def save_sidecar(path: Path, track: Track, to_frame: Similarity, *, stray: int = 0) -> None:
    """A perfect reconstruction in a frame of its own; `stray` cameras are thrown far away."""
    centres = to_frame.apply(track.centres[::EVERY])
    centres[:stray] += 1e6
    camera_from_world = np.einsum("nji,kj->nik", track.rotations[::EVERY], to_frame.rotation)
    count = len(centres)
    unknown = np.full((count, 3), np.nan)
    points = to_frame.apply(ground_points(track, 1))
    Sidecar(
        points=points,
        descriptors=np.zeros((len(points), 128)),
        track_length=np.full(len(points), 3),
        error_px=np.full(len(points), 0.3),
        rgb=np.zeros((len(points), 3)),
        keyframe_names=tuple(f"f{i + 1:06d}.jpg" for i in range(count)),
        keyframe_hashes=np.zeros(count),
        keyframe_time_s=track.times_s[::EVERY],
        rotations=np.roll(Rotation.from_matrix(camera_from_world).as_quat(), 1, axis=1),
        translations=-np.einsum("nij,nj->ni", camera_from_world, centres),
        gravity=unknown,
        gps=unknown,
        quality={"median_depth": 1.0},
    ).save(path)


def save_report(path: Path, members: dict[str, Similarity]) -> None:
    rows = [
        {
            "name": name,
            "scale": t.scale,
            "rotation": t.rotation.tolist(),
            "translation": t.translation.tolist(),
        }
        for name, t in members.items()
    ]
    path.write_text(json.dumps({"members": rows, "edges": [], "left_out": []}))


@pytest.fixture
def survey(tmp_path: Path) -> dict[str, Any]:
    """Four perfect segments in four frames; `frames` says which."""
    (tmp_path / "truth").mkdir()
    frames, tracks = {}, {}
    for seed, segment in enumerate(SURVEY.segments):
        track = track_of(SURVEY, segment, 1)
        tracks[segment.name] = track
        frames[segment.name] = some_similarity(seed)
        truth = tmp_path / "truth" / f"{segment.name}.json"
        truth.write_text(json.dumps(truth_of(SURVEY, segment, track)))
        save_sidecar(tmp_path / f"{segment.name}.npz", track, frames[segment.name])
    return {"path": tmp_path, "frames": frames, "tracks": tracks}


def request(path: Path, names: str, stitches: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "segments": [
            {"name": name, "job": f"job-{name}", "registration": str(path / f"{name}.npz")}
            for name in names.split()
        ],
        "stitches": stitches,
    }


def pair(path: Path, *names: str) -> dict[str, Any]:
    return {
        "id": "stitch-1",
        "level": "per_auv",
        "auv": "auv-a",
        "stitch_report": str(path / "stitch.json"),
        "members": [{"name": f"job-{name}", "segment": name} for name in names],
    }


def test_a_perfect_stitch_has_no_error(survey: dict[str, Any]) -> None:
    path, frames = survey["path"], survey["frames"]
    scene = some_similarity(11)
    save_report(
        path / "stitch.json", {f"job-{n}": scene.after(inverse(frames[n])) for n in ("a1", "a2")}
    )
    answer = evaluate(path / "truth", request(path, "a1 a2", [pair(path, "a1", "a2")]))
    assert [row["cameras"] for row in answer["segments"]] == [23, 23]
    assert all(row["centre_rms_m"] < 1e-4 for row in answer["segments"])
    (stitch,) = answer["stitches"]
    assert stitch["error_m"] < 1e-3
    assert stitch["left_out"] == 0
    assert 5.0 < stitch["extent_m"] < 11.0


def test_a_displaced_member_is_measured(survey: dict[str, Any]) -> None:
    """One of two equal members shifted by d: the joint fit splits it, about d / 2 is left."""
    path, frames = survey["path"], survey["frames"]
    shifted = Similarity(1.0, np.eye(3), np.array([0.0, 0.0, 0.4]))
    members = {
        "job-a1": inverse(frames["a1"]),
        "job-a2": shifted.after(inverse(frames["a2"])),
    }
    save_report(path / "stitch.json", members)
    (stitch,) = evaluate(path / "truth", request(path, "a1 a2", [pair(path, "a1", "a2")]))[
        "stitches"
    ]
    assert stitch["error_m"] > 0.05
    assert stitch["error_fraction"] == pytest.approx(
        stitch["error_m"] / stitch["extent_m"], rel=1e-3
    )


def test_a_wrong_scale_is_measured(survey: dict[str, Any]) -> None:
    path, frames = survey["path"], survey["frames"]
    grown = Similarity(1.2, np.eye(3), np.zeros(3))
    members = {"job-a1": inverse(frames["a1"]), "job-b1": grown.after(inverse(frames["b1"]))}
    save_report(path / "stitch.json", members)
    (stitch,) = evaluate(path / "truth", request(path, "a1 b1", [pair(path, "a1", "b1")]))[
        "stitches"
    ]
    assert stitch["error_fraction"] > 0.02


def test_a_scene_of_scenes_composes_the_similarities(survey: dict[str, Any]) -> None:
    path, frames = survey["path"], survey["frames"]
    scenes = {"a": some_similarity(21), "b": some_similarity(22)}
    for auv, scene in scenes.items():
        members = {f"job-{auv}{i}": scene.after(inverse(frames[f"{auv}{i}"])) for i in (1, 2)}
        save_report(path / f"{auv}.json", members)
    save_report(path / "all.json", {f"stitch-{auv}": inverse(scenes[auv]) for auv in scenes})
    cross = {
        "id": "stitch-3",
        "level": "cross_auv",
        "auv": None,
        "stitch_report": str(path / "all.json"),
        "members": [
            {
                "name": f"stitch-{auv}",
                "stitch_report": str(path / f"{auv}.json"),
                "members": [{"name": f"job-{auv}{i}", "segment": f"{auv}{i}"} for i in (1, 2)],
            }
            for auv in scenes
        ],
    }
    (stitch,) = evaluate(path / "truth", request(path, "a1 a2 b1 b2", [cross]))["stitches"]
    assert stitch["error_m"] < 1e-3
    assert stitch["points"] > 1200


def test_a_member_left_out_is_counted_and_one_member_has_no_error(survey: dict[str, Any]) -> None:
    path, frames = survey["path"], survey["frames"]
    save_report(path / "stitch.json", {"job-a1": inverse(frames["a1"])})
    (stitch,) = evaluate(path / "truth", request(path, "a1 a2", [pair(path, "a1", "a2")]))[
        "stitches"
    ]
    assert stitch["left_out"] == 1
    assert stitch["error_m"] is None


def test_cameras_thrown_far_away_do_not_move_the_rest(survey: dict[str, Any]) -> None:
    path, frames = survey["path"], survey["frames"]
    save_sidecar(path / "a1.npz", survey["tracks"]["a1"], frames["a1"], stray=4)
    save_report(path / "stitch.json", {f"job-{n}": inverse(frames[n]) for n in ("a1", "a2")})
    answer = evaluate(path / "truth", request(path, "a1 a2", [pair(path, "a1", "a2")]))
    assert answer["stitches"][0]["error_m"] < 1e-3
    assert answer["segments"][0]["centre_rms_m"] > 1.0  # but they are not hidden


def test_poses_between_frames_are_interpolated(survey: dict[str, Any]) -> None:
    truth = load_truth(survey["path"] / "truth" / "a1.json")
    track = survey["tracks"]["a1"]
    centres, rotations = truth.at(np.array([0.0, 0.05]))
    assert np.allclose(centres[0], track.centres[0])
    assert np.allclose(centres[1], track.centres[:2].mean(0), atol=1e-9)
    turn = (Rotation.from_matrix(track.rotations[0]).inv() * rotations[1]).magnitude()
    whole = (
        Rotation.from_matrix(track.rotations[0]).inv() * Rotation.from_matrix(track.rotations[1])
    ).magnitude()
    assert turn == pytest.approx(whole / 2)
    with pytest.raises(TruthError, match="not within the clip"):
        truth.at(np.array([9.5]))


def test_a_straight_line_is_aligned_by_its_orientations() -> None:
    rng = np.random.default_rng(0)
    centres = np.outer(np.linspace(0, 4, 20), [1.0, 0.2, 0.0])
    rotations = Rotation.from_rotvec(rng.normal(0, 0.1, (20, 3)))
    frame = some_similarity(5)
    local = inverse(frame)
    own = align_cameras(
        local.apply(centres),
        Rotation.from_matrix(local.rotation) * rotations,
        centres,
        rotations,
    )
    assert own.scale == pytest.approx(frame.scale)
    assert np.allclose(own.rotation, frame.rotation, atol=1e-9)
    assert np.allclose(own.translation, frame.translation, atol=1e-9)


def test_too_few_cameras_are_refused() -> None:
    with pytest.raises(TruthError, match="3 are needed"):
        align_centres(np.zeros((2, 3)), np.zeros((2, 3)))


def test_the_command_names_what_is_wrong(
    survey: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = survey["path"]
    asked = path / "request.json"
    asked.write_text(json.dumps(request(path, "a1 a2", [pair(path, "a1", "a2")])))
    (path / "stitch.json").write_text("{}")
    assert main(["--truth", str(path / "truth"), "--request", str(asked)]) == 1
    message = capsys.readouterr().err
    assert str(path / "stitch.json") in message
    assert len(message.splitlines()) == 1
    save_report(
        path / "stitch.json", {f"job-{n}": inverse(survey["frames"][n]) for n in ("a1", "a2")}
    )
    assert main(["--truth", str(path / "truth"), "--request", str(asked)]) == 0
    assert json.loads(capsys.readouterr().out)["stitches"][0]["error_m"] < 1e-3
