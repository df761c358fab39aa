"""How a verb says no: one exception that becomes one `Refusal` line and an exit code."""

from __future__ import annotations

import errno

from worker_agent.exit_codes import EXIT_FAILED, EXIT_REFUSED
from worker_agent.messages import FailureCode, Refusal


class RefusedError(Exception):
    """The verb ends here. `message` is one line: what, where, why, what to do."""

    def __init__(self, error: str, message: str, *, exit_code: int = EXIT_REFUSED) -> None:
        super().__init__(message)
        self.refusal = Refusal(error=error, message=" ".join(message.split()))
        self.exit_code = exit_code


def failed(error: str, message: str) -> RefusedError:
    """The verb tried and could not do it (exit 1), against will not do it (exit 3)."""
    return RefusedError(error, message, exit_code=EXIT_FAILED)


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def from_os_error(error: OSError) -> RefusedError:
    """A Refusal for an operating system error that no verb gave a better name."""
    place = error.filename or "the work directory"
    reason = error.strerror or str(error)
    if is_disk_full(error):
        return failed(FailureCode.DISK_FULL, f"{place}: {reason}: free space on this host")
    return failed("agent_failed", f"{place}: {reason}")
