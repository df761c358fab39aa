"""What came to the hosts' disks since they were last probed: a probe cannot have seen it."""

from __future__ import annotations

import dataclasses

from dispatcher.core.model import Job, Step
from dispatcher.core.views import HostView


class Written:
    """Times are monotonic seconds. What jobs brought counts as long as their inputs are, what
    attempts wrote as much as they were promised."""

    def __init__(self) -> None:
        # By host; (job, attempt) -> (bytes, when).
        self._known: dict[str, dict[tuple[str, int], tuple[int, float]]] = {}

    def note(self, before: Job | None, after: Job, now: float) -> str | None:
        """The host to look at again, if this changes something for one."""
        if before is None or before.host is None:
            return None
        old = before.reservation
        if old is not None and old != after.reservation:
            key, count = (old.job, old.attempt), old.disk_bytes
        elif (before.step, after.step) == (Step.TRANSFER, Step.PLACE) and after.host == before.host:
            key, count = (after.id, 0), after.input_bytes
        else:
            return None
        if not count:
            return None
        self._known.setdefault(before.host, {})[key] = count, now
        return before.host

    def freed(self, host: str, now: float) -> None:
        """Something was removed there: how much that made free a probe is to say."""
        self._known.setdefault(host, {})["", 0] = 0, now

    def unseen(self) -> set[str]:
        """Hosts with something that no probe has seen, as far as their views were asked for."""
        return {host for host, known in self._known.items() if known}

    def taken_off(self, view: HostView, probed_at: float) -> HostView:
        """The host's view with this off its free disk."""
        known = self._known.get(view.name)
        if not known:
            return view
        for key in [key for key, (_, at) in known.items() if at <= probed_at]:
            del known[key]
        count = sum(count for count, _ in known.values())
        return dataclasses.replace(view, disk_free_bytes=view.disk_free_bytes - count)
