"""Spreads connects: few at a time to one SSH server, however many hosts lie behind it."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

# OpenSSH drops connections at random from the eleventh that has not authenticated yet on
# (MaxStartups 10:30:100), and a busy server still counts some that have: they need room, too, and
# so does the operator's own ssh.
CONNECTS_AT_ONCE = 6

_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = (
    WeakKeyDictionary()
)


def gate(server: str) -> asyncio.Semaphore:
    """To be held from the first byte to the end of authentication with `server`, an address and
    port or a jump host."""
    gates = _gates.setdefault(asyncio.get_running_loop(), {})
    return gates.setdefault(server, asyncio.Semaphore(CONNECTS_AT_ONCE))
