"""What an operator can meet: each ends in one clear line, and the others go on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedHosts
from tests.acceptance.cosma import SHORT, Cosma
from tests.rehearsal import rehearsal

# Where only that it was done is asked, not how well.
SHORTEST_TRAINING = {"cpu": {**SHORT["train"]["cpu"], "steps": 100}}


def _ffmpeg(*words: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *words], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def bad_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bad clip a segment, all of one AUV."""
    root = tmp_path_factory.mktemp("bad")

    def clip(segment: str) -> Path:
        path = root / "auv-x" / "C1" / segment / "GX010001.MP4"
        path.parent.mkdir(parents=True)
        return path

    clip("zero").touch()
    clip("text").write_text("this is not a video\n")
    _ffmpeg("-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac", str(clip("audio")))
    whole = root / "whole.mp4"
    _ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=duration=6:size=320x180:rate=10",
        "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(whole),
    )  # fmt: skip
    clip("truncated").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    still = root / "still.png"
    _ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=duration=1:size=320x180:rate=1", "-frames:v", "1",
        str(still),
    )  # fmt: skip
    _ffmpeg(
        "-loop", "1", "-i", str(still), "-t", "5", "-r", "10", "-vf", "noise=alls=6:allf=t",
        "-c:v", "libx264", "-pix_fmt", "yuv420p", str(clip("static")),
    )  # fmt: skip
    whole.unlink()
    return root


def test_every_bad_input_is_held_with_its_reason(cosma: Cosma, bad_clips: Path) -> None:
    cosma.ingest(bad_clips, "bad")
    done = cosma.run("dispatch", "--once")
    assert done.returncode == 3, done.stderr
    jobs = cosma.jobs()
    assert {name.removeprefix("bad-auv-x-"): row["reason"] for name, row in jobs.items()} == {
        "zero": "input_empty",
        "text": "input_unreadable",
        "audio": "input_no_video",
        "truncated": "input_truncated",
        "static": "no_parallax",
    }
    for name, row in jobs.items():
        assert row["state"] == "held"
        assert row["message"]
        assert "\n" not in row["message"]
        why = cosma.run("why", name)
        assert why.returncode == 0
        assert f"cosma job retry {name}" in why.stdout


def test_a_repaired_clip_is_released_by_the_command_that_was_named(
    cosma: Cosma, footage: Path, tmp_path: Path
) -> None:
    segment = tmp_path / "survey" / "auv-x" / "C1" / "s1"
    segment.mkdir(parents=True)
    clip = segment / "GX010001.MP4"
    clip.touch()
    cosma.ingest(tmp_path / "survey", "mended", train=SHORTEST_TRAINING)
    assert cosma.run("dispatch", "--once").returncode == 3
    shutil.copy(next((footage / "auv-a").rglob("*.MP4")), clip)
    assert cosma.run("job", "retry", "mended-auv-x-s1").returncode == 0
    done = cosma.run("dispatch", "--once")
    assert done.returncode == 0, done.stderr


def test_a_wrong_host_key_and_a_dead_host_leave_the_work_to_the_third(tmp_path: Path) -> None:
    with rehearsal(tmp_path, 3) as farm:
        keys = [host.host_key for host in farm.hosts.hosts]
        text = farm.hosts.inventory.read_text()
        farm.hosts.inventory.write_text(text.replace(keys[0], keys[1], 1))
        farm.hosts.stop_host("host-2")

        farm.ingest(1)
        done = farm.cosma.run("dispatch", "--once")
        assert done.returncode == 0, done.stderr
        (row,) = farm.cosma.jobs().values()
        assert (row["state"], row["host"]) == ("done", "host-3")
        hosts = {row["host"]: row["state"] for row in farm.cosma.json("top")["gpus"]}
        assert hosts["host-1"] == "host_key_mismatch"
        assert hosts["host-2"] == "host_unreachable"


def test_with_no_host_left_the_job_says_so_and_the_exit_code_too(
    cosma: Cosma, farm: EmbeddedHosts, footage: Path
) -> None:
    farm.stop_host("host-1")
    farm.stop_host("host-2")
    cosma.ingest(footage / "auv-a" / "C3441325000001" / "a1", "alone")
    done = cosma.run("dispatch", "--once")
    assert done.returncode == 12
    (row,) = cosma.jobs().values()
    assert row["state"] == "held"
    assert row["reason"] in ("host_unreachable", "no_host")


def test_a_typo_in_the_inventory_names_file_line_and_key(cosma: Cosma) -> None:
    lines = cosma.inventory.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if "work_dir:" in line)
    lines[number] = lines[number].replace("work_dir", "work_dri")
    cosma.inventory.write_text("\n".join(lines) + "\n")
    done = cosma.run("dispatch", "--once")
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1
    assert f"{cosma.inventory.name}:{number + 1}" in done.stderr
    assert "work_dri" in done.stderr
    assert "work_dir" in done.stderr
