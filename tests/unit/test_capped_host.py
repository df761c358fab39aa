"""What comes to a host with a bandwidth cap comes one after another, by whichever way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from dispatcher.executors import passing, relay
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import SMALL
from dispatcher.inventory_model import InventoryHost
from worker_agent.protocol import FetchRequest, UnpackRequest


class Ways:
    """Stands for the agent, the pusher and the rest; counts what is under way."""

    pace = None

    def __init__(self) -> None:
        self.now = self.most = 0

    async def way(self, *_: Any, **__: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _turn in range(5):
            await asyncio.sleep(0)
        self.now -= 1

    call_one = push = way


@pytest.mark.parametrize(("cap", "most"), [({"limit_mib_s": 1.0}, 1), ({}, 4)])
async def test_one_at_a_time_where_there_is_a_cap(
    cap: dict[str, float], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"name": "w1", "address": "w1", "user": "u", "work_dir": "/w", "transfer": cap}
    executor = SshExecutor(InventoryHost.model_validate(values), cast(Any, None), cast(Any, None))
    ways = Ways()
    monkeypatch.setattr(executor, "_agent", ways)
    monkeypatch.setattr(executor, "_pusher", ways)
    monkeypatch.setattr(passing, "pass_on", ways.way)
    monkeypatch.setattr(relay, "unpack", ways.way)

    async def at_once(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    with (tmp_path / "a").open("wb") as large:
        large.truncate(SMALL + 1)
    fetch = FetchRequest(source="nas:/a", run_dir="/r", path="input/a")
    unpack = UnpackRequest(epoch=1, job="j", run_dir="/r", files=(), source_run_dir="")
    await asyncio.gather(
        executor.fetch(fetch),
        executor.push_file(tmp_path / "a", "/r", "input/a"),
        executor.pass_file(cast(Any, None), 1, "/r", "input/a", sha256=None, progress=ways.way),
        executor.unpack(unpack, None, lambda _: None),
    )
    assert ways.most == most
