"""Keeps what is known of stages' needs in step with the store, one finished attempt at a time."""

from __future__ import annotations

import logging

from dispatcher.core.model import Stage
from dispatcher.core.need import KEPT_RUNS, Needs, Observation
from dispatcher.store.base import Store

log = logging.getLogger("cosma")


class Learning:
    """`needs` is replaced only when answers change: whoever decides by it must start over then.

    Figures are rounded in dispatcher.core.need for that, so that most runs change nothing. Whether
    they do is looked at by `take_up`, once for all the runs since.
    """

    def __init__(self, store: Store, needs: Needs | None = None) -> None:
        self._store = store
        self._newest = self.needs = needs or Needs()
        self._learned: set[tuple[Stage, str]] = set()  # stages and devices with runs since

    @classmethod
    async def from_store(cls, store: Store) -> Learning:
        """With all that earlier runs taught."""
        return cls(store, Needs.learned_from(await store.observations(newest=KEPT_RUNS)))

    async def look(self, job: str, attempt: int) -> None:
        """Learn from an attempt whose end is stored, if that says anything about needs."""
        one = await self._store.observation(job, attempt)
        if one is not None:
            self.learn(one)

    def learn(self, one: Observation) -> None:
        self._newest = self._newest.learn(one)
        self._learned.add((one.stage, one.device))

    def take_up(self) -> Needs:
        """`needs`, replaced if what was learned since the last call changes an answer."""
        learned, self._learned = self._learned, set()
        for stage, device in sorted(learned):
            if not self._newest.agrees(self.needs, stage, device):
                self.needs = self._newest
                log.debug("what %s needs was learned anew", stage)
        return self.needs
