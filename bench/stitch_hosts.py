"""A stitch whose inputs lie on three hosts, one of which goes away in the middle of it.

`python -m bench.stitch_hosts [--json]`

Real sshd, agent, supervisor and store on loopback; only the stages are played short, and say from
what they were made. Six segments are reconstructed on three hosts. While their stitch works, the
host that it works on is cut off and all its processes are ended: the members that lay there must
come from the artifact store, the stitch must begin again elsewhere. Names:

stitch_hosts_with_inputs   on how many hosts the members' files lay
stitch_ended_right         1: done on another host, once, from all members' files as they were made
stitch_went_on_after_s     from the loss of the host to the end of the stitch (leases a twentieth)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.results import Result, parser, show
from tests.acceptance.cosma import is_so, kill, rows, running_stage
from tests.rehearsal import Rehearsal, rehearsal

SEGMENTS = 6
LEASE_SCALE = "0.05"
STITCH = "reef-stitch-auv-a-v1"


def cut_off(farm: Rehearsal, name: str) -> None:
    """No network, no processes: as of a host whose power is gone."""
    farm.hosts.stop_host(name)
    work = next(host.work_dir for host in farm.hosts.hosts if host.name == name)
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (process / "cwd").readlink().is_relative_to(work):
                os.kill(int(process.name), signal.SIGKILL)


def made_from(farm: Rehearsal) -> str:
    """What the stitch must say: the digest of all its members' files, as they were collected."""
    digest = hashlib.sha256(b"Stitch")
    query = "SELECT member FROM stitch_inputs WHERE stitch = ? ORDER BY position"
    for (member,) in rows(farm.cosma, query, STITCH):
        for kind in ("ply", "registration"):
            ((path,),) = rows(
                farm.cosma, "SELECT local_path FROM artifacts WHERE job = ? AND kind = ?",
                member, kind,
            )  # fmt: skip
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def drill(folder: Path) -> list[Result]:
    with rehearsal(folder, hosts=3) as farm:
        farm.cosma.variables["COSMA_LEASE_SCALE"] = LEASE_SCALE
        farm.ingest(SEGMENTS)
        farm.hold(True, "Stitch")
        dispatcher = farm.cosma.start("dispatch")
        farm.cosma.wait_until("the stitch works", running_stage("Stitch"))
        query = "SELECT DISTINCT host FROM artifacts WHERE kind = 'ply' AND host IS NOT NULL"
        holders = {host for (host,) in rows(farm.cosma, query)}
        ((lost,),) = rows(farm.cosma, "SELECT host FROM jobs WHERE id = ?", STITCH)
        began = time.monotonic()
        cut_off(farm, lost)
        farm.hold(False)
        done = is_so("count(*) FROM jobs WHERE id = ? AND state = 'done'", STITCH)
        farm.cosma.wait_until("the stitch is done", done)
        seconds = time.monotonic() - began
        kill(dispatcher, signal.SIGTERM)
        ((host, path),) = rows(
            farm.cosma, "SELECT host, local_path FROM artifacts WHERE job = ? AND kind = ?",
            STITCH, "stitch_report",
        )  # fmt: skip
        told = json.loads(Path(path).read_text())["made_from"]
        ((succeeded,),) = rows(
            farm.cosma,
            "SELECT count(*) FROM attempts WHERE job = ? AND state = 'succeeded'", STITCH,
        )  # fmt: skip
        right = host != lost and succeeded == 1 and told == made_from(farm)
    return [
        Result(
            name="stitch_hosts_with_inputs", value=len(holders), unit="", better="higher", target=3
        ),
        Result(name="stitch_ended_right", value=float(right), unit="", better="higher", target=1),
        Result(name="stitch_went_on_after_s", value=seconds, unit="s", better="lower"),
    ]


def main() -> int:
    given = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="cosma-bench-") as name:
        results = drill(Path(name))
    return show("stitch_hosts", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
