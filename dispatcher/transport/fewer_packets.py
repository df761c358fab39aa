"""Spares a connection of asyncssh the packets that the other side ignores."""

from __future__ import annotations

import asyncssh
from asyncssh.constants import MSG_IGNORE
from asyncssh.packet import SSHPacketLogger


def leave_out_ignored(connection: asyncssh.SSHClientConnection) -> None:
    """asyncssh puts an empty one before each packet that it sends, in a system call of its own:
    with a cipher in CBC mode the next IV would be known without it. Only for other ciphers
    (docs/decisions/0008)."""
    send = connection.send_packet

    def send_packet(kind: int, *parts: bytes, handler: SSHPacketLogger | None = None) -> None:
        if kind != MSG_IGNORE:
            send(kind, *parts, handler=handler)

    connection.__dict__["send_packet"] = send_packet
