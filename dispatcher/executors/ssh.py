"""Runs attempts on an inventory host: the agent's verbs over SSH."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from dispatcher.agent_bundle import AgentBundle
from dispatcher.executors import passing, peer_key, relay, small_files, transfer
from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import CANCEL_GRACE_S, Pack, Progress, Read, Wanted
from dispatcher.executors.follow import AgentFollower
from dispatcher.executors.pace import Pace
from dispatcher.executors.push import DIGESTS, Pusher
from dispatcher.inventory_model import Hypervisor, InventoryHost
from dispatcher.transport.base import BulkTransport
from dispatcher.transport.ssh import SshTransport
from dispatcher.transport.target import SshTarget
from worker_agent.protocol import (
    EXIT_FAILED,
    EXIT_OK,
    ArrivedRequest,
    AttemptRef,
    AttemptSpec,
    AttemptStatus,
    CancelRequest,
    DigestRequest,
    FetchRequest,
    HostFacts,
    ListRequest,
    PackRequest,
    Peer,
    ProbeRequest,
    PruneReport,
    PruneRequest,
    ReclaimReport,
    ReclaimRequest,
    RenewRequest,
    SelftestReport,
    SelftestRequest,
    StartReply,
    StatusRequest,
    TakeRequest,
    TransferReport,
    TrimReport,
    TrimRequest,
    UnpackReport,
    UnpackRequest,
)

FETCH_TIMEOUT_S = 6 * 3600.0
SELFTEST_TIMEOUT_S = 300.0  # imports torch and pycolmap on a slow disk
RECLAIM_TIMEOUT_S = 1800.0  # hashes every frame
DIGEST_TIMEOUT_S = 6 * 3600.0  # of a large file on a slow disk, beside all else
TRIM_TIMEOUT_S = 900.0  # longer than its tries take together


def ssh_target(host: InventoryHost | Hypervisor) -> SshTarget:
    return SshTarget(
        name=host.name,
        address=host.address,
        port=host.port,
        user=host.user,
        identity_file=host.identity_file,
        host_key=host.host_key,
        proxy_jump=host.proxy_jump,
    )


class SshExecutor:
    """Satisfies dispatcher.executors.base.Executor for one host.

    `bundle` is the agent to run there, from dispatcher.agent_bundle.build.
    """

    def __init__(self, host: InventoryHost, transport: BulkTransport, bundle: AgentBundle) -> None:
        self.host = host
        self._transport = transport
        self._agent = AgentLink(host.name, transport, host.python, host.work_dir, bundle)
        self._pusher = Pusher(self._agent, Pace(host.transfer.bytes_s), host.transfer.streams)
        # What comes there in bulk, by whichever way, keeps to its cap together: one after another.
        self._bulk = nullcontext() if host.transfer.bytes_s is None else asyncio.Lock()

    @classmethod
    def connect_to(cls, host: InventoryHost, bundle: AgentBundle) -> SshExecutor:
        """With an SSH transport of its own. Connects when first used."""
        return cls(host, SshTransport(ssh_target(host)), bundle)

    async def ensure_agent(self) -> str:
        """Put the agent on the host unless it is there; returns its path."""
        return (await self._agent.ensure()).path

    async def work_dir(self) -> str:
        return (await self._agent.ensure()).work_dir

    async def probe(self, timeout_s: float = 30.0) -> HostFacts:
        request = ProbeRequest(work_dir=await self.work_dir(), stage_python=self.host.stage_python)
        return await self._agent.call_one("probe", request, HostFacts, timeout_s=timeout_s)

    async def selftest(self, gpu: str | None, gpu_kind: str) -> SelftestReport:
        request = SelftestRequest(
            work_dir=await self.work_dir(),
            stage_python=self.host.stage_python,
            gpu=gpu,
            gpu_kind=gpu_kind,
            stages=True,
        )
        return await self._agent.call_one(
            "selftest",
            request,
            SelftestReport,
            timeout_s=SELFTEST_TIMEOUT_S,
            slow=True,
            answers=(EXIT_OK, EXIT_FAILED),
        )

    async def start(self, spec: AttemptSpec) -> StartReply:
        return await self._agent.call_one("start", spec, StartReply)

    async def status(self, attempts: Sequence[AttemptRef]) -> list[AttemptStatus]:
        if not attempts:
            return []
        request = StatusRequest(attempts=tuple(attempts))
        return await self._agent.call("status", request, AttemptStatus)

    async def list_attempts(self) -> list[AttemptStatus]:
        request = ListRequest(work_dir=await self.work_dir())
        return await self._agent.call("list", request, AttemptStatus)

    async def renew(self, attempts: Sequence[AttemptRef], *, epoch: int) -> list[AttemptStatus]:
        request = RenewRequest(
            epoch=epoch, work_dir=await self.work_dir(), attempts=tuple(attempts)
        )
        return await self._agent.call("renew", request, AttemptStatus)

    async def cancel(
        self, ref: AttemptRef, *, epoch: int, grace_s: float = CANCEL_GRACE_S
    ) -> AttemptStatus:
        request = CancelRequest(
            epoch=epoch, run_dir=ref.run_dir, attempt=ref.attempt, grace_s=grace_s
        )
        timeout_s = grace_s + 60.0
        return await self._agent.call_one("cancel", request, AttemptStatus, timeout_s=timeout_s)

    async def fetch(self, request: FetchRequest) -> TransferReport:
        request = replace(request, bytes_s=self.host.transfer.bytes_s)
        async with self._bulk:
            return await self._agent.call_one(
                "fetch", request, TransferReport, timeout_s=FETCH_TIMEOUT_S, slow=True
            )

    def granted(self, path: str, epoch: int, verb: str) -> AbstractAsyncContextManager[Peer]:
        return peer_key.granted(self._agent, self.host, path, epoch, verb)

    async def sweep_grants(self, epoch: int) -> int:
        return await peer_key.sweep(self._agent, self.host, epoch)

    async def arrived(self, run_dir: str, path: str) -> int:
        request = ArrivedRequest(run_dir=run_dir, path=path)
        return (await self._agent.call_one("arrived", request, TransferReport)).bytes

    async def digest(self, run_dir: str, path: str) -> TransferReport:
        request = DigestRequest(run_dir=run_dir, path=path)
        return await self._agent.call_one(
            "digest", request, TransferReport, timeout_s=DIGEST_TIMEOUT_S, slow=True
        )

    async def push_file(
        self,
        local: Path,
        run_dir: str,
        path: str,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        try:
            content = await asyncio.to_thread(transfer.small_content, local)
            if content is None:
                async with self._bulk:
                    return await self._pusher.push(
                        local, run_dir, path, sha256=sha256, progress=progress
                    )
        except OSError as error:
            raise transfer.local_error(self.host.name, local, error) from None
        return await transfer.push_small(
            self._agent, local, content, run_dir, path, sha256=sha256, progress=progress
        )

    def read_file(self, path: str, size: int) -> AsyncGenerator[bytes, None]:
        return passing.read_file(self._agent, path, size)

    async def pass_file(
        self,
        read: Read,
        size: int,
        run_dir: str,
        path: str,
        *,
        sha256: str | None,
        progress: Progress,
    ) -> TransferReport:
        take = TakeRequest(run_dir=run_dir, path=path, bytes=size, algorithms=tuple(DIGESTS))
        async with self._bulk:
            return await passing.pass_on(
                self._agent, self._pusher.pace, read, take, sha256=sha256, progress=progress
            )

    async def collect_file(
        self,
        run_dir: str,
        path: str,
        local: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        return await transfer.collect(
            self._agent, run_dir, path, local, sha256=sha256, progress=progress
        )

    def pack(self, request: PackRequest) -> AsyncIterator[bytes]:
        return relay.packed(self._agent, request)

    async def unpack(
        self, request: UnpackRequest, pack: Pack | None, came: Callable[[int], None]
    ) -> UnpackReport:
        request = replace(request, bytes_s=self.host.transfer.bytes_s)
        async with self._bulk:
            return await relay.unpack(self._agent, request, pack, came)

    async def collect_small(self, run_dir: str, files: Sequence[Wanted]) -> list[Wanted]:
        return await small_files.collect(self._agent, run_dir, files)

    async def reclaim(
        self,
        run_dir: str,
        paths: Sequence[str],
        *,
        epoch: int,
        verified_by: str | None = None,
        expected_sha256: dict[str, str] | None = None,
    ) -> ReclaimReport:
        request = ReclaimRequest(
            epoch=epoch,
            run_dir=run_dir,
            paths=tuple(paths),
            verified_by=verified_by,
            expected_sha256=expected_sha256 or {},
        )
        return await self._agent.call_one(
            "reclaim", request, ReclaimReport, timeout_s=RECLAIM_TIMEOUT_S, slow=True
        )

    async def prune(self, over: Sequence[str], keep_s: float, *, epoch: int) -> PruneReport:
        request = PruneRequest(
            epoch=epoch, work_dir=await self.work_dir(), keep_s=keep_s, over=tuple(over)
        )
        return await self._agent.call_one(
            "prune", request, PruneReport, timeout_s=RECLAIM_TIMEOUT_S, slow=True
        )

    async def trim(self, mode: str) -> TrimReport:
        request = TrimRequest(work_dir=await self.work_dir(), mode=mode)
        return await self._agent.call_one(
            "trim", request, TrimReport, timeout_s=TRIM_TIMEOUT_S, slow=True
        )

    async def follow(self) -> AgentFollower:
        return AgentFollower(self.host.name, await self._agent.session())

    async def close(self) -> None:
        await self._agent.close()
        await self._transport.close()
