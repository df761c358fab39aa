"""A pool that fills up below the hosts stops placement, and work goes on once it has room."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from pathlib import Path

import yaml

from tests.acceptance.cosma import kill
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

        def waits_for_the_pool(reader: sqlite3.Connection) -> bool:
            return bool(
                reader.execute("SELECT 1 FROM waiting WHERE reason = 'pool_full'").fetchone()
            )

        there.cosma.wait_until("the job waits for the pool", waits_for_the_pool)
        why = there.cosma.json("why", job)
        assert why["reason"] == "pool_full"
        assert "91.3% full of data" in why["message"]
        assert "high watermark 85.0%" in why["message"]
        assert not there.lines()

        says(programs, "60.00")
        there.cosma.wait_until(
            "its first stage is on the host",
            lambda reader: bool(reader.execute("SELECT 1 FROM attempts").fetchone()),
        )
        kill(dispatcher, signal.SIGTERM)
