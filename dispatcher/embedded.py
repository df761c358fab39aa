"""Real SSH hosts on this machine: one sshd a host on loopback, each with keys of its own.

The demo and the tests use them; the dispatcher reaches them as it reaches any other host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from dispatcher.errors import CosmaError

_ADDRESS = "127.0.0.1"
_READY_S = 20.0  # until sshd answers; it takes 0.05 s on an idle machine
_STOP_S = 5.0
_SBIN = ("/usr/sbin", "/usr/local/sbin")  # often not on a user's PATH
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORT_TRIES = 5  # another program may take a free port before sshd binds it


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedHost:
    name: str
    port: int
    user: str
    identity_file: Path
    host_key: str  # "ssh-ed25519 AAAA..."
    work_dir: Path
    log: Path


class EmbeddedHosts:
    """`count` sshd processes under `base`, for the length of a `with` block.

        with EmbeddedHosts(3, tmp / "hosts") as hosts:
            load_inventory(hosts.inventory)

    Keys, logs, work directories and `inventory.yaml` stay under `base` after `stop`. Raises
    CosmaError when sshd or ssh-keygen is missing or does not start.
    """

    def __init__(self, count: int, base: Path) -> None:
        self.base = base.absolute()
        self.inventory = self.base / "inventory.yaml"
        self.hosts: tuple[EmbeddedHost, ...] = ()
        self._count = count
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once every host answers; stops those that did when one does not."""
        sshd = _program("sshd")
        keygen = _program("ssh-keygen")
        if os.geteuid() == 0:
            # Where sshd confines its network-facing process; a container has no init to make it.
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.hosts = tuple(
                self._start_host(f"host-{number}", sshd, keygen)
                for number in range(1, self._count + 1)
            )
        except BaseException:
            self.stop()
            raise
        self._write_inventory()

    def stop(self) -> None:
        """Ends the sshd processes. What runs on the hosts goes on, as on real ones."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def sshd_pids(self, name: str) -> list[int]:
        """The server of a host, then the processes of its connections. Raises KeyError."""
        listener = self._processes[name].pid
        return [listener, *_sessions_of(listener)]

    def stop_host(self, name: str) -> None:
        """Ends one host's sshd and its connections, as if its network had gone. What runs there
        goes on. Raises KeyError for an unknown one."""
        _, *sessions = self.sshd_pids(name)
        process = self._processes.pop(name)
        process.terminate()
        process.wait(_STOP_S)
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_host(self, name: str) -> None:
        """The host is back, on the same port. Raises CosmaError when its sshd does not start."""
        host = next(host for host in self.hosts if host.name == name)
        with host.log.open("ab") as stream:
            process = subprocess.Popen(
                [_program("sshd"), "-D", "-e", "-f", str(self.base / name / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._processes[name] = process
        if not _answers(process, host.port):
            raise CosmaError("its sshd does not start again", where=name, fix=f"read {host.log}")

    def power_off(self) -> None:
        """`stop`, and end every process that works in one of the hosts' work directories."""
        self.stop()
        for attempt in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_S
            while pids := _working_in([host.work_dir for host in self.hosts]):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, attempt)
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)

    def _start_host(self, name: str, sshd: str, keygen: str) -> EmbeddedHost:
        folder = self.base / name
        work_dir = folder / "work"
        work_dir.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        host_key, identity = folder / "host_key", folder / "identity"
        for key, comment in ((host_key, f"host key of {name}"), (identity, f"operator of {name}")):
            _make_key(keygen, key, comment)
        keys = folder / "authorized_keys"
        keys.write_text(_public(identity) + "\n")
        keys.chmod(0o600)
        log = folder / "sshd.log"
        for _ in range(_PORT_TRIES):
            port = free_port()
            config = folder / "sshd_config"
            config.write_text(_sshd_config(port, host_key, keys))
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    [sshd, "-D", "-e", "-f", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # Ctrl-C is for the dispatcher, not for the hosts
                )
            self._processes[name] = process
            if _answers(process, port):
                return EmbeddedHost(
                    name=name,
                    port=port,
                    user=pwd.getpwuid(os.geteuid()).pw_name,
                    identity_file=identity,
                    host_key=_public(host_key),
                    work_dir=work_dir,
                    log=log,
                )
            process.kill()
            process.wait()
            del self._processes[name]
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise CosmaError(
            f"embedded host {name}",
            where=str(log),
            why=f"sshd does not start: {lines[-1]}",
            fix="Read the log; `make setup` installs openssh-server",
        )

    def _write_inventory(self) -> None:
        hosts = [
            {
                "name": host.name,
                "address": _ADDRESS,
                "port": host.port,
                "user": host.user,
                "identity_file": str(host.identity_file),
                "host_key": host.host_key,
                "work_dir": str(host.work_dir),
                "transfer": {"authorized_keys": str(self.base / host.name / "authorized_keys")},
            }
            for host in self.hosts
        ]
        defaults = {
            "python": sys.executable,
            "stage_python": sys.executable,
            "max_parallel": {"extract": 1, "sfm": 1, "train": 1, "stitch": 1},
        }
        text = yaml.safe_dump({"defaults": defaults, "hosts": hosts}, sort_keys=False)
        self.inventory.write_text(text)


def _sessions_of(listener: int) -> list[int]:
    """The processes sshd has forked for its connections, not what those have started."""
    found: list[int] = []
    waiting = [listener]
    while waiting:
        pid = waiting.pop()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in map(int, children):
                if b"sshd" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                    found.append(child)
                    waiting.append(child)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def _program(name: str) -> str:
    """The absolute path, which sshd insists on."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))
    if path is None:
        raise CosmaError(
            "embedded hosts",
            where="this machine",
            why=f"{name} is not installed",
            fix="Run `make setup` (it installs openssh-server)",
        )
    return str(Path(path).absolute())


def _make_key(keygen: str, path: Path, comment: str) -> None:
    if path.exists():
        return
    command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode:
        raise CosmaError(
            "embedded hosts",
            where=str(path),
            why=f"ssh-keygen failed: {made.stderr.strip()}",
            fix="Check that the folder can be written",
        )


def _public(key: Path) -> str:
    """Type and key, without the comment."""
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


def free_port() -> int:
    """One that nobody listens on. Not of those that outgoing connections get: one of these would
    take the port of a host that is stopped for a while. Raises OSError."""
    lowest = int(_OUTGOING.read_text().split()[0]) if _OUTGOING.exists() else 32_768
    while True:
        port = random.randrange(min(10_000, lowest - 1), lowest)
        with socket.socket() as probe:
            try:
                probe.bind((_ADDRESS, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """True once sshd sends its banner; False when it has ended, or after `_READY_S`."""
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection((_ADDRESS, port), timeout=_READY_S) as connection:
                if connection.recv(8).startswith(b"SSH-2.0"):
                    return True
        except OSError:
            time.sleep(0.02)
    return False


def _working_in(folders: Sequence[Path]) -> list[int]:
    """Processes whose working directory is one of `folders` or below; never this one."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            where = (entry / "cwd").readlink()
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue  # it has ended, or it is somebody else's
        if not ended and any(where.is_relative_to(folder) for folder in folders):
            pids.append(int(entry.name))
    return pids


def _sshd_config(port: int, host_key: Path, authorized_keys: Path) -> str:
    # `internal-sftp` carries the files; StrictModes would refuse keys under a shared /tmp.
    # SHLVL: bash under sshd reads the operator's ~/.bashrc unless it is a shell within a shell.
    # That file is not for these hosts, may take a second of every command, and one killed in the
    # middle of it can leave a lock that all later ones wait for.
    return f"""\
Port {port}
ListenAddress {_ADDRESS}
HostKey "{host_key}"
AuthorizedKeysFile "{authorized_keys}"
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {"yes" if _is_locked() else "no"}
UseDNS no
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
SetEnv SHLVL=1
LogLevel INFO
"""


def _is_locked() -> bool:
    """Without PAM, sshd refuses a user whose password field begins with "!" (set by passwd -l)."""
    if os.geteuid() != 0:
        return False  # sshd cannot read the shadow file, and does not ask
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    name = pwd.getpwuid(os.geteuid()).pw_name
    return any(line.startswith(f"{name}:!") for line in lines)
