"""A pool that fills up below the hosts stops placement, and work goes on once it has room."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.acceptance.cosma import kill, running_stage
from tests.rehearsal import rehearsal
from tests.sshd import Farm, farm

__all__ = ["farm"]

POOL = {"host": "hv1", "vg": "vg0", "pool": "thin", "high_watermark": 0.85}


def says(programs: Path, percent: str) -> None:
    volume = {"lv_size": "1099511627776", "data_percent": percent, "metadata_percent": "10.00"}
    fresh = programs / "answer.new"
    fresh.write_text(json.dumps({"report": [{"lv": [volume]}]}))
    fresh.replace(programs / "answer")


def test_placement_stops_over_the_watermark_and_goes_on_under_it(
    tmp_path: Path, farm: Farm
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    lvs = programs / "lvs"
    lvs.write_text(f"#!/bin/sh\ncat '{programs}/answer'\n")
    lvs.chmod(0o755)
    says(programs, "91.30")
    server = farm.start("hv1", programs=programs)
    hypervisor = {
        "name": "hv1", "address": "127.0.0.1", "port": server.port, "host_key": server.host_key,
        "identity_file": str(server.client_key),
    }  # fmt: skip
    with rehearsal(tmp_path, 1, disk={"fstrim": "off", "thin_pool": POOL}) as there:
        file = there.hosts.inventory
        file.write_text(file.read_text() + yaml.safe_dump({"hypervisors": [hypervisor]}))
        (job,) = there.ingest(1)
        dispatcher = subprocess.Popen(
            there.cosma.command("dispatch"), cwd=there.cosma.directory, text=True,
            env={**there.cosma.environment, "COSMA_PROBE_S": "0.5"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        there.cosma.started.append(dispatcher)

        waits = "SELECT 1 FROM waiting WHERE reason = 'pool_full'"
        there.cosma.wait_until("the job waits for the pool", row(waits))
        why = there.cosma.json("why", job)
        assert why["reason"] == "pool_full"
        assert "91.3% full of data" in why["message"]
        assert "high watermark 85.0%" in why["message"]
        assert not there.lines()

        there.hold(True, "Validation")
        says(programs, "60.00")
        there.cosma.wait_until("its first stage runs", running_stage("Validation"))
        says(programs, "91.30")
        shut = "SELECT 1 FROM events WHERE kind = 'thin_pool_shut' LIMIT 1 OFFSET 1"
        there.cosma.wait_until("the pool is shut again", row(shut))
        there.hold(False)
        there.cosma.wait_until("it waits for the pool with its next stage", row(waits))
        with sqlite3.connect(there.cosma.database) as reader:
            assert reader.execute("SELECT stage, state FROM attempts").fetchall() == [
                ("Validation", "succeeded")
            ]

        says(programs, "60.00")
        there.cosma.wait_until("it goes on", row("SELECT 1 FROM attempts WHERE attempt = 2"))
        kill(dispatcher, signal.SIGTERM)


def row(query: str) -> Callable[[sqlite3.Connection], bool]:
    """Whether there is one."""
    return lambda reader: reader.execute(query).fetchone() is not None
