"""The nouns of the dispatcher: frozen data, no I/O. Vocabulary in docs/architecture.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Name(StrEnum):
    """Hashed as text: the hash of Enum is a call in Python, and made millions of times here."""

    __hash__ = str.__hash__


class JobKind(Name):
    RECONSTRUCT = "reconstruct"
    STITCH = "stitch"


class JobState(Name):
    """Where a job is. A stitch job skips EXTRACTING."""

    QUEUED = "queued"  # no host yet
    CLAIMED = "claimed"  # has a host; its inputs are on the way
    EXTRACTING = "extracting"  # Validation .. ManifestGeneration
    RUNNING = "running"  # ColmapReconstruction .. Completed, or Stitch
    DONE = "done"
    ERROR = "error"
    HELD = "held"  # needs a person, or a condition; carries a reason and a command
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.DONE, JobState.ERROR, JobState.CANCELLED})
# A held job does not block a stitch for ever: for planning it counts as settled.
SETTLED = TERMINAL | {JobState.HELD}


MOST_PRIORITY = 1_000_000  # and the same below zero: far from what a database can hold


class Step(Name):
    """What the dispatcher is doing for a job at this moment."""

    PLACE = "place"  # waits for a host, or on its host for a slot or a GPU
    TRANSFER = "transfer"  # inputs are being brought to the host
    START = "start"  # the attempt is committed; the host has not acknowledged it
    RUN = "run"  # the attempt is alive on the host
    COLLECT = "collect"  # results are being copied to the artifact store
    CANCEL = "cancel"  # the operator cancelled; the host has not confirmed it
    REST = "rest"  # terminal or held: nothing to do


class Stage(Name):
    VALIDATION = "Validation"
    FRAME_EXTRACTION = "FrameExtraction"
    METADATA_EXTRACTION = "MetadataExtraction"
    MANIFEST_GENERATION = "ManifestGeneration"
    COLMAP_RECONSTRUCTION = "ColmapReconstruction"
    TRAINING = "Training"
    PLY_EXPORT = "PlyExport"
    SPLAT_EXPORT = "SplatExport"
    COMPLETED = "Completed"
    STITCH = "Stitch"


RECONSTRUCT_STAGES: tuple[Stage, ...] = (
    Stage.VALIDATION,
    Stage.FRAME_EXTRACTION,
    Stage.METADATA_EXTRACTION,
    Stage.MANIFEST_GENERATION,
    Stage.COLMAP_RECONSTRUCTION,
    Stage.TRAINING,
    Stage.PLY_EXPORT,
    Stage.SPLAT_EXPORT,
)
STITCH_STAGES: tuple[Stage, ...] = (Stage.STITCH,)
EXTRACTING_STAGES = frozenset(RECONSTRUCT_STAGES[:4])

# Public format: the percentage at which each stage begins.
PROGRESS: dict[Stage, float] = {
    Stage.VALIDATION: 0.0,
    Stage.FRAME_EXTRACTION: 12.5,
    Stage.METADATA_EXTRACTION: 25.0,
    Stage.MANIFEST_GENERATION: 37.5,
    Stage.COLMAP_RECONSTRUCTION: 50.0,
    Stage.TRAINING: 62.5,
    Stage.PLY_EXPORT: 75.0,
    Stage.SPLAT_EXPORT: 87.5,
    Stage.COMPLETED: 100.0,
    Stage.STITCH: 0.0,
}


def stages_of(kind: JobKind) -> tuple[Stage, ...]:
    return RECONSTRUCT_STAGES if kind is JobKind.RECONSTRUCT else STITCH_STAGES


class Layer(Name):
    """Whose fault a reason is; each layer has its own retry budget."""

    TRANSPORT = "transport"
    HOST = "host"
    GPU = "gpu"
    RESOURCE = "resource"
    DATA = "data"
    CODE = "code"
    OPERATOR = "operator"
    WAITING = "waiting"  # not a failure: why a job is not running yet


class Reason(Name):
    """Why a job is where it is. The first block mirrors worker_agent.protocol.FailureCode."""

    INPUT_MISSING = "input_missing"
    INPUT_EMPTY = "input_empty"
    INPUT_UNREADABLE = "input_unreadable"
    INPUT_TRUNCATED = "input_truncated"
    INPUT_NO_VIDEO = "input_no_video"
    DECODE_FAILED = "decode_failed"
    FRAMES_TOO_FEW = "frames_too_few"
    FRAMES_UNUSABLE = "frames_unusable"
    NO_PARALLAX = "no_parallax"
    REGISTRATION_FAILED = "registration_failed"
    REGISTRATION_WEAK = "registration_weak"
    TRAINING_DIVERGED = "training_diverged"
    QUALITY_LOW = "quality_low"
    STITCH_EVIDENCE_WEAK = "stitch_evidence_weak"
    GPU_OUT_OF_MEMORY = "gpu_out_of_memory"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    TRANSFER_FAILED = "transfer_failed"
    TRANSFER_CORRUPT = "transfer_corrupt"
    TOOL_MISSING = "tool_missing"
    CONFIG_INVALID = "config_invalid"
    GPU_FAULT = "gpu_fault"
    STAGE_CRASHED = "stage_crashed"
    STAGE_SIGNALLED = "stage_signalled"
    STAGE_TIMEOUT = "stage_timeout"
    LEASE_EXPIRED = "lease_expired"
    CANCELLED = "cancelled"

    HOST_UNREACHABLE = "host_unreachable"
    HOST_KEY_MISMATCH = "host_key_mismatch"
    HOST_AUTH_FAILED = "host_auth_failed"
    HOST_REBOOTED = "host_rebooted"
    HOST_NOT_READY = "host_not_ready"  # stage dependencies are missing there
    ATTEMPT_VANISHED = "attempt_vanished"
    GPU_MEMORY_TAKEN = "gpu_memory_taken"  # by others, after it was promised
    AGENT_FAILED = "agent_failed"
    STITCH_NO_INPUTS = "stitch_no_inputs"

    NO_HOST = "no_host"
    NO_GPU_FITS = "no_gpu_fits"
    GPU_BUSY = "gpu_busy"
    SLOT_BUSY = "slot_busy"
    HOST_CORDONED = "host_cordoned"
    HOST_DRAINING = "host_draining"
    HOST_QUARANTINED = "host_quarantined"
    GPU_QUARANTINED = "gpu_quarantined"
    CPU_BUSY = "cpu_busy"
    RAM_LOW = "ram_low"
    RAM_TOO_SMALL = "ram_too_small"
    DISK_LOW = "disk_low"
    POOL_FULL = "pool_full"  # the thin pool below the host's disk is over its watermark
    POOL_UNKNOWN = "pool_unknown"  # or cannot be read
    PROBE_STALE = "probe_stale"
    BACKOFF = "backoff"


class Verdict(Name):
    RETRY = "retry"
    ESCALATE = "escalate"
    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one attempt was promised. It lives exactly as long as the attempt."""

    job: str
    attempt: int
    host: str
    slot: str  # "extract" | "sfm" | "train" | "stitch": which of the host's max_parallel it uses
    gpu: str | None = None
    mib: int = 0  # of the GPU's memory
    disk_bytes: int = 0
    cpu_cores: float = 0.0
    ram_mib: int = 0
    decode_sessions: int = 0  # of the GPU's video decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A Segment to reconstruct or a Stitch to make. `attempt` counts up for ever and fences."""

    id: str
    kind: JobKind
    acquisition: str
    name: str
    auv: str | None
    created_at: float
    state: JobState = JobState.QUEUED
    step: Step = Step.PLACE
    stage: Stage = Stage.VALIDATION
    priority: int = 0  # higher first
    host: str | None = None
    assigned_at: float = 0.0  # wall clock; when it got this host
    attempt: int = 0
    reservation: Reservation | None = None
    inputs_on_host: bool = False  # source bytes lie on the host and must be reclaimed
    origin: str | None = None  # where what its finished stages made lies, when not yet on `host`
    leftovers: tuple[str, ...] = ()  # hosts with a copy of that which is of no more use there
    reclaimed: tuple[str, ...] = ()  # kinds of what it made that no longer lie on its host
    need_mib: int | None = None  # escalated or learned memory need; None: the policy's first guess
    need_ram_mib: int | None = None  # raised after the host ran out of memory
    input_bytes: int = 0
    frames: int = 0  # what needs depend on; 0: not known yet
    pixels: int = 0  # of one frame
    cap: int = 0  # gaussians that the training may make
    train_steps: int = 0
    retries: dict[str, int] = field(default_factory=dict)  # Layer -> retries used
    not_before: float = 0.0  # wall clock; earlier, the job waits with Reason.BACKOFF
    reason: Reason | None = None
    message: str = ""
    advice: str = ""
    avoid_hosts: tuple[str, ...] = ()  # hosts that failed this job on a host or transport fault
    shrink: int = 0  # steps down to a smaller plan, taken after running out of memory
    stride: int = 1  # every n-th frame is used, so that the stack of them fits a host's RAM
    revision: int = 0  # of the stored row; the store's fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why one job is not running: the first failing test of each host, with numbers."""

    job: str
    reason: Reason
    message: str
    per_host: dict[str, str] = field(default_factory=dict)  # host -> one line
