"""Messages about keys that let one host read something of another. Stdlib only."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker_agent.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest(Message):
    """`grant`: the holder of a key may read `path`, until it is taken back or expires."""

    epoch: int
    work_dir: str
    authorized_keys: str
    public_key: str
    name: str  # hex, of the grant
    verb: str  # give: a file | pack: what lies in a run directory
    path: str  # absolute
    lifetime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeRequest(Message):
    """`revoke`: one grant; without a name all that earlier dispatchers have left."""

    epoch: int
    work_dir: str
    authorized_keys: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantReply(Message):
    lines: int  # of authorized_keys, that were added or removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Message):
    """Another host of the farm, and the key that it lets read one thing."""

    destination: str  # [user@]address
    port: int | None
    host_key: str  # the one that is trusted
    private_key: str = field(repr=False)
