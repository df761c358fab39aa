"""The one host key that is accepted."""

from __future__ import annotations

import asyncssh


class PinnedHost(asyncssh.SSHClient):
    """Accepts the pinned host key and no other."""

    def __init__(self, pinned: str | None) -> None:
        self._pinned = pinned
        self.seen: str | None = None

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        del host, addr, port  # whatever the name or address, the key alone decides
        self.seen = key.get_fingerprint("sha256")
        return self._pinned is not None and self.seen == self._pinned


def pinned_fingerprint(host_key: str) -> str:
    """`SHA256:...` of a pinned public key or fingerprint. Raises ValueError."""
    if host_key.startswith("SHA256:"):
        return host_key.rstrip("=")
    return asyncssh.import_public_key(host_key).get_fingerprint("sha256")
