"""A file goes from host to host with a key that was made for it, and that is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, HostError, TransferError, TransportError
from dispatcher.executors.ssh import SshExecutor
from tests.sshd import Farm, Sshd, farm, make_key
from worker_agent.protocol import FetchRequest, Peer

__all__ = ["farm"]

EPOCH = 7
DATA = random.Random(9).randbytes(5_300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass(frozen=True, slots=True)
class Two:
    giver: Sshd
    taker: Sshd
    gives: SshExecutor
    takes: SshExecutor

    @property
    def source(self) -> Path:
        return self.giver.directory / 'survey 1/it\'s "one"\n.MP4'

    @property
    def target(self) -> Path:
        return self.taker.work_dir / "reef" / "a-1" / "input" / "clip.MP4"

    @property
    def keys(self) -> Path:
        return self.giver.directory / "authorized_keys"

    def request(self, peer: Peer, **changes: object) -> FetchRequest:
        values: dict[str, object] = {
            "source": str(self.source),
            "run_dir": str(self.target.parent.parent),
            "path": "input/clip.MP4",
            "bytes": len(DATA),
            "sha256": None,
            "peer": peer,
        }
        return FetchRequest(**{**values, **changes})  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def two(farm: Farm) -> AsyncIterator[Two]:
    giver, taker = farm.start("giver"), farm.start("taker")
    gives, takes = (
        SshExecutor.connect_to(server.inventory_host(python=sys.executable), agent_bundle.build())
        for server in (giver, taker)
    )
    made = Two(giver, taker, gives, takes)
    made.source.parent.mkdir()
    made.source.write_bytes(DATA)
    yield made
    await gives.close()
    await takes.close()


async def test_a_host_pulls_from_another_and_the_key_is_gone(two: Two) -> None:
    with two.keys.open("a") as stream:
        stream.write("# kept: \x0b a line of somebody else, without an end")
    before = two.keys.read_bytes()
    async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
        line = two.keys.read_text().splitlines()[-1]
        assert line.startswith('restrict,command="') and "expiry-time=" in line
        report = await two.takes.fetch(two.request(peer))
    assert report.complete and report.sha256 is None
    assert two.target.read_bytes() == DATA
    hashed = await two.takes.digest(str(two.target.parent.parent), "input/clip.MP4")
    assert (hashed.bytes, hashed.sha256) == (len(DATA), SHA)
    with pytest.raises(AgentRefusal) as gone:
        await two.takes.digest(str(two.target.parent.parent), "input/other.MP4")
    assert gone.value.refusal.error == "input_missing"
    assert [path.name for path in two.target.parent.iterdir()] == ["clip.MP4"]
    assert two.keys.read_bytes() == before + b"\n"
    with pytest.raises(AgentRefusal, match="Permission denied"):
        await two.takes.fetch(two.request(peer, path="input/again.MP4"))


async def test_a_pull_goes_on_from_what_is_there_and_proves_it(two: Two) -> None:
    two.target.parent.mkdir(parents=True)
    part = two.target.with_name("clip.MP4.part")
    part.write_bytes(DATA[: 3 << 20] + b"something else" * 1000)
    async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
        assert (await two.takes.fetch(two.request(peer, sha256=SHA))).complete
        assert two.target.read_bytes() == DATA and not part.exists()
        two.target.unlink()
        with pytest.raises(AgentRefusal) as wrong:
            await two.takes.fetch(two.request(peer, sha256="0" * 64))
        with pytest.raises(AgentRefusal) as changed:
            await two.takes.fetch(two.request(peer, bytes=len(DATA) + 1))
    for caught in (wrong, changed):
        assert caught.value.reason is Reason.TRANSFER_CORRUPT
    assert not two.target.exists()


async def test_the_key_opens_nothing_but_the_one_file(two: Two, tmp_path: Path) -> None:
    async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
        key = tmp_path / "key"
        key.write_text(peer.private_key)
        key.chmod(0o600)
        known = tmp_path / "known"
        known.write_text(f"giver {peer.host_key}\n")
        ssh = [
            "ssh", "-F", "/dev/null", "-i", str(key), "-oIdentitiesOnly=yes", "-oBatchMode=yes",
            f"-oUserKnownHostsFile={known}", "-oHostKeyAlias=giver", "-p", str(peer.port),
        ]  # fmt: skip

        def run(*words: str) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [*ssh, *words], input=b'{"path": "/etc/passwd"}\n', capture_output=True, timeout=30
            )

        for words in ((), ("cat", "/etc/passwd"), ("touch", str(tmp_path / "owned"))):
            done = await asyncio.to_thread(run, peer.destination, *words)
            assert done.returncode != 0 and b"root:" not in done.stdout
        forward = ("-N", "-oExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:1")
        done = await asyncio.to_thread(run, *forward, peer.destination)
        assert done.returncode == 255
        done = await asyncio.to_thread(run, "-s", peer.destination, "sftp")
        assert done.returncode != 0 and b"root:" not in done.stdout
    assert not (tmp_path / "owned").exists()
    assert peer.private_key not in repr(peer)


async def test_what_a_dead_dispatcher_left_is_swept_by_the_next_one(two: Two) -> None:
    before = two.keys.read_bytes()
    left = two.gives.granted(str(two.source), EPOCH, "give")
    peer = await left.__aenter__()
    ours = two.gives.granted(str(two.source), EPOCH + 1, "give")
    await ours.__aenter__()
    assert await two.gives.sweep_grants(EPOCH + 1) == 1
    assert await two.gives.sweep_grants(EPOCH + 1) == 0
    assert len(two.keys.read_text().splitlines()) == len(before.splitlines()) + 1
    with pytest.raises(AgentRefusal, match="Permission denied"):
        await two.takes.fetch(two.request(peer))
    await ours.__aexit__(None, None, None)
    assert two.keys.read_bytes() == before


async def test_a_key_expires_by_itself(two: Two) -> None:
    async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
        text = two.keys.read_text()
        at = text.index('expiry-time="') + len('expiry-time="')
        past = time.strftime("%Y%m%d%H%M%S", time.localtime(time.time() - 60))
        two.keys.write_text(text[:at] + past + text[at + len(past) :])
        with pytest.raises(AgentRefusal, match="Permission denied"):
            await two.takes.fetch(two.request(peer))


async def test_what_cannot_be_granted_says_why(two: Two, farm: Farm) -> None:
    with pytest.raises(AgentRefusal) as absent:
        async with two.gives.granted(f"{two.source}.absent", EPOCH, "give"):
            raise AssertionError
    assert absent.value.reason is Reason.INPUT_MISSING
    off = two.giver.inventory_host(python=sys.executable, transfer={"authorized_keys": False})
    executor = SshExecutor.connect_to(off, agent_bundle.build())
    with pytest.raises(TransferError, match="takes no key"):
        async with executor.granted(str(two.source), EPOCH, "give"):
            raise AssertionError
    await executor.close()
    other = make_key(farm.directory / "other").with_suffix(".pub").read_text().split()
    async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
        wrong = Peer(
            destination=peer.destination, port=peer.port, host_key=" ".join(other[:2]),
            private_key=peer.private_key,
        )  # fmt: skip
        with pytest.raises(AgentRefusal, match="Host key verification failed"):
            await two.takes.fetch(two.request(wrong))
    assert shlex.quote(str(two.source)) not in two.keys.read_text()


async def test_a_pull_that_is_cut_comes_through_whole(two: Two) -> None:
    """The giver's sessions, the dispatcher's to the taker, the pulling process itself."""
    # The giver rests for ten seconds after each block: so long there is to cut it.
    slow = two.taker.inventory_host(python=sys.executable, transfer={"limit_mib_s": 0.1})
    takes = SshExecutor.connect_to(slow, agent_bundle.build())
    part = two.target.with_name("clip.MP4.part")
    cuts = (
        two.giver.kill_sessions,
        two.taker.kill_sessions,
        lambda: [os.kill(pid, signal.SIGKILL) for pid in holders(part)],
    )
    two.target.parent.mkdir(parents=True)
    for blocks, cut in enumerate(cuts, start=1):
        part.write_bytes(DATA[: blocks << 20])
        kept = part.stat().st_ino
        async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
            pulling = asyncio.ensure_future(takes.fetch(two.request(peer)))
            while part.stat().st_size <= blocks << 20:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
            cut()
            with pytest.raises(HostError):
                await pulling
        two.giver.kill_sessions()  # what was cut from the dispatcher alone goes on
        while holders(part):  # noqa: ASYNC110 - it ends by itself, and tells nobody
            await asyncio.sleep(0.02)
        assert part.stat().st_size == (blocks + 1) << 20 and not two.target.exists()
        for executor in (two.gives, two.takes, takes):
            with contextlib.suppress(TransportError):  # it learns here that its link is gone
                await executor.arrived(str(two.target.parent.parent), "input/clip.MP4")
        async with two.gives.granted(str(two.source), EPOCH, "give") as peer:
            assert (await two.takes.fetch(two.request(peer))).complete
        assert two.target.read_bytes() == DATA and not part.exists()
        assert two.target.stat().st_ino == kept, "it went on from what was there"
        two.target.unlink()
    await takes.close()


def holders(path: Path) -> list[int]:
    """Processes that have it open, but for ssh."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            opened = entry.name.isdigit() and any(
                one.readlink() == path for one in (entry / "fd").iterdir()
            )
            if opened and (entry / "comm").read_text() != "ssh\n":
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found
