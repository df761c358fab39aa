"""The form of every message, and those about attempts: all that a stage's own process needs.

Apart from worker_agent.protocol because every stage begins with importing it. Stdlib only.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Self, TypeVar

PROTOCOL_VERSION = 1

STALE_EPOCH = "stale_epoch"  # Refusal.error: a newer dispatcher commands this host


class ProtocolError(ValueError):
    """A message does not have the agreed shape; the text names the field."""


class FailureCode(StrEnum):
    """Why a stage failed. The dispatcher's `Reason` holds every one of these by the same name."""

    INPUT_MISSING = "input_missing"
    INPUT_EMPTY = "input_empty"
    INPUT_UNREADABLE = "input_unreadable"
    INPUT_TRUNCATED = "input_truncated"
    INPUT_NO_VIDEO = "input_no_video"
    DECODE_FAILED = "decode_failed"
    FRAMES_TOO_FEW = "frames_too_few"
    FRAMES_UNUSABLE = "frames_unusable"  # black, blurred or without texture
    NO_PARALLAX = "no_parallax"
    REGISTRATION_FAILED = "registration_failed"
    REGISTRATION_WEAK = "registration_weak"
    TRAINING_DIVERGED = "training_diverged"
    QUALITY_LOW = "quality_low"  # the finished segment misses a threshold of the settings
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


class AttemptState(StrEnum):
    NEVER_STARTED = "never_started"
    RUNNING = "running"
    FINISHED = "finished"  # exit.json is there
    VANISHED = "vanished"  # started, lock free, no exit.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base of all messages: strict JSON both ways."""

    def to_json(self) -> str:
        """One line of JSON, keys in field order."""
        return _ENCODER.encode(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ProtocolError for anything but an object of this shape."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ProtocolError(f"{cls.__name__}: not JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Unknown keys are ignored, so that a newer peer may add some."""
        return _decode(cls, data, cls.__name__)


T = TypeVar("T")


def _fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, Message):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return {name: getattr(value, name) for name in _names(typing.cast(Hashable, type(value)))}


_ENCODER = json.JSONEncoder(default=_fields, separators=(",", ":"))


@cache
def _names(kind: Hashable) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(typing.cast(Any, kind)))


@cache
def _shape(kind: Hashable) -> tuple[tuple[str, Any, frozenset[type], bool], ...]:
    """(name, type, JSON types that it takes as they are, whether it must be there) of each
    field."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], frozenset(_plain(hints[f.name])),
         f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(typing.cast(Any, kind))
    )  # fmt: skip


def _plain(hint: Any) -> Iterator[type]:
    """As `_value` would return them unchanged."""
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        for option in typing.get_args(hint):
            yield from _plain(option)
    elif hint in (str, int, float, bool, type(None)):
        yield hint
    elif origin is dict:
        yield dict


def know_all() -> None:
    """Learn the shape of every message now, so that no fork of this process has to."""
    for kind in Message.__subclasses__():
        _shape(typing.cast(Hashable, kind))


def _decode(kind: type[T], data: object, where: str) -> T:
    if not isinstance(data, dict):
        raise ProtocolError(f"{where}: expected an object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    for name, hint, plain, required in _shape(typing.cast(Hashable, kind)):
        if name in data:
            value = data[name]
            as_is = type(value) in plain
            values[name] = value if as_is else _value(hint, value, f"{where}.{name}")
        elif required:
            raise ProtocolError(f"{where}.{name}: missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ProtocolError(f"{where}: expected a list")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: expected an object")
        return value
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type[Any], hint), value, where)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        try:
            return hint(value)
        except ValueError:
            raise ProtocolError(f"{where}: {value!r} is not a {hint.__name__}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ProtocolError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Message):
    """What a verb prints when it did not do what was asked."""

    # A FailureCode, or: stale_epoch, stale_attempt, busy, bad_request, agent_failed
    error: str
    message: str  # one line: what, where, why, what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRef(Message):
    """Which attempt is meant."""

    run_dir: str  # absolute: <work_dir>/<acquisition>/<job>
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec(Message):
    """What `start` reads: one try of one stage. The attempt number is the fencing token."""

    protocol: int
    epoch: int  # of the dispatcher; a host refuses one lower than it has seen
    acquisition: str
    job: str
    attempt: int
    stage: str
    run_dir: str
    stage_python: str | None = None  # interpreter with the stage dependencies; None: probe's choice
    # The supervisor ends the stage this long after the last renewal; 0: never by itself.
    lease_s: float = 1800.0
    timeout_s: float | None = None
    gpu: str | None = None  # GPU UUID, or the CPU device's id (see GpuFacts.kind)
    gpu_kind: str = "cpu"  # "cuda" | "cpu"
    vram_mib: int = 0  # reserved of that device for this attempt; 0: nothing was promised
    stimulus: str = ""  # id of the event that caused this
    config: dict[str, Any] = field(default_factory=dict)  # the job's whole pipeline config
    inputs: dict[str, Any] = field(default_factory=dict)  # stage specific, see worker_agent.stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Message):
    """One file that a stage made."""

    kind: str  # frames, metadata, manifest, sfm_model, registration, gaussians, ply, splat, ...
    path: str  # relative to the run directory, "/" separated
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome(Message):
    """What a stage says of itself: `attempts/<n>/result.json`."""

    ok: bool
    artifacts: tuple[Artifact, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)  # JSON scalars
    resumed: bool = False  # nothing was done: the checkpoint of an earlier attempt still verifies
    reason: FailureCode | None = None
    message: str = ""  # one line for the operator
    advice: str = ""  # what to do about it
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord(Message):
    """`attempts/<n>/exit.json`: durable before the lock is released."""

    attempt: int
    stage: str
    returncode: int | None
    signal: int | None
    # exited | signalled | oom_killed | lease_expired | cancelled | terminated (the supervisor was
    # told to end: a shutdown) | timeout | spawn_failed
    cause: str
    outcome: StageOutcome | None
    started_at: float
    ended_at: float
    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_vram_mib: float | None
    events_bytes: int
    log_bytes: int
    boot_id: str
    peak_disk_bytes: int | None = None  # by which the run directory grew; None: never measured


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStatus(Message):
    """What a host says of one attempt."""

    run_dir: str
    attempt: int
    state: AttemptState
    exit: ExitRecord | None = None
    rebooted: bool = False  # with VANISHED: the host's boot_id changed since the start
    events_bytes: int = 0
    log_bytes: int = 0
