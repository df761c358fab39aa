"""The scope around a stage. No systemd runs here: programs stand where its own would."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from worker_agent import containment
from worker_agent.attempts import AttemptFiles
from worker_agent.containment import Containment

SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def files(tmp_path: Path) -> AttemptFiles:
    files = AttemptFiles(tmp_path / "work" / "reef" / "a-1", 3)
    files.directory.mkdir(parents=True)
    return files


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a systemd-run that obeys; returns the log of its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "true"):
        (programs / name).symlink_to(f"/bin/{name}")
    log = tmp_path / "log"
    program = programs / "systemd-run"
    program.write_text(SYSTEMD_RUN.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(containment, "_BOOTED", tmp_path)
    monkeypatch.setattr(containment.os, "geteuid", lambda: 0)
    return log


def test_commands() -> None:
    argv = ["python3", "-m", "worker_agent.stages", "x"]
    assert Containment().command(argv) == argv
    scope = Containment("systemd_scope", "cosma-1.scope", user=False)
    options = ["--scope", "--quiet", "--collect", "--unit=cosma-1.scope", "--"]
    assert scope.command(argv) == ["systemd-run", *options, *argv]
    mine = Containment("systemd_scope", "cosma-1.scope", user=True)
    assert mine.command(argv) == ["systemd-run", "--user", *options, *argv]


def test_scope_is_chosen_once_one_could_be_made(files: AttemptFiles, systemd: Path) -> None:
    chosen = containment.choose(files)
    assert chosen.kind == "systemd_scope"
    assert chosen.unit.endswith("-3.scope")
    assert "-trial.scope" in systemd.read_text()
    files.started.write_text(json.dumps({"containment": chosen.to_dict()}))
    assert containment.of(files) == chosen
    other = AttemptFiles(files.run_dir, 4)
    assert containment.choose(other).unit != chosen.unit
    # The command keeps its pid: whoever waits for it waits for the stage.
    child = subprocess.Popen(chosen.command(["sh", "-c", "exit $(($$ % 200))"]))
    assert child.wait() == child.pid % 200


def test_manager_that_refuses_leaves_a_session(files: AttemptFiles, systemd: Path) -> None:
    program = Path(os.environ["PATH"]) / "systemd-run"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert containment.choose(files) == Containment()


def test_user_without_lingering_has_a_session(
    files: AttemptFiles, systemd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containment.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(containment.getpass, "getuser", lambda: "diver")
    monkeypatch.setattr(containment, "_LINGER", tmp_path / "linger")
    assert containment.choose(files) == Containment()
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger" / "diver").touch()
    assert containment.choose(files).user


def test_without_systemd_there_is_a_session(
    files: AttemptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containment, "_BOOTED", tmp_path / "absent")
    assert containment.choose(files) == Containment()
    assert containment.of(files) == Containment()
