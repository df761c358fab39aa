"""Drill hosts where namespaces are not allowed: real sshd on loopback, on one network, one kernel
and one disk. What needs more than that cannot happen to them, and the drill says so."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from dispatcher.chaos.hostfiles import HostFiles
from dispatcher.chaos.processes import all_pids, command_of, environment_of, kill
from dispatcher.chaos.schedule import Kind
from dispatcher.embedded import EmbeddedHosts


@dataclass(frozen=True, slots=True)
class LoopbackHost:
    name: str
    files: HostFiles
    work_dir: Path


@dataclass(slots=True)
class LoopbackHosts:
    """`count` hosts under `base`, for the length of a `with` block."""

    count: int
    base: Path
    hosts: tuple[LoopbackHost, ...] = ()
    possible: frozenset[Kind] = frozenset(
        {
            Kind.SESSION_KILLED,
            Kind.DISPATCHER_KILLED,
            Kind.DISPATCHER_KILLED_BEFORE_SEND,
            Kind.SECOND_DISPATCHER,
            Kind.SUPERVISOR_KILLED,
            Kind.TRANSFER_TRUNCATED,
            Kind.CLOCK_JUMP,
            Kind.HOST_HUNG,
        }
    )
    _embedded: EmbeddedHosts = field(init=False)

    def __post_init__(self) -> None:
        self._embedded = EmbeddedHosts(self.count, self.base)

    def __enter__(self) -> Self:
        self._embedded.start()
        text = yaml.safe_load(self.inventory.read_text())
        hosts = []
        for row in text["hosts"]:
            files = HostFiles(self.base / row["name"])
            files.prepare_programs()
            row.update(python=str(files.python), stage_python=str(files.stage_python))
            hosts.append(LoopbackHost(row["name"], files, Path(row["work_dir"])))
        self.hosts = tuple(hosts)
        # Their disk is this machine's: trimming all of it takes seconds.
        text["defaults"]["disk"] = {"min_free_gib": 0.0, "fstrim": "off"}
        self.inventory.write_text(yaml.safe_dump(text, sort_keys=False))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self.hosts:
            self.signal_sshd(host.name, signal.SIGCONT)
        self._embedded.power_off()

    @property
    def inventory(self) -> Path:
        return self._embedded.inventory

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.hosts]

    def files(self, name: str) -> HostFiles:
        return self._host(name).files

    def inside(self, command: Sequence[str]) -> list[str]:
        """It dies with this process where util-linux can see to that."""
        tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        return [*tied, *command]

    def work_dir(self, name: str) -> Path:
        return self._host(name).work_dir

    def pids(self, name: str) -> list[int]:
        """The sshd and its sessions, and whatever the agent there has started."""
        sshd = self._embedded.sshd_pids(name)
        mine = f"{self.work_dir(name)}/"
        agents = [
            pid
            for pid in all_pids()
            if pid not in sshd
            and (mine in command_of(pid) or mine in environment_of(pid).get("COSMA_ATTEMPT", ""))
        ]
        return [*sshd, *agents]

    def kill_sessions(self, name: str) -> int:
        _, *sessions = self._embedded.sshd_pids(name)
        return sum(kill(pid) for pid in sessions)

    def signal_sshd(self, name: str, number: signal.Signals) -> None:
        for pid in self._embedded.sshd_pids(name):
            kill(pid, number)

    def _host(self, name: str) -> LoopbackHost:
        return next(host for host in self.hosts if host.name == name)
