"""What the dispatcher asks of a place where attempts run. One executor is one host."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker_agent.protocol import (
    AttemptRef,
    AttemptSpec,
    AttemptStatus,
    FetchRequest,
    FrameHeader,
    HostFacts,
    PackRequest,
    Peer,
    PruneReport,
    ReclaimReport,
    SelftestReport,
    StartReply,
    TransferReport,
    TrimReport,
    UnpackReport,
    UnpackRequest,
    WatchRequest,
)

Progress = Callable[[int, int], None]  # bytes there, bytes in all
# Between TERM and KILL. A cancel is over within 10 s of a dispatcher's start, and what heeds TERM
# is gone at once.
CANCEL_GRACE_S = 3.0
Pack = Callable[[PackRequest], AsyncIterator[bytes]]
Read = Callable[[], AsyncGenerator[bytes, None]]  # a file from its first byte, whenever called


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file of a run directory and where it is to lie here. `sha256` None: what the host says,
    which it does for a `kind` whose hash nobody else knows."""

    path: str
    kind: str
    local: Path
    bytes: int
    sha256: str | None


class Follower(Protocol):
    """Events and logs of many attempts over one session. Iterate to receive frames."""

    async def watch(self, request: WatchRequest) -> None:
        """Begin to watch one more attempt. Raises TransportError."""
        ...

    def __aiter__(self) -> AsyncIterator[tuple[FrameHeader, bytes]]:
        """Never ends by itself: raises TransportError when the link is lost, then open another
        and watch from the offsets received so far; AgentRefusal when the agent gives up."""
        ...

    async def close(self) -> None: ...


class Executor(Protocol):
    """Every method raises TransportError (link), AgentRefusal (the agent said no) or AgentBroken
    (it could not run); transfers also raise TransferError. All of them can be repeated. TakenOver,
    which is no HostError, says that the host obeys a newer dispatcher."""

    async def probe(self, timeout_s: float = 30.0) -> HostFacts: ...

    async def selftest(self, gpu: str | None, gpu_kind: str) -> SelftestReport:
        """Decode, SIFT and one training step with a known answer; a failed one is no error."""
        ...

    async def start(self, spec: AttemptSpec) -> StartReply: ...

    async def status(self, attempts: Sequence[AttemptRef]) -> list[AttemptStatus]: ...

    async def list_attempts(self) -> list[AttemptStatus]: ...

    async def renew(self, attempts: Sequence[AttemptRef], *, epoch: int) -> list[AttemptStatus]: ...

    async def cancel(
        self, ref: AttemptRef, *, epoch: int, grace_s: float = CANCEL_GRACE_S
    ) -> AttemptStatus: ...

    async def fetch(self, request: FetchRequest) -> TransferReport:
        """The host itself pulls a file from another host, or from its own file system."""
        ...

    def granted(self, path: str, epoch: int, verb: str) -> AbstractAsyncContextManager[Peer]:
        """While it is open, another host may have the file `path` from here with the Peer
        (`verb` give), or what lies in the run directory `path` (pack)."""
        ...

    async def sweep_grants(self, epoch: int) -> int:
        """Take back what earlier dispatchers have granted; how many there were."""
        ...

    async def arrived(self, run_dir: str, path: str) -> int:
        """Bytes that are here of a file that is being pulled."""
        ...

    async def digest(self, run_dir: str, path: str) -> TransferReport:
        """The SHA-256 of a file that is there, beside all else that the host does."""
        ...

    async def push_file(
        self,
        local: Path,
        run_dir: str,
        path: str,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Bring `local` to `run_dir`/`path`, from where an earlier push stopped."""
        ...

    def read_file(self, path: str, size: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a file of the host, an absolute path."""
        ...

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
        """What `read` gives, to `run_dir`/`path`. Raises also what `read` raises."""
        ...

    async def collect_file(
        self,
        run_dir: str,
        path: str,
        local: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Bring `run_dir`/`path` to `local`, from where an earlier collection stopped."""
        ...

    def pack(self, request: PackRequest) -> AsyncIterator[bytes]:
        """Many files of a run directory as one stream, for `unpack` of another host."""
        ...

    async def unpack(
        self, request: UnpackRequest, pack: Pack | None, came: Callable[[int], None]
    ) -> UnpackReport:
        """Have files of another host here: given by `pack`, or pulled by the host itself; with
        neither it only says what is missing. `came` is told the bytes, now and then. Raises
        SourceLost for a fault of the other host."""
        ...

    async def collect_small(self, run_dir: str, files: Sequence[Wanted]) -> list[Wanted]:
        """Bring many small files in few calls. Returns those that did not come as wanted: they
        are to be collected one by one, which says why."""
        ...

    async def reclaim(
        self,
        run_dir: str,
        paths: Sequence[str],
        *,
        epoch: int,
        verified_by: str | None = None,
        expected_sha256: dict[str, str] | None = None,
    ) -> ReclaimReport: ...

    async def prune(self, over: Sequence[str], keep_s: float, *, epoch: int) -> PruneReport:
        """Records of attempts that ended more than `keep_s` ago; of the newest ones only those of
        the jobs (<acquisition>/<job>) that are `over`."""
        ...

    async def trim(self, mode: str) -> TrimReport:
        """Give the free blocks of the work directory's file system back to the storage below it;
        a host where that cannot be done is no error."""
        ...

    async def follow(self) -> Follower: ...

    async def work_dir(self) -> str:
        """Absolute, as the host resolves it."""
        ...

    async def close(self) -> None: ...
