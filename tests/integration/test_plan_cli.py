"""`cosma plan`, `why`, `jobs` and `summary` on a stored farm that no dispatcher works on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.model import Job, JobKind, Reservation, Stage
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, Host, Run, Segment
from dispatcher.store.sqlite import SqliteStore
from dispatcher.stored_farm import load_farm
from tests.acceptance.cosma import Cosma
from tests.contract.store_builders import advance
from worker_agent.protocol import GpuFacts, GpuProcess, HostFacts

GIB = 1 << 30
BOB = GpuProcess(pid=77, used_mib=9000, name="python3", user="bob")


def facts(name: str, *gpus: GpuFacts) -> HostFacts:
    return HostFacts(
        protocol=1, agent_hash="h", hostname=name, boot_id="b", python="3.11", stage_python="/p",
        stage_missing=(), cpu_count=16, ram_total_mib=64_000, ram_free_mib=60_000,
        disk_total_bytes=1000 * GIB, disk_free_bytes=800 * GIB, gpus=gpus,
    )  # fmt: skip


def gpu(name: str, mib: int, *processes: GpuProcess) -> GpuFacts:
    used = sum(process.used_mib or 0 for process in processes)
    return GpuFacts(
        uuid=f"GPU-{name}", name=f"RTX {mib}", kind="cuda", total_mib=mib, free_mib=mib - used,
        processes=processes,
    )  # fmt: skip


async def put_host(store: Store, name: str, *gpus: GpuFacts) -> None:
    now = time.time() - 60.0
    await store.upsert_host(
        Host(
            name=name, state="reachable", message="", probed_at=now, updated_at=now,
            facts=dataclasses.asdict(facts(name, *gpus)),
        )
    )  # fmt: skip


async def put_job(store: Store, name: str, auv: str, **values: Any) -> Job:
    job = Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="reef", name=name, auv=auv,
        created_at=1.0, input_bytes=GIB, **values,
    )  # fmt: skip
    segment = Segment(
        id=name, acquisition="reef", auv=auv, gopro_serial="C1", label=name, job=name, clips=(),
        created_at=1.0,
    )  # fmt: skip
    await store.create_segment(segment, job, Run(job=name, config={}, sha256="x", created_at=1.0))
    return job


async def train(store: Store, job: Job, host: str) -> None:
    """Its training has begun on the host a hundred seconds ago."""
    stages = list(m.RECONSTRUCT_STAGES[: m.RECONSTRUCT_STAGES.index(Stage.TRAINING) + 1])
    at = time.time() - 100.0
    events: list[ev.Event] = [ev.HostAssigned(at=at, host=host), ev.InputsReady(at=at)]
    for number, stage in enumerate(stages, start=1):
        on = stage is Stage.TRAINING
        promise = Reservation(
            job=job.id, attempt=number, host=host, slot="train" if on else "extract",
            gpu=f"GPU-{host}" if on else None, mib=7000 if on else 0,
        )  # fmt: skip
        events += [
            ev.StagePlaced(at=at, reservation=promise),
            ev.AttemptStarted(at=at, attempt=number),
            *([] if on else [ev.AttemptSucceeded(at=at, attempt=number)]),
        ]
    await advance(store, job, *events)


@pytest.fixture
def cosma(tmp_path: Path) -> Cosma:
    """gpu-a trains one job, gpu-b is cordoned and partly used by bob; one job fits only gpu-b."""
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        "hosts:\n  - {name: gpu-a, address: 10.0.0.1}\n  - {name: gpu-b, address: 10.0.0.2}\n"
    )

    async def fill() -> None:
        store = await SqliteStore.open(tmp_path / "cosma.db")
        await store.create_acquisition(Acquisition(id="reef", name="Reef", created_at=1.0))
        await put_host(store, "gpu-a", gpu("gpu-a", 12_000))
        await put_host(store, "gpu-b", gpu("gpu-b", 24_000, BOB))
        await store.set_cordoned("gpu-b", True)
        await train(store, await put_job(store, "reef-a-1", "a"), "gpu-a")
        await put_job(store, "reef-a-2", "a")
        await put_job(store, "reef-b-1", "b", need_mib=20_000)
        await store.close()

    asyncio.run(fill())
    return Cosma(tmp_path, inventory)


def test_the_plan_names_the_next_decisions_in_order_and_when_all_is_done(cosma: Cosma) -> None:
    plan = cosma.json("plan")
    first = plan["decisions"][0]
    assert (first["job"], first["kind"], first["host"]) == ("reef-a-2", "assign", "gpu-a")
    times = [one["at"] for one in plan["decisions"]]
    assert times == sorted(times)
    trained = [one for one in plan["decisions"] if one["stage"] == "Training"]
    assert [one["gpu"] for one in trained] == ["GPU-gpu-a"]
    (never,) = plan["never"]
    assert (never["job"], "gpu-b" in never["message"]) == ("reef-b-1", True)
    assert "reef" not in plan["acquisitions"]
    assert plan["as_of"] < plan["end"]["low"] <= plan["end"]["likely"] <= plan["end"]["high"]
    assert 0 < plan["interval"]["share"] < 1
    assert "no dispatcher runs" in plan["notes"][0]
    shown = cosma.run("plan", "--limit", "1")
    assert shown.stdout.splitlines()[1].split("\t")[2:5] == ["reef-a-2", "goes to", "gpu-a"]
    assert "more decisions" in shown.stdout
    assert "reef-b-1 never ends, as things are" in shown.stdout


def test_a_priority_that_was_asked_for_counts_before_a_dispatcher_runs(cosma: Cosma) -> None:
    cosma.run("worker", "resume", "gpu-b")
    assert cosma.run("job", "priority", "reef-b-1", "5").returncode == 0
    assert cosma.json("plan")["decisions"][0]["job"] == "reef-b-1"
    assert cosma.run("job", "priority", "reef-a-2", "9").returncode == 0
    assert cosma.json("plan")["decisions"][0]["job"] == "reef-a-2"


def test_the_priority_of_a_job_that_has_ended_is_refused_at_once(cosma: Cosma) -> None:
    async def end() -> None:
        store = await SqliteStore.open(cosma.database)
        job = await store.job("reef-a-2")
        assert job is not None
        await advance(store, job, ev.CancelRequested(at=1.0))
        await store.close()

    asyncio.run(end())
    done = cosma.run("job", "priority", "reef-a-2", "5")
    assert done.returncode == 2
    assert "it has ended: cancelled" in done.stderr


def test_without_a_dispatcher_a_command_says_what_the_next_one_would_refuse(cosma: Cosma) -> None:
    refused = cosma.run("job", "retry", "reef-a-1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "reef-a-1: retry is refused: it is running (Training on gpu-a)" in refused.stderr
    ended = cosma.run("job", "cancel", "reef-b-1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "no dispatcher runs" in ended.stdout
    # After what was asked before.
    assert "it has ended: cancelled" in cosma.run("job", "cancel", "reef-b-1").stderr
    again = cosma.run("job", "retry", "reef-b-1")
    assert again.returncode == 0, again.stderr


def test_nothing_is_changed_by_planning(cosma: Cosma) -> None:
    before = cosma.json("jobs")
    cosma.json("plan", "--what-if", "resume gpu-b", "--what-if", "priority reef-a-2 9")
    after = cosma.json("jobs")
    for row in (*before, *after):
        row.pop("eta")
    assert before == after


@pytest.mark.parametrize(
    ("changes", "at_once", "ends"),
    [
        (("resume gpu-b",), ["reef-b-1"], False),
        (("resume gpu-b", "free 6000 MiB on gpu-b"), ["reef-b-1"], True),
        (("add host with 24 GiB",), ["reef-b-1"], True),
        (("add host with 16 GiB",), [], False),
        (("remove host gpu-b",), [], True),  # by a smaller plan on gpu-a, which it is given first
    ],
)
def test_a_what_if_says_what_it_would_gain(
    cosma: Cosma, changes: tuple[str, ...], at_once: list[str], ends: bool
) -> None:
    words = [word for change in changes for word in ("--what-if", change)]
    gain = cosma.json("plan", *words)["what_if"]
    assert gain["changes"] == list(changes)
    assert gain["starts_at_once"] == at_once
    assert ("reef-b-1" in gain["now_ends"]) == ends
    assert (gain["acquisitions"].get("reef", {}).get("after") is not None) == ends


@pytest.mark.parametrize(
    ("change", "said"),
    [("explode", "is not understood; expected:"), ("cordon gpu-z", "there is no host gpu-z")],
)
def test_a_what_if_that_means_nothing_is_a_usage_error(
    cosma: Cosma, change: str, said: str
) -> None:
    done = cosma.run("plan", "--what-if", change)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_why_says_whose_memory_it_is_and_what_starts_the_job(cosma: Cosma) -> None:
    why = cosma.json("why", "reef-b-1")
    assert set(why["per_host"]) == {"gpu-a", "gpu-b"}
    assert "20000" in why["per_host"]["gpu-a"]
    by_gpu = {one["gpu"]: one for one in why["gpus"]}
    (training,) = by_gpu["GPU-gpu-a"]["shares"]
    assert (training["whose"], training["mib"]) == ("Training of reef-a-1", 7000)
    assert training["until"] > time.time()
    assert by_gpu["GPU-gpu-b"]["shares"][0]["whose"] == "python3 of bob (pid 77)"
    assert by_gpu["GPU-gpu-b"]["needs_mib"] == 20_000
    assert why["eta"] is None
    offered = [one["what_if"] for one in why["remedies"] if one["what_if"]]
    assert offered == ["resume gpu-b", "add host with 24 GiB"]
    for what_if in offered:
        gain = cosma.json("plan", "--what-if", what_if)["what_if"]
        assert "reef-b-1" in gain["starts_at_once"]
    shown = cosma.run("why", "reef-b-1").stdout
    assert "to start it now: let gpu-b have work again: cosma worker resume gpu-b" in shown
    assert "9000 MiB python3 of bob (pid 77)" in shown
    assert "done: never, as things are" in shown


def test_why_of_a_running_job_says_when_it_is_done(cosma: Cosma) -> None:
    why = cosma.json("why", "reef-a-1")
    assert why["remedies"] == []
    assert why["eta"]["low"] > time.time() - 1.0
    assert "done: " in cosma.run("why", "reef-a-1").stdout


def test_lists_tell_when_jobs_are_done(cosma: Cosma) -> None:
    rows = cosma.jobs()
    assert rows["reef-b-1"]["eta"] is None
    assert rows["reef-a-1"]["eta"]["likely"] < rows["reef-a-2"]["eta"]["likely"]
    head, *lines = cosma.run("jobs").stdout.splitlines()
    column = head.split("\t").index("eta")
    assert ":" in next(line for line in lines if line.startswith("reef-a-1")).split("\t")[column]
    summary = cosma.json("summary", "reef")
    assert summary["eta"] is None
    assert "done: never, as things are" in cosma.run("summary", "reef").stdout
    assert json.loads(cosma.run("top", "--json").stdout)["jobs"][0]["eta"] is not None


async def test_without_an_inventory_the_hosts_of_the_database_are_taken(
    cosma: Cosma, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosma.inventory.rename(cosma.inventory.with_suffix(".gone"))
    assert cosma.run("plan").returncode == 10  # it was named
    listed = cosma.run("jobs")
    assert (listed.returncode, "no ETA" in listed.stderr) == (0, True)
    assert "reef-b-1" in listed.stdout
    why = cosma.json("why", "reef-b-1")
    assert "only what the dispatcher last said" in why["notes"][0]
    monkeypatch.chdir(cosma.directory)
    monkeypatch.delenv("COSMA_INVENTORY", raising=False)
    store = await SqliteStore.open(cosma.database)
    farm = await load_farm(store, cosma.database, None)
    await store.close()
    assert "without an inventory" in farm.notes[1]
    assert [host.name for host in farm.snapshot.hosts] == ["gpu-a", "gpu-b"]
    assert farm.snapshot.hosts[1].cordoned
