"""Videos of a failed job move to the error area whole, once, and the job knows where they are."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dispatcher.core.model import Job, JobState, Step
from dispatcher.error_area import DONE, INTENDED, set_aside
from dispatcher.errors import CosmaError, UsageError
from dispatcher.store.rows import Acquisition
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import JOB, RUN, SEGMENT

HELD = dataclasses.replace(JOB, state=JobState.HELD, step=Step.REST)
NAMES = ("GX010001.MP4", "GX020001.MP4")


@dataclass
class World:
    store: SqliteStore
    footage: Path
    area: Path
    job: Job

    async def sources(self) -> list[str]:
        (segment,) = await self.store.segments(job=self.job.id)
        return [clip.source for clip in segment.clips]

    @property
    def there(self) -> Path:
        return self.area / "dive" / self.job.id


async def made(tmp_path: Path, job: Job, *, prefix: str = "") -> World:
    footage = tmp_path / "footage"
    footage.mkdir()
    clips = []
    for clip, name in zip(SEGMENT.clips, NAMES, strict=True):
        (footage / name).write_bytes(name.encode())
        clips.append(dataclasses.replace(clip, name=name, source=f"{prefix}{footage / name}"))
    store = await SqliteStore.open(tmp_path / "cosma.db")
    await store.create_acquisition(Acquisition(id="dive", name="Dive", created_at=1.0))
    await store.create_segment(dataclasses.replace(SEGMENT, clips=tuple(clips)), job, RUN)
    return World(store, footage, tmp_path / "errors", job)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    there = await made(tmp_path, HELD)
    yield there
    await there.store.close()


def assert_moved(world: World) -> None:
    assert {path.name: path.read_text() for path in world.there.iterdir()} == {n: n for n in NAMES}
    assert list(world.footage.iterdir()) == []


async def test_they_are_moved_and_the_job_takes_them_from_there(world: World) -> None:
    moves = await set_aside(world.store, world.job, world.area)
    assert_moved(world)
    assert await world.sources() == [str(world.there / name) for name in NAMES]
    assert [move.source.name for move in moves] == list(NAMES)
    kinds = [event.kind for event in await world.store.events(job=world.job.id)]
    assert kinds == [INTENDED, DONE]
    assert await set_aside(world.store, world.job, world.area) == []  # they are there
    assert_moved(world)


@pytest.mark.parametrize("moved", [0, 1, 2])
async def test_what_was_broken_off_goes_on(world: World, moved: int) -> None:
    """A kill after so many files, before the database was told."""
    world.there.mkdir(parents=True)
    for name in NAMES[:moved]:
        (world.footage / name).rename(world.there / name)
    await set_aside(world.store, world.job, world.area)
    assert_moved(world)
    assert await world.sources() == [str(world.there / name) for name in NAMES]


async def test_nothing_is_overwritten_and_nothing_moves_before_all_is_looked_at(
    world: World,
) -> None:
    world.there.mkdir(parents=True)
    (world.there / NAMES[1]).write_text("another")
    with pytest.raises(CosmaError, match="there already"):
        await set_aside(world.store, world.job, world.area)
    assert sorted(path.name for path in world.footage.iterdir()) == list(NAMES)
    assert (world.there / NAMES[1]).read_text() == "another"
    assert await world.store.events(job=world.job.id) == []


async def test_another_file_system_is_refused_not_copied_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(self: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))

    monkeypatch.setattr(Path, "rename", apart)
    with pytest.raises(CosmaError, match=r"another file system.*--to DIR"):
        await set_aside(world.store, world.job, world.area)
    assert sorted(path.name for path in world.footage.iterdir()) == list(NAMES)
    assert list(world.there.iterdir()) == []


@pytest.mark.parametrize("state", [JobState.DONE, JobState.QUEUED])
async def test_only_the_videos_of_failed_jobs_move(tmp_path: Path, state: JobState) -> None:
    world = await made(tmp_path, dataclasses.replace(JOB, state=state))
    with pytest.raises(UsageError, match="its videos stay"):
        await set_aside(world.store, world.job, world.area)
    await world.store.close()


async def test_videos_of_another_machine_stay_there(tmp_path: Path) -> None:
    world = await made(tmp_path, HELD, prefix="nas:")
    with pytest.raises(UsageError, match="another machine"):
        await set_aside(world.store, world.job, world.area)
    await world.store.close()
