"""What attempts took is stored with what they were of, and the next ones are promised by it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.acceptance.cosma import Cosma
from tests.rehearsal import rehearsal
from worker_agent.allowance import memory_mib

TRAINING = "Training"


def rows(cosma: Cosma, query: str, *values: Any) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{cosma.database}?mode=ro", uri=True) as reader:
        reader.row_factory = sqlite3.Row
        return [dict(row) for row in reader.execute(query, values)]


def promised_mib(cosma: Cosma, acquisition: str) -> list[int]:
    """RAM promised to the trainings of an acquisition, in the order they were placed."""
    placed = rows(
        cosma,
        "SELECT events.payload FROM events JOIN attempts USING (job, attempt)"
        " JOIN jobs ON jobs.id = events.job WHERE events.kind = 'stage_placed'"
        " AND attempts.stage = ? AND jobs.acquisition = ? ORDER BY events.id",
        TRAINING,
        acquisition,
    )
    return [json.loads(row["payload"])["reservation"]["ram_mib"] for row in placed]


def test_attempts_teach_what_the_next_ones_are_promised(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2) as farm:
        cosma = farm.cosma
        farm.ingest(3, "first")
        assert cosma.run("dispatch", "--once").returncode == 0
        taken = rows(cosma, "SELECT * FROM stage_metrics")
        assert {row["stage"] for row in taken} >= {"FrameExtraction", TRAINING, "Stitch"}
        devices = {row["name"] for row in rows(cosma, "SELECT name FROM gpus")}
        for row in taken:
            assert (row["device"] in devices) == (row["stage"] == TRAINING), row
            assert row["wall_s"] > 0 and row["peak_rss_mib"] > 5
            assert row["peak_disk_bytes"] is not None
            if row["stage"] != "Stitch":
                assert (row["frames"], row["pixels"]) == (5, 64 * 48)
                assert row["cap"] > 0 and row["train_steps"] > 0
        extraction = [row for row in taken if row["stage"] == "FrameExtraction"]
        assert all(row["peak_disk_bytes"] > 40_000 for row in extraction)

        # Another dispatcher knows what the first one learned.
        farm.ingest(2, "second")
        assert cosma.run("dispatch", "--once").returncode == 0
        first, second = promised_mib(cosma, "first"), promised_mib(cosma, "second")
        assert max(second) < min(first[:1]), (first, second)
        shown = cosma.json("job", "show", second_job(cosma))["needs"]
        (training,) = [row for row in shown if row["stage"] == TRAINING]
        assert training["runs"] == 5 and training["device"] in devices
        assert 0 < training["seconds"]["likely"] < 60


def second_job(cosma: Cosma) -> str:
    return next(job for job, row in cosma.jobs().items() if job.startswith("second") and row["auv"])


def test_a_segment_too_large_for_every_host_is_done_with_fewer_frames(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=1) as farm:
        cosma = farm.cosma
        (segment,) = farm.ingest(1)
        total, _ = memory_mib()
        too_many = round(1.05 * total * 2**20 / (64 * 48 * 3))
        with sqlite3.connect(cosma.database) as writer:
            writer.execute("UPDATE jobs SET frames = ?", (too_many,))
        done = cosma.run("dispatch", "--once")
        assert done.returncode == 0, done.stderr
        assert "takes every 2. frame only" in done.stderr, "the operator is told"
        (row,) = rows(cosma, "SELECT stride, state FROM jobs WHERE id = ?", segment)
        assert (row["stride"], row["state"]) == (2, "done")
        (spec,) = farm.hosts.hosts[0].work_dir.glob("*/*/spec.json")
        told = json.loads(spec.read_text())["config"]
        assert "frame_stride" not in told["frames"]
        assert cosma.json("job", "show", segment)["every_nth_frame"] == 2
