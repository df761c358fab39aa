"""`cosma fsck --fix` where no dispatcher runs: it ends and removes what the next one would."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from pathlib import Path

from dispatcher.chaos.processes import all_pids, environment_of
from tests.acceptance.cosma import Cosma, is_so, kill
from tests.rehearsal import Rehearsal, rehearsal


def left_behind(farm: Rehearsal) -> tuple[str, str]:
    """(job whose given up attempt runs on, cancelled job whose inputs lie there)."""
    cosma = farm.cosma
    jobs = farm.ingest(2)
    farm.hold(True)
    dispatcher = cosma.start("dispatch")
    cosma.wait_until("one runs", is_so("count(*) FROM jobs WHERE step = 'run'"))
    cosma.wait_until(
        "the other is ready",
        is_so("count(*) FROM jobs WHERE step = 'place' AND inputs_on_host"),
    )
    with sqlite3.connect(f"file:{cosma.database}?mode=ro", uri=True) as reader:
        ((runs,),) = reader.execute("SELECT id FROM jobs WHERE step = 'run'").fetchall()
    (waits,) = set(jobs) - {runs}
    farm.hosts.stop_host("host-1")
    cosma.wait_until("the host is silent", is_so("count(*) FROM silences"))
    assert cosma.run("job", "cancel", waits).returncode == 0
    assert cosma.run("job", "retry", runs, "--abandon").returncode == 0
    cosma.wait_until("one is cancelled", is_so("state = 'cancelled' FROM jobs WHERE id = ?", waits))
    cosma.wait_until("one is given up", is_so("state = 'failed' FROM attempts WHERE job = ?", runs))
    kill(dispatcher, signal.SIGTERM)
    farm.hosts.start_host("host-1")
    return runs, waits


def live(farm: Rehearsal) -> list[int]:
    base = str(farm.hosts.base)
    return [p for p in all_pids() if environment_of(p).get("COSMA_ATTEMPT", "").startswith(base)]


def inputs(farm: Rehearsal, job: str) -> list[Path]:
    return list((farm.hosts.hosts[0].work_dir / "reef" / job / "input").rglob("*.MP4"))


def differences(cosma: Cosma, *words: str) -> tuple[int, dict[tuple[str, str], str]]:
    """(exit code, {(kind, job): advice of those that are left})."""
    done: subprocess.CompletedProcess[str] = cosma.run("fsck", "--json", *words)
    rows = json.loads(done.stdout)["differences"]
    return done.returncode, {
        (row["kind"], row["job"]): row["advice"] for row in rows if not row["repaired"]
    }


def test_what_a_dispatcher_left_behind_is_ended_and_removed(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=1) as farm:
        runs, waits = left_behind(farm)
        left = {("attempt_superseded", runs), ("leftovers", runs), ("inputs_left", waits)}
        code, found = differences(farm.cosma)
        assert (code, set(found)) == (1, left)
        assert live(farm) and inputs(farm, waits)

        # The host obeys another database's dispatcher by now: hands off.
        epoch = farm.hosts.hosts[0].work_dir / ".cosma" / "epoch"
        ours = epoch.read_text()
        epoch.write_text(str(int(ours) + 1))
        code, found = differences(farm.cosma, "--fix")
        assert (code, set(found)) == (1, left)
        assert all("another dispatcher took over" in advice for advice in found.values())
        assert live(farm) and inputs(farm, waits)

        epoch.write_text(ours)
        assert differences(farm.cosma, "--fix") == (0, {})
        assert not live(farm) and not inputs(farm, waits)
        assert epoch.read_text() == ours
        assert differences(farm.cosma) == (0, {})
