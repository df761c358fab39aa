"""The verbs `renew` and `cancel`: what a dispatcher says to attempts that run."""

from __future__ import annotations

import time
from pathlib import Path

from worker_agent import attempts, clock, processes
from worker_agent.attempts import AttemptFiles
from worker_agent.epoch import check_epoch
from worker_agent.paths import work_directory
from worker_agent.protocol import AttemptState, AttemptStatus, CancelRequest, RenewRequest
from worker_agent.stages.api import write_json

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
            write_json(files.lease, {"until": until, "lease_s": spec.lease_s})
    return status


def cancel(request: CancelRequest) -> AttemptStatus:
    """End the attempt and wait until it has ended; one never started can then not start any more.

    Raises RefusedError (stale_epoch). The reply says how it ended; one that had finished before
    stays as it was.
    """
    files = AttemptFiles.of(request.run_dir, request.attempt)
    check_epoch(work_directory(files.run_dir), request.epoch)
    status = attempts.status(files)
    if status.state in (AttemptState.FINISHED, AttemptState.VANISHED):
        # What it left behind has no supervisor any more.
        processes.sweep(files.cookie, but=0)
        return status
    files.directory.mkdir(parents=True, exist_ok=True)
    write_json(files.cancel, {"grace_s": request.grace_s, "time": clock.wall()})
    if status.state is AttemptState.NEVER_STARTED and attempts.lock_holder(files) != files.attempt:
        return attempts.status(files)
    end = time.monotonic() + request.grace_s + _SUPERVISOR_SLACK_S
    while time.monotonic() < end:
        status = attempts.status(files)
        if status.state is not AttemptState.RUNNING:
            return status
        time.sleep(_POLL_S)
    # Nobody obeys: the supervisor is dead or stuck, and the cookie finds them all.
    processes.sweep(files.cookie, but=0)
    return attempts.status(files)
