from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from worker_agent.disk import reclaim, verify_frames
from worker_agent.epoch import check_epoch
from worker_agent.protocol import ReclaimRequest, TrimReport, TrimRequest
from worker_agent.refusal import RefusedError
from worker_agent.trim import mount_of, trim

VIDEO = b"\0" * 1000
CLIP = "GX010123.MP4"


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
        frames.append({"name": name, "clip": CLIP, "bytes": len(data), "sha256": digest})
    clips = [{"name": CLIP, "shown": 300, "decoded": 300}]
    (path / "frames" / "frames.json").write_text(json.dumps({"clips": clips, "frames": frames}))
    return path


def request(run_dir: Path, *paths: str, **changes: object) -> ReclaimRequest:
    values: dict[str, object] = {"epoch": 1, "run_dir": str(run_dir), "paths": paths}
    return ReclaimRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_verified_video_is_removed_and_counted(run_dir: Path) -> None:
    asked = request(run_dir, "input/GX010123.MP4", verified_by="frames/frames.json")
    report = reclaim(asked)
    assert report.removed == ("input/GX010123.MP4",)
    assert report.removed_bytes == 1000
    assert report.remaining_input_bytes == 0
    assert report.freed_bytes == 4096
    assert not (run_dir / "input" / "GX010123.MP4").exists()
    again = reclaim(asked)
    assert again.removed == ()
    assert again.removed_bytes == 0


def test_each_path_is_told_with_what_it_took(run_dir: Path) -> None:
    (run_dir / "sfm").mkdir()
    (run_dir / "sfm" / "model.bin").write_bytes(b"m" * 5000)
    report = reclaim(request(run_dir, "sfm", "train", "frames"))
    assert [one.path for one in report.each] == ["sfm", "frames"], "there was no train"
    assert report.each[0].removed_bytes == 5000
    assert sum(one.removed_bytes for one in report.each) == report.removed_bytes
    assert sum(one.freed_bytes for one in report.each) == report.freed_bytes
    assert report.each[0].free_before == report.free_before
    assert report.each[0].free_after == report.each[1].free_before
    assert report.each[1].free_after == report.free_after


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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clips": [{"name": CLIP, "shown": 300, "decoded": 296}]}, "296 of 300 pictures"),
        ({"clips": [{"name": CLIP, "shown": 300, "decoded": 297}]}, ""),
        ({"clips": [{"name": CLIP, "shown": 30, "decoded": 27}]}, "27 of 30 pictures"),
        ({"clips": [{"name": "GX020123.MP4", "shown": 9, "decoded": 9}]}, "no frame of GX020123"),
        ({"clips": []}, "lists no clip"),
        ({"clips": None}, "does not say what was decoded"),
    ],
)
def test_video_stays_when_not_all_of_it_was_decoded(
    run_dir: Path, change: dict[str, object], why: str
) -> None:
    listing = run_dir / "frames" / "frames.json"
    listing.write_text(json.dumps({**json.loads(listing.read_text()), **change}))
    asked = request(run_dir, f"input/{CLIP}", verified_by="frames/frames.json")
    if not why:
        assert reclaim(asked).removed_bytes == 1000
        return
    with pytest.raises(RefusedError, match=why):
        reclaim(asked)
    assert (run_dir / "input" / CLIP).read_bytes() == VIDEO


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


def test_what_broke_off_goes_with_what_it_was_to_become(run_dir: Path) -> None:
    (run_dir / "input" / "GX010123.MP4").rename(run_dir / "input" / "GX010123.MP4.part")
    (run_dir / ".frames.77").mkdir()
    (run_dir / ".frames.77" / "f000001.jpg").write_bytes(b"half")
    (run_dir / ".framesx").mkdir()
    report = reclaim(request(run_dir, "input/GX010123.MP4", "frames"))
    assert report.removed == ("input/GX010123.MP4", "frames")
    assert sorted(path.name for path in run_dir.iterdir()) == [".framesx", "input"]
    assert not list((run_dir / "input").iterdir())


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """In place of all that there are on PATH and beside it."""
    for name, text in scripts.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("worker_agent.trim._SBIN", ())


def trimmed(path: Path, mode: str = "sudo") -> TrimReport:
    return trim(TrimRequest(work_dir=str(path), mode=mode))


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
    fstrim = f'[ "$1 $2" = "-v {mount_of(tmp_path)[0]}" ] && echo "{says}"; exit {code}'
    programs(tmp_path, monkeypatch, fstrim=fstrim, sudo='shift; exec "$@"')
    report = trimmed(tmp_path)
    assert (report.trimmed_bytes, report.mount) == (expected, mount_of(tmp_path)[0])
    assert report.method == ("" if expected is None else "sudo")
    assert (expected is None) == ("not supported" in report.note)


def test_the_helper_comes_before_fstrim_by_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = mount_of(tmp_path)[0]
    helper = tmp_path / "cosma-fstrim"
    monkeypatch.setattr("worker_agent.trim.HELPER", str(helper))
    says = 'echo "$1: 7 B (7 bytes) trimmed"'
    programs(
        tmp_path,
        monkeypatch,
        sudo='shift; exec "$@"',
        fstrim='echo "$2: 9 B (9 bytes) trimmed"',
        **{"cosma-fstrim": says},
    )
    assert (trimmed(tmp_path).trimmed_bytes, trimmed(tmp_path).method) == (7, "helper")
    helper.write_text(f"#!/bin/sh\necho 'cosma-fstrim: {mount} is not listed' >&2; exit 3\n")
    assert (trimmed(tmp_path).trimmed_bytes, trimmed(tmp_path).method) == (9, "sudo")
    (tmp_path / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required'; exit 1\n")
    refused = trimmed(tmp_path)
    assert (refused.trimmed_bytes, refused.method) == (None, "")
    assert refused.note.count("a password is required") == 2


def test_host_without_sudo_and_root_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = trimmed(tmp_path)
    assert report.trimmed_bytes is None and "there is no sudo" in report.note


def test_mount_of_the_proc_file_system() -> None:
    assert mount_of(Path("/proc/self")) == ("/proc", "proc")
