"""Does a fault to the farm and takes it back again."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dispatcher.chaos.collect import read_only
from dispatcher.chaos.farm import DrillHosts
from dispatcher.chaos.hostfiles import GPU_MIB, HANGING
from dispatcher.chaos.hosts import NamespaceHosts
from dispatcher.chaos.process import DispatcherProcess
from dispatcher.chaos.processes import command_of, environment_of, kill, parent_of
from dispatcher.chaos.schedule import Fault, Kind
from dispatcher.errors import ExitCode

_COOKIE = "COSMA_ATTEMPT"
_KILL_S = 8.0  # for TERM and KILL at the end of a lease
_HOLD = "hold-stages"  # worker_agent.stages.rehearsal: while it is there, stages go on working


@dataclass(slots=True)
class Active:
    fault: Fault
    until: float  # monotonic


@dataclass(slots=True)
class Injector:
    """`begin` and `end` of faults. `findings` is what a fault itself proved to be wrong."""

    hosts: DrillHosts
    dispatcher: DispatcherProcess
    database: Path
    rng: random.Random
    active: list[Active] = field(default_factory=list)
    done: list[Fault] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def begin(self, fault: Fault) -> bool:
        """False when there is nothing yet that could be harmed: to be tried again soon. What
        needs a stage at work takes another host when its own has none."""
        if fault.kind in _AT_WORK:
            others = [name for name in self.hosts.names if name != fault.host]
            return any(self._begin(replace(fault, host=name)) for name in (fault.host, *others))
        return self._begin(fault)

    def _begin(self, fault: Fault) -> bool:
        if fault.kind in _ON_HOST and any(a.fault.host == fault.host for a in self.active):
            return False
        if not _BEGIN[fault.kind](self, fault):
            return False
        self.done.append(fault)
        if fault.kind in _END:
            self.active.append(Active(fault, time.monotonic() + fault.lasts_s))
        return True

    def end_due(self, *, everything: bool = False) -> None:
        for active in list(self.active):
            if everything or time.monotonic() >= active.until:
                self.active.remove(active)
                _END[active.fault.kind](self, active.fault)

    # --- how each begins ---

    def _kill_sessions(self, fault: Fault) -> bool:
        return self.hosts.kill_sessions(fault.host) > 0

    def _link_down(self, fault: Fault) -> bool:
        self._farm.set_link(fault.host, up=False)
        return True

    def _blackhole(self, fault: Fault) -> bool:
        self._farm.set_blackhole(fault.host, on=True)
        return True

    def _cut_power(self, fault: Fault) -> bool:
        self._farm.cut_power(fault.host)
        return True

    def _kill_dispatcher(self, _fault: Fault) -> bool:
        if not self._dispatcher_works():
            return False
        self.dispatcher.kill_and_restart()
        return True

    def _kill_before_send(self, _fault: Fault) -> bool:
        """The attempt is committed and the host has not been told: killed between the two."""
        for row in self._ask("SELECT * FROM attempts WHERE state = 'starting'"):
            if self._started(row):
                continue
            self.dispatcher.kill()
            unsent = not self._started(row)
            self.dispatcher.start()
            return unsent
        return False

    def _second_dispatcher(self, _fault: Fault) -> bool:
        if not self._dispatcher_works():
            return False
        code = self.dispatcher.second()
        if code != ExitCode.LOCKED:
            self.findings.append(f"a second dispatcher ended with exit code {code}, not 11")
        return True

    def _kill_supervisor(self, fault: Fault) -> bool:
        stages = self._stages(fault.host)
        for stage in stages:
            supervisor = parent_of(stage)
            if supervisor in stages or "agent-" not in command_of(supervisor):
                continue
            return kill(supervisor)
        return False

    def _fill_disk(self, fault: Fault) -> bool:
        return self._farm.fill_disk(fault.host) > 0

    def _hang_gpu(self, fault: Fault) -> bool:
        self.hosts.files(fault.host).set_gpu(HANGING)
        return True

    def _take_vram(self, fault: Fault) -> bool:
        self.hosts.files(fault.host).set_gpu(str(GPU_MIB - 500))
        return True

    def _jump_clock(self, fault: Fault) -> bool:
        self.hosts.files(fault.host).set_clock(fault.size)
        return True

    def _truncate_transfer(self, _fault: Fault) -> bool:
        """On whichever host a file is just arriving: its connection is cut in the middle."""
        for row in self._ask("SELECT host FROM jobs WHERE step = 'transfer' AND host NOT NULL"):
            if any(active.fault.host == row["host"] for active in self.active):
                continue
            arriving = self.hosts.work_dir(row["host"]).glob("*/*/input/*.part")
            if any(_size(path) > 0 for path in arriving):
                return self.hosts.kill_sessions(row["host"]) > 0
        return False

    def _outlast_lease(self, fault: Fault) -> bool:
        """A stage is at work, and goes on for as long as the link is down."""
        if not self._outlasted(fault):
            return False
        self._hold(fault.host).touch()
        if not self._outlasted(fault):  # it ended just before
            self._hold(fault.host).unlink()
            return False
        self._farm.set_link(fault.host, up=False)
        return True

    def _hang_host(self, fault: Fault) -> bool:
        """The kernel accepts connections, and nobody answers them."""
        self.hosts.signal_sshd(fault.host, signal.SIGSTOP)
        return True

    # --- how each ends ---

    def _end_outage(self, fault: Fault) -> None:
        for stage in self._outlasted(fault):
            self.findings.append(
                f"{fault.host}: {environment_of(stage).get(_COOKIE)} outlived its lease"
            )
        self._hold(fault.host).unlink()
        self._farm.set_link(fault.host, up=True)

    def _wake_host(self, fault: Fault) -> None:
        self.hosts.signal_sshd(fault.host, signal.SIGCONT)

    def _link_up(self, fault: Fault) -> None:
        self._farm.set_link(fault.host, up=True)

    def _no_blackhole(self, fault: Fault) -> None:
        self._farm.set_blackhole(fault.host, on=False)

    def _boot(self, fault: Fault) -> None:
        self._farm.boot(fault.host)

    def _empty_disk(self, fault: Fault) -> None:
        self._farm.empty_disk(fault.host)

    def _mend_gpu(self, fault: Fault) -> None:
        self.hosts.files(fault.host).set_gpu("0")

    def _set_clock_right(self, fault: Fault) -> None:
        self.hosts.files(fault.host).set_clock(0.0)

    # --- what is known ---

    @property
    def _farm(self) -> NamespaceHosts:
        """Only these have power, cables and disks of their own; `possible` says so before."""
        if not isinstance(self.hosts, NamespaceHosts):
            raise TypeError("a fault was planned that these hosts cannot suffer")
        return self.hosts

    def _dispatcher_works(self) -> bool:
        """It holds the lock: the second one must not be the first to ask for it."""
        rows = self._ask("SELECT pid FROM dispatchers ORDER BY epoch DESC LIMIT 1")
        return bool(rows) and rows[0]["pid"] == self.dispatcher.pid

    def _stages(self, host: str) -> list[int]:
        return [pid for pid in self.hosts.pids(host) if _COOKIE in environment_of(pid)]

    def _outlasted(self, fault: Fault) -> list[int]:
        """Stages whose lease is certainly over, and they with it, before the fault is."""
        found = []
        for pid in self._stages(fault.host):
            run_dir, _, attempt = environment_of(pid).get(_COOKIE, "").partition("#")
            job = self.hosts.work_dir(fault.host).joinpath(*Path(run_dir).parts[-2:])
            try:
                started = json.loads((job / "attempts" / attempt / "started.json").read_bytes())
            except (OSError, ValueError):
                continue
            if float(started["spec"]["lease_s"]) + _KILL_S <= fault.lasts_s:
                found.append(pid)
        return found

    def _hold(self, host: str) -> Path:
        return self.hosts.work_dir(host) / _HOLD

    def _started(self, row: dict[str, Any]) -> bool:
        found = self.hosts.work_dir(row["host"]).glob(
            f"*/{row['job']}/attempts/{row['attempt']}/started.json"
        )
        return any(True for _ in found)

    def _ask(self, query: str) -> list[dict[str, Any]]:
        try:
            with closing(read_only(self.database)) as reader:
                return [dict(row) for row in reader.execute(query)]
        except sqlite3.OperationalError:
            return []  # the tables are just being made


_BEGIN: dict[Kind, Callable[[Injector, Fault], bool]] = {
    Kind.SESSION_KILLED: Injector._kill_sessions,
    Kind.LINK_DOWN: Injector._link_down,
    Kind.BLACKHOLE: Injector._blackhole,
    Kind.POWER_CUT: Injector._cut_power,
    Kind.DISPATCHER_KILLED: Injector._kill_dispatcher,
    Kind.DISPATCHER_KILLED_BEFORE_SEND: Injector._kill_before_send,
    Kind.SECOND_DISPATCHER: Injector._second_dispatcher,
    Kind.SUPERVISOR_KILLED: Injector._kill_supervisor,
    Kind.DISK_FULL: Injector._fill_disk,
    Kind.GPU_HUNG: Injector._hang_gpu,
    Kind.CLOCK_JUMP: Injector._jump_clock,
    Kind.TRANSFER_TRUNCATED: Injector._truncate_transfer,
    Kind.VRAM_THIEF: Injector._take_vram,
    Kind.LEASE_OUTLASTED: Injector._outlast_lease,
    Kind.HOST_HUNG: Injector._hang_host,
}
_END: dict[Kind, Callable[[Injector, Fault], None]] = {
    Kind.LINK_DOWN: Injector._link_up,
    Kind.BLACKHOLE: Injector._no_blackhole,
    Kind.POWER_CUT: Injector._boot,
    Kind.DISK_FULL: Injector._empty_disk,
    Kind.GPU_HUNG: Injector._mend_gpu,
    Kind.CLOCK_JUMP: Injector._set_clock_right,
    Kind.VRAM_THIEF: Injector._mend_gpu,
    Kind.LEASE_OUTLASTED: Injector._end_outage,
    Kind.HOST_HUNG: Injector._wake_host,
}
_AT_WORK = frozenset({Kind.SUPERVISOR_KILLED, Kind.LEASE_OUTLASTED})
# One fault at a time on one host: two at once could not be taken back one by one.
_ON_HOST = frozenset({*_END, Kind.SESSION_KILLED, Kind.SUPERVISOR_KILLED})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
