"""Hosts that can be harmed: real sshd, each in network, mount, process and host name namespaces.

Nothing is made in the machine's own namespaces: one process, the anchor, holds a network with a
bridge and the mounts of the hosts' disks, and everything dies with it, also when the drill is
killed. A host that was switched off leaves its disk behind and comes back with another boot id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from dispatcher.chaos.hostfiles import HostFiles, make_key
from dispatcher.chaos.processes import all_pids, in_space, kill, name_of, parent_of
from dispatcher.chaos.schedule import Kind
from dispatcher.errors import CosmaError

DISK_MIB = 256
_HUB = "10.77.0.1"
_READY_S = 30.0
_TOOLS = ("ip", "mount", "nsenter", "setpriv", "unshare")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(slots=True)
class ChaosHost:
    name: str
    address: str
    link: str  # the hub's end of its cable
    files: HostFiles
    process: subprocess.Popen[bytes] | None = None  # unshare, the parent of its process 1
    boots: int = 0

    @property
    def init(self) -> int:
        """Its process 1, as this machine numbers it. Raises CosmaError while it is off."""
        pid = None if self.process is None else self.process.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if children:
                    return int(children[0])
        raise CosmaError(f"drill host {self.name}", why="it is switched off")


def namespaces_allowed() -> bool:
    """Whether this process may make the namespaces, and the programs for it are there."""
    if os.geteuid() != 0 or any(_find(tool) is None for tool in (*_TOOLS, "sshd")):
        return False
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"],
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return tried.returncode == 0


@dataclass(slots=True)
class NamespaceHosts:
    """`count` hosts under `base`, for the length of a `with` block; satisfies DrillHosts."""

    count: int
    base: Path
    hosts: tuple[ChaosHost, ...] = ()
    possible: frozenset[Kind] = frozenset(Kind)
    _anchor: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def inventory(self) -> Path:
        return self.base / "inventory.yaml"

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.hosts]

    def files(self, name: str) -> HostFiles:
        return self.host(name).files

    def host(self, name: str) -> ChaosHost:
        return next(host for host in self.hosts if host.name == name)

    def inside(self, command: Sequence[str]) -> list[str]:
        """`command`, run where the hosts can be reached; it dies with this process."""
        return ["setpriv", "--pdeathsig", "KILL", "--", *self._enter("--net"), *command]

    def work_dir(self, name: str) -> Path:
        """A host's work directory as seen from here, also while the host is off."""
        assert self._anchor is not None  # noqa: S101 - only used while the hosts stand
        return Path(f"/proc/{self._anchor.pid}/root{self.host(name).files.disk}/work")

    def pids(self, name: str) -> list[int]:
        """Every process on the host but its process 1."""
        try:
            init = self.host(name).init
            space = Path(f"/proc/{init}/ns/pid").readlink()
        except (CosmaError, OSError):
            return []
        return [pid for pid in all_pids() if pid != init and in_space(pid, space)]

    # --- what can be done to a host ---

    def cut_power(self, name: str) -> None:
        """Every process of the host ends at once and its cable is dead."""
        host = self.host(name)
        os.kill(host.init, signal.SIGKILL)
        assert host.process is not None  # noqa: S101 - `init` has just been read
        host.process.wait()
        host.process = None

    def boot(self, name: str) -> None:
        """Switch a host on; returns once its sshd answers."""
        host = self.host(name)
        host.files.boot_id.write_text(f"{uuid.uuid4()}\n")
        host.boots += 1
        # In the script's own words: everything the host runs starts inside these namespaces.
        command = [
            "setpriv", "--pdeathsig", "KILL", "--", *self._enter("--mount"),
            "unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child",
            "--propagation", "private",
            sys.executable, "-I", "-S", str(Path(__file__).with_name("host_init.py")),
            str(host.files.directory), name, _find("sshd") or "sshd",
        ]  # fmt: skip
        with (host.files.directory / "sshd.log").open("ab") as log:
            host.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _wait(lambda: _has_init(host), f"{name} does not boot")
        self._connect(host)
        _wait(lambda: self._answers(host), f"sshd of {name} does not answer")

    def set_link(self, name: str, *, up: bool) -> None:
        self._hub("ip", "link", "set", self.host(name).link, "up" if up else "down")

    def set_blackhole(self, name: str, *, on: bool) -> None:
        """What the host sends to the dispatcher vanishes, without a word to either."""
        verb = "replace" if on else "del"
        self._on(self.host(name), "ip", "route", verb, "blackhole", f"{_HUB}/32")

    def kill_sessions(self, name: str) -> int:
        """SIGKILL to every SSH session of the host; returns how many processes."""
        init = self.host(name).init
        sessions = [
            pid
            for pid in self.pids(name)
            if name_of(pid).startswith("sshd") and parent_of(pid) != init
        ]
        for pid in sessions:
            kill(pid)
        return len(sessions)

    def signal_sshd(self, name: str, number: signal.Signals) -> None:
        """To the server and all its sessions."""
        for pid in self.pids(name):
            if name_of(pid).startswith("sshd"):
                kill(pid, number)

    def fill_disk(self, name: str) -> int:
        """Leave not one free block; returns the bytes taken."""
        path = self.work_dir(name).parent / "ballast"
        taken = 0
        with path.open("wb") as stream:
            block = bytes(1 << 16)
            for size in (len(block), 4096):
                with contextlib.suppress(OSError):
                    while True:
                        taken += os.write(stream.fileno(), block[:size])
        return taken

    def empty_disk(self, name: str) -> None:
        (self.work_dir(name).parent / "ballast").unlink(missing_ok=True)

    def stop(self) -> None:
        """Everything that was made ends here; the files under `base` stay."""
        for host in self.hosts:
            if host.process is not None:
                with contextlib.suppress(CosmaError, ProcessLookupError):
                    os.kill(host.init, signal.SIGKILL)
                host.process.kill()
                host.process.wait()
                host.process = None
        if self._anchor is not None:
            self._anchor.kill()
            self._anchor.wait()
            self._anchor = None

    # --- how it is made ---

    def _start(self) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        identity = self.base / "identity"
        make_key(identity)
        self._anchor = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "--mount",
             "--propagation", "private", "sleep", "infinity"],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        anchor = self._anchor.pid
        _wait(lambda: name_of(anchor) == "sleep", "no namespaces can be made")
        self._hub("ip", "link", "set", "lo", "up")
        self._hub("ip", "link", "add", "br0", "type", "bridge")
        self._hub("ip", "addr", "add", f"{_HUB}/16", "dev", "br0")
        self._hub("ip", "link", "set", "br0", "up")
        self.hosts = tuple(self._prepare(number, identity) for number in range(1, self.count + 1))
        self._write_inventory(identity)
        for host in self.hosts:
            self.boot(host.name)

    def _prepare(self, number: int, identity: Path) -> ChaosHost:
        name = f"host-{number}"
        files = HostFiles(self.base / name)
        files.prepare(name, identity)
        size = f"size={DISK_MIB}m,mode=755"
        self._run([*self._enter("--mount"), "mount", "-t", "tmpfs", "-o", size, name, files.disk])
        address = f"10.77.{1 + number // 250}.{number % 250 + 1}"
        return ChaosHost(name=name, address=address, link=f"v{number}", files=files)

    def _connect(self, host: ChaosHost) -> None:
        """A new cable: the old one went with the namespace it ended in."""
        subprocess.run([*self._enter("--net"), "ip", "link", "del", host.link], capture_output=True)
        peer = ("peer", "name", "eth0", "netns", str(host.init))
        self._hub("ip", "link", "add", host.link, "type", "veth", *peer)
        self._hub("ip", "link", "set", host.link, "master", "br0", "up")
        # The same network card as before the boot.
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in host.address.split("."))
        self._on(host, "ip", "link", "set", "lo", "up")
        self._on(host, "ip", "link", "set", "eth0", "address", mac)
        self._on(host, "ip", "addr", "add", f"{host.address}/16", "dev", "eth0")
        self._on(host, "ip", "link", "set", "eth0", "up")

    def _answers(self, host: ChaosHost) -> bool:
        script = (
            "import socket,sys;s=socket.create_connection((sys.argv[1],22),1);"
            "s.settimeout(1);sys.exit(s.recv(4)!=b'SSH-')"
        )
        tried = subprocess.run(
            [*self._enter("--net"), sys.executable, "-I", "-S", "-c", script, host.address],
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        return tried.returncode == 0

    def _enter(self, *spaces: str) -> list[str]:
        assert self._anchor is not None  # noqa: S101 - only used while the hosts stand
        return ["nsenter", "--target", str(self._anchor.pid), *spaces, "--"]

    def _hub(self, *command: str) -> None:
        self._run([*self._enter("--net"), *command])

    def _on(self, host: ChaosHost, *command: str) -> None:
        self._run(["nsenter", "--target", str(host.init), "--net", "--", *command])

    def _run(self, command: Sequence[str | Path]) -> None:
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SBIN}"},
        )  # fmt: skip
        if done.returncode:
            words = " ".join(str(word) for word in command)
            raise CosmaError("drill hosts", why=f"{words}: {done.stderr.strip()}")

    def _write_inventory(self, identity: Path) -> None:
        hosts = [
            {
                "name": host.name,
                "address": host.address,
                "user": "root",
                "identity_file": str(identity),
                "host_key": host.files.public_key,
                "work_dir": str(host.files.disk / "work"),
                "transfer": {"authorized_keys": str(host.files.directory / "authorized_keys")},
                "python": str(host.files.python),
                "stage_python": str(host.files.stage_python),
            }
            for host in self.hosts
        ]
        defaults = {
            "port": 22,
            "max_parallel": {"extract": 2, "sfm": 1, "train": 1, "stitch": 1},
            "disk": {"min_free_gib": 0.0, "fstrim": "off"},
        }
        text = yaml.safe_dump({"defaults": defaults, "hosts": hosts}, sort_keys=False)
        self.inventory.write_text(text)


def _has_init(host: ChaosHost) -> bool:
    try:
        return bool(host.init)
    except CosmaError:
        return False


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _wait(ready: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + _READY_S
    while not ready():
        if time.monotonic() > end:
            raise CosmaError("drill hosts", why=why, fix="read sshd.log of the host")
        time.sleep(0.01)
