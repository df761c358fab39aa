"""What a camera wrote into its file about lens and settings reaches the manifest."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_stages_video import Run, clip, run
from tests.unit.test_gpmf import klv, nest
from worker_agent.stages import frames, manifest, metadata, validate
from worker_agent.stages.klv import read_settings
from worker_agent.stages.mp4_boxes import camera_settings_box

__all__ = ["clip", "run"]


def box(kind: str, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind.encode()) + content


def settings(**told: str) -> bytes:
    return nest("DEVC", *(klv(key, "c", 1, len(text), text.encode()) for key, text in told.items()))


@pytest.fixture(scope="module")
def film(clip: Path) -> bytes:
    """As a camera leaves it: the index at its end."""
    copy = clip.with_name("as_filmed.mp4")
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(clip), "-c", "copy", str(copy)]
    subprocess.run(command, check=True)
    return copy.read_bytes()


def said(film: bytes, written: bytes) -> bytes:
    """The film with settings in its index, which is at its end."""
    at = film.rindex(b"moov") - 4
    (size,) = struct.unpack_from(">I", film, at)
    assert at + size == len(film)
    more = box("udta", box("FIRM", b"H21.01.01") + box("GPMF", written))
    return film[:at] + struct.pack(">I", size + len(more)) + film[at + 4 :] + more


def test_a_lens_that_the_file_names_is_what_sfm_begins_with(run: Run, film: bytes) -> None:
    known = settings(MINF="HERO10 Black", VFOV="L", EISE="N")
    run.add("000-a.MP4", said(film, known))
    run.do(validate, frames, metadata, manifest, fps=2.0)
    camera = run.json("output/manifest.json")["camera"]
    assert camera["source"] == "profile HERO10 Black linear 16:9 in water"
    assert camera["params"][0] == pytest.approx(0.64772 * camera["width"])
    assert camera["lens"] == {
        "camera": "HERO10 Black", "mode": "linear", "stabilised": False, "zoomed": False,
    }  # fmt: skip
    assert camera["fallback"]["source"] == "guess"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (settings(MINF="HERO10 Black", VFOV="H"), "lens mode hyper"),
        (settings(MINF="HERO10 Black", VFOV="L", EISE="Y"), "stabilised"),
        (b"\x01\x02\x03\x04" * 8, "malformed"),
    ],
)
def test_what_it_does_not_name_is_a_guess_and_told(
    written: bytes, words: str, run: Run, film: bytes
) -> None:
    run.add("000-a.MP4", said(film, written))
    run.do(validate, frames, metadata, manifest, fps=2.0)
    assert run.json("output/manifest.json")["camera"]["source"] == "guess"
    (warning,) = [event for event in run.events() if event["kind"] == "warning"]
    assert words in warning["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00\x00\x00", box("ftyp", b"isom"), box("moov", box("mvhd", bytes(100))),
        struct.pack(">I4s", 4, b"moov"), struct.pack(">I4s", 900, b"moov"),
        struct.pack(">I4s", 1, b"moov"),
    ],
)  # fmt: skip
def test_a_file_without_settings_has_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert camera_settings_box(tmp_path / "a.mp4") is None


def test_a_long_box_and_one_to_the_end_are_gone_through(tmp_path: Path) -> None:
    inside = box("udta", box("GPMF", b"settings"))
    long = struct.pack(">I4sQ", 1, b"mdat", 16 + 5) + b"12345"
    to_the_end = struct.pack(">I4s", 0, b"moov") + inside
    (tmp_path / "a.mp4").write_bytes(box("ftyp", b"isom") + long + to_the_end)
    assert camera_settings_box(tmp_path / "a.mp4") == b"settings"


def test_a_real_cameras_settings(real_data: Path) -> None:
    told = read_settings((real_data / "gpmf_raw" / "mp4header.raw").read_bytes())
    assert (told["MINF"], told["VFOV"], told["EISE"]) == ("HERO7 Black", "W", "Y")
