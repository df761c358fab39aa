"""From clips to a manifest with real ffmpeg: what is refused, what is kept, how it is numbered."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video_world import EXTRACTING, Run, clip, encode, refused, run
from worker_agent.protocol import FailureCode
from worker_agent.stages import frames, manifest, metadata, validate
from worker_agent.stages.api import StageFailure
from worker_agent.stages.sfm_turning import turning_error_deg

__all__ = ["clip", "run"]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("clips") / "audio.mp4", "sine=frequency=440", 1)


BAD: dict[str, tuple[FailureCode, str]] = {
    "zero bytes": (FailureCode.INPUT_EMPTY, "empty (0 bytes)"),
    "text": (FailureCode.INPUT_UNREADABLE, "not a readable video"),
    "noise": (FailureCode.INPUT_UNREADABLE, "16384 bytes"),
    "cut in its index": (FailureCode.INPUT_UNREADABLE, "not a readable video"),
    "cut after its type": (FailureCode.INPUT_UNREADABLE, "not a readable video"),
    "cut short": (FailureCode.INPUT_TRUNCATED, "of 120 frames"),
    "audio only": (FailureCode.INPUT_NO_VIDEO, "streams: aac"),
}


def bad_bytes(case: str, clip: bytes, audio: bytes) -> bytes:
    return {
        "zero bytes": b"",
        "text": b"not a video\n",
        "noise": bytes(range(256)) * 64,
        "cut in its index": clip[:500],
        "cut after its type": clip[:40],
        "cut short": clip[: len(clip) * 6 // 10],
        "audio only": audio,
    }[case]


@pytest.mark.parametrize("case", BAD)
def test_a_bad_clip_is_refused_by_its_own_name_and_reason(
    case: str, run: Run, clip: Path, audio: Path
) -> None:
    reason, words = BAD[case]
    run.add("GX010001.MP4", bad_bytes(case, clip.read_bytes(), audio.read_bytes()))
    failure = refused(run, validate)
    assert failure.reason is reason
    assert "GX010001.MP4" in failure.message
    assert words in failure.message


REAL: dict[str, FailureCode | None] = {
    "zero_bytes": FailureCode.INPUT_EMPTY,
    "text": FailureCode.INPUT_UNREADABLE,
    "random_bytes": FailureCode.INPUT_UNREADABLE,
    "ftyp_only": FailureCode.INPUT_UNREADABLE,
    "azure_corrupted": FailureCode.INPUT_UNREADABLE,
    "truncated_60pct": FailureCode.INPUT_UNREADABLE,
    "truncated_faststart": FailureCode.INPUT_TRUNCATED,
    "audio_only": FailureCode.INPUT_NO_VIDEO,
    "gpmd_only": FailureCode.INPUT_NO_VIDEO,
    "corrupt_mdat": FailureCode.DECODE_FAILED,
    "single_frame": FailureCode.FRAMES_TOO_FEW,
    "black_3s": FailureCode.FRAMES_UNUSABLE,
    "blurred_2s": FailureCode.FRAMES_UNUSABLE,
    "tiny": FailureCode.FRAMES_TOO_FEW,
    "editlist_preroll_3.6s_of_7s": None,
    "rotated90_meta": None,
    "vfr": None,
    "hevc10bit_1s": None,
}


@pytest.mark.parametrize("name", REAL)
def test_real_clips_end_as_they_should(name: str, run: Run, real_data: Path) -> None:
    run.add(f"{name}.mp4", (real_data / "bad_inputs" / f"{name}.mp4").read_bytes())
    expected = REAL[name]
    if expected is None:
        run.do(*EXTRACTING, min_frames=5)
    else:
        assert refused(run, *EXTRACTING).reason is expected


def test_frames_are_verified_timed_and_listed(run: Run, clip: Path) -> None:
    made = run.add("GX010001.MP4", clip.read_bytes()).do(validate, frames)
    listing = run.json("frames/frames.json")
    assert listing["verified"] is True
    (stored,) = (c["frames_stored"] for c in run.json("output/validation.json")["clips"])
    assert stored > 20 and listing["clips"] == [
        {"name": "GX010001.MP4", "shown": stored, "decoded": stored, "decoder": "cpu"}
    ]
    assert (listing["width"], listing["height"]) == (320, 180)
    assert [f["name"] for f in listing["frames"]] == [f"f{i:06d}.jpg" for i in range(1, 21)]
    assert [f["time_s"] for f in listing["frames"]] == pytest.approx([0.2 * i for i in range(20)])
    for frame in listing["frames"]:
        data = (run.path / "frames" / frame["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (frame["bytes"], frame["sha256"])
        assert Image.open(io.BytesIO(data)).size == (320, 180)
    assert made.completed == {"total_frames": 20}
    assert [a.path for a in made.files] == ["frames/frames.json", "output/frame_quality.json"]
    looked = run.json("output/frame_quality.json")
    assert [row["name"] for row in looked["frames"]] == [f["name"] for f in listing["frames"]]
    assert all(row["flaw"] is None and row["texture"] > 2 for row in looked["frames"])
    shares = [e["fraction"] for e in run.events() if e["kind"] == "progress"]
    assert shares[-1] == 1.0


def test_chapters_of_a_recording_are_numbered_on(run: Run, clip: Path) -> None:
    run.add("GX010042.MP4", clip.read_bytes()).add("GX020042.MP4", clip.read_bytes())
    run.do(*EXTRACTING, fps=2.5)
    rows = run.json("output/manifest.json")["frames"]
    assert [row["name"] for row in rows] == [f"f{i:06d}.jpg" for i in range(1, 21)]
    assert [row["clip"] for row in rows] == ["GX010042.MP4"] * 10 + ["GX020042.MP4"] * 10
    assert rows[10]["time_s"] == 0.0
    assert rows[0]["gps"] is None
    assert rows[0]["gravity"] is None


def test_a_killed_attempt_leaves_nothing_that_looks_done(run: Run, clip: Path) -> None:
    run.add("GX010001.MP4", clip.read_bytes())
    for path in (".frames.4711/f000001.jpg", "frames/f000999.jpg"):
        leftover = run.path / path
        leftover.parent.mkdir()
        leftover.write_bytes(b"half")
    run.do(validate, frames)
    assert not list(run.path.glob(".frames.*"))
    assert len(list((run.path / "frames").iterdir())) == 20 + 1
    # And one that fails does not touch what an earlier one finished.
    refused(run, frames, min_frames=99)
    assert run.json("frames/frames.json")["verified"] is True


@pytest.mark.parametrize(
    "name",
    ["-dash.mp4", "a b;$(id)'\"`.MP4", "new\nline.mp4", "%04d.mp4", "r\u00e9cif \U0001f41f.mp4"],
)
def test_any_file_name_is_taken_literally(name: str, run: Run, clip: Path) -> None:
    run.add(name, clip.read_bytes()).do(*EXTRACTING)
    assert run.json("output/manifest.json")["frames"][0]["clip"] == name
    assert refused(run.add(name, b""), validate).reason is FailureCode.INPUT_EMPTY


def test_a_rotated_clip_gives_upright_frames(run: Run, clip: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(clip), "-c", "copy"]
    subprocess.run([*command, "-metadata:s:v:0", "rotate=90", str(turned)], check=True)
    run.add("turned.mp4", turned.read_bytes()).do(validate, frames, width=180)
    assert run.json("output/validation.json")["clips"][0]["rotation"] in (90, 270)
    listing = run.json("frames/frames.json")
    assert (listing["width"], listing["height"]) == (180, 320)


def test_a_clip_that_begins_late_keeps_its_own_time(run: Run, clip: Path, tmp_path: Path) -> None:
    """Its telemetry is told on the same timeline."""
    late = tmp_path / "late.mp4"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(clip), "-c", "copy"]
    subprocess.run([*command, "-output_ts_offset", "7", str(late)], check=True)
    run.add("late.mp4", late.read_bytes()).do(validate, frames)
    (facts,) = run.json("output/validation.json")["clips"]
    assert facts["start_s"] == pytest.approx(7.0, abs=0.01)
    times = [frame["time_s"] for frame in run.json("frames/frames.json")["frames"]]
    assert times == pytest.approx([facts["start_s"] + 0.2 * i for i in range(20)], abs=1e-3)


def test_too_few_frames(run: Run, clip: Path) -> None:
    few = refused(run.add("a.mp4", clip.read_bytes()), validate, frames, fps=1.0)
    assert few.reason is FailureCode.FRAMES_TOO_FEW
    assert few.evidence["frames"] == 4


def test_a_clip_damaged_inside_is_not_concealed(run: Run, clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    for start in range(len(data) // 3, len(data) - 400, len(data) // 40):
        data[start : start + 300] = bytes(300)
    assert refused(run.add("a.mp4", bytes(data)), validate, frames).reason in (
        FailureCode.DECODE_FAILED,
        FailureCode.INPUT_TRUNCATED,
    )


def test_clips_of_different_size_are_not_one_segment(run: Run, clip: Path, tmp_path: Path) -> None:
    small = encode(tmp_path / "small.mp4", "testsrc=size=320x240:rate=10", 1)
    run.add("a.mp4", clip.read_bytes()).add("b.mp4", small.read_bytes())
    failure = refused(run, validate)
    assert failure.reason is FailureCode.CONFIG_INVALID
    assert "b.mp4 320x240" in failure.message


def test_a_recording_with_a_gap_is_kept_with_a_warning(
    run: Run, clip: Path, tmp_path: Path
) -> None:
    gap = tmp_path / "gap.mp4"
    pause = "select=lt(t\\,1.5)+gt(t\\,2.8)"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(clip), "-vf", pause, "-threads", "1"]
    subprocess.run([*command, "-vsync", "passthrough", str(gap)], check=True)
    run.add("gap.mp4", gap.read_bytes()).do(validate, frames, fps=10.0)
    times = [f["time_s"] for f in run.json("frames/frames.json")["frames"]]
    assert not [t for t in times if 1.5 <= t <= 2.8]
    assert max(b - a for a, b in itertools.pairwise(times)) == pytest.approx(1.4, abs=0.1)
    (warning,) = [e for e in run.events() if e["kind"] == "warning"]
    assert "gap.mp4: 27 frames where" in warning["message"]


def test_inputs_that_went_missing_are_named(run: Run, clip: Path) -> None:
    run.add("a.mp4", clip.read_bytes())
    assert refused(run, frames).reason is FailureCode.INPUT_MISSING
    run.do(validate)
    (run.path / "input" / "a.mp4").rename(run.path / "gone.mp4")
    assert "a.mp4" in refused(run, frames).message


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    with (
        pytest.raises(StageFailure) as caught,
        frames._disk_full(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"frame")
    assert caught.value.reason is FailureCode.DISK_FULL


def test_reef_telemetry_is_kept_and_its_dead_gps_is_not(run: Run, real_data: Path) -> None:
    source = real_data / "gopro_reef_hero10" / "reef_clip.mp4"
    run.add("GX010042.MP4", source.read_bytes()).do(validate, frames, fps=6.0)
    (run.path / "input" / "GX010042.MP4").unlink()
    run.do(metadata, manifest)
    (facts,) = run.json("output/metadata.json")["clips"]
    assert facts["device"] == "HERO10 Black"
    assert facts["gps"] == []
    assert facts["gps_note"] == "127 of 127 GPS samples without a fix were dropped"
    rows = run.json("output/manifest.json")["frames"]
    assert all(row["gps"] is None for row in rows)
    assert all(1 / 2000 < row["readings"]["shutter_s"] < 1 / 24 for row in rows)
    assert all(row["readings"]["iso"] >= 100 for row in rows)
    assert all(9.0 < row["readings"]["acceleration_m_s2"] < 11.0 for row in rows)
    # Its gyroscopes agree with poses that were made of the pictures alone.
    known = json.loads((source.parent / "reference_poses_6fps_960px.json").read_text())["images"]
    times = {name: (int(name[1:5]) - 1) / 6 for name in known}
    posed = {
        row["name"]: np.array(known[near]["R_cw"]).T
        for row in rows
        for near in [min(known, key=lambda name: abs(times[name] - row["time_s"]))]
        if abs(times[near] - row["time_s"]) < 0.05
    }
    assert len(posed) > 30
    error = turning_error_deg(posed, rows)
    assert error is not None and error < 1.5
    # The camera looks ahead and down: gravity points to the picture's lower edge.
    assert all(row["gravity"][1] > 0.7 for row in rows)


def test_a_vehicles_log_becomes_positions_of_frames(run: Run, clip: Path) -> None:
    run.add("000-a.MP4", clip.read_bytes())
    rows = "".join(f"{t / 4},{t / 8},0,-3,{2 + t / 8}\n" for t in range(9))
    run.add("000-a.nav.csv", f"t_s,east_m,north_m,up_m,altitude_m\n{rows}".encode())
    run.do(validate, frames, metadata, manifest)
    records = run.json("output/manifest.json")["frames"]
    for row in records:
        if row["time_s"] <= 2.0:
            assert row["position"]["at"] == pytest.approx([row["time_s"] / 2, 0, -3])
            assert row["altitude_m"] == pytest.approx(2 + row["time_s"] / 2)
        else:  # beyond the log
            assert row["position"] is None
    assert records[0]["position"]["frame"] == "enu"
    (run.path / "input" / "000-a.nav.csv").write_text("")
    run.do(metadata, manifest)  # it was set aside with the frames
    assert run.json("output/manifest.json")["frames"] == records


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("000-a.nav.csv", "t_s,depth_m\n0,deep\n", "000-a.nav.csv:2: depth is 'deep'"),
        ("000-nav.csv", "t_s,depth_m\n0,1\n", "t_s counts from one clip's start"),
        ("000-nav.csv", b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_a_log_that_cannot_be_read_holds_the_job_before_any_work(
    name: str, text: str | bytes, words: str, run: Run, clip: Path
) -> None:
    run.add("000-a.MP4", clip.read_bytes())
    run.add(name, text if isinstance(text, bytes) else text.encode())
    failure = refused(run, validate)
    assert failure.reason is FailureCode.CONFIG_INVALID
    assert words in failure.message


def test_a_log_of_another_time_is_told_and_left_out(run: Run, clip: Path) -> None:
    run.add("000-a.MP4", clip.read_bytes())
    run.add("000-nav.csv", b"utc,depth_m\n2026-05-04T10:30:00Z,1\n2026-05-04T10:40:00Z,2\n")
    run.do(validate, frames, metadata, manifest)
    assert run.json("output/manifest.json")["frames"][0]["depth_m"] is None
    (said,) = [event["message"] for event in run.events() if "000-nav.csv" in str(event)]
    assert "2026-05-04T10:30:00Z to 2026-05-04T10:40:00Z" in said
    assert "navigation.offset_s" in said
