"""From files on a disk to rows in a real database, whatever the files are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.core.model import JobState, Reason
from dispatcher.errors import UsageError
from dispatcher.ingest import ingest
from dispatcher.jobspec import JobSpecs
from dispatcher.settings import PipelineConfig
from dispatcher.store.sqlite import SqliteStore

HOSTILE = (
    b"sp ace.mp4", b"q'uo\"te.MP4", b"new\nline.mp4", b"-dash.mp4", b"$(id).mp4", b"semi;colon.mp4",
    "émoji😀.mp4".encode(), b"nonutf\xff\xfe.mp4", b"%04d.mp4", b"x" * 200 + b".mp4",
)  # fmt: skip
CONFIG = PipelineConfig()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "cosma.db")
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=0.2:size=64x64:rate=10",
         str(path)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path


async def test_hostile_names_become_plain_jobs_with_exact_sources(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "survey").mkdir()
    survey = os.fsencode(tmp_path / "survey")
    for name in HOSTILE:
        shutil.copy(os.fsencode(clip), survey + b"/" + name)
    found = await ingest(store, os.fsdecode(survey), acquisition="w", config=CONFIG)
    assert len({row.job for row in found}) == len(HOSTILE)
    assert {row.state for row in found} == {JobState.QUEUED}
    sources = {
        os.fsencode(item.source)
        for segment in await store.segments(acquisition="w")
        for item in segment.clips
    }
    assert sources == {survey + b"/" + name for name in HOSTILE}


async def test_names_that_look_alike_stay_two_segments(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    for label in ("dive 1", "dive-1", "dive_1"):
        target = tmp_path / "survey" / "auv" / "C1" / label / "GX010001.MP4"
        target.parent.mkdir(parents=True)
        shutil.copy(clip, target)
    source = str(tmp_path / "survey")
    first = await ingest(store, source, acquisition="w", config=CONFIG)
    assert len({row.job for row in first}) == 3
    again = await ingest(store, source, acquisition="w", config=CONFIG)
    assert [row.job for row in again] == [row.job for row in first]
    assert not any(row.new or row.message for row in again)


async def test_a_segment_that_exists_with_other_clips_is_not_passed_over_silently(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    for disk in ("disk1", "disk2"):
        target = tmp_path / disk / "auv" / "C1" / "s1" / "GX010001.MP4"
        target.parent.mkdir(parents=True)
        shutil.copy(clip, target)
    await ingest(store, str(tmp_path / "disk1"), acquisition="w", config=CONFIG)
    (row,) = await ingest(store, str(tmp_path / "disk2"), acquisition="w", config=CONFIG)
    assert not row.new
    assert "other clips" in row.message
    assert "disk1" in row.message


async def test_a_bad_clip_is_held_at_once_with_its_reason(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "survey").mkdir()
    (tmp_path / "survey" / "zero.mp4").touch()
    (tmp_path / "survey" / "text.mp4").write_text("no video")
    shutil.copy(clip, tmp_path / "survey" / "good.mp4")
    rows = await ingest(store, str(tmp_path / "survey"), acquisition="w", config=CONFIG)
    assert {row.segment: row.reason for row in rows} == {
        "zero": Reason.INPUT_EMPTY, "text": Reason.INPUT_UNREADABLE, "good": "",
    }  # fmt: skip


async def test_a_job_knows_how_much_work_it_will_be(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "survey").mkdir()
    shutil.copy(clip, tmp_path / "survey" / "good.mp4")
    config = PipelineConfig.model_validate(
        {"frames": {"fps": 10.0, "width": 64}, "train": {"cuda": {"cap": 5000, "steps": 70}}}
    )
    (row,) = await ingest(store, str(tmp_path / "survey"), acquisition="w", config=config)
    job = await store.job(row.job)
    assert job is not None
    assert (job.frames, job.pixels, job.cap, job.train_steps) == (2, 64 * 64, 5000, 70)


async def test_nothing_to_ingest_is_said(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.MP4"):
        await ingest(store, str(tmp_path), acquisition="w", config=CONFIG)
    with pytest.raises(UsageError, match="no such file"):
        await ingest(store, str(tmp_path / "nowhere"), acquisition="w", config=CONFIG)


async def test_a_log_goes_with_its_clips_and_one_is_sent_once(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    survey = tmp_path / "survey"
    segment = survey / "auv-1" / "C34" / "s1"
    segment.mkdir(parents=True)
    for name in ("GX010001.MP4", "GX020001.MP4", "GX010002.MP4"):
        shutil.copy(clip, segment / name)
    (survey / "auv-1" / "nav.csv").write_text("unix_s,depth_m\n0,1\n")
    (segment / "GX010002.nav.csv").write_text("t_s,depth_m\n0,1\n")
    (row,) = await ingest(store, str(survey), acquisition="w", config=CONFIG)
    assert row.logs == 2
    specs = JobSpecs(store, {}.get)
    job = await store.job(row.job)
    assert job is not None
    sent = {item.path: item.local for item in await specs.inputs(job)}
    assert sent == {
        **{f"input/00{i}-GX0{c}000{n}.MP4": str(segment / f"GX0{c}000{n}.MP4")
           for i, (c, n) in enumerate(((1, 1), (2, 1), (1, 2)))},
        "input/000-nav.csv": str(survey / "auv-1" / "nav.csv"),
        "input/002-GX010002.nav.csv": str(segment / "GX010002.nav.csv"),
    }  # fmt: skip
    (told,) = await store.segments(job=row.job)
    assert [one.log_name for one in told.clips] == [
        "000-nav.csv", "000-nav.csv", "002-GX010002.nav.csv",
    ]  # fmt: skip
    (survey / "auv-1" / "nav.csv").unlink()
    (again,) = await ingest(store, str(survey), acquisition="w", config=CONFIG)
    assert "navigation log" in again.message


async def test_a_single_file_has_the_logs_beside_it(
    store: SqliteStore, clip: Path, tmp_path: Path
) -> None:
    shutil.copy(clip, tmp_path / "dive.mp4")
    shutil.copy(clip, tmp_path / "other.mp4")
    (tmp_path / "dive.nav.csv").write_text("t_s,depth_m\n0,1\n")
    (row,) = await ingest(store, str(tmp_path / "dive.mp4"), acquisition="w", config=CONFIG)
    (segment,) = await store.segments(job=row.job)
    assert [item.log for item in segment.clips] == [str(tmp_path / "dive.nav.csv")]
