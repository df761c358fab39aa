"""Hosts fall silent, dispatchers come and go, operators cancel: the work is left as it should be.

Real sshd, agent and supervisor; the stages are played short (tests/rehearsal.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.cosma import EVENT_WAIT_S, kill
from tests.rehearsal import Rehearsal, rehearsal

CANCEL_S = 10.0
ESCAPED = "escaped.sh"


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path, hosts=1) as made:
        yield made


def in_step(step: str) -> Callable[[sqlite3.Connection], bool]:
    return lambda reader: bool(
        reader.execute("SELECT count(*) FROM jobs WHERE step = ?", (step,)).fetchone()[0]
    )


def in_state(state: str) -> Callable[[sqlite3.Connection], bool]:
    return lambda reader: bool(
        reader.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0]
    )


def has_rows(table: str) -> Callable[[sqlite3.Connection], bool]:
    return lambda reader: bool(reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def inputs_are_gone(reader: sqlite3.Connection) -> bool:
    return not reader.execute("SELECT sum(inputs_on_host) FROM jobs").fetchone()[0]


def alive(farm: Rehearsal) -> list[int]:
    """Processes that carry the cookie of an attempt of this farm, and what has escaped it."""
    prefix = f"COSMA_ATTEMPT={farm.hosts.base}".encode()
    escaped = str(farm.log.with_name(ESCAPED)).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            block = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended meanwhile
        mine = command[1:2] == [escaped] or any(p.startswith(prefix) for p in block.split(b"\0"))
        if mine and state not in "ZX":
            found.append(int(entry.name))
    return found


def stubborn(farm: Rehearsal) -> None:
    """From now on a stage ignores TERM, has a grandchild in a session of its own, and another
    that has left its environment and its output as well."""
    file, escaped = farm.log.with_name("stubborn.py"), farm.log.with_name(ESCAPED)
    escaped.write_text("trap '' TERM\nwhile :; do sleep 1; done\n")
    file.write_text(
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; setsid sleep 600 & exec sleep 600'],"
        " start_new_session=True)\n"
        f"subprocess.Popen(['setsid', '-f', 'env', '-i', '/bin/sh', {str(escaped)!r}],"
        " stdin=-3, stdout=-3, stderr=-3)\n"
        "time.sleep(600)\n"
    )
    farm.log.with_name("stage-python").write_text(
        f'#!/bin/sh\nif [ "$2" = worker_agent.stages ]; then exec {sys.executable} {file}; fi\n'
        f'exec {sys.executable} "$@"\n'
    )


@pytest.mark.parametrize("while_down", [False, True], ids=["running", "dispatcher-down"])
def test_a_cancel_leaves_no_process_though_the_stage_ignores_it(
    farm: Rehearsal, while_down: bool
) -> None:
    stubborn(farm)
    (job,) = farm.ingest(1)
    dispatcher = farm.cosma.start("dispatch")
    farm.cosma.wait_until("the stage runs", in_step("run"))
    farm.cosma.wait_until("it has its grandchildren", lambda _: len(alive(farm)) >= 4)
    if while_down:
        kill(dispatcher, signal.SIGKILL)
    assert farm.cosma.run("job", "cancel", job).returncode == 0
    if while_down:
        dispatcher = farm.cosma.start("dispatch")
        farm.cosma.wait_until("it is up again", has_rows("dispatchers WHERE epoch > (SELECT"
            " min(epoch) FROM dispatchers)"))  # fmt: skip
    asked = time.monotonic()
    farm.cosma.wait_until("nothing of it is left", lambda _: not alive(farm))
    took = time.monotonic() - asked
    farm.cosma.wait_until("the job is cancelled", in_state("cancelled"))
    left = alive(farm)
    farm.cosma.wait_until("its inputs are removed", inputs_are_gone)
    kill(dispatcher, signal.SIGTERM)
    assert left == []
    # A promise to operators, not a measurement: TERM, its grace, KILL, and a sweep.
    assert took < CANCEL_S
    assert farm.cosma.run("fsck").returncode == 0


def test_a_silent_host_is_told_with_what_is_at_risk_and_heard_again(farm: Rehearsal) -> None:
    (job,) = farm.ingest(1)
    farm.hold(True)
    dispatcher = farm.cosma.start("dispatch", "--once")
    farm.cosma.wait_until("the stage runs", in_step("run"))
    farm.cosma.wait_until("it reports progress", has_rows("progress WHERE fraction > 0"))
    farm.hosts.stop_host("host-1")
    farm.cosma.wait_until("silence is written down", has_rows("silences"))
    kill(dispatcher, signal.SIGKILL)

    # Another process says so, with no dispatcher running.
    (risk,) = farm.cosma.json("why", job)["at_risk"]
    assert (risk["host"], risk["stage"]) == ("host-1", "Validation")
    assert risk["fraction"] > 0.0
    assert risk["requeue_at"] > risk["silent_since"]
    assert "host-1 silent since" in farm.cosma.run("why", job).stdout
    assert f"of {job}" in farm.cosma.run("top").stdout
    silent = farm.cosma.run("fsck")
    assert silent.returncode == 3
    assert "host-1 did not answer" in silent.stderr

    farm.hosts.start_host("host-1")
    farm.hold(False)
    done = farm.cosma.run("dispatch", "--once")
    assert done.returncode == 0, done.stderr
    assert farm.cosma.json("why", job)["at_risk"] == []
    assert set(farm.runs().values()) == {1}
    kinds = [row["kind"] for row in _events(farm)]
    assert kinds.index("host_silent") < kinds.index("host_found")
    # The only one that was running when a dispatcher began.
    (again,) = (event for event in farm.cosma.events(job) if event["kind"] == "attempt_reattached")
    assert (again["attempt"], again["host"]) == (1, "host-1")


def test_the_older_of_two_dispatchers_ends_and_leaves_the_work_alone(
    farm: Rehearsal, tmp_path: Path
) -> None:
    (job,) = farm.ingest(1)
    farm.hold(True)
    older = farm.cosma.start("dispatch", "--once")
    farm.cosma.wait_until("the stage runs", in_step("run"))
    # Another database, the same host: what it runs there makes the host obey it.
    other = tmp_path / "other"
    other.mkdir()
    newer = Rehearsal(type(farm.cosma)(other, farm.cosma.inventory), farm.hosts, farm.log, 1.0)
    newer.ingest(1, "wreck")
    second = newer.cosma.start("dispatch", "--once")
    newer.cosma.wait_until("its stage runs", in_step("run"))
    farm.hold(False)  # the older one's next start is refused
    _, errors = older.communicate(timeout=EVENT_WAIT_S)
    assert older.returncode == 11, errors
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("cosma: ")]
    assert "another dispatcher took over" in line
    _, errors = second.communicate(timeout=EVENT_WAIT_S)
    assert second.returncode == 0, errors
    assert set(farm.runs().values()) == {1}
    # The attempts of one are unknown to the other, are told, and are left alone.
    findings = newer.cosma.run("fsck", "--json")
    assert findings.returncode == 1
    kinds = {(row["kind"], row["job"]) for row in json.loads(findings.stdout)["differences"]}
    assert kinds == {("attempt_unknown", job)}


def test_fsck_tells_what_differs_and_repairs_what_it_can(farm: Rehearsal) -> None:
    (job,) = farm.ingest(1)
    assert farm.cosma.run("dispatch", "--once").returncode == 0
    assert farm.cosma.run("fsck").returncode == 0
    files = collected(farm, job)
    ply, manifest = files["ply"], files["manifest"]
    good = ply.read_bytes()
    ply.unlink()
    ply.write_bytes(bytes(len(good)))
    manifest.unlink()
    with sqlite3.connect(farm.cosma.database) as writer:
        writer.execute(
            "INSERT INTO leases (job, attempt, host, lease_s, renewed_at) VALUES (?, 1, 'h', 1, 1)",
            (job,),
        )

    found = farm.cosma.run("fsck", "--json")
    assert found.returncode == 1
    rows = {(row["kind"], row["where"]) for row in json.loads(found.stdout)["differences"]}
    assert rows == {
        ("artifact_changed", str(ply)),
        ("artifact_missing", str(manifest)),
        ("lease_stray", "database"),
    }
    mended = farm.cosma.run("fsck", "--fix")
    assert mended.returncode == 0, mended.stdout
    assert ply.read_bytes() == good
    assert manifest.is_file()
    assert ply.with_name(f"{ply.name}.changed-1").read_bytes() == bytes(len(good))
    assert farm.cosma.run("fsck").returncode == 0


def test_fsck_names_what_is_lost_for_good(farm: Rehearsal) -> None:
    (job,) = farm.ingest(1)
    assert farm.cosma.run("dispatch", "--once").returncode == 0
    files = collected(farm, job)
    files["ply"].unlink()
    shutil.rmtree(farm.cosma.directory / "cosma-artifacts" / ".objects")
    shutil.rmtree(farm.hosts.hosts[0].work_dir / "reef" / job / "output", ignore_errors=True)
    mended = farm.cosma.run("fsck", "--fix")
    assert mended.returncode == 1
    assert f"cosma job rerun {job}" in mended.stdout


def collected(farm: Rehearsal, job: str) -> dict[str, Path]:
    """Artifact kind -> file in the artifact store."""
    rows = farm.cosma.json("job", "show", job)["artifacts"]
    return {row["kind"]: farm.cosma.directory / row["path"] for row in rows}


def _events(farm: Rehearsal) -> list[dict[str, str]]:
    with sqlite3.connect(farm.cosma.database) as reader:
        rows = reader.execute("SELECT kind FROM events ORDER BY id").fetchall()
    return [{"kind": row[0]} for row in rows]
