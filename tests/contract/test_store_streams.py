"""Streams, progress, events and what attempts leave behind; on a real SQLite file."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.clock import ManualClock
from dispatcher.core import events as ev
from dispatcher.store.base import OffsetGap, Store, StoreError
from dispatcher.store.rows import (
    ArtifactRow,
    Lease,
    Offsets,
)
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import (
    JOB,
    advance,
    fill,
    placed,
    record,
    running,
)
from worker_agent.protocol import ExitRecord

# --- streams ---


async def test_stream_pieces_are_stored_once_and_gaps_refused(store: Store) -> None:
    job = await running(store)
    lines = [{"time": 5.0, "attempt": 1, "kind": "warning", "message": "dark"}]
    have = await store.append_stream(
        job.id, 1, events=lines, events_from=0, events_to=40, log=b"hello", log_from=0, log_to=5
    )
    assert have == Offsets(events=40, log=5)
    assert have == await store.append_stream(
        job.id, 1, events=lines, events_from=0, events_to=40, log=b"hello", log_from=0, log_to=5
    )
    with pytest.raises(OffsetGap) as gap:
        await store.append_stream(
            job.id, 1, events=lines, events_from=41, events_to=80, log=b"x", log_from=5
        )
    assert gap.value.expected == 40
    with pytest.raises(OffsetGap, match="log of attempt 1 continues at byte 5, got byte 6"):
        await store.append_stream(job.id, 1, log=b"x", log_from=6)
    await store.append_stream(job.id, 1, log=b"lo, world", log_from=3, log_to=12)
    assert await store.logs(job.id, 1) == b"hello, world"
    assert await store.logs(job.id, 1, offset=4) == b"o, world"
    assert await store.logs(job.id, 1, offset=99) == b""
    (warning,) = await store.events(kind="warning")
    assert (warning.payload, warning.source, warning.at) == ({"message": "dark"}, "agent", 5.0)
    with pytest.raises(StoreError, match="no attempt 2"):
        await store.append_stream(job.id, 2, log=b"x", log_from=0)


@given(
    text=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30),
)
@settings(max_examples=15, deadline=None)
def test_a_log_sent_in_any_overlapping_pieces_is_whole(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, cuts: list[tuple[int, int]]
) -> None:
    async def work() -> None:
        store = await SqliteStore.open(tmp_path_factory.mktemp("log") / "cosma.db")
        job = await running(store)
        for start, end in cuts:
            have = (await store.attempt_offsets(job.id, 1)).log
            piece = text[start:end]
            if start <= have or not piece:
                await store.append_stream(job.id, 1, log=piece, log_from=start, log_to=end)
            else:
                with pytest.raises(OffsetGap):
                    await store.append_stream(job.id, 1, log=piece, log_from=start, log_to=end)
            stored = await store.logs(job.id, 1)
            assert stored == text[: len(stored)]
        have = (await store.attempt_offsets(job.id, 1)).log
        await store.append_stream(job.id, 1, log=text[have:], log_from=have)
        assert await store.logs(job.id, 1) == text
        await store.close()

    asyncio.run(work())


async def test_progress_of_the_agent_is_that_of_the_live_attempt(store: Store) -> None:
    job = await running(store)
    lines = [
        {"time": 5.0, "kind": "progress", "fraction": 0.2, "message": "a"},
        {"time": 6.0, "kind": "progress", "fraction": 0.6, "message": "b", "frames": 31},
    ]
    await store.append_stream(job.id, 1, events=lines, events_to=90)
    progress = (await store.progress())[job.id]
    assert (progress.fraction, progress.message, progress.numbers) == (0.6, "b", {"frames": 31})
    job = (await advance(store, job, ev.AttemptSucceeded(at=9.0, attempt=1))).job
    job = (await advance(store, job, placed(job))).job
    assert await store.progress() == {}
    await store.append_stream(job.id, 1, events=lines[:1], events_from=90, events_to=120)
    assert await store.progress() == {}


async def test_progress_is_written_once_a_second_and_at_the_end(path: Path) -> None:
    clock = ManualClock()
    store, reader = await SqliteStore.open(path, clock), await SqliteStore.open(path)
    await fill(store)
    for fraction in (0.1, 0.2, 0.3):
        await store.set_progress(JOB.id, fraction, "", {}, at=clock.now())
    assert (await reader.progress())[JOB.id].fraction == 0.1
    assert (await store.progress())[JOB.id].fraction == 0.3
    clock.advance(1.0)
    await store.set_progress(JOB.id, 0.4, "", {}, at=clock.now())
    assert (await reader.progress())[JOB.id].fraction == 0.4
    await store.set_progress(JOB.id, 0.5, "", {}, at=clock.now())
    await store.close()
    assert (await reader.progress())[JOB.id].fraction == 0.5
    await reader.close()


async def test_events_are_found_by_job_kind_host_and_what_came_before(store: Store) -> None:
    job = await running(store)
    cause = (await store.events(job=job.id))[-1]
    own = await store.record_event(
        "inputs_not_reclaimed",
        job=job.id,
        host="h",
        payload={"why": "busy"},
        stimulus=str(cause.id),
    )
    await store.record_event("host_lost", host="g", at=77.0)
    (found,) = await store.events(after=cause.id, job=job.id)
    assert (str(found.id), found.stimulus, found.payload) == (own, str(cause.id), {"why": "busy"})
    assert [e.at for e in await store.events(kind="host_lost")] == [77.0]
    assert [e.kind for e in await store.events(host="g")] == ["host_lost"]
    assert len(await store.events(limit=2)) == 2


# --- what attempts leave behind ---


async def test_the_end_of_an_attempt_leaves_metrics_and_artifacts(store: Store) -> None:
    job = await running(store)
    await store.finish_attempt(job.id, 1, record())
    await store.finish_attempt(job.id, 1, record())
    (metrics,) = await store.stage_metrics(job.id)
    assert (metrics.gpu, metrics.peak_vram_mib, metrics.metrics) == (
        "GPU-1",
        4321.0,
        {"psnr": 24.5},
    )
    (attempt,) = await store.attempts(job.id)
    assert attempt.exit is not None
    assert ExitRecord.from_dict(attempt.exit) == record()
    (row,) = await store.artifacts(job=job.id)
    assert (row.kind, row.path, row.host, row.attempt) == ("ply", "output/x.ply", "h", 1)
    copies = {"local_path": "/artifacts/x.ply", "remote_url": "s3://b/x"}
    await store.add_artifacts(job.id, [dataclasses.replace(row, **copies)])
    for wanted in ("output/x.ply", *copies.values()):
        assert [a.job for a in await store.artifacts(path=wanted)] == [job.id]
    assert [a.job for a in await store.artifacts(sha256=row.sha256)] == [job.id]
    assert await store.artifacts(sha256="bb") == []
    assert len(await store.artifacts(acquisition="dive")) == 1
    assert await store.artifacts(acquisition="other") == []


async def test_an_artifact_made_anew_has_to_be_collected_anew(store: Store) -> None:
    await fill(store)
    row = ArtifactRow(job=JOB.id, kind="ply", path="output/x.ply", bytes=9, sha256="aa")
    await store.add_artifacts(JOB.id, [row])
    copies = {"local_path": "/artifacts/x.ply", "remote_url": "s3://b/x"}
    await store.add_artifacts(JOB.id, [dataclasses.replace(row, **copies)])
    await store.add_artifacts(JOB.id, [row])
    (same,) = await store.artifacts(job=JOB.id)
    assert (same.local_path, same.remote_url) == ("/artifacts/x.ply", "s3://b/x")
    await store.add_artifacts(JOB.id, [dataclasses.replace(row, sha256="bb")])
    (other,) = await store.artifacts(job=JOB.id)
    assert (other.local_path, other.remote_url) == (None, None)


async def test_renewals_only_ever_move_forward(store: Store) -> None:
    job = await running(store)
    await store.renewed([(job.id, 1), ("nobody", 1)], at=50.0)
    await store.renewed([(job.id, 1)], at=40.0)
    assert [lease.renewed_at for lease in await store.leases()] == [50.0]


async def test_what_a_host_will_be_told_of_a_lease_is_committed_with_the_attempt(
    store: Store,
) -> None:
    told = Lease(
        job=JOB.id, attempt=1, host="h", lease_s=7.0, renewed_at=0.0, host_boot="b",
        renewed_monotonic=8.0, clock_boot="d",
    )  # fmt: skip
    job = await running(store, lease=told)
    lease = await store.lease(job.id, 1)
    assert lease is not None
    assert (lease.lease_s, lease.host_boot) == (7.0, "b")
    assert (lease.renewed_monotonic, lease.clock_boot) == (8.0, "d")
    await store.renewed([(job.id, 1)], at=50.0, monotonic=9.0, clock_boot="c")
    lease = await store.lease(job.id, 1)
    assert lease is not None
    assert (lease.lease_s, lease.host_boot, lease.renewed_at) == (7.0, "b", 50.0)
    assert (lease.renewed_monotonic, lease.clock_boot) == (9.0, "c")
    assert await store.lease(job.id, 2) is None
