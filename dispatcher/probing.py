"""A host is probed, and what it says is written down."""

from __future__ import annotations

import dataclasses

from dispatcher.clock import Clock
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState
from dispatcher.store.base import Store
from dispatcher.store.rows import Host


async def probed(
    fleet: Fleet, store: Store, clock: Clock, host: str, timeout_s: float, *, anew: bool
) -> HostState | None:
    """`anew`: by a probe that begins now. None: the host left the inventory."""
    probe = fleet.probe_anew if anew else fleet.probe
    state = await probe(host, timeout_s)
    if state is None:
        return None
    now = clock.now()
    await store.upsert_host(
        Host(
            name=host,
            state="reachable" if state.reachable else str(state.reason),
            message=state.message,
            facts=dataclasses.asdict(state.facts) if state.facts else None,
            probed_at=now if state.reachable else None,
            updated_at=now,
        )
    )
    return state
