"""A job that moves to another host takes along what its stages made there."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dispatcher.embedded import EmbeddedHost
from tests.acceptance.cosma import EVENT_WAIT_S, Cosma, kill, rows, running_stage
from tests.rehearsal import Rehearsal, rehearsal

# What jobs made stays where it is: only handoffs are looked at.
KEEP = dict.fromkeys(("frames", "features", "training", "results"), "keep")


def seen(query: str, *values: Any) -> Callable[[sqlite3.Connection], bool]:
    def there(reader: sqlite3.Connection) -> bool:
        return reader.execute(query, values).fetchone() is not None

    return there


def event(cosma: Cosma, kind: str) -> dict[str, Any]:
    ((payload,),) = rows(cosma, "SELECT payload FROM events WHERE kind = ?", kind)
    found: dict[str, Any] = json.loads(payload)
    return found


def where(cosma: Cosma) -> dict[str, str]:
    """stage -> the host of the attempt of it that succeeded last."""
    query = "SELECT stage, host FROM attempts WHERE state = 'succeeded' ORDER BY attempt"
    return dict(rows(cosma, query))


def host_of(farm: Rehearsal, name: str) -> EmbeddedHost:
    return next(host for host in farm.hosts.hosts if host.name == name)


def other(name: str) -> str:
    return {"host-1": "host-2", "host-2": "host-1"}[name]


def held_at(farm: Rehearsal, stage: str) -> str:
    """The host that works at `stage` and is kept from ending it."""
    farm.cosma.wait_until(f"{stage} reports progress", running_stage(stage))
    ((host,),) = rows(farm.cosma, "SELECT host FROM jobs WHERE step = 'run'")
    return str(host)


def drain(farm: Rehearsal, host: str) -> None:
    """And be sure that the dispatcher knows: it reads what operators want in one order, and the
    second answer says that it has read on after the first."""
    assert farm.cosma.run("worker", "drain", host).returncode == 0
    (job,) = farm.cosma.jobs()
    for priority in ("1", "2"):
        assert farm.cosma.run("job", "priority", job, priority).returncode == 0


def done(farm: Rehearsal, job: str) -> None:
    farm.cosma.wait_until("the job is done", seen("SELECT 1 FROM jobs WHERE state = 'done'"))
    for _, path, sha256, local in rows(
        farm.cosma, "SELECT kind, path, sha256, local_path FROM artifacts WHERE local_path NOT NULL"
    ):
        assert Path(local).is_file(), (path, sha256)
    assert farm.cosma.jobs()[job]["state"] == "done"


def made_files(host: EmbeddedHost, job: str) -> set[str]:
    """What is left of the job's files there, without the attempts' own records."""
    folder = host.work_dir / "reef" / job
    return {
        path.relative_to(folder).as_posix()
        for name in ("input", "frames", "sfm", "train", "output")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def test_a_drained_host_hands_over_what_its_stages_made(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2, reclaim=KEEP) as farm:
        cosma = farm.cosma
        (job,) = farm.ingest(1)
        farm.hold(True, "ColmapReconstruction")
        dispatcher = cosma.start("dispatch")
        old = held_at(farm, "ColmapReconstruction")
        new = other(old)
        drain(farm, old)
        farm.hold(False)
        done(farm, job)
        gone = seen("SELECT 1 FROM events WHERE kind = 'leftovers_reclaimed'")
        cosma.wait_until("the old copy is removed", gone)
        kill(dispatcher, signal.SIGTERM)

        assert set(farm.runs().values()) == {1}, "no stage ran twice, by the stages' own words"
        stages = where(cosma)
        assert {stages[s] for s in ("FrameExtraction", "ColmapReconstruction")} == {old}
        assert {stages[s] for s in ("Training", "PlyExport", "SplatExport")} == {new}
        over = event(cosma, "handed_over")
        assert (over["source"], over["stage"], over["route"]) == (old, "Training", "direct")
        assert made_files(host_of(farm, old), job) == set()
        assert event(cosma, "leftovers_reclaimed")["removed_bytes"] > 40_000
        assert "frames/f000008.jpg" in made_files(host_of(farm, new), job)
        checkpoint = json.loads(
            (host_of(farm, new).work_dir / "reef" / job / "output/.checkpoint.json").read_text()
        )
        assert set(checkpoint["stage_hashes"]) == set(stages)


def test_a_host_without_a_gpu_extracts_and_maps_for_one_that_trains(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2, reclaim=KEEP) as farm:
        cosma = farm.cosma
        inventory = yaml.safe_load(cosma.inventory.read_text())
        inventory["hosts"][0]["gpus"] = []
        cosma.inventory.write_text(yaml.safe_dump(inventory))
        segments = farm.ingest(4)
        ended = cosma.run("dispatch", "--once")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert {row["state"] for row in cosma.jobs().values()} == {"done"}
        assert set(farm.runs().values()) == {1}
        stages = rows(cosma, "SELECT DISTINCT host, stage FROM attempts")
        assert {host for host, stage in stages if stage == "Training"} == {"host-2"}
        assert ("host-1", "ColmapReconstruction") in stages
        moved = rows(cosma, "SELECT DISTINCT job FROM events WHERE kind = 'handed_over'")
        assert moved and {job for (job,) in moved} <= set(segments)


def test_what_was_handed_over_resumes_and_what_was_spoilt_is_made_again(tmp_path: Path) -> None:
    """The agent of the new host believes the checkpoint only where hash and files agree."""
    with rehearsal(tmp_path, hosts=2, reclaim=KEEP) as farm:
        cosma = farm.cosma
        (job,) = farm.ingest(1)
        farm.hold(True, "Training")
        dispatcher = cosma.start("dispatch")
        old = held_at(farm, "Training")
        model = host_of(farm, old).work_dir / "reef" / job / "sfm" / "model.bin"
        model.write_bytes(b"rot")
        drain(farm, old)
        farm.hold(False)
        done(farm, job)
        assert event(cosma, "handed_over")["stage"] == "ColmapReconstruction"
        assert farm.runs()[job, "ColmapReconstruction"] == 2
        assert farm.runs()[job, "FrameExtraction"] == farm.runs()[job, "ManifestGeneration"] == 1

        rerun = cosma.run("job", "rerun", job, "--from", "ManifestGeneration")
        assert rerun.returncode == 0, rerun.stderr
        resumed = "SELECT 1 FROM attempts WHERE stage = 'ManifestGeneration' AND resumed"
        cosma.wait_until("the stage made on the other host is resumed", seen(resumed))
        kill(dispatcher, signal.SIGTERM)


def test_a_dispatcher_killed_in_a_handoff_goes_on_with_it(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2, reclaim=KEEP) as farm:
        cosma = farm.cosma
        (job,) = farm.ingest(1, clip_bytes=160_000_000)
        farm.hold(True, "ColmapReconstruction")
        first = cosma.start("dispatch")
        old = held_at(farm, "ColmapReconstruction")
        new = other(old)
        drain(farm, old)
        frames = host_of(farm, new).work_dir / "reef" / job / "frames"
        farm.hold(False)
        deadline = time.monotonic() + EVENT_WAIT_S
        while not (frames / "f000001.jpg").exists():
            assert time.monotonic() < deadline, "nothing was ever brought"
            time.sleep(0.001)
        kill(first, signal.SIGKILL)
        assert rows(cosma, "SELECT step, origin FROM jobs") == [("transfer", old)]
        assert not (frames / "f000008.jpg").exists(), "it was killed in the middle"
        assert "frames/f000008.jpg" in made_files(host_of(farm, old), job), "the old copy stays"

        second = cosma.start("dispatch")
        done(farm, job)
        gone = seen("SELECT 1 FROM events WHERE kind = 'leftovers_reclaimed'")
        cosma.wait_until("the old copy is removed", gone)
        kill(second, signal.SIGTERM)
        assert set(farm.runs().values()) == {1}
        over = event(cosma, "handed_over")
        assert over["bytes"] < 160_000_000, "what had come is not brought again"
        assert made_files(host_of(farm, old), job) == set()


def test_a_job_of_a_dead_host_starts_over(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2, reclaim=KEEP) as farm:
        cosma = farm.cosma
        (job,) = farm.ingest(1)
        farm.hold(True, "Training")
        dispatcher = cosma.start("dispatch")
        old = held_at(farm, "Training")
        farm.hosts.stop_host(old)
        for line in farm.lines():
            if line["stage"] == "Training" and line["kind"] == "start":
                os.killpg(os.getpgid(line["pid"]), signal.SIGKILL)
        farm.hold(False)
        cosma.wait_until("it is silent", seen("SELECT 1 FROM silences"))
        abandoned = cosma.run("job", "retry", job, "--abandon")
        assert abandoned.returncode == 0, abandoned.stderr
        done(farm, job)
        kill(dispatcher, signal.SIGTERM)
        assert "frames/f000008.jpg" in made_files(host_of(farm, old), job)
        assert event(cosma, "handoff_abandoned")["source"] == old
        assert rows(cosma, "SELECT count(*) FROM events WHERE kind = 'handed_over'") == [(0,)]
        assert set(where(cosma).values()) == {other(old)}
        assert farm.runs()[job, "FrameExtraction"] == 2

        farm.hosts.start_host(old)
        assert cosma.run("dispatch", "--once").returncode == 0
        assert made_files(host_of(farm, old), job) == set(), "its results are collected"
        assert "output/manifest.json" in made_files(host_of(farm, other(old)), job)
