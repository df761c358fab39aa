"""The verbs `renew` and `cancel`: what a dispatcher says to attempts that run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path

from worker_agent import attempts, clock, containment, processes
from worker_agent.attempts import AttemptFiles
from worker_agent.durable import overwrite_text, write_json
from worker_agent.epoch import check_epoch
from worker_agent.paths import work_directory
from worker_agent.processes import Scope
from worker_agent.protocol import AttemptState, AttemptStatus, CancelRequest, RenewRequest
from worker_agent.refusal import is_disk_full
from worker_agent.reserve import drop_reserves

_POLL_S = 0.05
# The supervisor looks every 0.2 s, and sweeps for what escaped after the kill.
_SUPERVISOR_SLACK_S = 3.0


def renew(request: RenewRequest) -> tuple[AttemptStatus, ...]:
    """Extend the leases of those attempts that run, by their own length, from now.

    The replies are in the order asked. Raises RefusedError (stale_epoch).
    """
    check_epoch(Path(request.work_dir), request.epoch)
    return tuple(_renew(attempts.of_reference(reference)) for reference in request.attempts)


def _renew(files: AttemptFiles) -> AttemptStatus:
    status = attempts.status(files)
    if status.state is AttemptState.RUNNING:
        spec = attempts.read_spec(files)
        if spec is not None:
            until = clock.boottime() + spec.lease_s
            _write_lease(files, {"until": until, "lease_s": spec.lease_s})
    return status


def _write_lease(files: AttemptFiles, lease: dict[str, float]) -> None:
    try:
        write_json(files.lease, lease, this_boot=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # A full disk must not cost a stage the lease that was renewed in time.
        overwrite_text(files.lease, json.dumps(lease))


def cancel(request: CancelRequest) -> AttemptStatus:
    """End the attempt and whatever it left behind; one never started can then not start any more.

    Raises RefusedError (stale_epoch). The reply says how it ended; one that had finished before
    stays as it was. Without a supervisor this verb does all of that itself.
    """
    files = AttemptFiles.of(request.run_dir, request.attempt)
    check_epoch(work_directory(files.run_dir), request.epoch)
    scope = Scope(files.run_dir, files.attempt)
    status = attempts.status(files)
    if status.state in (AttemptState.FINISHED, AttemptState.VANISHED):
        _end_leftovers(files, scope)
        return status
    files.directory.mkdir(parents=True, exist_ok=True)
    note = {"grace_s": request.grace_s, "time": clock.wall()}
    write_json(files.cancel, note, reserve=files.reserve("cancel"))
    end = time.monotonic() + request.grace_s + _SUPERVISOR_SLACK_S
    while _is_live(files) and time.monotonic() < end:
        if not _supervised(files):
            _terminate(files, scope, request.grace_s)
            break
        time.sleep(_POLL_S)
    # Nothing is left where a supervisor did its work; where none did, or it hangs, this ends it.
    _end_leftovers(files, scope)
    if status.state is AttemptState.RUNNING:
        _record_end(files)
    return attempts.status(files)


def _end_leftovers(files: AttemptFiles, scope: Scope) -> None:
    processes.sweep(scope, but=_supervisor(files))
    containment.kill(containment.of(files))


def _is_live(files: AttemptFiles) -> bool:
    """Running, or in the middle of its start."""
    state = attempts.status(files).state
    if state is AttemptState.NEVER_STARTED:
        return attempts.lock_is_held(files) and attempts.lock_holder(files) == files.attempt
    return state is AttemptState.RUNNING


def _supervisor(files: AttemptFiles) -> tuple[int, ...]:
    """The pid of the attempt's supervisor, while it lives."""
    known = attempts.read_json(files.processes) or {}
    pid, ticks = known.get("supervisor"), known.get("supervisor_start_ticks")
    if isinstance(pid, int) and isinstance(ticks, int) and processes.is_alive(pid, ticks):
        return (pid,)
    return ()


def _supervised(files: AttemptFiles) -> bool:
    """False only when it is known that the supervisor is dead."""
    return not files.processes.exists() or bool(_supervisor(files))


def _terminate(files: AttemptFiles, scope: Scope, grace_s: float) -> None:
    """What a supervisor would do: TERM, then time to end in order."""
    for pid in scope.members():
        processes.kill(pid, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while attempts.lock_is_held(files) and time.monotonic() < end:
        time.sleep(_POLL_S)


def _record_end(files: AttemptFiles) -> None:
    """The exit record of an attempt whose supervisor left none."""
    descriptor = os.open(files.lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if files.exit.exists():
            return
        record = attempts.ended_record(files, "cancelled", clock.wall())
        if record is not None:
            attempts.write_exit(files, record)
            drop_reserves(files)
    except BlockingIOError:
        return  # something of it still runs (or the next attempt already does): not ended by us
    finally:
        os.close(descriptor)
