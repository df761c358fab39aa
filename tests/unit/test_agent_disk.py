from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from worker_agent.disk import mount_of, reclaim, trim, verify_frames
from worker_agent.epoch import check_epoch
from worker_agent.protocol import ReclaimRequest
from worker_agent.refusal import RefusedError

VIDEO = b"\0" * 1000


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "reef" / "a-1"
    (path / "input").mkdir(parents=True)
    (path / "frames").mkdir()
    (path / "input" / "GX010123.MP4").write_bytes(VIDEO)
    frames = []
    for number in range(3):
        name = f"f{number + 1:06d}.jpg"
        data = f"jpeg {number}".encode()
        (path / "frames" / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        frames.append({"name": name, "bytes": len(data), "sha256": digest})
    (path / "frames" / "frames.json").write_text(json.dumps({"frames": frames}))
    return path


def request(run_dir: Path, *paths: str, **changes: object) -> ReclaimRequest:
    values: dict[str, object] = {
        "epoch": 1,
        "run_dir": str(run_dir),
        "paths": paths,
        "trim": "off",
    }
    return ReclaimRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_verified_video_is_removed_and_counted(run_dir: Path) -> None:
    asked = request(run_dir, "input/GX010123.MP4", verified_by="frames/frames.json")
    report = reclaim(asked)
    assert report.removed == ("input/GX010123.MP4",)
    assert report.removed_bytes == 1000
    assert report.remaining_input_bytes == 0
    assert report.trimmed_bytes is None
    assert "off" in report.trim_note
    assert not (run_dir / "input" / "GX010123.MP4").exists()
    again = reclaim(asked)
    assert again.removed == ()
    assert again.removed_bytes == 0


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "no listing", "empty listing"])
def test_video_stays_when_the_frames_do_not_verify(run_dir: Path, damage: str) -> None:
    frame = run_dir / "frames" / "f000002.jpg"
    listing = run_dir / "frames" / "frames.json"
    if damage == "missing":
        frame.unlink()
    elif damage == "short":
        frame.write_bytes(b"jpeg")
    elif damage == "changed":
        frame.write_bytes(b"jpeg X")
    elif damage == "no listing":
        listing.unlink()
    else:
        listing.write_text('{"frames": []}')
    with pytest.raises(RefusedError):
        reclaim(request(run_dir, "input", verified_by="frames/frames.json"))
    assert (run_dir / "input" / "GX010123.MP4").read_bytes() == VIDEO


def test_input_without_any_proof_stays(run_dir: Path) -> None:
    for paths in (("input/GX010123.MP4",), ("input",), ("frames/frames.json", "input")):
        with pytest.raises(RefusedError, match="is an input"):
            reclaim(request(run_dir, *paths))
    assert (run_dir / "input" / "GX010123.MP4").exists()
    assert (run_dir / "frames" / "frames.json").exists()


def test_input_whose_copy_is_known_by_hash_is_removed(run_dir: Path) -> None:
    path = "input/GX010123.MP4"
    wrong = {path: "0" * 64}
    with pytest.raises(RefusedError, match="not the file that was copied"):
        reclaim(request(run_dir, path, expected_sha256=wrong))
    right = {path: hashlib.sha256(VIDEO).hexdigest()}
    assert reclaim(request(run_dir, path, expected_sha256=right)).removed_bytes == 1000


def test_whole_directories_go_and_links_are_not_followed(run_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("x")
    (run_dir / "sfm").mkdir()
    (run_dir / "sfm" / "database.db").write_bytes(b"1" * 50)
    (run_dir / "sfm" / "link").symlink_to(outside)
    reclaim(request(run_dir, "sfm"))
    assert not (run_dir / "sfm").exists()
    assert (outside / "file").exists()


@pytest.mark.parametrize("path", ["../b-2", "attempts", "lock", "/etc", "frames/../.."])
def test_what_is_not_the_jobs_to_remove_is_refused(run_dir: Path, path: str) -> None:
    (run_dir.parent / "b-2").mkdir()
    (run_dir / "attempts").mkdir()
    with pytest.raises(RefusedError):
        reclaim(request(run_dir, path))
    assert (run_dir.parent / "b-2").exists()
    assert (run_dir / "attempts").exists()


def test_older_dispatcher_removes_nothing(run_dir: Path, tmp_path: Path) -> None:
    check_epoch(tmp_path, 2)
    with pytest.raises(RefusedError) as refused:
        reclaim(request(run_dir, "frames"))
    assert refused.value.refusal.error == "stale_epoch"
    assert (run_dir / "frames").exists()


def test_frame_names_cannot_leave_the_run_directory(run_dir: Path) -> None:
    listing = {"frames": [{"name": "../../../x", "bytes": 1, "sha256": ""}]}
    (run_dir / "frames" / "frames.json").write_text(json.dumps(listing))
    with pytest.raises(RefusedError):
        verify_frames(run_dir, "frames/frames.json")


@pytest.mark.parametrize(
    ("says", "code", "expected"),
    [
        ("/: 1.5 GiB (1610612736 bytes) trimmed on /dev/vda", 0, 1610612736),
        ("/: 0 B (0 bytes) trimmed", 0, 0),
        ("fstrim: /: the discard operation is not supported", 1, None),
    ],
)
def test_fstrim_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int, expected: int | None
) -> None:
    for name, text in (("fstrim", f"echo '{says}'; exit {code}"), ("sudo", 'shift; exec "$@"')):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    trimmed, note = trim(tmp_path, "sudo")
    assert trimmed == expected
    assert note.startswith(mount_of(tmp_path)[0])
    if expected is None:
        assert "not supported" in note


def test_host_without_fstrim_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    trimmed, note = trim(tmp_path, "auto")
    assert trimmed is None
    assert "fstrim is not installed" in note


def test_mount_of_the_proc_file_system() -> None:
    assert mount_of(Path("/proc/self")) == ("/proc", "proc")
