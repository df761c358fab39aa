"""Runs one stage to its end: lease, timeout, cancellation, and the durable record of its exit.

The supervisor holds the run lock, so the attempt counts as running until exit.json is on disk.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from worker_agent import attempts, clock, containment, interpreter, oom, processes
from worker_agent.attempts import AttemptFiles
from worker_agent.containment import Containment
from worker_agent.durable import drop_torn_line, write_json
from worker_agent.gpu_health import FaultWatch
from worker_agent.kept_log import LogCap
from worker_agent.paths import work_directory
from worker_agent.processes import COOKIE, SUPERVISOR, Scope
from worker_agent.protocol import AttemptSpec, ExitRecord, FailureCode, StageOutcome
from worker_agent.refusal import is_disk_full
from worker_agent.reserve import drop_reserves
from worker_agent.stages.api import Reporter
from worker_agent.usage import UsageWatch
from worker_agent.verdict import judge
from worker_agent.vram import VramWatch

GRACE_S = 5.0  # between TERM and KILL
_TICK_S = 0.2
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_STAGE_OOM_SCORE = "500"  # the kernel should take the stage before it takes sshd or us


@dataclass(slots=True)
class _Stop:
    """Why and when the stage is being ended."""

    cause: str
    kill_at: float


def supervise(files: AttemptFiles, spec: AttemptSpec, *, lock: int, ready: int, code: Path) -> None:
    """Spawn the stage, see it to its end, write exit.json. The caller exits right after."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    _adopt_orphans()
    events = os.open(files.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    reporter = Reporter(events, spec.attempt, reserve=files.reserve("events"))
    began, began_wall = clock.boottime(), clock.wall()
    python = interpreter.choose(spec.stage_python, work_directory(files.run_dir))
    kills_before = oom.kills()
    watch = FaultWatch(spec.gpu) if spec.gpu_kind == "cuda" and spec.gpu else None
    contained = containment.of(files)
    if shutil.which(python) is None:
        contained = Containment()  # systemd-run would hide that the interpreter is not there
    try:
        stage = _spawn(files, spec, python, code, lock, events, contained)
    except (OSError, subprocess.SubprocessError) as error:
        message = f"cannot run the stage with {python}: {error}"
        _tell(reporter, "exited", cause="spawn_failed", message=message)
        attempts.write_exit(
            files,
            _record(
                files, spec, "spawn_failed", began, began_wall, outcome=_spawn_outcome(message)
            ),
        )
        os.close(ready)
        return
    _note_processes(files, {"supervisor": os.getpid(), "stage": stage.pid})
    _tell(reporter, "started", pid=stage.pid, stage=spec.stage)
    os.close(ready)

    sampler = VramWatch(spec.gpu, files.cookie) if spec.gpu_kind == "cuda" and spec.gpu else None
    used = UsageWatch(files.run_dir, stage.pid)
    cause = _watch(files, spec, stage.pid, began, sampler, used)
    peak_ram_mib, peak_disk_bytes = used.finish()
    peak_vram_mib = None if sampler is None else sampler.finish()
    # Not yet reaped: its pid, and with it the group's id, cannot belong to anybody else.
    processes.kill_group(stage.pid, signal.SIGKILL)
    _, wait_status, usage = os.wait4(stage.pid, 0)
    scope = Scope(files.run_dir, files.attempt)
    containment.kill(contained)
    escaped = processes.sweep(scope, but=(os.getpid(),), adopted=True)
    returncode = os.waitstatus_to_exitcode(wait_status)
    stage.returncode = returncode
    if cause == "exited" and returncode < 0:
        cause = "signalled"
    number = -returncode if returncode < 0 else None
    outcome = attempts.read_outcome(files)
    failed = cause in ("exited", "signalled") and (outcome is None or not outcome.ok)
    cause, outcome = judge(
        spec.stage,
        cause,
        number,
        outcome,
        oom_kills=oom.since(kills_before, oom.kills()),
        gpu_faults=watch.faults() if watch is not None and failed else {},
    )
    drop_torn_line(files.events)
    if escaped and cause == "exited":
        _tell(reporter, "warning", message=f"{escaped} processes outlived their stage: killed")
    _tell(reporter, "exited", cause=cause, returncode=None if number else returncode, signal=number)
    record = _record(
        files,
        spec,
        cause,
        began,
        began_wall,
        outcome=outcome,
        returncode=None if number else returncode,
        signal_number=number,
        usage=usage,
        peak_ram_mib=peak_ram_mib,
        peak_vram_mib=peak_vram_mib,
        peak_disk_bytes=peak_disk_bytes,
    )
    attempts.write_exit(files, record)
    # After the record, which whoever gives the GPU to the next attempt waits for.
    _flush(events)
    drop_reserves(files)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # A file system that allocates late; the exit record has room of its own.


def _tell(reporter: Reporter, kind: str, **payload: object) -> None:
    try:
        reporter.emit(kind, **payload)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # A full disk must not cost the stage its supervisor: exit.json will say the same.


def _note_processes(files: AttemptFiles, pids: dict[str, int]) -> None:
    """With their start times: a pid alone may by now be somebody else's."""
    known: dict[str, int | None] = {}
    for name, pid in pids.items():
        stat = processes.stat_of(pid)
        known |= {name: pid, f"{name}_start_ticks": None if stat is None else stat.start_ticks}
    try:
        write_json(files.processes, known, this_boot=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # Without it a `cancel` after our death only waits longer.


def _adopt_orphans() -> None:
    """Have what daemonises below the stage become our child, so that it can be found and ended.
    Without ctypes (a stripped Python) the environment cookie still finds it."""
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _spawn(
    files: AttemptFiles,
    spec: AttemptSpec,
    python: str,
    code: Path,
    lock: int,
    events: int,
    contained: Containment,
) -> subprocess.Popen[bytes]:
    environment = {
        **(os.environ if contained.kind == "session" else containment.environment()),
        COOKIE: files.cookie,
        SUPERVISOR: str(os.getpid()),
        "COSMA_EVENTS_FD": str(events),
        "CUDA_VISIBLE_DEVICES": (spec.gpu or "") if spec.gpu_kind == "cuda" else "",
        "PYTHONPATH": str(code),
        # `-m` would put the run directory, with the inputs in it, first on the module path.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        contained.command([python, "-m", "worker_agent.stages", str(files.started)]),
        stdin=subprocess.DEVNULL,
        stdout=1,
        stderr=2,
        cwd=files.run_dir,
        env=environment,
        pass_fds=(lock, events),
        start_new_session=True,
        preexec_fn=_prepare_stage,  # safe: the supervisor has one thread
    )


def _prepare_stage() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        Path("/proc/self/oom_score_adj").write_text(_STAGE_OOM_SCORE)
    except OSError:
        return  # a container may forbid it; the kernel then chooses by size alone


def _watch(
    files: AttemptFiles,
    spec: AttemptSpec,
    pid: int,
    began: float,
    sampler: VramWatch | None,
    used: UsageWatch,
) -> str:
    """Until the stage has ended (it stays a zombie): why it did."""
    lease_until = clock.boottime() + spec.lease_s if spec.lease_s > 0 else math.inf
    stop: _Stop | None = None
    log = LogCap(files.log)
    while True:
        received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, _TICK_S)
        ended = _reap_until(pid)
        log.tick()
        if ended:
            return "exited" if stop is None else stop.cause
        now = clock.boottime()
        if sampler is not None:
            sampler.tick(now)
        used.tick(now)
        if stop is not None:
            if now >= stop.kill_at:
                processes.kill_group(pid, signal.SIGKILL)
            continue
        if files.cancel.exists():
            request = attempts.read_json(files.cancel) or {}
            stop = _Stop("cancelled", now + float(request.get("grace_s", GRACE_S)))
        elif received is not None and received.si_signo == signal.SIGTERM:
            # Nobody cancelled: the host is being shut down, or somebody ends us by hand.
            stop = _Stop("terminated", now + GRACE_S)
        elif spec.timeout_s is not None and now - began > spec.timeout_s:
            stop = _Stop("timeout", now + GRACE_S)
        elif now > lease_until:
            lease_until = _renewed_until(files, lease_until)
            if now > lease_until:
                stop = _Stop("lease_expired", now + GRACE_S)
        if stop is not None:
            processes.kill_group(pid, signal.SIGTERM)


def _renewed_until(files: AttemptFiles, known: float) -> float:
    lease = attempts.read_json(files.lease) or {}
    return float(lease.get("until", known))


def _reap_until(stage: int) -> bool:
    """Reap adopted children; True when the stage itself has ended."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        if ended.si_pid == stage:
            return True
        os.waitpid(ended.si_pid, 0)


def _record(
    files: AttemptFiles,
    spec: AttemptSpec,
    cause: str,
    began: float,
    began_wall: float,
    *,
    outcome: StageOutcome | None,
    returncode: int | None = None,
    signal_number: int | None = None,
    usage: resource.struct_rusage | None = None,
    peak_ram_mib: float = 0.0,
    peak_vram_mib: float | None = None,
    peak_disk_bytes: int | None = None,
) -> ExitRecord:
    # What was sampled may have missed the peak; what the kernel says is of one process alone.
    largest_mib = 0.0 if usage is None else usage.ru_maxrss / 1024
    return ExitRecord(
        attempt=spec.attempt,
        stage=spec.stage,
        returncode=returncode,
        signal=signal_number,
        cause=cause,
        outcome=outcome,
        started_at=began_wall,
        ended_at=clock.wall(),
        wall_s=round(clock.boottime() - began, 3),
        cpu_s=0.0 if usage is None else round(usage.ru_utime + usage.ru_stime, 3),
        peak_rss_mib=round(max(largest_mib, peak_ram_mib), 1),
        peak_vram_mib=peak_vram_mib,
        peak_disk_bytes=peak_disk_bytes,
        events_bytes=files.events.stat().st_size,
        log_bytes=files.log.stat().st_size,
        boot_id=clock.boot_id(),
    )


def _spawn_outcome(message: str) -> StageOutcome:
    return StageOutcome(
        ok=False,
        reason=FailureCode.TOOL_MISSING,
        message=message,
        advice="install the stage environment on this host: cosma worker bootstrap",
    )
