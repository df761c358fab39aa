"""What a host pulled has its SHA-256 on record before it is removed, whatever came between."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import yaml

from dispatcher.executors.transfer import file_sha256
from tests.acceptance.cosma import is_so, rows, running_stage
from tests.rehearsal import rehearsal


def test_a_pulled_video_is_hashed_beside_its_job(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2) as farm:
        cosma = farm.cosma
        inventory = yaml.safe_load(cosma.inventory.read_text())
        inventory["hosts"][1]["cordoned"] = True
        cosma.inventory.write_text(yaml.safe_dump(inventory))
        farm.ingest(1, clip_bytes=3_000_000)
        (video,) = cosma.directory.rglob("GX010001.MP4")
        with sqlite3.connect(cosma.database) as writer:  # as if it lay on a host of the farm
            ((text,),) = writer.execute("SELECT clips FROM segments").fetchall()
            (clip,) = json.loads(text)
            clip["source"] = f"host-2:{video}"
            writer.execute("UPDATE segments SET clips = ?", (json.dumps([clip]),))
        farm.hold(True, "FrameExtraction")
        dispatcher = cosma.start("dispatch", "--once")
        cosma.wait_until("its frames are made", running_stage("FrameExtraction"))
        hashed = is_so("count(*) FROM events WHERE kind = 'input_hashed'")
        cosma.wait_until("it is hashed meanwhile", hashed)
        with sqlite3.connect(cosma.database) as writer:  # as if a dispatcher had died before
            writer.execute("DELETE FROM events WHERE kind = 'input_hashed'")
        farm.hold(False)
        _, errors = dispatcher.communicate(timeout=300)
        assert dispatcher.returncode == 0, errors

        ((came,),) = rows(cosma, "SELECT payload FROM events WHERE kind = 'input_delivered'")
        assert json.loads(came) | {"sha256": None, "route": "direct"} == json.loads(came)
        ((at, host, payload),) = rows(
            cosma, "SELECT id, host, payload FROM events WHERE kind = 'input_hashed'"
        )
        assert (host, json.loads(payload)["sha256"]) == ("host-1", file_sha256(video))
        ((gone,),) = rows(cosma, "SELECT id FROM events WHERE kind = 'inputs_reclaimed'")
        assert at < gone
        assert not list((farm.hosts.hosts[0].work_dir / "reef").glob("*/input/*"))
