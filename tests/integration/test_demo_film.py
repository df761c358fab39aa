"""The demo's footage is real video that reconstructs, stitches and agrees with its own truth."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from stitch.from_model import from_reconstruction
from stitch.register import register
from stitch.sidecar import Sidecar
from worker_agent.demo.evaluate import evaluate
from worker_agent.demo.film import FilmError, film
from worker_agent.demo.survey import PRESETS

EVERY = 4  # of the clip's 10 frames a second
SERIALS = {"auv-a": "C3441325000001", "auv-b": "C3441325000002"}


@pytest.fixture(scope="module")
def footage(filmed: Path) -> Path:
    steps = [json.loads(line) for line in (filmed / "said.jsonl").read_text().splitlines()]
    assert [Path(step["clip"]).parent.name for step in steps if "clip" in step] == [
        "a1", "a2", "b1", "b2",
    ]  # fmt: skip
    return filmed / "survey"


def test_the_survey_is_laid_out_as_an_ingest_expects_it(footage: Path) -> None:
    clips = sorted(path.relative_to(footage).as_posix() for path in footage.rglob("*.MP4"))
    assert clips == [
        f"auv-a/{SERIALS['auv-a']}/a1/GX010101.MP4",
        f"auv-a/{SERIALS['auv-a']}/a2/GX010102.MP4",
        f"auv-b/{SERIALS['auv-b']}/b1/GX010201.MP4",
        f"auv-b/{SERIALS['auv-b']}/b2/GX010202.MP4",
    ]


def test_clips_are_h264_and_have_a_truth_for_every_frame(footage: Path) -> None:
    for clip in footage.rglob("*.MP4"):
        probed = subprocess.run(
            [
                "ffprobe", "-v", "error", "-count_frames", "-of", "json",
                "-show_entries",
                "stream=codec_name,pix_fmt,width,height,nb_read_frames,r_frame_rate",
                str(clip),
            ],
            capture_output=True, check=True,
        )  # fmt: skip
        (stream,) = json.loads(probed.stdout)["streams"]
        truth = json.loads((footage / "truth" / f"{clip.parent.name}.json").read_text())
        assert stream["codec_name"] == "h264"
        assert stream["pix_fmt"] == "yuv420p"
        assert (stream["width"], stream["height"]) == (truth["width"], truth["height"])
        assert stream["r_frame_rate"] == f"{truth['fps']}/1"
        assert int(stream["nb_read_frames"]) == len(truth["frames"]) == PRESETS["small"].frames


def test_the_same_seed_films_the_same_bytes(tmp_path: Path) -> None:
    preset = PRESETS["small"]
    short = dataclasses.replace(preset, seconds=0.3, segments=preset.segments[:1])
    for name, seed in (("one", 4), ("two", 4), ("other", 5)):
        assert list(film(tmp_path / name, short, seed=seed, threads=1 if name == "one" else 2))
    one, two, other = (
        next((tmp_path / name).rglob("*.MP4")).read_bytes() for name in ("one", "two", "other")
    )
    assert one == two
    assert one != other


def test_a_missing_ffmpeg_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    preset = dataclasses.replace(PRESETS["small"], seconds=0.1)
    with pytest.raises(FilmError, match="ffmpeg is not installed; run `make setup`"):
        list(film(tmp_path / "out", preset, seed=1, threads=1))


def test_a_clip_that_cannot_be_written_names_it(tmp_path: Path) -> None:
    preset = dataclasses.replace(PRESETS["small"], seconds=0.1)
    segment = preset.segments[0]
    (tmp_path / segment.auv / segment.serial / segment.name / segment.clip).mkdir(parents=True)
    with pytest.raises(FilmError, match=segment.clip):
        list(film(tmp_path, preset, seed=1, threads=1))


def reconstruct(footage: Path, name: str, work: Path) -> Path:
    """SfM as the pipeline does it; returns the sidecar's path."""
    clip = next(footage.rglob(f"{name}/*.MP4"))
    images = work / "images"
    images.mkdir(parents=True)
    subprocess.run(
        [
            "ffmpeg", "-v", "error", "-i", str(clip), "-vf", f"select=not(mod(n\\,{EVERY}))",
            "-fps_mode", "passthrough", "-q:v", "2", str(images / "f%06d.jpg"),
        ],
        check=True,
    )  # fmt: skip
    count = len(list(images.iterdir()))
    database = work / "database.db"
    pycolmap.set_random_seed(0)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.first_octave = 0
    extraction.num_threads = 1
    pycolmap.extract_features(
        database,
        images,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = 5
    pycolmap.match_sequential(database, pairing_options=pairing, device=pycolmap.Device.cpu)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = 1
    options.random_seed = 0
    (work / "model").mkdir()
    models = pycolmap.global_mapping(database, images, work / "model", options=options)
    model = max(models.values(), key=lambda m: m.num_reg_images())
    assert model.num_reg_images() == count, f"{name}: {model.num_reg_images()} of {count}"
    assert model.compute_mean_reprojection_error() < 0.5
    truth = json.loads((footage / "truth" / f"{name}.json").read_text())
    (camera,) = model.cameras.values()
    assert camera.params[0] == pytest.approx(truth["fx"], rel=0.06)
    sidecar = from_reconstruction(
        model,
        database,
        times={f"f{i + 1:06d}.jpg": i * EVERY / truth["fps"] for i in range(count)},
        gravity={},
        gps={},
        quality={},
    )
    path = work / "registration.npz"
    sidecar.save(path)
    return path


def test_crossing_segments_register_stitch_and_agree_with_the_truth(
    footage: Path, tmp_path: Path
) -> None:
    paths = {name: reconstruct(footage, name, tmp_path / name) for name in ("a1", "a2", "b1")}
    sidecars = {name: Sidecar.load(path) for name, path in paths.items()}
    rows: list[dict[str, Any]] = []
    for name, sidecar in sidecars.items():
        edge = register(1, sidecar, 0, sidecars["a1"], 0.85)
        assert edge.inliers >= 50
        assert edge.sim3 is not None
        rows.append(
            {
                "name": name,
                "scale": edge.sim3.scale,
                "rotation": edge.sim3.rotation.tolist(),
                "translation": edge.sim3.translation.tolist(),
            }
        )
    report = tmp_path / "stitch.json"
    report.write_text(json.dumps({"members": rows}))
    answer = evaluate(
        footage / "truth",
        {
            "segments": [
                {"name": name, "job": name, "registration": str(path)}
                for name, path in paths.items()
            ],
            "stitches": [
                {
                    "id": "scene",
                    "level": "cross_auv",
                    "auv": None,
                    "stitch_report": str(report),
                    "members": [{"name": name, "segment": name} for name in paths],
                }
            ],
        },
    )
    assert all(row["centre_rms_m"] < 0.02 for row in answer["segments"])
    (scene,) = answer["stitches"]
    assert 0 < scene["error_fraction"] < 0.02
