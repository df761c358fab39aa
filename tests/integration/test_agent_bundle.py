"""The pushed agent: one file, the same bytes every time, and it starts on a bare Python."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dispatcher.agent_bundle import build
from tests.agent_client import AgentClient, script
from tests.conftest import REPOSITORY
from worker_agent.__main__ import VERBS
from worker_agent.attempts import AttemptFiles
from worker_agent.protocol import HostFacts, ListRequest, ProbeRequest


@pytest.fixture
def pushed(tmp_path: Path) -> AgentClient:
    """Run as on a host: from the archive, isolated from every other module path."""
    bundle = build()
    archive = tmp_path / "agent" / "agent.pyz"
    archive.parent.mkdir()
    archive.write_bytes(bundle.data)
    return AgentClient(
        tmp_path / "work",
        command=(sys.executable, "-I", "-S", str(archive)),
        environment={"PATH": "/usr/bin:/bin"},
    )


def test_bundle_is_deterministic_and_whole(tmp_path: Path) -> None:
    first, second = build(), build()
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    path = tmp_path / "agent.pyz"
    path.write_bytes(first.data)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert names[0] == "__main__.py"
    for package in ("stitch", "worker_agent"):
        sources = (REPOSITORY / package).rglob("*.py")
        expected = {source.relative_to(REPOSITORY).as_posix() for source in sources}
        assert expected == {n for n in names if n.startswith(package) and n.endswith(".py")}


def test_building_imports_neither_package() -> None:
    code = (
        "import sys, dispatcher.agent_bundle as b; b.build();"
        "sys.exit(any(m.partition('.')[0] in ('stitch', 'worker_agent') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_probe_and_selftest_on_a_bare_python(pushed: AgentClient) -> None:
    answer = pushed.call("probe", ProbeRequest(work_dir=str(pushed.work_dir)))
    facts = HostFacts.from_dict(answer.one)
    assert (answer.code, answer.stderr) == (0, "")
    assert facts.agent_hash == hashlib.sha256(Path(pushed.command[-1]).read_bytes()).hexdigest()
    assert facts.disk_free_bytes > 0
    assert len(facts.gpus) == 1 or facts.gpu_error
    answer = pushed.call("selftest", ListRequest(work_dir=str(pushed.work_dir)))
    assert answer.code == 0
    assert {check["ok"] for check in answer.one["checks"]} == {True}


def test_light_verbs_import_nothing_heavy(pushed: AgentClient) -> None:
    command = [*pushed.command[:1], "-X", "importtime", *pushed.command[1:], "list"]
    request = ListRequest(work_dir=str(pushed.work_dir)).to_json()
    answer = subprocess.run(command, input=request, capture_output=True, text=True)
    assert answer.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "worker_agent.attempts" in loaded
    assert not loaded & {"asyncio", "ctypes", "subprocess", "stitch", "worker_agent.supervisor"}


def test_start_unpacks_the_code_once_for_the_stages(pushed: AgentClient, tmp_path: Path) -> None:
    stage = script(
        tmp_path / "python", f'#!/bin/sh\necho "$PYTHONPATH"\nexec {sys.executable} "$@"\n'
    )
    spec = pushed.spec(stage, stage="NoSuchStage")
    assert pushed.call("start", spec).one["started"]
    over = pushed.wait(spec)
    archive = Path(pushed.command[-1])
    code = archive.parent / hashlib.sha256(archive.read_bytes()).hexdigest()
    log = AttemptFiles(Path(spec.run_dir), 1).log.read_text()
    assert log.splitlines()[0] == str(code)
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted(
        [archive.name, code.name]
    )
    assert over.exit is not None
    assert over.exit.outcome is not None
    assert over.exit.outcome.reason == "config_invalid"
    assert "NoSuchStage" in over.exit.outcome.message


@pytest.mark.parametrize("line", [b"", b"\n", b"nonsense\n", b"[]\n", b'{"run_dir": 1}\n'])
def test_every_verb_refuses_nonsense_in_one_line(tmp_path: Path, line: bytes) -> None:
    agent = AgentClient(tmp_path / "work")
    for verb in VERBS.keys() - {"session"}:
        answer = agent.call(verb, line)
        assert (answer.code, answer.one["error"], answer.stderr) == (2, "bad_request", ""), verb


def test_unknown_verb_names_the_verbs(tmp_path: Path) -> None:
    answer = AgentClient(tmp_path).call("explode", b"")
    assert answer.code == 2
    for verb in VERBS:
        assert verb in answer.one["message"]


def test_work_dir_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = AgentClient(tmp_path).call("probe", ProbeRequest(work_dir=f"{tmp_path}/file/work"))
    assert (answer.code, answer.stderr) == (1, "")
    assert "cannot create work_dir" in answer.one["message"]
    assert json.dumps(answer.one).count("\\n") == 0


def test_unpacked_beside_it_the_code_is_compiled_and_still_the_same_agent(
    pushed: AgentClient,
) -> None:
    archive = Path(pushed.command[-1])
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    unpacked = archive.parent / digest
    with zipfile.ZipFile(archive) as source:
        source.extractall(unpacked)
    answer = pushed.call("probe", ProbeRequest(work_dir=str(pushed.work_dir)))
    assert (answer.code, answer.stderr) == (0, "")
    assert HostFacts.from_dict(answer.one).agent_hash == digest
    assert list(unpacked.rglob("worker_agent/__pycache__/probe.*.pyc"))
