from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.checkpoint import MAX_AGE_S, PATH, Checkpoint, previous_hash, stage_hash
from worker_agent.protocol import PROTOCOL_VERSION, AttemptSpec
from worker_agent.stages.api import Artifacts, artifact

NOW = 1_800_000_000.0

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def spec(run_dir: Path, stage: str = "Validation", attempt: int = 3) -> AttemptSpec:
    return AttemptSpec(
        protocol=PROTOCOL_VERSION,
        epoch=1,
        acquisition="reef",
        job="a-1",
        attempt=attempt,
        stage=stage,
        run_dir=str(run_dir),
    )


@pytest.fixture
def made(tmp_path: Path) -> Artifacts:
    (tmp_path / "output").mkdir()
    path = tmp_path / "output" / "validation.json"
    path.write_text('{"clips": []}')
    return Artifacts(
        files=(artifact(tmp_path, path, "validation"),),
        metrics={"clips": 0},
        completed={"video_count": 0},
    )


def stored(tmp_path: Path, made: Artifacts) -> Checkpoint:
    Checkpoint(tmp_path, "a-1").record(spec(tmp_path), "digest", made, NOW)
    return Checkpoint.load(tmp_path, "a-1")


@given(
    config=st.dictionaries(st.sampled_from(["frames", "sfm", "train"]), json_values),
    other=json_values,
)
def test_hash_depends_on_the_named_sections_only(config: dict[str, object], other: object) -> None:
    before = stage_hash("S", config, ("frames",), {}, "", {})
    changed = {**config, "train": other}
    assert stage_hash("S", changed, ("frames",), {}, "", {}) == before
    reordered = dict(reversed(list(config.items())))
    assert stage_hash("S", reordered, ("frames",), {}, "", {}) == before
    touched = {**config, "frames": ["was", config.get("frames")]}
    assert stage_hash("S", touched, ("frames",), {}, "", {}) != before


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "T"},
        {"inputs": {"clips": [{"name": "b.MP4"}]}},
        {"previous": "y"},
        {"tools": {"ffmpeg": "7"}},
    ],
)
def test_hash_depends_on_everything_else(change: dict[str, object]) -> None:
    base = {
        "stage": "S",
        "config": {},
        "sections": (),
        "inputs": {"clips": [{"name": "a.MP4"}]},
        "previous": "x",
        "tools": {"ffmpeg": "6"},
    }
    assert stage_hash(**base) != stage_hash(**{**base, **change})  # type: ignore[arg-type]


def test_recorded_stage_is_resumed_with_its_artifacts(tmp_path: Path, made: Artifacts) -> None:
    outcome = stored(tmp_path, made).resume("Validation", "digest", NOW + 60)
    assert outcome is not None
    assert outcome.ok
    assert outcome.resumed
    assert outcome.artifacts == made.files
    assert outcome.metrics == {"clips": 0}


def test_another_hash_is_not_resumed(tmp_path: Path, made: Artifacts) -> None:
    assert stored(tmp_path, made).resume("Validation", "other", NOW) is None


def test_another_stage_is_not_resumed(tmp_path: Path, made: Artifacts) -> None:
    assert stored(tmp_path, made).resume("Training", "digest", NOW) is None


@pytest.mark.parametrize("text", ['{"clips": [] }', '{"clips": {}}', None])
def test_changed_or_missing_artifact_is_not_resumed(
    tmp_path: Path, made: Artifacts, text: str | None
) -> None:
    checkpoint = stored(tmp_path, made)
    path = tmp_path / "output" / "validation.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert checkpoint.resume("Validation", "digest", NOW) is None


def test_listing_of_frames_stands_for_its_frames(tmp_path: Path) -> None:
    frame = tmp_path / "frames" / "f000001.jpg"
    frame.parent.mkdir()
    frame.write_bytes(b"jpeg")
    digest = hashlib.sha256(b"jpeg").hexdigest()
    listing = tmp_path / "frames" / "frames.json"
    listing.write_text(json.dumps({"frames": [{"name": frame.name, "bytes": 4, "sha256": digest}]}))
    made = Artifacts(files=(artifact(tmp_path, listing, "frames"),))
    checkpoint = stored(tmp_path, made)
    assert checkpoint.resume("Validation", "digest", NOW) is not None
    frame.write_bytes(b"jpeX")
    assert checkpoint.resume("Validation", "digest", NOW) is None


@pytest.mark.parametrize(("age", "resumes"), [(MAX_AGE_S, True), (MAX_AGE_S + 1, False)])
def test_age_limit(tmp_path: Path, made: Artifacts, age: float, resumes: bool) -> None:
    outcome = stored(tmp_path, made).resume("Validation", "digest", NOW + age)
    assert (outcome is not None) is resumes


def test_public_format(tmp_path: Path, made: Artifacts) -> None:
    stored(tmp_path, made)
    data = json.loads((tmp_path / PATH).read_text())
    public = {
        "job_id": "a-1",
        "stage": "Validation",
        "input_folder": str(tmp_path / "input"),
        "output_folder": str(tmp_path / "output"),
        "temp_folder": str(tmp_path),
        "timestamp": "2027-01-15T08:00:00+00:00",
    }
    assert public.items() <= data.items()
    assert data["completed_stages"] == {
        "video_count": 0,
        "total_frames": None,
        "manifest_path": None,
        "colmap_sparse_path": None,
        "colmap_points": None,
        "gaussian_count": None,
        "ply_path": None,
        "splat_path": None,
    }
    assert data["stage_hashes"] == {"Validation": "digest"}
    assert data["attempt"] == 3


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"job_id": "a-1"}', '{"job_id": "b-2", "stage": "Validation"}']
)
def test_untrustworthy_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / PATH).write_text(text)
    checkpoint = Checkpoint.load(tmp_path, "a-1")
    assert checkpoint.stage_hashes == {}
    assert checkpoint.resume("Validation", "digest", NOW) is None


def test_hashes_chain_through_the_stages(tmp_path: Path, made: Artifacts) -> None:
    checkpoint = stored(tmp_path, made)
    order = ("Validation", "FrameExtraction", "Training")
    assert previous_hash(checkpoint, "Validation", order) == ""
    assert previous_hash(checkpoint, "FrameExtraction", order) == "digest"
    assert previous_hash(checkpoint, "Training", order) == ""
    assert previous_hash(checkpoint, "Stitch", order) == ""
