"""Every failure an operator can meet: one line (where, what, why, what to do) and an exit code."""

from __future__ import annotations

from enum import IntEnum

from dispatcher.core.model import Reason
from worker_agent.protocol import Refusal


class ExitCode(IntEnum):
    """Exit codes of every `cosma` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    INVENTORY = 10
    LOCKED = 11
    NO_HOST = 12
    INTERRUPTED = 130


class CosmaError(Exception):
    """Base of all expected failures. `line` is what the operator reads; there is no traceback."""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(self.line)

    @property
    def message(self) -> str:
        """What and why, on one line: what a job keeps beside its reason."""
        return _one_line(": ".join(part for part in (self.where, self.what, self.why) if part))

    @property
    def line(self) -> str:
        """`message`, and what to do about it."""
        # A command is written as it is typed.
        typed = self.fix.startswith("cosma ")
        fix = self.fix if typed else self.fix[:1].upper() + self.fix[1:]
        return _one_line(f"{self.message}. {fix}" if fix else self.message)


def _one_line(text: str) -> str:
    return " ".join(text.split())


class UsageError(CosmaError):
    """The command cannot mean anything as it was given."""

    exit_code = ExitCode.USAGE


class InventoryError(CosmaError):
    """The inventory cannot be used. `where` is file:line."""

    exit_code = ExitCode.INVENTORY


class SettingsError(CosmaError):
    """A pipeline configuration or an environment variable is not valid."""

    exit_code = ExitCode.USAGE


class DispatcherLocked(CosmaError):
    """Another dispatcher works on this database."""

    exit_code = ExitCode.LOCKED


class TakenOver(DispatcherLocked):
    """A newer dispatcher commands a host or the database: this one must leave all work alone."""


class NoHost(CosmaError):
    """No host can be used."""

    exit_code = ExitCode.NO_HOST


class HostError(CosmaError):
    """Something went wrong with one host; `reason` is what the retry table decides on."""

    def __init__(
        self, reason: Reason, what: str, *, where: str = "", why: str = "", fix: str = ""
    ) -> None:
        self.reason = reason
        super().__init__(what, where=where, why=why, fix=fix)


class TransportError(HostError):
    """The host was not reached or the link broke: this says nothing about the jobs there.

    `reason` is HOST_UNREACHABLE, HOST_KEY_MISMATCH or HOST_AUTH_FAILED. `sent` is False when the
    request certainly never left: no connection was there to carry it.
    """

    exit_code = ExitCode.NO_HOST
    sent = True


class AgentBroken(HostError):
    """The host answers, but the agent cannot run there or does not speak the protocol."""

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(Reason.AGENT_FAILED, what, where=where, why=why, fix=fix)


class TransferError(HostError):
    """A file could not be brought to or from a host; the source is untouched."""


class AgentRefusal(HostError):
    """A verb said no. `refusal.error` is a FailureCode or one of the refusal codes."""

    def __init__(self, refusal: Refusal, *, where: str = "") -> None:
        self.refusal = refusal
        known = refusal.error in Reason.__members__.values()
        reason = Reason(refusal.error) if known else Reason.AGENT_FAILED
        super().__init__(reason, refusal.message, where=where)
