"""`requeue: manual`: no silence of its host starts a job anew, the operator's word does; and an
attempt that was given up does no harm when its host is back."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.acceptance.cosma import is_so, kill, rows
from tests.rehearsal import Rehearsal, rehearsal

LONG_AGO = (
    "UPDATE leases SET renewed_at = renewed_at - 86400, "
    "renewed_monotonic = renewed_monotonic - 86400"
)


def at_work_on(*hosts: str) -> Callable[[sqlite3.Connection], bool]:
    def seen(reader: sqlite3.Connection) -> bool:
        found = reader.execute("SELECT DISTINCT host FROM jobs WHERE step = 'run'")
        return {row[0] for row in found} >= set(hosts)

    return seen


def live(farm: Rehearsal, job: str, host: str) -> list[str]:
    """Processes of the job's first attempt that live there: state and command. A stitch may be at
    work there, too, by then."""
    work_dir = next(item.work_dir for item in farm.hosts.hosts if item.name == host)
    cookie = f"COSMA_ATTEMPT={work_dir}/reef/{job}#1\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and cookie in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found.append(f"{state} {(entry / 'cmdline').read_bytes()!r}")
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Rehearsal]:
    """Stages go on for ever on host-1, which is not requeued by itself, and on host-2."""
    with rehearsal(tmp_path, hosts=3) as made:
        inventory = yaml.safe_load(made.cosma.inventory.read_text())
        inventory["hosts"][0]["requeue"] = "manual"
        made.cosma.inventory.write_text(yaml.safe_dump(inventory))
        made.hold(True)
        (made.hosts.hosts[2].work_dir / "hold-stages").unlink()
        assert made.cosma.run("worker", "cordon", "host-3").returncode == 0
        yield made


def test_a_start_that_may_have_arrived_on_a_silent_host_is_told(farm: Rehearsal) -> None:
    """The dispatcher died between `start` and its answer, and the host is gone since."""
    cosma = farm.cosma
    assert cosma.run("worker", "cordon", "host-2").returncode == 0
    (job,) = farm.ingest(1)
    first = cosma.start("dispatch")
    cosma.wait_until("it runs", at_work_on("host-1"))
    kill(first, signal.SIGKILL)
    farm.hosts.stop_host("host-1")
    with sqlite3.connect(cosma.database) as writer:
        writer.execute("UPDATE jobs SET step = 'start'")
        writer.execute("UPDATE attempts SET state = 'starting'")

    second = cosma.start("dispatch")
    cosma.wait_until("it is said", is_so("count(*) FROM silences WHERE host = 'host-1'"))
    (risk,) = cosma.json("why", job)["at_risk"]
    assert (risk["host"], risk["attempt"], risk["requeue_at"]) == ("host-1", 1, None)
    farm.hosts.start_host("host-1")
    cosma.wait_until("it is known to run", at_work_on("host-1"))
    cosma.wait_until("nothing is at risk", is_so("count(*) = 0 FROM silences"))
    kill(second, signal.SIGTERM)
    assert farm.runs() == {(job, "Validation"): 1}


def test_only_the_operator_gives_up_what_a_silent_host_may_still_do(farm: Rehearsal) -> None:
    cosma = farm.cosma
    farm.ingest(2)
    first = cosma.start("dispatch")
    cosma.wait_until("both hosts work", at_work_on("host-1", "host-2"))
    ((kept,),) = rows(cosma, "SELECT id FROM jobs WHERE host = 'host-1'")
    ((moved,),) = rows(cosma, "SELECT id FROM jobs WHERE host = 'host-2'")
    farm.hosts.stop_host("host-1")
    farm.hosts.stop_host("host-2")
    cosma.wait_until("both are silent", is_so("count(*) = 2 FROM silences"))
    kill(first, signal.SIGKILL)
    assert cosma.run("worker", "resume", "host-3").returncode == 0
    with sqlite3.connect(cosma.database) as writer:
        writer.execute(LONG_AGO)  # beyond every lease

    second = cosma.start("dispatch")
    cosma.wait_until(
        "the other job goes on elsewhere",
        is_so("count(*) FROM attempts WHERE job = ? AND host = 'host-3'", moved),
    )
    assert rows(cosma, "SELECT host, state, attempt, step FROM jobs WHERE id = ?", kept) == [
        ("host-1", "extracting", 1, "run")
    ]
    (risk,) = cosma.json("why", kept)["at_risk"]
    assert (risk["host"], risk["requeue_at"]) == ("host-1", None)
    command = f"cosma job retry {kept} --abandon"
    assert command in cosma.run("why", kept).stdout
    assert command in cosma.run("top").stdout

    # Heard again: it is still the one and only attempt.
    farm.hosts.start_host("host-1")
    cosma.wait_until("it is heard again", is_so("count(*) = 0 FROM silences WHERE host = 'host-1'"))
    cosma.wait_until(
        "it is compared with the database",
        is_so(
            "count(*) FROM events WHERE kind = 'host_reconciled' AND host = 'host-1' AND id >"
            " (SELECT max(id) FROM events WHERE kind = 'host_found' AND host = 'host-1')"
        ),
    )
    assert rows(cosma, "SELECT attempt, step FROM jobs WHERE id = ?", kept) == [(1, "run")]
    refused = cosma.run(*command.split()[1:])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{kept}: abandon is refused: host-1 is not silent" in refused.stderr
    farm.hosts.stop_host("host-1")
    cosma.wait_until("it is silent again", is_so("count(*) FROM silences WHERE host = 'host-1'"))
    assert cosma.run(*command.split()[1:]).returncode == 0
    cosma.wait_until(
        "it goes on elsewhere",
        is_so("count(*) FROM attempts WHERE job = ? AND host = 'host-3'", kept),
    )

    # Both hosts are back, with their attempts at work.
    assert live(farm, kept, "host-1") and live(farm, moved, "host-2")
    farm.hosts.start_host("host-1")
    farm.hosts.start_host("host-2")
    for job, host in ((kept, "host-1"), (moved, "host-2")):
        cosma.wait_until(
            f"the attempt on {host} is ended",
            is_so(
                "count(*) FROM events WHERE kind = 'attempt_cancelled' AND host = ?"
                " AND json_extract(payload, '$.job') = ?", host, job,
            ),
        )  # fmt: skip
        assert live(farm, job, host) == []
    for job in (kept, moved):
        cosma.wait_until("it is done", is_so("state = 'done' FROM jobs WHERE id = ?", job))
    kill(second, signal.SIGTERM)
    for job, host in ((kept, "host-1"), (moved, "host-2")):
        attempts = "SELECT attempt, host, state, reason FROM attempts WHERE job = ?"
        old, *new = rows(cosma, f"{attempts} ORDER BY attempt", job)
        assert old == (1, host, "failed", "host_unreachable")
        assert [row[1:3] for row in new] == [("host-3", "succeeded")] * 8
        made = "SELECT DISTINCT host FROM artifacts WHERE job = ? AND host IS NOT NULL"
        assert rows(cosma, made, job) == [("host-3",)]
