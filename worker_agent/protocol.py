"""Messages between the dispatcher and the agent on a host.

The only module of this package that the dispatcher may import; stdlib only. Every message is a
frozen dataclass that crosses the wire as one JSON object on one line. Sizes are bytes, memory is
MiB, durations are seconds, wall-clock times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worker_agent.block_messages import (
    Arrived,
    ArrivedRequest,
    Block,
    GiveRequest,
    TakeRequest,
    TransferReport,
)
from worker_agent.block_size import BLOCK_BYTES
from worker_agent.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, EXIT_USAGE
from worker_agent.grant_messages import GrantReply, GrantRequest, Peer, RevokeRequest
from worker_agent.messages import (
    PROTOCOL_VERSION,
    STALE_EPOCH,
    Artifact,
    AttemptRef,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    ExitRecord,
    FailureCode,
    Message,
    ProtocolError,
    Refusal,
    StageOutcome,
)

__all__ = [
    "BLOCK_BYTES",
    "EXIT_FAILED",
    "EXIT_OK",
    "EXIT_REFUSED",
    "EXIT_USAGE",
    "PROTOCOL_VERSION",
    "STALE_EPOCH",
    "Arrived",
    "ArrivedRequest",
    "Artifact",
    "AttemptRef",
    "AttemptSpec",
    "AttemptState",
    "AttemptStatus",
    "Block",
    "ExitRecord",
    "FailureCode",
    "GiveRequest",
    "GrantReply",
    "GrantRequest",
    "Message",
    "Peer",
    "ProtocolError",
    "Refusal",
    "RevokeRequest",
    "StageOutcome",
    "TakeRequest",
    "TransferReport",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReply(Message):
    state: AttemptState
    started: bool  # False: this attempt id had been started before
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess(Message):
    pid: int
    used_mib: int | None  # None: the driver does not tell
    run_dir: str | None = None  # set when the process belongs to one of cosma's attempts
    attempt: int | None = None
    name: str = ""  # of its program; "" when this user may not know
    user: str = ""
    decodes: bool = False  # it used the video decoder in the last seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts(Message):
    """A device that can train. A host without an NVIDIA GPU reports one of kind "cpu" whose
    memory is the host's RAM and whose uuid is "CPU-" + machine id; its own use is
    `HostFacts.ram_own`."""

    uuid: str  # a MIG instance is a device of its own: "MIG-..."
    name: str
    kind: str  # "cuda" | "cpu"
    total_mib: int
    free_mib: int
    reserved_mib: int = 0  # of total, what the driver keeps for itself
    parent: str = ""  # UUID of the GPU that a MIG instance is a part of
    processes: tuple[GpuProcess, ...] = ()
    has_decoder: bool = False
    decoder_percent: int = 0  # how busy the video decoder is
    encoder_sessions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptMemory(Message):
    """RAM that the processes of one attempt use, without what the kernel can drop (file pages)."""

    run_dir: str
    attempt: int
    used_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts(Message):
    """Cores and RAM are what the agent may use: affinity and control groups may allow less than
    the machine has."""

    protocol: int
    agent_hash: str
    hostname: str
    boot_id: str
    python: str
    stage_python: str
    stage_missing: tuple[str, ...]  # modules and programs the stages need and the host lacks
    cpu_count: int
    ram_total_mib: int
    ram_free_mib: int
    ram_own: tuple[AttemptMemory, ...] = ()
    disk_total_bytes: int
    disk_free_bytes: int
    gpus: tuple[GpuFacts, ...]
    gpu_error: str = ""  # why one GPU or all could not be read; those are not in `gpus`
    time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest(Message):
    work_dir: str
    stage_python: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest(Message):
    attempts: tuple[AttemptRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest(Message):
    epoch: int
    work_dir: str
    attempts: tuple[AttemptRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest(Message):
    epoch: int
    run_dir: str
    attempt: int
    grace_s: float = 5.0  # between TERM and KILL


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest(Message):
    work_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest(Message):
    """`prune`: records of attempts that ended more than `keep_s` ago. The newest one of a job only
    where the job is `over`: <acquisition>/<job>."""

    epoch: int
    work_dir: str
    keep_s: float
    over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport(Message):
    attempts: int  # that were removed
    removed_bytes: int
    freed_bytes: int  # blocks
    waiting: tuple[str, ...] = ()  # jobs whose newest attempt would go if they were over


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestRequest(Message):
    work_dir: str
    stage_python: str | None = None
    gpu: str | None = None  # UUID of the device the training step runs on
    gpu_kind: str = "cpu"  # "cuda" | "cpu"
    stages: bool = False  # also what the stages need: decode, SIFT, one training step


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestCheck(Message):
    name: str
    ok: bool
    seconds: float
    message: str = ""  # one line: what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestReport(Message):
    ok: bool
    python: str
    checks: tuple[SelftestCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHeader(Message):
    """One line on the stdin of `session`, followed by exactly `bytes` raw bytes: what `verb`, run
    by itself, reads on its stdin. `watch` is no verb of its own: its bytes are a WatchRequest."""

    call: int  # names the reply
    verb: str
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequest(Message):
    """Watch this attempt from these byte offsets."""

    run_dir: str
    attempt: int
    events_from: int = 0
    log_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader(Message):
    """One line on the stdout of `session`, followed by exactly `bytes` raw bytes.

    `reply` answers a call: what the verb wrote on its stdout, and its exit code. `events` frames
    always end at a line end. `exit` comes once, after every byte of events and log, with the
    AttemptStatus as its body. `heartbeat` has no body and comes every few seconds; one that names
    an attempt answers its WatchRequest.
    """

    kind: str  # reply | events | log | exit | heartbeat
    run_dir: str = ""
    attempt: int = 0
    offset: int = 0
    bytes: int = 0
    call: int = 0
    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest(Message):
    """`fetch`: pull one file from another host (or this one) straight onto this host. With `peer`,
    from there: then `source` is a path on it, and `bytes` must be known."""

    source: str  # "host:/absolute/path" as this host's own ssh knows it, or "/absolute/path"
    run_dir: str
    path: str  # target, relative to run_dir
    bytes: int | None = None
    sha256: str | None = None
    peer: Peer | None = None
    bytes_s: float | None = None  # not to be exceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRequest(Message):
    """`digest`: the SHA-256 of a file that is here, in a TransferReport."""

    run_dir: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest(Message):
    """First line on the stdin of `receive`; a small file follows it, whole."""

    run_dir: str
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRequest(Message):
    """`send`: the reply is one TransferReport line, then the raw bytes from `offset` on; when there
    are more than `at_most` only the size, which is quick to tell."""

    run_dir: str
    path: str
    offset: int = 0
    at_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackItem(Message):
    """A file from byte `skip` on. Kind "frames": a listing and all frames in it. Kind "frame": the
    frames of the listing `path` from the `skip`-th on, without the listing."""

    path: str
    kind: str
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest(Message):
    """`pack`: many files as one stream; each is a PackedFile line and its raw bytes."""

    run_dir: str
    items: tuple[PackItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile(Message):
    path: str  # "" ends the stream
    kind: str = ""
    bytes: int = 0  # that follow; -1: there is no such file
    sha256: str = ""  # of the whole file, where whoever asked cannot know it


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackRequest(Message):
    """First line on the stdin of `unpack`: have these files here, whole.

    The first reply is a PackRequest with what is missing. Its stream then comes on stdin, or with
    `source` is pulled from there. Meanwhile an UnpackReport tells now and then what has come; the
    last reply is one that also tells what is missing still.
    """

    epoch: int
    job: str
    run_dir: str
    files: tuple[Artifact, ...]
    extras: tuple[PackItem, ...] = ()  # taken where there are such: their hash is not known here
    source_run_dir: str
    source: Peer | None = None  # with a key for `pack` of source_run_dir
    bytes_s: float | None = None  # not to be exceeded; None: as fast as it goes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackReport(Message):
    files: int  # that came
    bytes: int
    missing: tuple[str, ...]  # of `files`: those that are not here whole
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimRequest(Message):
    """Remove what was made useless. Source videos go only when `verified_by` proves the frames."""

    epoch: int
    run_dir: str
    paths: tuple[str, ...]  # relative; directories are removed whole
    verified_by: str | None = None  # relative path of frames.json; every frame in it is checked
    expected_sha256: dict[str, Any] = field(default_factory=dict)  # path -> sha256, optional


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedPath(Message):
    path: str  # as it was asked for
    removed_bytes: int  # length of the files
    freed_bytes: int  # blocks that they took
    free_before: int
    free_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimReport(Message):
    removed: tuple[str, ...]
    removed_bytes: int  # length of the files
    freed_bytes: int  # blocks that they took
    free_before: int
    free_after: int
    remaining_input_bytes: int  # bytes still under input/
    each: tuple[RemovedPath, ...] = ()  # of `removed`


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimRequest(Message):
    """`trim`: tell the storage below the file system of `work_dir` which blocks are free."""

    work_dir: str
    mode: str = "auto"  # auto | sudo


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimReport(Message):
    mount: str
    method: str  # fstrim | helper | sudo; "": it could not be done
    # What the kernel says: all free space that it told the device of, not only what was removed.
    trimmed_bytes: int | None
    note: str  # why it could not be done
    free_before: int
    free_after: int
