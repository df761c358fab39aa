"""Where a host is and how it is recognised, for all that connects to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# AES-GCM costs half the CPU of chacha20-poly1305, which asyncssh would choose first.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
    "chacha20-poly1305@openssh.com",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """Where and as whom to connect. None: what ~/.ssh/config says, else SSH's own default."""

    name: str  # of the host, as operators know it
    address: str
    port: int | None = None
    user: str | None = None
    identity_file: Path | None = None
    host_key: str | None = None  # pinned; None: only a key in ~/.ssh/known_hosts is accepted
    proxy_jump: str | None = None
