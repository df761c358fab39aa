"""Whether a GPU broke while a stage ran: uncorrected ECC errors, Xids of the hardware, a lost GPU.

Xids: NVIDIA's "Xid Errors" catalogue; those an application can cause (13, 31, 43, 45) do not count.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from worker_agent import driver_query, nvidia_smi

QUERY = (
    "--query-gpu=uuid,pci.bus_id,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader,nounits",
)
HARDWARE_XIDS = frozenset({48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 136, 140, 143})

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_LOST = ("GPU is lost", "fallen off the bus", "Unable to determine the device handle")
_KERNEL_LOG = "/dev/kmsg"


@dataclass(frozen=True, slots=True)
class Health:
    bus: str
    uncorrected: int | None  # None: this GPU has no ECC


def parse_health(text: str) -> dict[str, Health]:
    """By GPU UUID, from the answer to QUERY."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3:
            count = int(fields[2]) if fields[2].isdigit() else None
            found[fields[0]] = Health(fields[1], count)
    return found


def hardware_xids(kernel_log: str, bus: str) -> list[int]:
    """Xids of the GPU at PCI `bus`, in the order they were logged."""
    return [
        int(match[2])
        for match in _XID.finditer(kernel_log)
        if _slot(match[1]) == _slot(bus) and int(match[2]) in HARDWARE_XIDS
    ]


def _slot(bus: str) -> tuple[int, ...]:
    """(bus, device) of "00000000:3B:00.0" and of "0000:3b:00"."""
    parts = bus.partition(".")[0].split(":")[-2:]
    return tuple(int(part, 16) for part in parts)


class FaultWatch:
    """Make one when the stage starts, ask `faults` when it has failed. Never blocks the start."""

    def __init__(self, gpu: str) -> None:
        self._gpu = gpu
        self._first: driver_query.Child | None = None
        if nvidia_smi.is_installed():
            self._first = nvidia_smi.start(QUERY)
        try:
            self._kernel_log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._kernel_log, 0, os.SEEK_END)
        except OSError:
            self._kernel_log = -1  # not everybody may read it

    def faults(self) -> dict[str, Any]:
        """What broke since: {"ecc_uncorrected": n, "xid": [...], "lost": why}; empty when nothing
        is known to have. Waits for the driver, but not for long."""
        before = self._before()
        if before is None:
            return {}
        found: dict[str, Any] = {}
        try:
            after = parse_health(nvidia_smi.ask(QUERY)).get(self._gpu)
            if after is None:
                found["lost"] = f"{nvidia_smi.PROGRAM} no longer lists {self._gpu}"
            elif (after.uncorrected or 0) > (before.uncorrected or 0):
                found["ecc_uncorrected"] = (after.uncorrected or 0) - (before.uncorrected or 0)
        except nvidia_smi.SmiError as error:
            if any(sign in str(error) for sign in _LOST):
                found["lost"] = str(error)
        xids = hardware_xids(self._logged(), before.bus)
        if xids:
            found["xid"] = xids
        return found

    def _before(self) -> Health | None:
        if self._first is None:
            return None
        (answer,) = driver_query.answers([self._first], nvidia_smi.TIMEOUT_S)
        return parse_health("\n".join(answer.lines)).get(self._gpu)

    def _logged(self) -> str:
        """What the kernel has logged since the start: one record a read."""
        records = []
        while self._kernel_log >= 0:
            try:
                records.append(os.read(self._kernel_log, 8192).decode(errors="replace"))
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # records were overwritten before they were read
        return "\n".join(records)
