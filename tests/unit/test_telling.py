"""What is told of a transfer while it lasts, and that nothing is told after it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from dispatcher import telling
from dispatcher.clock import ManualClock
from dispatcher.input_progress import Arriving
from dispatcher.store.base import StoreError


async def test_it_is_told_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "TELL_S", 0.0)
    told: list[tuple[str, str, dict[str, int]]] = []
    twice = asyncio.Event()

    class Store:
        async def set_progress(
            self, job: str, fraction: float, line: str, numbers: dict[str, int], at: float
        ) -> None:
            told.append((job, line, numbers))
            if len(told) == 2:
                twice.set()

    arriving = Arriving(1000, what="from host-1")

    async def look() -> None:
        arriving.there["x"] = 100 * len(told)

    async with telling.telling(cast(Any, Store()), ManualClock(), "j", arriving, look):
        await twice.wait()
    seen = len(told)
    await asyncio.sleep(0)
    assert len(told) == seen
    assert told[1][0] == "j" and told[1][1].startswith("from host-1: ")
    assert told[1][2] == {"transfer": 100, "of": 1000}


async def test_what_cannot_be_stored_is_complained_of_once_and_the_next_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "TELL_S", 0.0)
    tries = 0
    stored = asyncio.Event()

    class Store:
        async def set_progress(self, *_: object) -> None:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise StoreError("the database cannot be written", why="disk I/O error")
            stored.set()

    with caplog.at_level(logging.WARNING, logger="cosma"):
        async with telling.telling(cast(Any, Store()), ManualClock(), "j", Arriving(1)):
            await stored.wait()
    (complaint,) = caplog.messages
    assert complaint.startswith("j: ") and "disk I/O error" in complaint
