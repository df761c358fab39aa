"""What an exception of a stage means: one code and one line for the operator. Stdlib only."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

from worker_agent.messages import FailureCode, StageOutcome
from worker_agent.stages.api import StageFailure

_CUDA_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# cudaError_t texts that a program cannot cause: CUDA Runtime API, "Error Handling".
_GPU_FAULT = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "GPU is lost",
    "fallen off the bus",
)
_HOST_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
_DISK = ("No space left on device", "database or disk is full")


def outcome_of(error: BaseException, stage: str) -> StageOutcome:
    """The failed StageOutcome for what a stage raised; the cause chain is searched as well."""
    if isinstance(error, StageFailure):
        return StageOutcome(
            ok=False,
            reason=error.reason,
            message=_line(error.message),
            advice=error.advice,
            evidence=error.evidence,
        )
    for link in _chain(error):
        known = _known(link, stage)
        if known is not None:
            return known
    last = f"{type(error).__name__}: {error}"
    return StageOutcome(
        ok=False,
        reason=FailureCode.STAGE_CRASHED,
        message=_line(f"{stage} crashed: {last}"),
        advice="the log of the attempt has the traceback",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _known(error: BaseException, stage: str) -> StageOutcome | None:
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in _CUDA_MEMORY):
        return StageOutcome(
            ok=False,
            reason=FailureCode.GPU_OUT_OF_MEMORY,
            message=_line(f"{stage}: the GPU's memory is full: {text}"),
            advice="it is retried with a smaller plan or on a bigger GPU",
        )
    if any(sign in text for sign in _GPU_FAULT):
        return StageOutcome(
            ok=False,
            reason=FailureCode.GPU_FAULT,
            message=_line(f"{stage}: the GPU reports a fault: {text}"),
            advice="look at nvidia-smi -q and the kernel log of this host",
        )
    if isinstance(error, MemoryError) or any(sign in text for sign in _HOST_MEMORY):
        return StageOutcome(
            ok=False,
            reason=FailureCode.OUT_OF_MEMORY,
            message=_line(f"{stage}: this host's memory is full: {text}"),
            advice="lower frames.width or sfm.max_features, or use a host with more memory",
        )
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(sign in text for sign in _DISK):
        return StageOutcome(
            ok=False,
            reason=FailureCode.DISK_FULL,
            message=_line(f"{stage}: the disk of the work directory is full: {text}"),
            advice="free space on the host, or lower frames.fps",
        )
    if isinstance(error, ModuleNotFoundError):
        return StageOutcome(
            ok=False,
            reason=FailureCode.TOOL_MISSING,
            message=_line(f"{stage}: {sys.executable} lacks the module {error.name}"),
            advice="install the stage environment on this host: cosma worker bootstrap",
        )
    return None


def _line(text: str) -> str:
    """One line, not longer than an operator reads."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 500 else flat[:499] + "…"
