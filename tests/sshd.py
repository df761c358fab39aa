"""Real sshd processes on loopback ports, each with keys, configuration and log of its own.

Import `farm` into a test module to use it as a fixture.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from dispatcher.embedded import free_port
from dispatcher.inventory_model import InventoryHost
from dispatcher.transport.target import SshTarget

SSHD = "/usr/sbin/sshd"
_READY_S = 20.0

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {key}
AuthorizedKeysFile {authorized}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups {max_startups}
LogLevel ERROR
Subsystem sftp internal-sftp
SetEnv SHLVL=1{more}
"""


@dataclass(slots=True)
class Sshd:
    """One running server. `client_key` may log in as the user who runs the tests."""

    name: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    client_key: Path

    @property
    def host_key(self) -> str:
        return " ".join((self.directory / "host_key.pub").read_text().split()[:2])

    @property
    def work_dir(self) -> Path:
        return self.directory / "work"

    def target(self, **changes: object) -> SshTarget:
        values: dict[str, object] = {
            "name": self.name,
            "address": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity_file": self.client_key,
            "host_key": self.host_key,
        }
        return SshTarget(**{**values, **changes})  # type: ignore[arg-type]

    def inventory_host(self, **changes: object) -> InventoryHost:
        values: dict[str, object] = {
            "name": self.name,
            "address": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity_file": self.client_key,
            "host_key": self.host_key,
            "work_dir": str(self.work_dir),
        }
        keys = {"authorized_keys": str(self.directory / "authorized_keys")}
        changes["transfer"] = {**keys, **cast(dict[str, object], changes.get("transfer", {}))}
        return InventoryHost.model_validate({**values, **changes})

    def sessions(self) -> list[int]:
        """Process ids of this server's open connections."""
        return _children(self.process.pid)

    def kill_sessions(self) -> int:
        """Cut every connection the hard way; the commands in them lose their link."""
        pids = [pid for child in self.sessions() for pid in (*_children(child), child)]
        killed = 0
        for pid in pids:
            if b"sshd:" in _command_line(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.kill_sessions()
        self.process.kill()
        self.process.wait()


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return []
    return [int(part) for part in text.split()]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """A key pair without passphrase."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


class Farm:
    """Starts servers under one directory and stops them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[Sshd] = []
        self.client_key = make_key(directory / "client_key")

    def start(
        self,
        name: str = "alpha",
        *,
        port: int | None = None,
        max_startups: str = "100",
        programs: Path | None = None,
    ) -> Sshd:
        """What lies in `programs` comes first in PATH there. Raises RuntimeError with sshd's own
        words when it does not answer."""
        home = self.directory / name
        home.mkdir(exist_ok=True)
        if not (home / "host_key").exists():
            make_key(home / "host_key")
        (home / "authorized_keys").write_bytes(self.client_key.with_suffix(".pub").read_bytes())
        chosen = port or free_port()
        (home / "sshd_config").write_text(
            _CONFIG.format(
                port=chosen,
                key=home / "host_key",
                authorized=home / "authorized_keys",
                max_startups=max_startups,
                more=f" PATH={programs}:{os.environ['PATH']}" if programs else "",
            )
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation wants it
        with (home / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(home / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        server = Sshd(name, chosen, home, process, self.client_key)
        self.servers.append(server)
        _wait_for_banner(server)
        return server

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:  # each one, whatever another's stop raises
            for server in self.servers:
                stack.callback(server.stop)


def _wait_for_banner(server: Sshd) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as client:
                if client.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.02)  # nothing to await: sshd tells nobody that it listens
    said = (server.directory / "sshd.log").read_text().strip()
    raise RuntimeError(f"sshd {server.name} does not answer on port {server.port}: {said}")


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    directory = tmp_path / "farm"
    directory.mkdir()
    made = Farm(directory)
    try:
        yield made
    finally:
        made.stop()
