"""What `cosma worker ls` and `probe` show of a host: a row of it, a row of each of its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dispatcher.amounts import human_bytes
from dispatcher.core.views import GpuView, HostView
from dispatcher.fleet_view import HostState, not_ready
from worker_agent.protocol import GpuFacts

HOST_COLUMNS = (
    "name", "state", "address", "gpus", "vram_free_mib", "ram_free_mib", "cores", "disk_free",
    "missing", "reason",
)  # fmt: skip
DEVICE_COLUMNS = (
    "name", "state", "device", "gpu", "total_mib", "free_mib", "own_mib", "foreign_mib", "whose",
    "decoding", "encoding", "age_s", "reason",
)  # fmt: skip


def document(state: HostState, view: HostView) -> dict[str, Any]:
    """Everything, for a script."""
    facts = state.facts
    return {
        **host_row(state, view),
        "cordoned": view.cordoned,
        "draining": view.draining,
        "quarantine": view.quarantine.line if view.quarantine else None,
        "gpu_quarantine": {gpu.uuid: gpu.quarantine.line for gpu in view.gpus if gpu.quarantine},
        "ram_total_mib": facts.ram_total_mib if facts else None,
        "ram_own": _own(view.ram_own_mib),
        "devices": [_device(state, gpu) for gpu in view.gpus],
        "facts": dataclasses.asdict(facts) if facts else None,
    }


def host_row(state: HostState, view: HostView) -> dict[str, Any]:
    host, facts = state.host, state.facts
    suspects = [f"{gpu.uuid} is {gpu.quarantine.line}" for gpu in view.gpus if gpu.quarantine]
    return {
        "name": host.name,
        "state": _word(state, view),
        "address": f"{host.address}:{host.port or 22}",
        "gpus": ", ".join(gpu.name for gpu in view.gpus) or None,
        "vram_free_mib": max((gpu.free_mib for gpu in view.gpus), default=None),
        "ram_free_mib": facts.ram_free_mib if facts else None,
        "cores": facts.cpu_count if facts else None,
        "disk_free": human_bytes(facts.disk_free_bytes) if facts else None,
        "missing": ", ".join(facts.stage_missing) or None if facts else None,
        "reason": state.reason
        or (view.quarantine.line if view.quarantine else None)
        or (not_ready(host, facts) if facts else None)
        or (view.storage[1] if view.storage else None)
        or view.gpu_error
        or "; ".join(suspects)
        or None,
    }


def device_rows(state: HostState, view: HostView) -> list[dict[str, Any]]:
    """At least one, so that a host without a device is seen to be there."""
    about = host_row(state, view)
    host = {key: about[key] for key in ("name", "state", "reason")}
    rows = []
    for gpu in view.gpus:
        shown = _device(state, gpu)
        rows.append(
            {
                **shown,
                **host,
                "device": gpu.name,
                "gpu": gpu.uuid,
                "whose": ", ".join(f"{whose}: {mib}" for whose, mib in gpu.holders) or None,
                "decoding": f"{gpu.decode_sessions} of {gpu.max_decode_sessions}",
                "encoding": shown["encoder_sessions"],
                "age_s": round(gpu.probe_age_s),
                "reason": gpu.quarantine.line if gpu.quarantine else host["reason"],
            }
        )
    return rows or [host]


def _word(state: HostState, view: HostView) -> str:
    if not state.reachable:
        return "unreachable"
    if view.draining or view.cordoned:
        return "draining" if view.draining else "cordoned"
    if view.quarantine is not None:
        return "quarantined"
    return "reachable" if view.ready else "not_ready"


def _device(state: HostState, gpu: GpuView) -> dict[str, Any]:
    told = _facts_of(state, gpu.uuid)
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "kind": gpu.kind,
        "parent": told.parent or None,
        "total_mib": gpu.total_mib,
        "free_mib": gpu.free_mib,
        "own_mib": sum(gpu.own_mib.values()),
        "own": _own(gpu.own_mib),
        "foreign_mib": gpu.foreign_mib,
        "foreign": [{"whose": whose, "mib": mib} for whose, mib in gpu.holders],
        "decode_sessions": gpu.decode_sessions,
        "max_decode_sessions": gpu.max_decode_sessions,
        "decoder_percent": told.decoder_percent,
        "encoder_sessions": told.encoder_sessions,
        "age_s": round(gpu.probe_age_s, 1),
        "quarantine": gpu.quarantine.line if gpu.quarantine else None,
    }


def _facts_of(state: HostState, uuid: str) -> GpuFacts:
    told = [*(state.facts.gpus if state.facts else ()), *(one.facts for one in state.silent)]
    return next(gpu for gpu in told if gpu.uuid == uuid)


def _own(own: Mapping[tuple[str, int], int]) -> list[dict[str, Any]]:
    return [
        {"job": job, "attempt": attempt, "mib": mib} for (job, attempt), mib in sorted(own.items())
    ]
