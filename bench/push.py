"""A file of --mib MiB to a host on this machine: how fast and for how much CPU, beside scp and raw
TCP. Everything lies in memory, so that no disk is measured; all is done once a round, in turn.

The push is the dispatcher's own: executor, agent, SSH, every block and the whole file verified on
the host, SHA-256 taken for the record. CPU is that of both ends: this process, its children, and
the SSH server's process tree with the agent in it. scp is OpenSSH's, with the same cipher.

push4_over_scp_20ms: over a link of 20 ms round trip (bench/delay.py), over four connections.
resume_cpu_over_full: a push that was cut off at half of the file, against a whole one.
pull_over_relay: one host pulls the file from another with a key made for that (the making and the
taking back included), against the same bytes brought through the dispatcher: as the one stream by
which a job's files go where no host reaches the other (relay, the faster one), and in blocks, as a
video goes then (passed). A pull leaves SHA-256, for the record, to its host (hashed: what that
takes, afterwards and niced). All keep two cores busy; relay_cpu_over_pull is what is left of the
ratio where the cores are short, and docs/decisions/0004 says what it is on machines and links of
their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.delay import THERE, delayed
from bench.results import Result, parser, show
from dispatcher import agent_bundle, event_loop
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import file_sha256
from tests.sshd import SSHD, Farm, Sshd
from worker_agent.protocol import Artifact, FetchRequest, UnpackRequest

EPOCH = 1
CIPHER = "aes128-gcm@openssh.com"
ROUND_TRIP_S = 0.02
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, not a place for secrets


@dataclass(frozen=True, slots=True)
class Cost:
    seconds: float
    cpu_s: float


@dataclass(slots=True)
class Series:
    """The same thing, done once a round."""

    costs: list[Cost] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(cost.seconds for cost in self.costs)

    @property
    def cpu_s(self) -> float:
        return statistics.median(cost.cpu_s for cost in self.costs)


def tree_cpu_s(pid: int) -> float:
    """Of a process and all below it, those that have ended included."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = sum(int(field) for field in stat[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(tree_cpu_s(int(child)) for child in children)


def own_cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True, slots=True)
class Place:
    """One file, and a host to bring it to."""

    source: Path
    server: Sshd
    address: str
    executor: SshExecutor
    connections: int  # that stay, for commands
    beside: tuple[Sshd, ...] = ()  # other servers that have a part in it

    @property
    def run_dir(self) -> Path:
        return self.server.work_dir / "bench" / "push"

    @property
    def target(self) -> Path:
        return self.run_dir / "input" / "clip.mp4"

    def clear(self) -> None:
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir(parents=True)

    def cpu_s(self) -> float:
        servers = (self.server, *self.beside)
        return own_cpu_s() + sum(tree_cpu_s(server.process.pid) for server in servers)

    async def measured(self, work: Callable[[], Awaitable[object]]) -> Cost:
        await self.settled()
        cpu, began = self.cpu_s(), time.monotonic()
        await work()
        seconds = time.monotonic() - began
        await self.settled()
        cost = Cost(seconds, self.cpu_s() - cpu)
        if not filecmp.cmp(self.source, self.target, shallow=False):
            raise SystemExit("what arrived is not what was sent")
        return cost

    async def settled(self) -> None:
        """Until the server has reaped what served the last transfer, so that all of it is counted;
        the connections for commands stay."""
        while len(self.server.sessions()) > self.connections:  # noqa: ASYNC110 - nobody tells of the end
            await asyncio.sleep(0.01)

    async def scp(self) -> None:
        options = ["-q", "-c", CIPHER, "-i", str(self.server.client_key), "-P",
                   str(self.server.port), "-o", "StrictHostKeyChecking=yes", "-o",
                   f"UserKnownHostsFile={self.server.directory / 'known_hosts'}", "-o",
                   "HostKeyAlias=bench", "-o", "IdentitiesOnly=yes", "-F", "/dev/null"]  # fmt: skip
        copy = await asyncio.create_subprocess_exec(
            "scp", *options, str(self.source), f"{self.address}:{self.target}"
        )
        if await copy.wait():
            raise SystemExit("scp failed")

    async def push(self) -> None:
        await self.executor.push_file(self.source, str(self.run_dir), "input/clip.mp4")

    async def half(self) -> None:
        """A push that is cut off when half of the file has arrived."""
        at_half = asyncio.Event()
        part = self.target.with_name(self.target.name + ".part")

        def watch(there: int, size: int) -> None:
            if there >= size // 2 and part.stat().st_size >= size // 2:
                at_half.set()

        pushing = asyncio.ensure_future(
            self.executor.push_file(
                self.source, str(self.run_dir), "input/clip.mp4", progress=watch
            )
        )
        await at_half.wait()
        pushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pushing


def raw_tcp_s(source: Path) -> float:
    """Seconds of the same bytes over a plain socket, read at the other end by a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drain() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 20):
                    pass

        reader = threading.Thread(target=drain)
        reader.start()
        began = time.monotonic()
        with socket.create_connection(server.getsockname()) as client, source.open("rb") as file:
            client.sendfile(file)
        reader.join()
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def place(
    source: Path, server: Sshd, address: str = "127.0.0.1", streams: int = 1, connections: int = 1
) -> AsyncIterator[Place]:
    """Connected, with the agent there, as in a dispatcher at work."""
    (server.directory / "known_hosts").write_text(f"bench {server.host_key}\n")
    host = server.inventory_host(
        python=sys.executable, address=address, transfer={"streams": streams}
    )
    executor = SshExecutor.connect_to(host, agent_bundle.build())
    try:
        await executor.probe()
        yield Place(source, server, address, executor, connections)
    finally:
        await executor.close()


async def pull(giver: Place, taker: Place) -> None:
    async with giver.executor.granted(str(giver.source), EPOCH, "give") as peer:
        await taker.executor.fetch(
            FetchRequest(
                source=str(giver.source), run_dir=str(taker.run_dir), path="input/clip.mp4",
                bytes=giver.source.stat().st_size, peer=peer,
            )
        )  # fmt: skip


async def relay(giver: Place, taker: Place, sha256: str) -> None:
    """As a job's files go where no host reaches the other."""
    kept = giver.run_dir / "input" / "clip.mp4"
    made = Artifact(kind="ply", path="input/clip.mp4", bytes=kept.stat().st_size, sha256=sha256)
    request = UnpackRequest(
        epoch=EPOCH, job="push", run_dir=str(taker.run_dir), files=(made,),
        source_run_dir=str(giver.run_dir),
    )  # fmt: skip
    report = await taker.executor.unpack(request, giver.executor.pack, lambda _: None)
    if report.missing:
        raise SystemExit(f"not relayed: {report.missing}")


async def passed(giver: Place, taker: Place) -> None:
    """As a video goes there."""
    size = giver.source.stat().st_size
    await taker.executor.pass_file(
        lambda: giver.executor.read_file(str(giver.source), size), size, str(taker.run_dir),
        "input/clip.mp4", sha256=None, progress=lambda *_: None,
    )  # fmt: skip


async def between(source: Path, one: Sshd, other: Sshd, rounds: int) -> dict[str, Series]:
    series = {name: Series() for name in ("pull", "relay", "passed", "hashed")}
    async with (  # the connections for bulk copies stay, too
        place(source, one, connections=2) as giver,
        place(source, other, connections=2) as taker,
    ):
        taker = replace(taker, beside=(one,))
        giver.clear()
        shutil.copyfile(source, giver.target)
        sha256 = file_sha256(source)
        for _ in range(rounds):
            for name, work in (
                ("pull", lambda: pull(giver, taker)),
                ("hashed", lambda: taker.executor.digest(str(taker.run_dir), "input/clip.mp4")),
                ("relay", lambda: relay(giver, taker, sha256)),
                ("passed", lambda: passed(giver, taker)),
            ):
                if name != "hashed":
                    taker.clear()
                await giver.settled()
                series[name].costs.append(await taker.measured(work))
    return series


async def near(source: Path, server: Sshd, rounds: int) -> dict[str, Series]:
    series = {name: Series() for name in ("scp", "push", "resume", "raw")}
    async with place(source, server) as at:
        for _ in range(rounds):
            series["raw"].costs.append(Cost(raw_tcp_s(source), 0.0))
            for name, work in (("scp", at.scp), ("push", at.push)):
                at.clear()
                series[name].costs.append(await at.measured(work))
            at.clear()
            await at.half()
            series["resume"].costs.append(await at.measured(at.push))
    return series


@contextlib.contextmanager
def far_away(farm: Farm) -> Iterator[Sshd]:
    """A server in a network namespace of its own, ROUND_TRIP_S away at THERE."""
    server = farm.start("far")
    server.stop()
    config = server.directory / "sshd_config"
    config.write_text(
        config.read_text().replace("ListenAddress 127.0.0.1", "ListenAddress 0.0.0.0")
    )
    server.process = subprocess.Popen(["unshare", "--net", "--", SSHD, "-D", "-f", str(config)])
    with delayed(server.process.pid, ROUND_TRIP_S):
        yield server


async def far(source: Path, server: Sshd, rounds: int) -> dict[str, Series]:
    series = {name: Series() for name in ("scp", "push1", "push4")}
    async with (
        place(source, server, THERE, streams=1, connections=2) as one,
        place(source, server, THERE, streams=4, connections=2) as four,
    ):
        for _ in range(rounds):
            for name, at, work in (
                ("scp", one, one.scp),
                ("push1", one, one.push),
                ("push4", four, four.push),
            ):
                at.clear()
                series[name].costs.append(await at.measured(work))
    return series


def results(mib: int, near: dict[str, Series], far: dict[str, Series]) -> list[Result]:
    def speed(name: str, series: Series) -> Result:
        return Result(name=name, value=mib / series.seconds, unit="MiB/s", better="higher")

    def cpu(name: str, series: Series) -> Result:
        return Result(name=name, value=series.cpu_s * 1024 / mib, unit="s/GiB", better="lower")

    return [
        speed("raw_tcp", near["raw"]),
        speed("scp", near["scp"]),
        speed("push", near["push"]),
        cpu("scp_cpu", near["scp"]),
        cpu("push_cpu", near["push"]),
        speed("pull", near["pull"]),
        speed("relay", near["relay"]),
        speed("passed", near["passed"]),
        cpu("pull_cpu", near["pull"]),
        cpu("hashed_cpu", near["hashed"]),
        cpu("relay_cpu", near["relay"]),
        cpu("passed_cpu", near["passed"]),
        speed("scp_20ms", far["scp"]),
        speed("push1_20ms", far["push1"]),
        speed("push4_20ms", far["push4"]),
        Result(
            name="push_over_scp", value=near["scp"].seconds / near["push"].seconds, unit="",
            better="higher", target=1.0,
        ),
        Result(
            name="push_cpu_over_scp", value=near["push"].cpu_s / near["scp"].cpu_s, unit="",
            better="lower", target=1.2,
        ),
        Result(
            name="push4_over_scp_20ms", value=far["scp"].seconds / far["push4"].seconds, unit="",
            better="higher", target=1.5,
        ),
        Result(
            name="pull_over_relay", value=near["relay"].seconds / near["pull"].seconds, unit="",
            better="higher", target=2.0,
        ),
        Result(
            name="pull_over_passed", value=near["passed"].seconds / near["pull"].seconds, unit="",
            better="higher",
        ),
        Result(
            name="relay_cpu_over_pull", value=near["relay"].cpu_s / near["pull"].cpu_s, unit="",
            better="higher",
        ),
        Result(
            name="resume_cpu_over_full", value=near["resume"].cpu_s / near["push"].cpu_s, unit="",
            better="lower", target=0.6,
        ),
    ]  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as base:
        source = Path(base) / "clip.mp4"
        with source.open("wb") as file:
            for _ in range(given.mib):
                file.write(os.urandom(1 << 20))
        farm = Farm(Path(base))
        try:
            server = farm.start("near")
            at_hand = event_loop.run(near(source, server, given.rounds))
            other = farm.start("other")
            at_hand |= event_loop.run(between(source, server, other, given.rounds))
            with far_away(farm) as server:
                away = event_loop.run(far(source, server, given.rounds))
        finally:
            farm.stop()
    return show("push", results(given.mib, at_hand, away), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
