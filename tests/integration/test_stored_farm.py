"""What commands read of the farm is what the dispatcher decides on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.core import events as ev
from dispatcher.core import whatif
from dispatcher.core.model import Stage
from dispatcher.core.snapshot import Snapshot
from dispatcher.store.rows import Acquisition, Host
from dispatcher.store.sqlite import SqliteStore
from dispatcher.stored_farm import load_farm
from tests.contract.store_builders import advance
from tests.integration.test_plan_cli import facts, gpu, put_host, put_job, train
from worker_agent.protocol import GpuProcess


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """gpu-a trains reef-a-1 since a hundred seconds, gpu-b does nothing."""
    (tmp_path / "inventory.yaml").write_text(
        "hosts:\n  - {name: gpu-a, address: 10.0.0.1}\n  - {name: gpu-b, address: 10.0.0.2}\n"
    )
    opened = await SqliteStore.open(tmp_path / "cosma.db")
    await opened.create_acquisition(Acquisition(id="reef", name="Reef", created_at=1.0))
    await put_host(opened, "gpu-b", gpu("gpu-b", 24_000))
    await train(opened, await put_job(opened, "reef-a-1", "a"), "gpu-a")
    yield opened
    await opened.close()


async def snapshot(store: SqliteStore, directory: Path) -> Snapshot:
    farm = await load_farm(store, directory / "cosma.db", directory / "inventory.yaml")
    return dataclasses.replace(farm.snapshot, now=0.0)


async def test_memory_of_an_attempt_that_ended_since_the_probe_is_free(
    store: SqliteStore, tmp_path: Path
) -> None:
    attempt = 6
    mine = GpuProcess(pid=9, used_mib=7000, run_dir="/w/reef/reef-a-1", attempt=attempt)
    await put_host(store, "gpu-a", gpu("gpu-a", 12_000, mine))
    (device,) = (await snapshot(store, tmp_path)).hosts[0].gpus
    assert (device.free_mib, device.own_mib) == (5000, {("reef-a-1", attempt): 7000})
    job = await store.job("reef-a-1")
    assert job is not None and (job.stage, job.attempt) == (Stage.TRAINING, attempt)
    await advance(store, job, ev.AttemptSucceeded(at=time.time(), attempt=attempt))
    (device,) = (await snapshot(store, tmp_path)).hosts[0].gpus
    assert (device.free_mib, device.own_mib) == (12_000, {})
    # What a later probe still sees runs on although it should not.
    seen = facts("gpu-a", gpu("gpu-a", 12_000, mine))
    now = time.time() + 1.0
    await store.upsert_host(
        Host(
            name="gpu-a", state="reachable", message="", probed_at=now, updated_at=now,
            facts=dataclasses.asdict(seen),
        )
    )  # fmt: skip
    (device,) = (await snapshot(store, tmp_path)).hosts[0].gpus
    assert device.own_mib == {("reef-a-1", attempt): 7000}


async def test_a_gpu_that_does_not_answer_stays_with_its_last_figures(
    store: SqliteStore, tmp_path: Path
) -> None:
    one, two = gpu("gpu-a", 12_000), dataclasses.replace(gpu("gpu-a", 24_000), uuid="GPU-two")
    await put_host(store, "gpu-a", one, two)
    broken = dataclasses.replace(facts("gpu-a", one), gpu_error="GPU-two does not answer")
    now = time.time()
    row = Host(
        name="gpu-a", state="reachable", message="", probed_at=now, updated_at=now,
        facts=dataclasses.asdict(broken),
    )  # fmt: skip
    for _ in range(2):
        await store.upsert_host(row)
    known = {device.uuid: device for device in (await snapshot(store, tmp_path)).hosts[0].gpus}
    assert known["GPU-gpu-a"].quarantine is None
    silent = known["GPU-two"]
    assert silent.total_mib == 24_000 and silent.probe_age_s >= 60.0
    assert silent.quarantine is not None and silent.quarantine.silent
    assert "GPU-two does not answer" in silent.quarantine.line
    await put_host(store, "gpu-a", one)  # without an error it is gone
    assert len((await snapshot(store, tmp_path)).hosts[0].gpus) == 1


@pytest.mark.parametrize("word", ["cordon", "drain", "resume"])
async def test_a_what_if_is_the_farm_after_the_command(
    store: SqliteStore, tmp_path: Path, word: str
) -> None:
    await put_host(store, "gpu-a", gpu("gpu-a", 12_000))
    await store.set_cordoned("gpu-a", True, draining=word == "cordon")
    before = await snapshot(store, tmp_path)
    await store.set_cordoned("gpu-a", word != "resume", draining=word == "drain")
    after = await snapshot(store, tmp_path)
    assert before != after
    asked = whatif.apply(before, whatif.parse(f"{word} gpu-a"))
    assert asked.hosts == after.hosts and asked.jobs == after.jobs
