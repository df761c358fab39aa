"""A transient systemd scope around a stage, where systemd runs: its control group finds every
descendant, and logind's KillUserProcesses does not reach into it.

`systemd-run --scope` registers itself and then becomes the command, so that the stage keeps its
pid, its open files and its parent. Everywhere else the stage only has a session of its own.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker_agent.attempts import AttemptFiles, read_json

_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_LINGER = Path("/var/lib/systemd/linger")
_RUNTIME = Path("/run/user")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Containment:
    """`kind` is "systemd_scope" or "session"; `unit` is the scope's name."""

    kind: str = "session"
    unit: str = ""
    user: bool = False  # of the user's own manager, not of the system's

    def command(self, argv: list[str]) -> list[str]:
        """What to execute so that `argv` runs contained."""
        if self.kind != "systemd_scope":
            return argv
        manager = ["--user"] if self.user else []
        options = ["--scope", "--quiet", "--collect", f"--unit={self.unit}"]
        return ["systemd-run", *manager, *options, "--", *argv]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(files: AttemptFiles) -> Containment:
    """A scope where systemd runs, is reachable and has just made one; else only a session.

    A user's own manager counts only with lingering: without, it ends with the last login.
    """
    if not _BOOTED.is_dir() or shutil.which("systemd-run") is None:
        return Containment()
    user = os.geteuid() != 0
    if user and not _lingers():
        return Containment()
    name = hashlib.sha256(files.cookie.encode()).hexdigest()[:16]
    chosen = Containment("systemd_scope", f"cosma-{name}-{files.attempt}.scope", user)
    trial = Containment("systemd_scope", f"cosma-{name}-{files.attempt}-trial.scope", user)
    return chosen if _succeeds(trial.command(["true"])) else Containment()


def _lingers() -> bool:
    try:
        return (_LINGER / getpass.getuser()).exists()
    except (KeyError, OSError):
        return False  # a user without a name


def of(files: AttemptFiles) -> Containment:
    """What started.json says was chosen."""
    value = (read_json(files.started) or {}).get("containment")
    if not isinstance(value, dict) or value.get("kind") != "systemd_scope":
        return Containment()
    return Containment("systemd_scope", str(value.get("unit")), bool(value.get("user")))


def kill(contained: Containment) -> None:
    """Kill what is left in the scope; one that is gone, or was never made, is fine."""
    if contained.kind == "systemd_scope":
        manager = ["--user"] if contained.user else []
        _succeeds(["systemctl", *manager, "kill", "--signal=KILL", contained.unit])


def environment() -> dict[str, str]:
    """What reaches the user's manager also from a session that PAM did not set up."""
    return {"XDG_RUNTIME_DIR": str(_RUNTIME / str(os.geteuid())), **os.environ}


def _succeeds(argv: list[str]) -> bool:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            env=environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
