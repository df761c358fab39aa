"""One dispatcher per database, also across processes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from dispatcher.errors import ExitCode
from dispatcher.store.lock import AlreadyLocked, DispatcherLock

# --- one dispatcher ---


def _hold(path: Path, ready: multiprocessing.connection.Connection) -> None:
    with DispatcherLock(path):
        ready.send(os.getpid())
        ready.recv()


def test_a_second_dispatcher_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "cosma.db"
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_hold, args=(path, theirs))
    child.start()
    pid = ours.recv()
    with pytest.raises(AlreadyLocked) as refused:
        DispatcherLock(path).acquire()
    assert refused.value.pid == pid and refused.value.exit_code is ExitCode.LOCKED
    assert f"pid {pid}" in refused.value.line
    child.kill()
    child.join(30)
    with DispatcherLock(path) as lock, pytest.raises(AlreadyLocked):
        DispatcherLock(path).acquire()
    lock.release()
    with DispatcherLock(path):
        pass
