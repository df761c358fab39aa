"""A session that was lost is opened again when the host is reached, not when a timer says so; what
stages warn of is passed on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import NoReturn, cast

import pytest
from typer.testing import CliRunner

from dispatcher import session as module
from dispatcher.cli import app
from dispatcher.clock import ManualClock
from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.leases import lease_of
from dispatcher.session import HostSession
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import running
from worker_agent.protocol import FrameHeader


class Unreachable:
    """A host whose link is down; counts how often a session was tried."""

    def __init__(self) -> None:
        self.tried: asyncio.Queue[None] = asyncio.Queue()

    async def work_dir(self) -> str:
        return "/w"

    async def follow(self) -> NoReturn:
        self.tried.put_nowait(None)
        raise TransportError(Reason.HOST_UNREACHABLE, "link lost", where="h", why="cut")


async def test_a_probe_that_reaches_the_host_ends_the_rest_before_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 3600.0)
    monkeypatch.setattr(module, "RETRY_MOST_S", 3600.0)
    store = await SqliteStore.open(tmp_path / "db")
    host = Unreachable()
    clock = ManualClock()
    inventory = Inventory(hosts=(InventoryHost(name="h", address="h"),))
    fleet = Fleet(inventory, {"h": cast(Executor, host)}, clock=clock)
    session = HostSession("h", fleet, store, clock, lambda *_: None, 1, lambda _: None)
    session.reached()  # said before the loss, it ends no rest after it
    running_session = asyncio.create_task(session.run())
    job = await running(store)
    await session.watch(job, "", await lease_of(store, job))
    async with asyncio.timeout(60.0):
        await host.tried.get()
        for _ in range(2):
            for _ in range(50):  # turns in which it could try again
                await store.silences()
            assert host.tried.empty(), "it rests"
            session.reached()
            await host.tried.get()
    running_session.cancel()
    await asyncio.gather(running_session, return_exceptions=True)
    await store.close()


def test_what_a_stage_warns_of_is_said_at_once_and_shown_with_its_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "densification stalled at step 700"

    async def heard() -> str:
        store = await SqliteStore.open(tmp_path / "db")
        fleet = Fleet(Inventory(hosts=(InventoryHost(name="h", address="h"),)), {})
        session = HostSession("h", fleet, store, ManualClock(), lambda *_: None, 1, lambda _: None)
        job = await running(store)
        await session.watch(job, "", await lease_of(store, job))
        body = b'{"kind": "progress", "fraction": 0.5}\n'
        body += json.dumps({"kind": "warning", "message": said}).encode() + b"\n"
        for _ in range(2):  # a lost session begins with what may have arrived
            header = FrameHeader(
                kind="events", run_dir=f"/w/{job.id}", attempt=job.attempt, bytes=len(body)
            )
            await session._receive(header, body)
        await store.close()
        return job.id

    job = asyncio.run(heard())
    (record,) = [one for one in caplog.records if said in one.getMessage()]
    assert record.levelname == "WARNING" and record.getMessage().startswith(f"{job}: ")
    shown = CliRunner().invoke(app, ["job", "show", job, "--db", str(tmp_path / "db"), "--json"])
    assert [row["warning"] for row in json.loads(shown.stdout)["warnings"]] == [said]
