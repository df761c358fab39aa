"""One drill from beginning to end: hosts, jobs, faults, evidence, verdict."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dispatcher.chaos.checker import ENDED, Broken, check
from dispatcher.chaos.collect import collect, read_only
from dispatcher.chaos.evidence import Evidence
from dispatcher.chaos.farm import DrillHosts
from dispatcher.chaos.faults import Injector
from dispatcher.chaos.footage import Footage, make_footage
from dispatcher.chaos.hosts import NamespaceHosts
from dispatcher.chaos.loopback import LoopbackHosts
from dispatcher.chaos.process import DispatcherProcess
from dispatcher.chaos.processes import command_of
from dispatcher.chaos.schedule import Fault, Kind, plan
from dispatcher.core.model import RECONSTRUCT_STAGES
from dispatcher.errors import CosmaError

SURVEY = "drill"
_LOOK_S = 0.01  # between two looks at faults that wait for their moment
_COUNT_S = 0.2  # between two counts of what is done
_QUIET_S = 3.0  # nothing open for so long: stitches that follow have been planned by then
_LEFT_S = 30.0  # for processes on the hosts to end after the dispatcher has
_BASE_LIMIT_S, _JOB_LIMIT_S = 240.0, 12.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    seed: int
    hosts: int
    jobs: int
    done: int
    held: int
    faults: int
    broken_invariants: int
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Drill:
    """`directory` keeps database, logs, footage and the hosts' own files."""

    directory: Path
    hosts: int
    jobs: int
    seed: int
    tell: Tell
    loopback: bool = False  # hosts without namespaces, for which some faults are impossible

    def run(self) -> Verdict:
        """Raises CosmaError when the drill itself cannot be made."""
        began = time.monotonic()
        footage = make_footage(self.directory / "footage", SURVEY, self.jobs, self.seed)
        with self._hosts() as farm:
            dispatcher = DispatcherProcess(farm.inside, self.directory, farm.inventory)
            injector = Injector(farm, dispatcher, dispatcher.database, random.Random(self.seed))
            faults = plan(
                self.seed,
                farm.names,
                self.jobs,
                (self.jobs - len(footage.broken)) * len(RECONSTRUCT_STAGES),
                [kind for kind in Kind if kind in farm.possible],
            )
            try:
                self._ingest(dispatcher, footage)
                dispatcher.start()
                missed, in_time = self._disturb(injector, faults)
            finally:
                dispatcher.stop()
            evidence = self._evidence(farm, dispatcher, footage)
        findings = check(evidence) + own_findings(injector, missed, in_time=in_time)
        return self._verdict(evidence, injector, findings, time.monotonic() - began)

    def _hosts(self) -> DrillHosts:
        kind = LoopbackHosts if self.loopback else NamespaceHosts
        return kind(self.hosts, self.directory / "hosts")

    def _ingest(self, dispatcher: DispatcherProcess, footage: Footage) -> None:
        # The hosts' disks are small, and room is asked for by what a training may make.
        plan = self.directory / "plan.yaml"
        plan.write_text("train: {cuda: {cap: 1000}}\n")
        words = ("ingest", str(footage.root), "--acquisition", SURVEY, "--config", str(plan))
        with dispatcher.log.open("ab") as log:
            subprocess.run(
                dispatcher.cosma(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=dispatcher.environment(),
            )  # fmt: skip
        if not dispatcher.database.exists():
            raise CosmaError("nothing was ingested", where=str(dispatcher.log))

    def _disturb(self, injector: Injector, faults: list[Fault]) -> tuple[list[Fault], bool]:
        """Until every job has ended and every fault is over: (faults that found no moment,
        whether all ended in time)."""
        limit = time.monotonic() + _BASE_LIMIT_S + _JOB_LIMIT_S * self.jobs
        waiting = list(faults)
        count_at = 0.0
        quiet_since: float | None = None
        ended, still_open = 0, self.jobs
        while time.monotonic() < limit:
            now = time.monotonic()
            if now >= count_at:
                count_at = now + _COUNT_S
                ended, still_open = _progress(injector.database, (ended, still_open))
                injector.dispatcher.keep_up()
            for fault in [fault for fault in waiting if fault.after <= ended]:
                if injector.begin(fault):
                    waiting.remove(fault)
                    self._tell_of(fault, ended)
            injector.end_due()
            if still_open or injector.active:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since > _QUIET_S:
                return waiting, True
            time.sleep(_LOOK_S)
        injector.end_due(everything=True)
        return waiting, False

    def _tell_of(self, fault: Fault, ended: int) -> None:
        lasting = f" for {fault.lasts_s:g} s" if fault.lasts_s else ""
        self.tell(f"after {ended} attempts: {fault.kind} on {fault.host}{lasting}")

    def _evidence(
        self, farm: DrillHosts, dispatcher: DispatcherProcess, footage: Footage
    ) -> Evidence:
        return collect(
            dispatcher.database,
            {name: farm.work_dir(name) for name in farm.names},
            {name: farm.files(name).run_log for name in farm.names},
            sources=footage.clips,
            processes_left=_left(farm),
            expected_held=footage.broken,
        )

    def _verdict(
        self, evidence: Evidence, injector: Injector, findings: list[Broken], seconds: float
    ) -> Verdict:
        segments = [job for job in evidence.jobs if job.kind == "reconstruct"]
        states = Counter(job.state for job in segments)
        kinds = Counter(fault.kind.value for fault in injector.done)
        stitches = Counter(job.state for job in evidence.jobs if job.kind == "stitch")
        broken: dict[str, list[str]] = {}
        for finding in findings:
            broken.setdefault(finding.invariant, []).append(finding.detail)
        return Verdict(
            seed=self.seed,
            hosts=self.hosts,
            jobs=self.jobs,
            done=states["done"],
            held=states["held"],
            faults=len(injector.done),
            broken_invariants=len(broken),
            details={
                "seconds": round(seconds, 1),
                "broken": broken,
                "faults": dict(sorted(kinds.items())),
                "expected_held": sorted(evidence.expected_held),
                "stitches": dict(stitches),
                "attempts": len(evidence.attempts),
                "runs": len(evidence.runs),
                "failed_attempts": dict(
                    Counter(str(row.reason) for row in evidence.attempts if row.state == "failed")
                ),
                "dispatcher_kills": injector.dispatcher.kills,
                "not_possible": sorted(set(Kind) - injector.hosts.possible),
                "directory": str(self.directory),
                "replay": f"cosma chaos --hosts {self.hosts} --jobs {self.jobs} --seed {self.seed}",
            },
        )


def own_findings(injector: Injector, missed: list[Fault], *, in_time: bool) -> list[Broken]:
    """What the drill saw itself, that no log tells."""
    found = [Broken("faults_are_answered", text) for text in injector.findings]
    found += [
        Broken("dispatcher_never_dies_by_itself", f"it ended with exit code {code}")
        for code in injector.dispatcher.crashes
    ]
    found += [
        Broken("every_fault_happens", f"{fault.kind} on {fault.host} found no moment")
        for fault in missed
    ]
    if not in_time:
        found.append(Broken("the_drill_ends", "jobs were still open at the time limit"))
    return found


def _progress(database: Path, known: tuple[int, int]) -> tuple[int, int]:
    """(attempts that have ended, jobs that have not)."""
    marks = ", ".join("?" * len(ENDED))
    try:
        with closing(read_only(database)) as reader:
            ended = reader.execute("SELECT count(*) FROM attempts WHERE ended_at NOT NULL")
            still_open = reader.execute(
                f"SELECT count(*) FROM jobs WHERE state NOT IN ({marks})",  # noqa: S608 - marks only
                tuple(sorted(ENDED)),
            )
            return int(ended.fetchone()[0]), int(still_open.fetchone()[0])
    except sqlite3.OperationalError:
        return known  # a writer is just changing the tables


def _left(farm: DrillHosts) -> list[str]:
    """What still runs on the hosts, beside their sshd, when it has had time to end."""
    end = time.monotonic() + _LEFT_S
    while True:
        left = [
            f"{name}: pid {pid}: {command_of(pid)[:120]}"
            for name in farm.names
            for pid in farm.pids(name)
            if "[listener]" not in command_of(pid) and command_of(pid)
        ]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)
