"""fstrim of the hosts' work disks: one for all that was removed within a while."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.errors import HostError
from dispatcher.fleet import Fleet
from dispatcher.store.base import Store
from dispatcher.store.rows import Trim

log = logging.getLogger("cosma")

TRIMMED = "disk_trimmed"  # the event's kind


@dataclass(slots=True)
class Trims:
    """`want` one, let `due` say for which hosts it is time, and `trim` these."""

    fleet: Fleet
    store: Store
    clock: Clock
    window_s: float = 0.0  # a trim of a large disk costs its device as much as much I/O
    _wanted: dict[str, tuple[float, str]] = field(default_factory=dict)  # host -> since when, mode
    _running: dict[str, str] = field(default_factory=dict)  # host -> mode

    def want(self, host: str, mode: str = "auto", *, now: bool = False) -> None:
        """After something was removed there. `now`: without waiting for what else may be."""
        since, known = self._wanted.get(host, (self.clock.monotonic(), mode))
        self._wanted[host] = float("-inf") if now else since, "sudo" if known == "sudo" else mode

    async def take_up(self) -> None:
        """What a dispatcher before this one removed and did not come to trim."""
        for host in await self.store.untrimmed():
            state = self.fleet.state(host)
            if state is not None and state.host.disk.fstrim != "off":
                self.want(host, state.host.disk.fstrim)

    def due(self) -> list[str]:
        """Hosts whose time has come; each is to be given to `trim`."""
        latest = self.clock.monotonic() - self.window_s
        ready = [
            host
            for host, (since, _) in self._wanted.items()
            if since <= latest and host not in self._running
        ]
        self._running.update({host: self._wanted.pop(host)[1] for host in ready})
        return ready

    def hurry(self) -> bool:
        """Wait no longer for what else may be removed; whether anything is left to trim."""
        for host in self._wanted:
            self.want(host, now=True)
        return bool(self._wanted or self._running)

    async def trim(self, host: str) -> None:
        """One that fails is left to the next removal there, or to the next start."""
        try:
            last, freed = (await self.store.untrimmed()).get(host, (0, 0))
            report = await self.fleet.executor(host).trim(self._running[host])
        except HostError as error:
            log.warning("%s: its disk was not trimmed: %s", host, error.line)
        else:
            row = Trim(
                at=self.clock.now(),
                host=host,
                mount=report.mount,
                method=report.method,
                trimmed_bytes=report.trimmed_bytes,
                freed_bytes=freed,
                free_before=report.free_before,
                free_after=report.free_after,
                note=report.note,
            )
            await self.store.add_trim(row, last)
            await self._tell(row)
        finally:
            del self._running[host]

    async def _tell(self, row: Trim) -> None:
        payload = {
            "mount": row.mount,
            "method": row.method,
            "trimmed_bytes": row.trimmed_bytes,
            "freed_bytes": row.freed_bytes,
            "free_before": row.free_before,
            "free_after": row.free_after,
            "note": row.note,
        }
        await self.store.record_event(TRIMMED, host=row.host, payload=payload, at=row.at)
        if row.trimmed_bytes is None:
            log.info("%s: nothing was given back: %s", row.host, row.note)
            return
        log.info(
            "%s: %d bytes given back by trimming %s (by %s; %d bytes free there)",
            row.host,
            min(row.freed_bytes, row.trimmed_bytes),
            row.mount,
            row.method,
            row.free_after,
        )
