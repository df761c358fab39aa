"""What key a host shows, asked for with paramiko before anything is trusted.

Reads ~/.ssh/config and ~/.ssh/known_hosts through paramiko, which is independent of the library
that carries the traffic.
"""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import paramiko

from dispatcher.core.model import Reason
from dispatcher.errors import TransportError, UsageError

TIMEOUT_S = 15.0


class Standing(StrEnum):
    """What ~/.ssh/known_hosts says of a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"  # another key of this type stands there


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownKey:
    line: str  # "ssh-ed25519 AAAA...", as the inventory pins it
    fingerprint: str  # "SHA256:..."
    standing: Standing
    where: str  # the address and port that were asked


def show(name: str, address: str, port: int | None, ssh_directory: Path | None = None) -> ShownKey:
    """Ask `address` (or an alias of ~/.ssh/config) for its host key.

    Raises TransportError (HOST_UNREACHABLE), UsageError for an unreadable ~/.ssh/config.
    """
    directory = ssh_directory or Path.home() / ".ssh"
    options = _config(directory / "config", address)
    host = str(options.get("hostname", address))
    chosen = port or int(str(options.get("port", 22)))
    where = f"{host}:{chosen}"
    try:
        key = _ask(_open(host, chosen, options))
    except (OSError, EOFError, paramiko.SSHException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TransportError(
            Reason.HOST_UNREACHABLE,
            "host cannot be reached",
            where=name,
            why=f"{where}: {said}",
            fix="Check address and port, and that its SSH server runs",
        ) from None
    return ShownKey(
        line=f"{key.get_name()} {key.get_base64()}",
        fingerprint=key.fingerprint,
        standing=_standing(directory / "known_hosts", host, chosen, key),
        where=where,
    )


def _config(path: Path, address: str) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(address))
    except (paramiko.ConfigParseError, OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot read it", where=str(path), why=str(error)) from None


def _open(
    host: str, port: int, options: dict[str, object]
) -> socket.socket | paramiko.ProxyCommand:
    if command := options.get("proxycommand"):
        return paramiko.ProxyCommand(str(command))
    if jump := options.get("proxyjump"):
        target = shlex.join(["-W", f"{host}:{port}", str(jump)])
        return paramiko.ProxyCommand(f"ssh -o BatchMode=yes {target}")
    return socket.create_connection((host, port), timeout=TIMEOUT_S)


def _ask(channel: socket.socket | paramiko.ProxyCommand) -> paramiko.PKey:
    transport = paramiko.Transport(channel)
    try:
        transport.start_client(timeout=TIMEOUT_S)
        return transport.get_remote_server_key()
    finally:
        transport.close()


def _standing(path: Path, host: str, port: int, key: paramiko.PKey) -> Standing:
    known = paramiko.HostKeys()
    if path.is_file():
        known.load(str(path))
    entry = known.lookup(host if port == 22 else f"[{host}]:{port}")
    if entry is None or key.get_name() not in entry:
        return Standing.UNKNOWN
    return Standing.KNOWN if entry[key.get_name()] == key else Standing.CONFLICT
