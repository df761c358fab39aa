"""A key for one transfer between two hosts: it may read one thing on one of them, for a while.

Made here, held by the other host in memory only, and taken back when the transfer is over. What a
dispatcher that died has left is taken back by the next one (`sweep`), and expires by itself.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncssh

from dispatcher.core.model import Reason
from dispatcher.errors import HostError, TransferError
from dispatcher.executors.agent import AgentLink
from dispatcher.inventory_model import InventoryHost
from worker_agent.protocol import GrantReply, GrantRequest, Peer, RevokeRequest

LIFETIME_S = 6 * 3600.0


@asynccontextmanager
async def granted(
    agent: AgentLink, host: InventoryHost, path: str, epoch: int, verb: str
) -> AsyncIterator[Peer]:
    """`host` lets the bearer of the Peer have `path`, an absolute one, from `verb` (GrantRequest).

    Raises TransferError where no line may be written, AgentRefusal, TransportError.
    """
    where = host.transfer.authorized_keys
    if where is None:
        raise TransferError(
            Reason.TRANSFER_FAILED, f"{host.name} takes no key for a transfer", where=host.name,
            why="`transfer: {authorized_keys: off}` in the inventory",
        )  # fmt: skip
    installed = await agent.ensure()
    key = asyncssh.generate_private_key("ssh-ed25519")
    name = secrets.token_hex(8)
    destination = host.address if host.user is None else f"{host.user}@{host.address}"
    peer = Peer(
        destination=destination,
        port=host.port,
        host_key=await agent.host_key(),
        private_key=key.export_private_key("openssh").decode(),
    )
    request = GrantRequest(
        epoch=epoch,
        work_dir=installed.work_dir,
        authorized_keys=where,
        public_key=key.export_public_key("openssh").decode().strip(),
        name=name,
        verb=verb,
        path=path,
        lifetime_s=LIFETIME_S,
    )
    try:
        await agent.call_one("grant", request, GrantReply)
        yield peer
    finally:
        await _revoke(agent, host, epoch, name)


async def sweep(agent: AgentLink, host: InventoryHost, epoch: int) -> int:
    """Take back what earlier dispatchers have left; how many. Raises HostError."""
    if host.transfer.authorized_keys is None:
        return 0
    return await _take_back(agent, host, epoch, "")


async def _revoke(agent: AgentLink, host: InventoryHost, epoch: int, name: str) -> None:
    try:
        await _take_back(agent, host, epoch, name)
    except HostError:
        return  # it expires; and the next dispatcher sweeps


async def _take_back(agent: AgentLink, host: InventoryHost, epoch: int, name: str) -> int:
    request = RevokeRequest(
        epoch=epoch,
        work_dir=(await agent.ensure()).work_dir,
        authorized_keys=host.transfer.authorized_keys or "",
        name=name,
    )
    return (await agent.call_one("revoke", request, GrantReply)).lines
