"""Which files make which segment, and names that are safe everywhere."""

from __future__ import annotations

import os
import re

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.survey import clip_name, group_clips, log_name, log_of, printable, slug

ANY_TEXT = st.text(min_size=1, max_size=80)


def test_three_directories_name_vehicle_camera_and_segment() -> None:
    segments = group_clips(
        ["auv1/C34/s2/GX010002.MP4", "auv1/C34/s1/b.mp4", "auv1/C34/s1/a.mp4"],
        auv="unused",
        serial="unused",
    )
    assert [(s.auv, s.gopro_serial, s.label, s.clips) for s in segments] == [
        ("auv1", "C34", "s1", ("auv1/C34/s1/a.mp4", "auv1/C34/s1/b.mp4")),
        ("auv1", "C34", "s2", ("auv1/C34/s2/GX010002.MP4",)),
    ]


def test_gopro_chapters_are_one_recording_in_order_of_chapter() -> None:
    segments = group_clips(
        ["GX020123.MP4", "GX010124.MP4", "GX100123.MP4", "GX010123.MP4"], auv="a", serial="c"
    )
    assert [(s.label, s.clips) for s in segments] == [
        ("0123", ("GX010123.MP4", "GX020123.MP4", "GX100123.MP4")),
        ("0124", ("GX010124.MP4",)),
    ]


def test_several_recordings_in_one_segment_follow_each_other() -> None:
    (segment,) = group_clips(
        [f"a/c/s/{name}" for name in ("GX010124.MP4", "GX020123.MP4", "GX010123.MP4")],
        auv="",
        serial="",
    )
    assert [clip[-12:] for clip in segment.clips] == [
        "GX010123.MP4",
        "GX020123.MP4",
        "GX010124.MP4",
    ]


def test_what_is_no_video_is_left_out() -> None:
    assert group_clips(["a/b/c/notes.txt", "a/b/c/._GX010001.MP4"], auv="a", serial="c") == ()


@given(st.lists(st.text(alphabet="abcGX01/.MP4", min_size=1), unique=True))
def test_every_video_is_in_exactly_one_segment(paths: list[str]) -> None:
    videos = [path for path in paths if path.lower().endswith(".mp4")]
    segments = group_clips(paths, auv="a", serial="c")
    clips = [clip for segment in segments for clip in segment.clips]
    assert len(clips) == len(set(clips))
    assert set(clips) <= set(videos)


@given(ANY_TEXT, ANY_TEXT)
def test_a_slug_is_a_plain_directory_name(first: str, second: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(first, second))


def test_words_without_a_plain_letter_stay_apart() -> None:
    assert slug("日本") != slug("海")
    assert slug("x" * 100) != slug("x" * 101)


@given(st.integers(0, 999), ANY_TEXT)
def test_a_clip_name_is_plain_and_sorts_by_order(order: int, path: str) -> None:
    name = clip_name(order, path)
    assert re.fullmatch(r"\d{3}-\w{1,60}\.MP4", name, re.ASCII)
    assert clip_name(0, path) <= name


@given(st.binary(min_size=1, max_size=40))
def test_any_file_name_becomes_text_that_can_be_stored_and_shown(name: bytes) -> None:
    text = printable(os.fsdecode(name))
    assert text.encode("utf-8")
    assert text.isprintable()


def test_the_nearest_log_belongs_to_a_clip() -> None:
    logs = ["a/nav.csv", "a/c/s1/nav.csv", "a/c/s1/GX010001.NAV.csv", "b/nav.csv"]
    assert log_of("a/c/s1/GX010001.MP4", logs) == "a/c/s1/GX010001.NAV.csv"
    assert log_of("a/c/s1/GX010002.MP4", logs) == "a/c/s1/nav.csv"
    assert log_of("a/c/s2/GX010003.MP4", logs) == "a/nav.csv"
    assert log_of("d/c/s2/GX010003.MP4", logs) is None
    assert log_of("GX010003.MP4", ["nav.csv"]) == "nav.csv"


def test_only_the_log_of_one_clip_has_its_name() -> None:
    assert log_name(1, "a/c/s1/GX 010001.MP4", "a/c/s1/GX 010001.nav.csv") == (
        "001-GX_010001.nav.csv"
    )
    assert log_name(1, "a/c/s1/GX010001.MP4", "a/nav.csv") == "001-nav.csv"
