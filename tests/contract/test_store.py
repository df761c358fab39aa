"""What every store must do with jobs, stitches, hosts and requests; on a real SQLite file."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.breaker import Breaker, Failure, Position
from dispatcher.core.machine import step
from dispatcher.core.model import JobKind, JobState, Reason, Stage, Step
from dispatcher.core.plan import SegmentView, StitchLevel
from dispatcher.store.base import StaleRevision, Store, StoreError
from dispatcher.store.rows import (
    Acquisition,
    Applied,
    Host,
    Offsets,
    Stitch,
)
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import (
    JOB,
    RUN,
    SEGMENT,
    advance,
    fill,
    placed,
    running,
)

# --- what is to be done ---


async def test_making_something_twice_makes_it_once(store: Store) -> None:
    acquisition = Acquisition(id="dive", name="Dive", created_at=1.0)
    assert await store.create_acquisition(acquisition)
    assert not await store.create_acquisition(acquisition)
    assert await store.create_segment(SEGMENT, JOB, RUN)
    moved = (await advance(store, JOB, ev.HostAssigned(at=1.0, host="h"))).job
    assert not await store.create_segment(SEGMENT, JOB, RUN)
    assert await store.load_jobs() == [moved]
    assert await store.segments(acquisition="dive") == [SEGMENT]
    assert await store.segments(job="other") == []
    view = SegmentView(
        job=JOB.id, auv=SEGMENT.auv, name=SEGMENT.label, state=moved.state,
        created_at=SEGMENT.created_at,
    )  # fmt: skip
    assert await store.segment_views("dive") == [view]
    assert await store.segment_views("other") == []
    assert await store.run(JOB.id) == RUN
    assert await store.acquisitions() == [acquisition]


async def test_a_segment_that_cannot_be_made_leaves_no_job_behind(store: Store) -> None:
    await fill(store)
    twin = dataclasses.replace(JOB, id="twin")
    same_place = dataclasses.replace(SEGMENT, id="twin", job="twin")
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.create_segment(same_place, twin, dataclasses.replace(RUN, job="twin"))
    assert await store.job("twin") is None


async def test_jobs_come_back_as_they_were(store: Store) -> None:
    await fill(store)
    full = dataclasses.replace(
        JOB, id="full", kind=JobKind.STITCH, auv=None, stage=Stage.STITCH, priority=3,
        state=JobState.HELD, step=Step.REST, host="h", inputs_on_host=True, need_mib=9000,
        retries={"gpu": 2}, not_before=5.5, reason=Reason.GPU_OUT_OF_MEMORY,
        message="needs “more”", advice="x", avoid_hosts=("a", "b"), created_at=0.5, origin="o",
        leftovers=("l", "m"),
    )  # fmt: skip
    assert await store.create_job(full, dataclasses.replace(RUN, job="full"))
    assert await store.job("full") == full
    assert await store.load_jobs() == [full, JOB]
    assert await store.load_jobs(active_only=True) == [JOB]
    assert await store.load_jobs(acquisition="other") == []
    assert await store.job("nobody") is None


async def test_only_jobs_made_since_are_told(store: Store) -> None:
    assert await store.new_jobs(0) == (0, [])
    await fill(store)
    position, made = await store.new_jobs(0)
    assert made == [JOB]
    assert await store.new_jobs(position) == (position, [])
    later = [
        dataclasses.replace(JOB, id=name, kind=JobKind.STITCH, created_at=at)
        for name, at in (("b", 9.0), ("a", 9.0), ("c", 0.5))
    ]
    for job in later:
        await store.create_job(job, dataclasses.replace(RUN, job=job.id))
    _, made = await store.new_jobs(position)
    assert [job.id for job in made] == ["c", "a", "b"], "oldest first"
    assert (await store.new_jobs(0))[1] == await store.load_jobs()


async def test_epochs_order_the_dispatchers_of_two_databases(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = await SqliteStore.open(tmp_path_factory.mktemp("other") / "cosma.db")
    first = await store.new_epoch(host="a", pid=1, at=1_700_000_000.0)
    second = await other.new_epoch(host="b", pid=1, at=1_700_000_000.5)
    third = await store.new_epoch(host="a", pid=2, at=1_700_000_001.0)
    assert first < second < third
    # The clock of a host went back: a restart still outranks the dispatcher before it.
    assert await store.new_epoch(host="a", pid=3, at=1_600_000_000.0) == third + 1
    await other.close()


# --- transitions ---


async def test_a_transition_is_one_commit_of_job_attempt_reservation_lease_and_event(
    store: Store,
) -> None:
    assert await store.last_epoch() == 0
    assert await store.new_epoch(host="here", pid=1, at=0.0) == 1
    assert await store.new_epoch(host="here", pid=2, at=0.0) == 2
    assert await store.last_epoch() == 2
    job = await running(store)
    assert job.revision == 4 and await store.job(job.id) == job
    assert job.reservation is not None
    (attempt,) = await store.attempts(job.id)
    assert (attempt.stage, attempt.host, attempt.gpu) == (Stage.VALIDATION, "h", "GPU-1")
    assert (attempt.state, attempt.epoch, attempt.stimulus) == ("running", 2, "7")
    assert (attempt.committed_at, attempt.started_at, attempt.ended_at) == (3.0, 4.0, None)
    (lease,) = await store.leases()
    assert (lease.job, lease.attempt, lease.host, lease.renewed_at) == (job.id, 1, "h", 3.0)
    events = await store.events(job=job.id)
    assert [e.kind for e in events] == [
        "host_assigned", "inputs_ready", "stage_placed", "attempt_started",
    ]  # fmt: skip
    assert events[2].payload["reservation"]["mib"] == 6000 and events[2].stimulus == "7"
    assert [e.attempt for e in events] == [None, None, 1, 1]

    over, event, _ = await advance(
        store, job, ev.AttemptSucceeded(at=9.0, attempt=1, metrics={"n": 1}, resumed=True)
    )
    assert over.reservation is None and await store.job(job.id) == over
    (attempt,) = await store.attempts(job.id)
    assert (attempt.state, attempt.ended_at, attempt.resumed) == ("succeeded", 9.0, True)
    assert await store.leases() == []
    assert event == str((await store.events(kind="attempt_succeeded"))[0].id)


async def test_a_failed_attempt_keeps_its_reason_and_evidence(store: Store) -> None:
    job = await running(store)
    failure = ev.AttemptFailed(
        at=9.0, attempt=1, reason=Reason.FRAMES_TOO_FEW, message="3 frames", evidence={"frames": 3}
    )
    held = (await advance(store, job, failure)).job
    assert (await store.job(job.id)) == held and held.state is JobState.HELD
    (attempt,) = await store.attempts(job.id)
    assert (attempt.state, attempt.reason, attempt.evidence) == (
        "failed", Reason.FRAMES_TOO_FEW, {"frames": 3},
    )  # fmt: skip


async def test_a_stale_writer_changes_nothing(store: Store) -> None:
    job = await running(store)
    fresh = (await advance(store, job, ev.PriorityChanged(at=5.0, priority=4))).job
    events = await store.events()
    end = ev.AttemptSucceeded(at=9.0, attempt=1)
    with pytest.raises(StaleRevision, match="revision 4"):
        await store.apply(job, step(job, end)[0], end)
    assert await store.job(job.id) == fresh
    assert await store.events() == events
    assert len(await store.leases()) == 1
    assert [a.state for a in await store.attempts(job.id)] == ["running"]


async def test_of_two_writers_one_wins(path: Path, store: Store) -> None:
    job = await fill(store)
    other = await SqliteStore.open(path)
    event = ev.HostAssigned(at=1.0, host="h")
    after, _ = step(job, event)
    results = await asyncio.gather(
        *(s.apply(job, after, event) for s in (store, other) for _ in range(5)),
        return_exceptions=True,
    )
    await other.close()
    assert sum(isinstance(r, Applied) for r in results) == 1
    assert sum(isinstance(r, StaleRevision) for r in results) == 9
    assert len(await store.events(kind="host_assigned")) == 1


async def test_an_attempt_number_is_given_once(store: Store) -> None:
    job = await running(store)
    again = dataclasses.replace(job, step=Step.PLACE, reservation=None, attempt=0)
    over = ev.AttemptFailed(at=5.0, attempt=1, reason=Reason.STAGE_CRASHED, message="x")
    back = (await store.apply(job, again, over)).job
    event = placed(back)
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.apply(back, step(back, event)[0], event)
    assert await store.job(job.id) == back


def _die_in_the_middle(path: Path) -> None:
    """Commits two transitions, leaves a third one open, and is killed."""

    async def work() -> None:
        store = await SqliteStore.open(path)
        job = await running(store)
        await store.append_stream(job.id, 1, log=b"abc", log_to=3)
        await advance(store, job, ev.PriorityChanged(at=5.0, priority=8))
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE jobs SET priority = 99")
        os.kill(os.getpid(), 9)

    asyncio.run(work())


async def test_what_was_committed_survives_a_kill_and_nothing_else(path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_die_in_the_middle, args=(path,))
    child.start()
    await asyncio.to_thread(child.join, 60)
    assert child.exitcode == -9
    store = await SqliteStore.open(path)
    job = await store.job(JOB.id)
    assert job is not None and job.priority == 8 and job.step is Step.RUN
    assert job.reservation is not None and job.reservation.attempt == 1
    assert await store.attempt_offsets(job.id, 1) == Offsets(events=0, log=3)
    assert await store.new_epoch(host="here", pid=1, at=0.0) == 1
    end = ev.AttemptSucceeded(at=9.0, attempt=1)
    assert (await advance(store, job, end)).job.stage is Stage.FRAME_EXTRACTION
    await store.close()


async def test_reopening_finds_the_same_and_migrates_nothing_twice(path: Path) -> None:
    store = await SqliteStore.open(path)
    job = await running(store)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="not open"):
        await store.load_jobs()
    again = await SqliteStore.open(path)
    assert await again.load_jobs() == [job]
    await again.close()


async def test_a_database_of_a_newer_version_or_of_something_else_is_refused(path: Path) -> None:
    await (await SqliteStore.open(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=999")
    connection.close()
    with pytest.raises(StoreError, match="schema 999"):
        await SqliteStore.open(path)
    text = path.with_name("text.db")
    text.write_text("this is no database, but long enough to be looked at " * 30)
    with pytest.raises(StoreError, match="not a database"):
        await SqliteStore.open(text)


# --- stitches, hosts, requests, waiting ---


async def test_a_stitch_follows_its_job(store: Store) -> None:
    await fill(store)
    job = dataclasses.replace(JOB, id="s", kind=JobKind.STITCH, stage=Stage.STITCH)
    stitch = Stitch(
        id="s", acquisition="dive", level=StitchLevel.PER_AUV, auv="a", version=1,
        members=("dive-a-2", "dive-a-1"), state=JobState.QUEUED, created_at=2.0, job="s",
    )  # fmt: skip
    run = dataclasses.replace(RUN, job="s")
    assert await store.create_stitch(stitch, job, run)
    assert not await store.create_stitch(stitch, job, run)
    assert await store.stitches(acquisition="dive") == [stitch]
    job = (await advance(store, job, ev.HostAssigned(at=1.0, host="h"))).job
    found = await store.stitch("s")
    assert found is not None and found.state is JobState.CLAIMED
    await store.update_stitch("s", report={"inliers": 40})
    found = await store.stitch("s")
    assert found == dataclasses.replace(stitch, state=JobState.CLAIMED, report={"inliers": 40})
    through = dataclasses.replace(
        stitch, id="p", job=None, passthrough=True, state=JobState.DONE, auv="b", created_at=3.0
    )
    assert await store.create_stitch(through, None, None)
    assert [s.id for s in await store.stitches()] == ["s", "p"]
    with pytest.raises(StoreError, match="no such stitch"):
        await store.update_stitch("none", state=JobState.DONE)


async def test_a_host_keeps_its_last_facts_and_its_cordon(store: Store) -> None:
    device = {"uuid": "GPU-1", "name": "x", "kind": "cuda", "total_mib": 9, "free_mib": 8}
    seen = Host(
        name="h", state="reachable", message="", facts={"gpus": [device], "boot_id": "b"},
        probed_at=5.0, updated_at=5.0,
    )  # fmt: skip
    await store.upsert_host(seen)
    await store.set_cordoned("h", True)
    await store.upsert_host(
        dataclasses.replace(
            seen,
            state="unreachable",
            message="no route",
            facts=None,
            probed_at=None,
            updated_at=9.0,
        )
    )
    (row,) = await store.hosts()
    assert (row.state, row.message, row.cordoned) == ("unreachable", "no route", True)
    assert row.facts == seen.facts and (row.probed_at, row.updated_at) == (5.0, 9.0)
    (gpu,) = await store.gpus("h")
    assert (gpu.uuid, gpu.free_mib, gpu.processes) == ("GPU-1", 8, ())
    await store.upsert_host(dataclasses.replace(seen, facts={"gpus": []}))
    assert await store.gpus() == []
    await store.set_cordoned("new", True)
    assert [(h.name, h.state) for h in await store.hosts()][1] == ("new", "unknown")


async def test_a_cordon_and_a_drain_are_seen_by_every_process(path: Path, store: Store) -> None:
    command = await SqliteStore.open(path)
    await command.set_cordoned("a", True)
    await command.set_cordoned("b", True, draining=True)
    assert await store.cordons() == {"a": False, "b": True}
    assert [(h.name, h.cordoned, h.draining) for h in await store.hosts()] == [
        ("a", True, False),
        ("b", True, True),
    ]
    await command.set_cordoned("b", False)
    assert await store.cordons() == {"a": False}
    await command.close()


async def test_breakers_come_back_as_they_were_and_are_reset_by_host(store: Store) -> None:
    failure = Failure(job="j", at=3.5, line="stage_crashed: ended with exit code 1")
    device = Breaker(
        key="GPU-1", host="h", gpu="GPU-1", position=Position.OPEN, why="Xid 79",
        failures=(failure,), opened_at=4.0, until=24.0, trips=2, failed_tests=1,
    )  # fmt: skip
    host = Breaker(key="h", host="h", failures=(failure,))
    other = Breaker(key="k", host="k", position=Position.TESTING, why="x")
    for breaker in (device, host, other):
        await store.save_breaker(breaker)
    closed = dataclasses.replace(device, position=Position.CLOSED, failures=(), failed_tests=0)
    await store.save_breaker(closed)
    assert await store.breakers() == {"GPU-1": closed, "h": host, "k": other}
    assert await store.reset_breakers("h") == 2
    assert set(await store.breakers()) == {"k"}


async def test_a_request_of_another_process_is_answered_once(path: Path, store: Store) -> None:
    command = await SqliteStore.open(path)
    number = await command.add_request("retry", job="j", args={"stage": "Training"})
    assert [one.id for one in await command.requests(kinds=("retry", "pin"))] == [number]
    assert await command.requests(kinds=("pin",)) == []
    (request,) = await store.pending_requests()
    assert (request.id, request.kind, request.job) == (number, "retry", "j")
    assert request.args == {"stage": "Training"}
    await store.finish_request(number, "it is done already", ok=False)
    assert await store.pending_requests() == []
    answered = await command.request(number)
    assert answered is not None
    assert (answered.state, answered.answer) == ("refused", "it is done already")
    await command.close()


async def test_what_a_job_waits_for_is_told_until_it_starts(store: Store) -> None:
    job = await fill(store)
    why = m.Waiting(job=job.id, reason=Reason.GPU_BUSY, message="m", per_host={"h": "h: m"})
    await store.set_waiting({job.id: why})
    assert await store.waiting() == {job.id: why}
    await store.set_waiting({job.id: None})
    assert await store.waiting() == {}
