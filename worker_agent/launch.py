"""The verb `start`: one attempt, started at most once, detached from whoever asked for it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from worker_agent import attempts, bundle, clock, containment, processes, supervisor
from worker_agent.attempts import AttemptFiles
from worker_agent.durable import make_durable, write_json
from worker_agent.epoch import check_epoch
from worker_agent.paths import work_directory
from worker_agent.processes import Scope
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    AttemptSpec,
    FailureCode,
    StartReply,
)
from worker_agent.refusal import RefusedError
from worker_agent.reserve import drop_reserves, make_reserves
from worker_agent.version import agent_hash

# Readers hold the lock shared for microseconds; a supervisor lets go just after its exit.json.
_LOCK_PATIENCE_S = 3.0
_LOCK_RETRY_S = 0.02
_HELD_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


def start(spec: AttemptSpec) -> StartReply:
    """Start the attempt, or say how far it is when it had been started before.

    Raises RefusedError: stale_epoch (a newer dispatcher has been here), stale_attempt (a later
    attempt has), busy (another attempt of the job runs), cancelled (it was cancelled before).
    """
    if spec.protocol != PROTOCOL_VERSION:
        raise RefusedError(
            "bad_request",
            f"protocol {spec.protocol} asked, this agent speaks {PROTOCOL_VERSION}: "
            "push the agent of the same version",
        )
    files = AttemptFiles.of(spec.run_dir, spec.attempt)
    check_epoch(work_directory(files.run_dir), spec.epoch)
    code = bundle.code_directory()
    files.directory.mkdir(parents=True, exist_ok=True)
    lock = _take_lock(files)
    if lock is None:
        return _reply(files, started=False)
    # The lock is closed here before the state is read: held by this process it would look running.
    try:
        fresh = not files.started.exists()
        if fresh:
            # First of all, so that a `cancel` from now on either is seen here or waits for us.
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{spec.attempt}\n".encode(), 0)
            _admit(files)
            # Killed between the commitment and the fork, it would have started and never run.
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
            _record(files, spec)
            spawned = _detach(files, spec, lock, code)
            # Nobody is told of the attempt before it is on the disk, and the stage's interpreter
            # need not wait for that: a power cut ends it, too.
            make_durable(files.started)
            _wait_for_end(spawned)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_SIGNALS)
        os.close(lock)
    return _reply(files, started=fresh)


def _take_lock(files: AttemptFiles) -> int | None:
    """The run lock, exclusively; None when this very attempt has been started."""
    descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    end = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if files.started.exists():
                os.close(descriptor)
                return None
            holder = attempts.lock_holder(files)
            if holder is not None and attempts.is_abandoned(AttemptFiles(files.run_dir, holder)):
                # Only what they left behind still has the lock.
                processes.sweep(Scope(files.run_dir, holder), but=(os.getpid(),))
            if time.monotonic() > end:
                os.close(descriptor)
                raise RefusedError(
                    "busy", f"{files.run_dir}: attempt {holder} still runs there: cancel it first"
                ) from None
            time.sleep(_LOCK_RETRY_S)
        else:
            return descriptor


def _reply(files: AttemptFiles, *, started: bool) -> StartReply:
    known = attempts.read_json(files.processes) or {}
    pid = known.get("stage")
    return StartReply(
        state=attempts.status(files).state,
        started=started,
        pid=pid if isinstance(pid, int) else None,
    )


def _admit(files: AttemptFiles) -> None:
    """With the lock held: nothing of an older attempt may live, nothing newer may have been."""
    if files.cancel.exists():
        raise RefusedError(
            FailureCode.CANCELLED, f"{files.directory}: cancelled before it was started"
        )
    known = attempts.attempts_of(files.run_dir)
    latest = max(known, default=0)
    if latest > files.attempt:
        raise RefusedError(
            "stale_attempt",
            f"{files.run_dir}: attempt {latest} has been started, {files.attempt} is too late",
        )
    earlier = [AttemptFiles(files.run_dir, number) for number in known]
    if not all(attempt.exit.exists() for attempt in earlier):
        # Whoever writes an exit record has swept before; nobody has for one that has none.
        processes.sweep(Scope(files.run_dir), but=(os.getpid(),))
    for attempt in earlier:
        drop_reserves(attempt)
    if earlier:
        containment.kill(containment.of(earlier[-1]))


def _record(files: AttemptFiles, spec: AttemptSpec) -> None:
    """Everything written before anything runs; started.json comes last: it is the commitment.
    The lease counts in this boot, and spec.json is a copy for people."""
    make_reserves(files)
    body = json.loads(spec.to_json())
    write_json(files.run_dir / "spec.json", body, this_boot=True)
    lease = {"until": clock.boottime() + spec.lease_s, "lease_s": spec.lease_s}
    write_json(files.lease, lease, this_boot=True)
    write_json(
        files.started,
        {
            "spec": body,
            "boot_id": clock.boot_id(),
            "time": clock.wall(),
            "agent_hash": agent_hash(),
            "containment": containment.choose(files).to_dict(),
        },
        this_boot=True,
    )


def _detach(files: AttemptFiles, spec: AttemptSpec, lock: int, code: Path) -> int:
    """Double fork into a new session; the lock travels along, so that it is never free between.
    Returns a descriptor that ends once the stage has been spawned, or could not be."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_supervisor(files, spec, lock, writer, code)
    os.close(writer)
    os.waitpid(child, 0)
    return reader


def _wait_for_end(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as stream:
        stream.read()


def _become_supervisor(
    files: AttemptFiles, spec: AttemptSpec, lock: int, ready: int, code: Path
) -> NoReturn:
    # Whatever happens here, this copy of the process must never return into the verb.
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        processes.close_all_but(0, 1, 2, lock, ready)
        supervisor.supervise(files, spec, lock=lock, ready=ready, code=code)
    except BaseException as error:
        os.write(2, f"supervisor: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)
