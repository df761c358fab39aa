"""Reason -> what to do about it: one table, a budget per layer, bounded backoff.

A failure of the network or of a host never uses up the budget that the job's own code has, and
data that cannot work is held at once instead of being tried again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass

from dispatcher.core.model import Job, JobKind, Layer, Reason, Stage, Step, Verdict
from dispatcher.core.work_size import MAX_STRIDE, STACK_STAGES, thinned

MAX_DELAY_S = 900.0
JITTER = 0.25  # a delay lies within +- this share of its nominal value
OOM_FACTOR = 1.5
SHRINK_STEPS = 2  # smaller plans of the training that are tried before a bigger GPU
# Results lie on one host only: a collection outlasts a host that is away for half an hour.
COLLECT_RETRIES = 10


@dataclass(frozen=True, slots=True)
class Rule:
    """What one reason means.

    `retries` is the share of the layer's budget this reason may use; with none left the job is
    held. From `elsewhere_after` retries used in the layer on, the next try goes to another host
    (None: always the same host). `advice` is what the operator reads when the event brings none.
    """

    layer: Layer
    verdict: Verdict
    advice: str
    retries: int = 0
    base_delay_s: float = 0.0
    elsewhere_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    verdict: Verdict
    layer: Layer
    delay_s: float = 0.0
    elsewhere: bool = False
    need_mib: int | None = None  # the job's memory need from now on
    shrink: int = 0  # steps down to a smaller plan from now on
    need_ram_mib: int | None = None
    stride: int = 1
    retries_used: int = 0  # in the layer, before this decision
    advice: str = ""


_HOLD, _RETRY = Verdict.HOLD, Verdict.RETRY
_CHECK_CLIP = "check the source clip and replace or remove it"
_CHECK_LOG = "read the log (cosma job logs JOB)"
_WAIT = "make a host available (cosma worker ls)"

RULES: dict[Reason, Rule] = {
    # Data: the same bytes give the same failure.
    Reason.INPUT_MISSING: Rule(Layer.DATA, _HOLD, "put the source file back where it was ingested"),
    Reason.INPUT_EMPTY: Rule(Layer.DATA, _HOLD, _CHECK_CLIP),
    Reason.INPUT_UNREADABLE: Rule(Layer.DATA, _HOLD, _CHECK_CLIP),
    Reason.INPUT_TRUNCATED: Rule(Layer.DATA, _HOLD, _CHECK_CLIP),
    Reason.INPUT_NO_VIDEO: Rule(Layer.DATA, _HOLD, _CHECK_CLIP),
    Reason.DECODE_FAILED: Rule(Layer.DATA, _HOLD, _CHECK_CLIP),
    Reason.FRAMES_TOO_FEW: Rule(Layer.DATA, _HOLD, "raise frames.fps or add footage"),
    Reason.FRAMES_UNUSABLE: Rule(Layer.DATA, _HOLD, "the frames show too little; leave it out"),
    Reason.NO_PARALLAX: Rule(Layer.DATA, _HOLD, "the camera did not move; leave it out"),
    Reason.REGISTRATION_FAILED: Rule(Layer.DATA, _HOLD, "try a higher frames.fps or sfm.overlap"),
    Reason.REGISTRATION_WEAK: Rule(Layer.DATA, _HOLD, "try a higher frames.fps or sfm.overlap"),
    Reason.TRAINING_DIVERGED: Rule(Layer.DATA, _HOLD, "check the sfm report; try another seed"),
    Reason.QUALITY_LOW: Rule(
        Layer.DATA, _HOLD, "look at the preview; leave it out or train longer"
    ),
    Reason.STITCH_EVIDENCE_WEAK: Rule(Layer.DATA, _HOLD, "the members may not overlap; see report"),
    Reason.STITCH_NO_INPUTS: Rule(Layer.DATA, _HOLD, "finish a segment of it first"),
    # Resources: another plan, or another place.
    Reason.GPU_OUT_OF_MEMORY: Rule(
        Layer.RESOURCE,
        Verdict.ESCALATE,
        "needs a GPU with more memory, or a lower train cap",
        3,
        1.0,
    ),
    Reason.OUT_OF_MEMORY: Rule(
        Layer.RESOURCE,
        Verdict.ESCALATE,
        "needs a host with more memory",
        3,
        10.0,
        elsewhere_after=1,
    ),
    Reason.DISK_FULL: Rule(
        Layer.RESOURCE, _RETRY, "free disk space on the host", 3, 5.0, elsewhere_after=0
    ),
    # GPU: the device, not the work. Its breaker opens, so that a second try gets another one.
    Reason.GPU_FAULT: Rule(
        Layer.GPU, _RETRY, "the GPU reports faults: test or replace it", 3, 5.0, elsewhere_after=1
    ),
    # Its memory went to others after the promise: with a new promise, here later or elsewhere.
    Reason.GPU_MEMORY_TAKEN: Rule(
        Layer.GPU,
        _RETRY,
        "end what else uses the GPU, or raise vram_headroom_mib of the host",
        5,
        5.0,
        elsewhere_after=1,
    ),
    # Transport: says nothing about the job.
    Reason.TRANSFER_FAILED: Rule(Layer.TRANSPORT, _RETRY, "check the link to the host", 5, 2.0),
    Reason.TRANSFER_CORRUPT: Rule(Layer.TRANSPORT, _RETRY, "check the source's disk", 5, 2.0),
    Reason.HOST_UNREACHABLE: Rule(
        Layer.TRANSPORT, _RETRY, "bring the host back (cosma worker probe)", 5, 2.0, 0
    ),
    # Host: the machine, not the work.
    Reason.HOST_KEY_MISMATCH: Rule(
        Layer.HOST, _RETRY, "compare the host key, then cosma worker add it again", 5, 5.0, 0
    ),
    Reason.HOST_AUTH_FAILED: Rule(
        Layer.HOST, _RETRY, "check user and identity_file of the host", 5, 5.0, 0
    ),
    Reason.HOST_REBOOTED: Rule(
        Layer.HOST, _RETRY, "find out why the host reboots", 5, 5.0, elsewhere_after=2
    ),
    Reason.HOST_NOT_READY: Rule(Layer.HOST, _RETRY, "run cosma worker bootstrap", 5, 5.0, 0),
    Reason.ATTEMPT_VANISHED: Rule(
        Layer.HOST, _RETRY, "look for an out-of-memory kill on the host", 5, 5.0, 2
    ),
    Reason.AGENT_FAILED: Rule(Layer.HOST, _RETRY, "run cosma worker probe", 5, 5.0, 1),
    Reason.LEASE_EXPIRED: Rule(
        Layer.HOST, _RETRY, "the link to the host was down too long", 5, 5.0, elsewhere_after=2
    ),
    Reason.TOOL_MISSING: Rule(Layer.HOST, _RETRY, "run cosma worker bootstrap", 5, 5.0, 0),
    # Code: once may be chance, twice the host (a driver, a library); again elsewhere, a defect.
    Reason.STAGE_CRASHED: Rule(Layer.CODE, _RETRY, _CHECK_LOG, 2, 1.0, elsewhere_after=1),
    Reason.STAGE_SIGNALLED: Rule(Layer.CODE, _RETRY, _CHECK_LOG, 2, 1.0, elsewhere_after=1),
    Reason.STAGE_TIMEOUT: Rule(Layer.CODE, _RETRY, _CHECK_LOG, 1, 1.0),
    # Operator: a job's config is fixed when it is made, so no retry of it can help.
    Reason.CONFIG_INVALID: Rule(Layer.OPERATOR, Verdict.FAIL, "correct the setting, submit again"),
    Reason.CANCELLED: Rule(Layer.OPERATOR, _HOLD, "its attempt was stopped on the host by hand"),
    # Why a job waits. As the reason of a failure it means that waiting is not allowed.
    Reason.NO_HOST: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.NO_GPU_FITS: Rule(Layer.WAITING, _HOLD, "add a GPU that is large enough"),
    Reason.GPU_BUSY: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.SLOT_BUSY: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.HOST_CORDONED: Rule(Layer.WAITING, _HOLD, "cosma worker resume a host"),
    Reason.HOST_DRAINING: Rule(Layer.WAITING, _HOLD, "cosma worker resume a host"),
    Reason.HOST_QUARANTINED: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.GPU_QUARANTINED: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.CPU_BUSY: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.RAM_LOW: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.RAM_TOO_SMALL: Rule(Layer.WAITING, _HOLD, "add a host with more memory"),
    Reason.DISK_LOW: Rule(Layer.WAITING, _HOLD, "free disk space on a host"),
    Reason.POOL_FULL: Rule(Layer.WAITING, _HOLD, "free or extend the thin pool"),
    Reason.POOL_UNKNOWN: Rule(Layer.WAITING, _HOLD, "see that the pool's hypervisor answers"),
    Reason.PROBE_STALE: Rule(Layer.WAITING, _HOLD, _WAIT),
    Reason.BACKOFF: Rule(Layer.WAITING, _HOLD, _WAIT),
}


def layer_of(reason: Reason) -> Layer:
    return RULES[reason].layer


def delay_s(job: str, layer: Layer, used: int, base_s: float) -> float:
    """Seconds: base * 2^used, at most MAX_DELAY_S, with a jitter that is the same on every run."""
    nominal = min(MAX_DELAY_S, base_s * 2.0 ** min(used, 30))
    digest = hashlib.sha256(f"{job}/{layer}/{used}".encode()).digest()
    unit = int.from_bytes(digest[:8], "big") / 2.0**64
    return nominal * (1.0 - JITTER + 2.0 * JITTER * unit)


def decide(job: Job, reason: Reason, *, blame: Layer | None = None) -> Decision:
    """What follows when `job` met `reason` now. Never raises: every Reason has a rule.

    `blame` HOST or GPU: a breaker holds the place responsible, so that the failure is counted in
    that layer's budget and not in the job's own.
    """
    rule = RULES[reason]
    if blame is Layer.HOST:
        rule = dataclasses.replace(RULES[Reason.AGENT_FAILED], elsewhere_after=0)
    elif blame is Layer.GPU:
        rule = RULES[Reason.GPU_FAULT]
    used = job.retries.get(rule.layer, 0)
    if rule.verdict in (Verdict.HOLD, Verdict.FAIL):
        return _settle(job, rule, rule.verdict, used)
    collecting = job.step is Step.COLLECT and rule.layer in (Layer.TRANSPORT, Layer.HOST)
    if used >= (COLLECT_RETRIES if collecting else rule.retries):
        return _settle(job, rule, Verdict.HOLD, used)
    verdict, plan = rule.verdict, job
    if verdict is Verdict.ESCALATE:
        plan = _less_ram(job) if reason is Reason.OUT_OF_MEMORY else _less_vram(job)
        if plan == job:
            verdict = Verdict.RETRY  # there is nothing that could be raised or made smaller
    return Decision(
        verdict=verdict,
        layer=rule.layer,
        delay_s=delay_s(job.id, rule.layer, used, rule.base_delay_s),
        elsewhere=verdict is not Verdict.ESCALATE
        and rule.elsewhere_after is not None
        and used >= rule.elsewhere_after,
        need_mib=plan.need_mib,
        shrink=plan.shrink,
        need_ram_mib=plan.need_ram_mib,
        stride=plan.stride,
        retries_used=used,
        advice=rule.advice.replace("JOB", job.id),
    )


def _less_vram(job: Job) -> Job:
    """A smaller plan of the training, then a GPU with more memory."""
    trains = job.kind is JobKind.RECONSTRUCT and job.stage is Stage.TRAINING
    if trains and job.shrink < SHRINK_STEPS:
        return dataclasses.replace(job, shrink=job.shrink + 1)
    if job.reservation is not None and job.reservation.mib:
        return dataclasses.replace(job, need_mib=math.ceil(job.reservation.mib * OOM_FACTOR))
    return job


def _less_ram(job: Job) -> Job:
    """More RAM, which placement finds here, elsewhere or nowhere; then fewer frames."""
    thins = job.stage in STACK_STAGES
    if not thins and job.stage is not Stage.STITCH:
        return job
    promised = job.reservation.ram_mib if job.reservation is not None else 0
    if promised and (job.need_ram_mib is None or not thins):
        return dataclasses.replace(job, need_ram_mib=math.ceil(promised * OOM_FACTOR))
    if thins and job.stride < MAX_STRIDE:
        return thinned(job, job.stride * 2)
    return job


def _settle(job: Job, rule: Rule, verdict: Verdict, used: int) -> Decision:
    return Decision(
        verdict=verdict,
        layer=rule.layer,
        need_mib=job.need_mib,
        shrink=job.shrink,
        need_ram_mib=job.need_ram_mib,
        stride=job.stride,
        retries_used=used,
        advice=rule.advice.replace("JOB", job.id),
    )
