"""What the SSH executor brings to a host and back, whole, over links that are cut."""

from __future__ import annotations

import contextlib
import hashlib
import random
from pathlib import Path

import pytest

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, TransferError, TransportError
from dispatcher.executors.base import Wanted
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import file_sha256
from tests.executor_host import bundle, executor, farm, run_dir, server
from tests.sshd import Sshd
from worker_agent.protocol import FetchRequest

__all__ = ["bundle", "executor", "farm", "run_dir", "server"]

STRANGE = (
    "with space.mp4",
    'quote\'d "twice".mp4',
    "new\nline.mp4",
    "-rf",
    "--help",
    "$(touch owned) `id` ;&|.mp4",
    "übergröße 海底 🐟.mp4",
    "deep/er/than one.mp4",
)


async def test_strange_file_names_cross_both_ways_unchanged(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    for index, name in enumerate(STRANGE):
        content = random.Random(index).randbytes(1000 * index)  # the first one is empty
        local = tmp_path / "here" / name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)
        pushed = await executor.push_file(local, run_dir, f"input/{name}")
        assert pushed.complete and pushed.sha256 == hashlib.sha256(content).hexdigest()
        assert (Path(run_dir) / "input" / name).read_bytes() == content
        back = tmp_path / "back" / name
        collected = await executor.collect_file(run_dir, f"input/{name}", back)
        assert collected.complete and back.read_bytes() == content
    assert not list(tmp_path.rglob("*.part")) and not list(Path(run_dir).rglob("*.part"))
    assert not list(tmp_path.rglob("owned"))


async def test_a_push_that_is_there_already_moves_nothing(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    local = tmp_path / "clip"
    local.write_bytes(bytes(100_000))
    await executor.push_file(local, run_dir, "input/clip")
    stamp = (Path(run_dir) / "input/clip").stat().st_mtime_ns
    told: list[int] = []
    again = await executor.push_file(
        local, run_dir, "input/clip", progress=lambda there, _: told.append(there)
    )
    assert again.complete and told == [100_000]
    assert (Path(run_dir) / "input/clip").stat().st_mtime_ns == stamp


async def until_the_loss_is_known(executor: SshExecutor) -> None:
    """Each connection is known to be lost once somebody used it."""
    with contextlib.suppress(TransportError):
        await executor.list_attempts()


async def test_an_interrupted_push_goes_on_where_it_stopped(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    local = tmp_path / "clip.mp4"
    local.write_bytes(random.Random(1).randbytes(24 << 20))

    def cut(there: int, size: int) -> None:
        if there >= size // 2:
            server.kill_sessions()

    with pytest.raises(TransportError):
        await executor.push_file(local, run_dir, "input/clip.mp4", progress=cut)
    assert not (Path(run_dir) / "input/clip.mp4").exists()
    await until_the_loss_is_known(executor)
    told: list[int] = []
    report = await executor.push_file(
        local, run_dir, "input/clip.mp4", progress=lambda there, _: told.append(there)
    )
    assert report.complete and report.sha256 == file_sha256(local)
    assert file_sha256(Path(run_dir) / "input/clip.mp4") == report.sha256
    assert told[0] > 2 << 20  # the first block of the second push is not the first of the file


async def test_an_interrupted_collection_goes_on_where_it_stopped(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    there = Path(run_dir) / "output" / "scene.ply"
    there.parent.mkdir(parents=True)
    there.write_bytes(random.Random(2).randbytes(24 << 20))
    local = tmp_path / "scene.ply"

    def cut(received: int, size: int) -> None:
        if received >= size // 2:
            server.kill_sessions()

    with pytest.raises(TransportError):
        await executor.collect_file(run_dir, "output/scene.ply", local, progress=cut)
    assert not local.exists()
    got = (tmp_path / "scene.ply.part").stat().st_size
    await until_the_loss_is_known(executor)
    told: list[int] = []
    report = await executor.collect_file(
        run_dir, "output/scene.ply", local, progress=lambda there, _: told.append(there)
    )
    assert report.complete and local.read_bytes() == there.read_bytes()
    assert told[0] > got > 0


async def test_leftovers_of_another_file_are_not_glued_on(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    content = random.Random(3).randbytes(300_000)
    local = tmp_path / "clip"
    local.write_bytes(content)
    target = Path(run_dir) / "input" / "clip"
    target.parent.mkdir(parents=True)
    for leftover in (bytes(100_000), bytes(900_000)):
        target.unlink(missing_ok=True)
        target.with_name("clip.part").write_bytes(leftover)
        assert (await executor.push_file(local, run_dir, "input/clip")).complete
        assert target.read_bytes() == content
        back = tmp_path / f"back-{len(leftover)}"
        back.with_name(back.name + ".part").write_bytes(leftover)
        assert (await executor.collect_file(run_dir, "input/clip", back)).complete
        assert back.read_bytes() == content


async def test_what_cannot_be_transferred_says_why(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(TransferError) as missing:
        await executor.push_file(tmp_path / "gone.mp4", run_dir, "input/gone.mp4")
    assert missing.value.reason is Reason.INPUT_MISSING and "gone.mp4" in missing.value.line
    with pytest.raises(AgentRefusal) as absent:
        await executor.collect_file(run_dir, "output/none.ply", tmp_path / "none.ply")
    assert absent.value.reason is Reason.INPUT_MISSING
    (tmp_path / "other").write_bytes(b"other")
    await executor.push_file(tmp_path / "other", run_dir, "output/other")
    with pytest.raises(TransferError) as changed:
        await executor.collect_file(
            run_dir, "output/other", tmp_path / "mine", sha256=hashlib.sha256(b"mine").hexdigest()
        )
    assert changed.value.reason is Reason.TRANSFER_CORRUPT
    assert not (tmp_path / "mine").exists()
    with pytest.raises(AgentRefusal) as outside:
        await executor.push_file(tmp_path / "other", run_dir, "../../../escaped")
    assert outside.value.refusal.error == "bad_request"


async def test_small_files_come_in_one_call_and_what_is_wrong_is_named(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    there = Path(run_dir) / "output"
    there.mkdir(parents=True)
    wanted = []
    for index in range(12):
        content = random.Random(index).randbytes(40_000 * (index % 3))  # more than one portion
        (there / f"f{index}").write_bytes(content)
        digest = hashlib.sha256(b"other" if index == 5 else content).hexdigest()
        wanted.append(
            Wanted(
                path=f"output/f{index}", kind="preview", local=tmp_path / "here" / f"f{index}",
                bytes=len(content), sha256=digest,
            )
        )  # fmt: skip
    gone = Wanted(
        path="output/gone", kind="preview", local=tmp_path / "here" / "gone", bytes=1, sha256="0"
    )
    left = await executor.collect_small(run_dir, [*wanted, gone])
    assert left == [wanted[5], gone]
    for file in wanted:
        name = file.local.name
        assert file is wanted[5] or file.local.read_bytes() == (there / name).read_bytes()
    assert not wanted[5].local.exists() and not list(tmp_path.rglob("*.part"))
    stamp = wanted[0].local.stat().st_mtime_ns
    assert await executor.collect_small(run_dir, wanted[:2]) == []
    assert wanted[0].local.stat().st_mtime_ns == stamp, "what is here already stays"


async def test_the_host_itself_fetches_and_reclaims(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    source = tmp_path / "a clip.mp4"
    source.write_bytes(bytes(200_000))
    report = await executor.fetch(
        FetchRequest(source=str(source), run_dir=run_dir, path="input/clip.mp4")
    )
    assert report.complete and report.bytes == 200_000
    reclaimed = await executor.reclaim(
        run_dir,
        ["input/clip.mp4"],
        epoch=1,
        expected_sha256={"input/clip.mp4": file_sha256(source)},
    )
    assert reclaimed.removed == ("input/clip.mp4",)
    assert reclaimed.remaining_input_bytes == 0 and source.exists()
