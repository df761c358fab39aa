"""What the store returns: one frozen dataclass per table row. Times are wall-clock Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dispatcher.core.model import Job, JobState, Reason, Stage
from dispatcher.core.need import Observation
from dispatcher.core.plan import StitchLevel
from dispatcher.core.views import GpuView


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """One survey with one or more AUVs. `id` is its name made safe for paths."""

    id: str
    name: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One video file. `source` is a local path or `host:/absolute/path`."""

    name: str  # file name under input/
    source: str
    bytes: int
    order: int
    sha256: str | None = None
    recorded_at: str | None = None
    log: str | None = None  # the vehicle's navigation log, as `source`
    log_name: str = ""  # its name under input/; clips may share one
    log_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    id: str
    acquisition: str
    auv: str
    gopro_serial: str
    label: str
    job: str  # the job that reconstructs it
    clips: tuple[Clip, ...]
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a job was asked to do, fixed when it is made. `sha256` is of the canonical JSON."""

    job: str
    config: dict[str, Any]
    sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)  # tool versions, parents of a stitch
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the current stage of a job is. `fraction` is of the stage, 0 to 1."""

    fraction: float
    message: str
    numbers: dict[str, Any]
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of one stage on one host; (job, attempt) is its identity and its fencing token."""

    job: str
    attempt: int
    stage: Stage
    host: str
    gpu: str | None
    state: str  # starting | running | succeeded | failed | cancelled
    epoch: int
    committed_at: float
    started_at: float | None = None
    ended_at: float | None = None
    resumed: bool = False
    reason: Reason | None = None
    message: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] | None = None  # the host's exit record, as it wrote it
    events_bytes: int = 0
    log_bytes: int = 0
    stimulus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMetrics:
    """What one attempt cost; the learned peaks of placement come from here."""

    job: str
    attempt: int
    stage: Stage
    host: str
    gpu: str | None
    wall_s: float
    cpu_s: float
    peak_rss_mib: float  # of all processes of the attempt together
    peak_vram_mib: float | None
    metrics: dict[str, Any]  # what the stage says of its own work
    device: str = ""  # the GPU's model; "" for none
    frames: int = 0
    pixels: int = 0
    cap: int = 0
    train_steps: int = 0
    peak_disk_bytes: int | None = None  # by which the run directory grew


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    job: str
    attempt: int
    host: str
    lease_s: float
    renewed_at: float  # wall clock: the last renewal that was attempted
    # Monotonic, in the boot `clock_boot` of the dispatcher's machine: none can arrive later.
    renewed_monotonic: float | None = None
    clock_boot: str | None = None
    host_boot: str | None = None  # of the host when the attempt was sent there


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A host with live attempts that cannot be heard."""

    host: str
    since: float  # last heard of
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """Something on a host that the database does not explain; see core.reconcile."""

    host: str
    kind: str
    job: str
    attempt: int
    message: str
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offsets:
    """Bytes of an attempt's events.jsonl and log that are stored already."""

    events: int = 0
    log: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLog:
    """What all attempts of a job printed, as far as it is in the database."""

    job: str
    bytes: int
    ended_at: float  # of the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """One file that a job made. `path` is relative to its run directory on `host`."""

    job: str
    kind: str
    path: str
    bytes: int
    sha256: str
    host: str | None = None
    attempt: int | None = None
    local_path: str | None = None  # where it lies in the artifact directory, once collected
    remote_url: str | None = None  # of its verified copy in the object store, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    name: str
    state: str  # reachable | unreachable | ... as the fleet names it
    message: str
    facts: dict[str, Any] | None  # the last HostFacts that arrived
    probed_at: float | None  # when those facts arrived
    updated_at: float
    cordoned: bool = False  # by the operator, beside the inventory's own flag
    draining: bool = False  # a cordoned host that is also to be emptied


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    host: str
    uuid: str
    name: str
    kind: str
    total_mib: int
    free_mib: int
    processes: tuple[dict[str, Any], ...]
    updated_at: float

    @property
    def device(self) -> GpuView:
        """All of it that needs go by."""
        return GpuView(
            uuid=self.uuid,
            name=self.name,
            kind=self.kind,
            total_mib=self.total_mib,
            free_mib=self.free_mib,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Files of a job that were removed on a host, and what its disk had free."""

    at: float
    host: str
    job: str
    what: str  # a kind of core.reclaiming, or "copy": all that a job left on a host
    removed_bytes: int  # length of the files
    freed_bytes: int  # blocks that they took
    free_before: int
    free_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """One fstrim of a host's work disk."""

    at: float
    host: str
    mount: str
    method: str  # fstrim | helper | sudo; "": it could not be done
    trimmed_bytes: int | None  # all free space that the kernel told the device of
    freed_bytes: int  # blocks of what was removed since the trim before
    free_before: int
    free_after: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitch:
    """A stitch made or to be made. `members` are job ids (per_auv) or stitch ids (cross_auv).

    With a `job` its state follows the job's; a pass-through has none and is done at once.
    """

    id: str
    acquisition: str
    level: StitchLevel
    auv: str | None
    version: int
    members: tuple[str, ...]
    state: JobState
    created_at: float
    job: str | None = None
    passthrough: bool = False
    report: dict[str, Any] = field(default_factory=dict)
    decisions: tuple[int, ...] = ()  # of operators about its pairs, by request


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One fact. `stimulus` is the id, as text, of the event that caused it; "" for none."""

    id: int
    at: float
    kind: str
    job: str | None
    attempt: int | None
    host: str | None
    payload: dict[str, Any]
    stimulus: str
    source: str  # dispatcher | agent


class Applied(NamedTuple):
    """A committed transition: the job as stored, the id of its event (the next stimulus), and what
    the record of the attempt that ended says about needs."""

    job: Job
    event: str
    learned: Observation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command in another process asks of the running dispatcher."""

    id: int
    kind: str
    job: str | None
    args: dict[str, Any]
    created_at: float
    state: str  # pending | done | refused
    answer: str = ""
    finished_at: float | None = None
