"""Results from a real host to the artifact store, and to a real S3 server beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dispatcher import agent_bundle
from dispatcher.artifact_store import CHECKPOINT, LOG, ArtifactStore, store_of
from dispatcher.clock import ManualClock
from dispatcher.collecting import Collecting, restore
from dispatcher.core.model import Job, Reason
from dispatcher.errors import TransferError
from dispatcher.executors.ssh import SshExecutor
from dispatcher.object_store import ObjectStore
from dispatcher.store.rows import ArtifactRow
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import running
from tests.s3 import s3_environment
from tests.sshd import Farm, Sshd

FILES = {
    "ply": ("output/model.ply", os.urandom(700_000)),  # by a stream of its own
    "splat": ("output/model.splat", b"splat" * 1000),
    "manifest": ("output/manifest.json", b'{"clips": 2}'),
    "registration": ("output/registration.npz", b"points" * 500),
    "sfm_report": ("output/sfm_report.json", b'{"clips": 2}'),  # the same bytes as the manifest
}
LOG_TEXT = b"line one\nline two"


@dataclass
class World:
    store: SqliteStore
    job: Job
    executor: SshExecutor
    run_dir: Path
    collecting: Collecting

    async def collect(self) -> list[ArtifactRow]:
        attempts = await self.store.attempts(self.job.id)
        return await self.collecting.collect(self.job, self.executor, str(self.run_dir), attempts)

    async def rows(self) -> dict[str, ArtifactRow]:
        return {row.kind: row for row in await self.store.artifacts(job=self.job.id)}

    def make(self, kind: str, content: bytes) -> ArtifactRow:
        """A file of the run directory, and what its stage says of it."""
        path = FILES[kind][0]
        (self.run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (self.run_dir / path).write_bytes(content)
        return ArtifactRow(
            job=self.job.id, kind=kind, path=path, bytes=len(content), sha256=sha256(content),
            host="h", attempt=1,
        )  # fmt: skip


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Of every file: its inode and when its content was written."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def bundle() -> agent_bundle.AgentBundle:
    return agent_bundle.build()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    farm = Farm(tmp_path_factory.mktemp("farm"))
    try:
        yield farm.start()
    finally:
        farm.stop()


@pytest.fixture
async def world(
    tmp_path: Path, server: Sshd, bundle: agent_bundle.AgentBundle
) -> AsyncIterator[World]:
    store = await SqliteStore.open(tmp_path / "cosma.db", ManualClock())
    executor = SshExecutor.connect_to(server.inventory_host(python=sys.executable), bundle)
    job = await running(store)
    await store.append_stream(job.id, 1, log=LOG_TEXT)
    run_dir = server.work_dir / job.acquisition / job.id
    collecting = Collecting(store=store, artifacts=ArtifactStore(tmp_path / "artifacts"))
    made = World(store, job, executor, run_dir, collecting)
    shutil.rmtree(run_dir, ignore_errors=True)  # the test before this one has left it
    rows = [made.make(kind, content) for kind, (_, content) in FILES.items()]
    (run_dir / CHECKPOINT).write_bytes(b'{"stage": "Completed"}')
    await store.add_artifacts(job.id, rows)
    yield made
    await executor.close()
    await store.close()


async def test_results_lie_once_for_each_content_under_readable_names(world: World) -> None:
    await world.collect()
    root = world.collecting.artifacts.root
    directory = root / "dive" / world.job.id
    assert {p.name for p in directory.iterdir()} == {
        "model.ply", "model.splat", "manifest.json", "registration.npz", "sfm_report.json",
        ".checkpoint.json", "job.log",
    }  # fmt: skip
    rows = await world.rows()
    assert rows.keys() == {*FILES, "checkpoint", "log"}
    for row in rows.values():
        assert row.local_path is not None
        content = Path(row.local_path).read_bytes()
        assert sha256(content) == row.sha256
        assert world.collecting.artifacts.object_path(row.sha256).samefile(row.local_path)
    assert Path(rows["manifest"].local_path or "").samefile(rows["sfm_report"].local_path or "")
    objects = [path for path in (root / ".objects").rglob("*") if path.is_file()]
    assert len(objects) == len(rows) - 1
    log = Path(rows["log"].local_path or "").read_bytes()
    assert log.startswith(b"=== attempt 1: Validation on h, ") and LOG_TEXT in log
    assert (rows["log"].path, rows["log"].host) == (LOG, None)
    assert (rows["checkpoint"].path, rows["checkpoint"].host) == (CHECKPOINT, "h")
    assert store_of(Path(rows["ply"].local_path or ""), "dive", world.job.id).root == root

    before = tree(root)
    await world.collect()  # again: nothing changes
    assert tree(root) == before
    assert await world.rows() == rows


async def test_a_file_made_anew_takes_the_name_and_the_old_object_stays(world: World) -> None:
    await world.collect()
    old = (await world.rows())["ply"]
    await world.store.add_artifacts(world.job.id, [world.make("ply", b"newer")])
    await world.collect()
    new = (await world.rows())["ply"]
    assert new.local_path == old.local_path
    assert Path(new.local_path or "").read_bytes() == b"newer"
    kept = world.collecting.artifacts.object_path(old.sha256)
    assert kept.read_bytes() == FILES["ply"][1]


async def test_what_the_store_has_is_not_brought_again(world: World) -> None:
    await world.collect()
    ply = (await world.rows())["ply"]
    Path(ply.local_path or "").unlink()
    (world.run_dir / ply.path).unlink()  # there is nothing to bring it from
    await world.collect()
    assert sha256(Path(ply.local_path or "").read_bytes()) == ply.sha256


async def test_a_damaged_object_is_found_and_replaced(world: World) -> None:
    await world.collect()
    ply = (await world.rows())["ply"]
    damaged = world.collecting.artifacts.object_path(ply.sha256)
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(ply.bytes))
    await world.collect()
    for path in (damaged, Path(ply.local_path or "")):
        assert sha256(path.read_bytes()) == ply.sha256


async def test_a_file_that_is_not_what_its_stage_said_is_refused(world: World) -> None:
    (world.run_dir / FILES["ply"][0]).write_bytes(bytes(700_000))
    with pytest.raises(TransferError) as refused:
        await world.collect()
    assert refused.value.reason is Reason.TRANSFER_CORRUPT
    assert (await world.rows())["ply"].local_path is None
    directory = world.collecting.artifacts.root / "dive" / world.job.id
    assert not (directory / "model.ply").exists()


async def test_a_collection_broken_off_anywhere_leaves_nothing_half(world: World) -> None:
    """It is cancelled after more and more turns of the event loop, until one comes to its end."""
    whole = {content for _, content in FILES.values()} | {b'{"stage": "Completed"}'}
    for turns in itertools.count(start=1, step=7):
        collecting = asyncio.create_task(world.collect())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        collecting.cancel()
        try:
            await collecting
            break
        except asyncio.CancelledError:
            pass
        for path in world.collecting.artifacts.root.rglob("*"):
            if path.is_file() and path.suffix not in (".part", ".new"):
                content = path.read_bytes()
                assert content in whole or LOG_TEXT in content, path
    for row in (await world.rows()).values():
        assert sha256(Path(row.local_path or "").read_bytes()) == row.sha256
    left = [path.name for path in world.collecting.artifacts.root.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".part", ".new"))]


def test_where_nothing_can_be_linked_the_name_is_a_symbolic_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = ArtifactStore(tmp_path / "store")
    local = store.path("dive", "j", "output/x.ply")
    local.parent.mkdir(parents=True)
    local.write_bytes(b"points")
    for _ in range(2):
        store.keep(local, sha256(b"points"))
        assert local.is_symlink() and local.read_bytes() == b"points"
        assert not local.readlink().is_absolute()
    local.unlink()
    assert store.offer(local, sha256(b"points"), 6)
    assert local.read_bytes() == b"points"


# --- the object store ---


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with s3_environment(tmp_path_factory.mktemp("s3")):
        ObjectStore("s3://survey")._fs.mkdir("survey")
        yield


async def test_results_lie_in_the_object_store_too_and_come_back_from_there(
    s3: None, world: World
) -> None:
    remote = ObjectStore("s3://survey/farm")
    world.collecting = dataclasses.replace(world.collecting, remote=remote)
    await world.collect()
    rows = await world.rows()
    for row in rows.values():
        assert row.remote_url == f"s3://survey/farm/objects/{row.sha256[:2]}/{row.sha256}"
    stored = {found.sha256: found.bytes for found in remote.objects()}
    assert stored == {row.sha256: row.bytes for row in rows.values()}
    index = json.loads(remote._fs.cat_file(f"survey/farm/dive/{world.job.id}/index.json"))
    assert {file["path"]: file["sha256"] for file in index["files"]} == {
        row.path: row.sha256 for row in rows.values()
    }

    ply = rows["ply"]
    Path(ply.local_path or "").unlink()
    world.collecting.artifacts.object_path(ply.sha256).unlink()
    assert not restore(ply, world.collecting.artifacts, None)
    assert await world.collecting.bring_back(Path(ply.local_path or ""))
    assert not await world.collecting.bring_back(Path("/no/result.ply"))
    assert sha256(Path(ply.local_path or "").read_bytes()) == ply.sha256


async def test_a_half_object_there_is_sent_again_and_a_wrong_one_never_taken(
    s3: None, world: World, tmp_path: Path
) -> None:
    remote = ObjectStore("s3://survey/other")
    content = FILES["splat"][1]
    key = f"survey/other/objects/{sha256(content)[:2]}/{sha256(content)}"
    remote._fs.pipe_file(key, bytes(len(content)))  # of this size, and not this content
    file = tmp_path / "splat"
    with pytest.raises(TransferError, match="not what was stored"):
        remote.get(sha256(content), file)
    assert not file.exists()
    file.write_bytes(content)
    remote.put(file, sha256(content), len(content))
    assert remote._fs.cat_file(key) == content
    remote.remove(sha256(content))
    assert list(remote.objects()) == []


async def test_an_object_store_that_is_away_is_one_line_and_loses_nothing(
    s3: None, world: World
) -> None:
    world.collecting = dataclasses.replace(
        world.collecting, remote=ObjectStore("s3://no-such-bucket")
    )
    with pytest.raises(TransferError) as away:
        await world.collect()
    assert away.value.reason is Reason.TRANSFER_FAILED
    assert "s3://no-such-bucket: the object store failed" in away.value.line
    ply = (await world.rows())["ply"]
    assert (Path(ply.local_path or "").is_file(), ply.remote_url) == (True, None)
