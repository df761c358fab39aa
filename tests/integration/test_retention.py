"""Retention on a real store and a real directory: what goes, what never does, and what is told."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.artifact_lookup import makers
from dispatcher.artifact_store import ArtifactStore
from dispatcher.clock import ManualClock
from dispatcher.core.model import Job, JobKind, JobState, Step
from dispatcher.core.retention import Sort
from dispatcher.object_store import ObjectStore
from dispatcher.provenance import DELIVERED
from dispatcher.retention import DAY_S, NOT_REMOVED, REMOVED, Retention
from dispatcher.store.rows import Acquisition, ArtifactRow, Run
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import running
from tests.s3 import s3_environment

TEXTS = [f"content {number}".encode() for number in range(6)]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class World:
    store: SqliteStore
    artifacts: ArtifactStore

    def retention(self, days: float = 30.0, remote: ObjectStore | None = None) -> Retention:
        """As it is forty days from now."""
        return Retention(
            store=self.store, artifacts=self.artifacts, remote=remote,
            clock=ManualClock(wall=time.time() + 40 * DAY_S), keep_s=days * DAY_S,
        )  # fmt: skip

    async def job(self, name: str, state: JobState = JobState.DONE) -> str:
        step = Step.PLACE if state is JobState.QUEUED else Step.REST
        job = Job(
            id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a",
            created_at=1.0, state=state, step=step,
        )  # fmt: skip
        await self.store.create_acquisition(Acquisition(id="dive", name="Dive", created_at=1.0))
        await self.store.create_job(job, Run(job=name, config={}, sha256="ca"))
        return name

    async def collected(self, job: str, path: str, content: bytes) -> Path:
        """As a collection leaves it."""
        local = self.artifacts.path("dive", job, f"output/{path}")
        local.parent.mkdir(parents=True, exist_ok=True)
        fresh = local.with_name(f"{path}.part")
        fresh.write_bytes(content)
        fresh.replace(local)
        self.artifacts.keep(local, sha256(content))
        row = ArtifactRow(
            job=job, kind="ply", path=f"output/{path}", bytes=len(content),
            sha256=sha256(content), host="h", local_path=str(local),
        )  # fmt: skip
        await self.store.add_artifacts(job, [row])
        return local

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in self.artifacts.root.rglob("*") if p.is_file()}

    def object(self, content: bytes) -> Path:
        return self.artifacts.object_path(sha256(content))


@asynccontextmanager
async def world_at(base: Path) -> AsyncIterator[World]:
    store = await SqliteStore.open(base / "cosma.db")
    try:
        yield World(store, ArtifactStore(base / "artifacts"))
    finally:
        await store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_at(tmp_path) as made:
        yield made


states = st.sampled_from([JobState.DONE, JobState.ERROR, JobState.HELD, JobState.QUEUED])
texts = st.sampled_from(TEXTS)
# Of each job: its state, and what was collected of it one after the other, by file name.
histories = st.lists(
    st.tuples(states, st.lists(st.tuples(st.sampled_from(["x.ply", "y.npz"]), texts), max_size=4)),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(history=histories, stitched=st.lists(texts, max_size=2), days=st.sampled_from([0.0, 30.0]))
def test_what_a_job_or_a_stitch_refers_to_is_never_removed(
    history: list[tuple[JobState, list[tuple[str, bytes]]]], stitched: list[bytes], days: float
) -> None:
    async def check(there: World) -> None:
        kept: dict[Path, bytes] = {}
        seen: set[bytes] = set()
        for number, (state, collections) in enumerate(history):
            job = await there.job(f"j{number}", state)
            for path, content in collections:
                kept[await there.collected(job, path, content)] = content
                seen.add(content)
        for content in stitched:
            await there.store.record_event(DELIVERED, payload={"sha256": sha256(content)})
        items = await there.retention(days).find()
        before = there.files()
        assert await there.retention(days).remove(items) == {}
        for local, content in kept.items():
            assert local.read_bytes() == content
        wanted = {*kept.values(), *(text for text in stitched if text in seen)}
        left = {text for text in seen if there.object(text).is_file()}
        assert left == wanted
        gone = before.keys() - there.files().keys()
        told = [e.payload for e in await there.store.events(kind=REMOVED)]
        assert {one["where"] for one in told} == gone
        assert sum(one["bytes"] for one in told) == sum(len(before[name]) for name in gone)
        assert await there.retention(days).find() == []

    async def once(folder: str) -> None:
        async with world_at(Path(folder)) as there:
            await check(there)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(once(folder))


async def test_it_goes_only_after_its_time_and_the_list_alone_changes_nothing(
    world: World,
) -> None:
    job = await world.job("j")
    await world.collected(job, "x.ply", b"old")
    await world.collected(job, "x.ply", b"new")
    assert await world.retention(days=41).find() == []
    before = world.files()
    (item,) = await world.retention(days=39).find()
    assert (item.stored.sort, item.stored.sha256) == (Sort.OBJECT, sha256(b"old"))
    assert item.why == "no job, stitch or run has had it for 40.0 days"
    assert world.files() == before


async def test_remainders_and_stray_names_of_ended_jobs_go_and_of_others_stay(
    world: World,
) -> None:
    for name, state in (("done", JobState.DONE), ("held", JobState.HELD)):
        await world.collected(await world.job(name, state), "x.ply", name.encode())
        directory = world.artifacts.directory("dive", name)
        (directory / "y.ply.part").write_bytes(b"half")
        (directory / "x.ply.changed-1").write_bytes(b"changed")
    other = world.artifacts.directory("somebody", "elses")
    other.mkdir(parents=True)
    (other / "x.ply.part").write_bytes(b"half")
    (world.artifacts.root / "notes.txt").write_bytes(b"the operator's own")
    found = {Path(item.stored.where).relative_to(world.artifacts.root).as_posix(): item.stored.sort
             for item in await world.retention().find()}  # fmt: skip
    assert found == {
        "dive/done/y.ply.part": Sort.REMAINDER,
        "dive/done/x.ply.changed-1": Sort.NAME,
    }


async def test_what_another_database_has_a_name_for_stays(world: World) -> None:
    await world.job("j")
    local = world.artifacts.path("other-survey", "other-job", "x.ply")
    local.parent.mkdir(parents=True)
    local.write_bytes(b"theirs")
    world.artifacts.keep(local, sha256(b"theirs"))
    assert await world.retention().find() == []
    local.unlink()
    (item,) = await world.retention().find()
    assert item.stored.sha256 == sha256(b"theirs")


async def test_what_was_made_again_meanwhile_stays(world: World) -> None:
    job = await world.job("j")
    await world.collected(job, "x.ply", b"old")
    await world.collected(job, "x.ply", b"new")
    items = await world.retention().find()
    await world.collected(job, "x.ply", b"old")
    left = await world.retention().remove(items)
    assert list(left.values()) == ["a job made the same again meanwhile"]
    assert world.object(b"old").is_file()
    assert await world.store.events(kind=REMOVED) == []


async def test_what_cannot_be_removed_is_told(world: World) -> None:
    job = await world.job("j")
    await world.collected(job, "x.ply", b"old")
    await world.collected(job, "x.ply", b"new")
    items = await world.retention().find()
    (world.artifacts.root / "kept").hardlink_to(world.object(b"old"))
    left = await world.retention().remove(items)
    assert "has got a name meanwhile" in left[str(world.object(b"old"))]
    (event,) = await world.store.events(kind=NOT_REMOVED)
    assert event.payload["where"] == str(world.object(b"old"))


async def test_logs_in_the_database_go_when_results_keep_them_and_the_job_is_over(
    world: World, tmp_path: Path
) -> None:
    job = (await running(world.store)).id
    await world.store.append_stream(job, 1, log=b"line\n", log_from=0)
    log = await world.collected(job, "job.log", b"=== attempt 1 ===\nline\n")
    assert await world.retention().find() == [], "it runs"
    with sqlite3.connect(tmp_path / "cosma.db") as writer:
        writer.execute("UPDATE jobs SET state = 'done'")
        writer.execute("UPDATE attempts SET ended_at = ?", (time.time(),))
    assert await world.retention(days=41).find() == []
    items = await world.retention().find()
    assert [(one.stored.sort, one.stored.bytes) for one in items] == [(Sort.LOG, 5)]
    with sqlite3.connect(tmp_path / "cosma.db") as writer:
        writer.execute("UPDATE jobs SET state = 'queued'")
    await world.retention().remove(items)
    assert await world.store.logs(job, 1) == b"line\n", "it was taken up again meanwhile"
    with sqlite3.connect(tmp_path / "cosma.db") as writer:
        writer.execute("UPDATE jobs SET state = 'done'")
    assert await world.retention().remove(items) == {}
    assert await world.store.logs(job, 1) == b"" and await world.retention().find() == []
    asked = cosma(tmp_path, "job", "logs", job)
    assert asked.returncode == 2 and f"Read {log}" in asked.stderr


async def test_the_object_store_is_looked_through_too(world: World, tmp_path: Path) -> None:
    with s3_environment(tmp_path):
        remote = ObjectStore("s3://retention/farm")
        remote._fs.mkdir("retention")
        job = await world.job("j")
        local = await world.collected(job, "x.ply", b"new")
        remote.put(local, sha256(b"new"), 3)
        for content in (b"old", b"theirs"):
            file = tmp_path / "file"
            file.write_bytes(content)
            remote.put(file, sha256(content), len(content))
        theirs = ArtifactRow(job="other", kind="ply", path="x", bytes=6, sha256=sha256(b"theirs"))
        remote.write_index("dive", "other", [theirs])
        retention = world.retention(remote=remote)
        items = await retention.find()
        assert [item.stored.where for item in items] == [remote.url_of(sha256(b"old"))]
        assert await retention.remove(items) == {}
        left = {one.sha256 for one in remote.objects()}
        assert left == {sha256(b"new"), sha256(b"theirs")}


async def test_beside_a_dispatcher_it_goes_by_itself(world: World) -> None:
    job = await world.job("j")
    await world.collected(job, "x.ply", b"old")
    await world.collected(job, "x.ply", b"new")
    working = asyncio.create_task(world.retention().run(0.01, lambda: None))
    try:
        async with asyncio.timeout(60):
            await gone(world.object(b"old"))
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert len(await world.store.events(kind=REMOVED)) == 1
    assert world.object(b"new").is_file()


async def gone(path: Path) -> None:
    for _ in itertools.count():
        if not path.exists():
            return
        await asyncio.sleep(0.01)  # nothing to await: a removal tells nobody here


async def test_a_file_leads_back_to_its_job_however_it_is_called(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = await world.collected(await world.job("j"), "x.ply", b"points")
    (tmp_path / "renamed.ply").write_bytes(b"points")
    monkeypatch.chdir(tmp_path)
    for asked in (
        str(local), "artifacts/dive/j/x.ply", "output/x.ply", "h:/srv/dive/j/output/x.ply",
        sha256(b"points"), sha256(b"points")[:12], "renamed.ply",
    ):  # fmt: skip
        (row,) = await makers(world.store, asked)
        assert (row.job, row.local_path) == ("j", str(local)), asked
    for asked in ("nobody.ply", "ab" * 32, "/srv/dive/j/output/y.ply"):
        assert await makers(world.store, asked) == []


def cosma(base: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dispatcher.cli", *words], cwd=base, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd()),
             "OUTPUT_PATH": str(base / "artifacts"), **environment},
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


async def test_the_commands(world: World, tmp_path: Path) -> None:
    local = await world.collected(await world.job("j"), "x.ply", b"points")
    listed = cosma(tmp_path, "gc", "--json", CLEANUP_RETENTION_DAYS="7")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout) == {"applied": False, "days": 7.0, "bytes": 0, "files": []}
    assert "nothing to do" in listed.stderr
    found = cosma(tmp_path, "artifact", "who", str(local), "--json")
    assert found.returncode == 0, found.stderr
    (row,) = json.loads(found.stdout)
    assert (row["job"], row["sha256"]) == ("j", sha256(b"points"))
    unknown = cosma(tmp_path, "artifact", "who", "nobody.ply")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("cosma: nobody.ply: no job made this")
