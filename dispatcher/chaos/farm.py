"""What every kind of drill hosts offers."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from dispatcher.chaos.hostfiles import HostFiles
from dispatcher.chaos.schedule import Kind


class DrillHosts(Protocol):
    """Hosts for the length of a `with` block, known by their names in the inventory."""

    possible: frozenset[Kind]

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def inventory(self) -> Path: ...

    @property
    def names(self) -> list[str]: ...

    def files(self, name: str) -> HostFiles: ...

    def inside(self, command: Sequence[str]) -> list[str]:
        """`command`, run where the hosts can be reached."""
        ...

    def work_dir(self, name: str) -> Path:
        """A host's work directory as seen from here, also while the host is off."""
        ...

    def pids(self, name: str) -> list[int]:
        """Every process of the host but its process 1."""
        ...

    def kill_sessions(self, name: str) -> int:
        """SIGKILL to every SSH session of the host; returns how many processes."""
        ...

    def signal_sshd(self, name: str, number: signal.Signals) -> None:
        """To the server and all its sessions."""
        ...
