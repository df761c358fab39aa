"""`fetch` from another host: a real sshd, rsync and sftp, pinned keys, broken beginnings."""

from __future__ import annotations

import getpass
import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, Answer, script
from tests.conftest import REPOSITORY
from tests.sshd import Farm, Sshd, farm, make_key
from worker_agent.fetch import _SSH_OPTIONS
from worker_agent.partial import part_path
from worker_agent.protocol import FetchRequest

__all__ = ["farm"]

DATA = random.Random(1).randbytes(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()
# What the survey's disks really hold: blanks, quotes, globs, shell signs.
STRANGE = 'dive 1/it\'s [a] *real* "clip" $(id) ü.MP4'


@pytest.fixture
def nas(farm: Farm) -> Sshd:
    server = farm.start("nas")
    source = server.directory / STRANGE
    source.parent.mkdir()
    source.write_bytes(DATA)
    return server


def client(nas: Sshd, tmp_path: Path, *, tools: tuple[str, ...], host_key: str) -> AgentClient:
    """An agent whose own ssh configuration knows the host "nas", with only `tools` on its PATH."""
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{nas.port} {host_key}\n")
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host nas\n HostName 127.0.0.1\n Port {nas.port}\n User {getpass.getuser()}\n"
        f" IdentityFile {nas.client_key}\n IdentitiesOnly yes\n UserKnownHostsFile {known}\n"
        " GlobalKnownHostsFile /dev/null\n"
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh", "sftp"):
        if name in tools:
            script(programs / name, f'#!/bin/sh\nexec /usr/bin/{name} -F {config} "$@"\n')
    for name in {"sh", *tools} - {"ssh", "sftp"}:
        path = shutil.which(name)
        assert path is not None
        (programs / name).symlink_to(path)
    environment = {**os.environ, "PATH": str(programs), "PYTHONPATH": str(REPOSITORY)}
    command = (sys.executable, "-m", "worker_agent")
    return AgentClient(tmp_path / "work", command=command, environment=environment)


def fetch(agent: AgentClient, nas: Sshd, name: str = STRANGE, sha256: str | None = SHA) -> Answer:
    request = FetchRequest(
        source=f"nas:{nas.directory}/{name}",
        run_dir=agent.spec(None).run_dir,
        path="input/GX010123.MP4",
        sha256=sha256,
    )
    return agent.call("fetch", request)


def target(agent: AgentClient) -> Path:
    return Path(agent.spec(None).run_dir) / "input" / "GX010123.MP4"


@pytest.mark.parametrize("tools", [("rsync", "ssh"), ("sftp", "ssh")], ids=lambda t: t[0])
def test_fetch_resumes_and_verifies(nas: Sshd, tmp_path: Path, tools: tuple[str, ...]) -> None:
    agent = client(nas, tmp_path, tools=tools, host_key=nas.host_key)
    target(agent).parent.mkdir(parents=True)
    part_path(target(agent)).write_bytes(DATA[:2_000_000])
    answer = fetch(agent, nas)
    assert answer.code == 0, answer.lines
    assert (answer.one["bytes"], answer.one["sha256"]) == (len(DATA), SHA)
    assert target(agent).read_bytes() == DATA
    assert sorted(path.name for path in target(agent).parent.iterdir()) == [target(agent).name]
    (nas.directory / STRANGE).unlink()
    assert fetch(agent, nas).one["complete"], "what is here and verifies is not asked for again"


@pytest.mark.parametrize("tools", [("rsync", "ssh"), ("sftp", "ssh")], ids=lambda t: t[0])
def test_stale_beginning_is_not_built_upon(
    nas: Sshd, tmp_path: Path, tools: tuple[str, ...]
) -> None:
    agent = client(nas, tmp_path, tools=tools, host_key=nas.host_key)
    target(agent).parent.mkdir(parents=True)
    part_path(target(agent)).write_bytes(b"stale" * 1000)
    answer = fetch(agent, nas, sha256=None)
    assert answer.code == 0, answer.lines
    assert target(agent).read_bytes() == DATA


def test_whatever_the_hosts_own_ssh_would_do_no_agent_is_forwarded(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n ForwardAgent yes\n LocalForward 1 x:1\n Ciphers aes128-ctr\n")
    ssh = ["ssh", "-F", str(config), "-G", *_SSH_OPTIONS, "nas"]
    said = subprocess.run(ssh, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "forwardagent no" in said and "clearallforwardings yes" in said
    (ciphers,) = (line for line in said if line.startswith("ciphers "))
    assert ciphers.startswith("ciphers aes128-gcm@openssh.com,")


@pytest.mark.parametrize("tools", [("rsync", "ssh"), ("sftp", "ssh")], ids=lambda t: t[0])
def test_absent_source(nas: Sshd, tmp_path: Path, tools: tuple[str, ...]) -> None:
    agent = client(nas, tmp_path, tools=tools, host_key=nas.host_key)
    answer = fetch(agent, nas, "absent.MP4")
    assert (answer.code, answer.one["error"]) == (1, "input_missing")
    assert "absent.MP4" in answer.one["message"]


def test_wrong_host_key_is_refused(nas: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().strip()
    agent = client(nas, tmp_path, tools=("rsync", "ssh"), host_key=other)
    answer = fetch(agent, nas)
    assert (answer.code, answer.one["error"]) == (1, "transfer_failed")
    assert "host key" in answer.one["message"]
    assert not target(agent).exists()


def test_key_that_is_not_accepted(nas: Sshd, tmp_path: Path) -> None:
    agent = client(nas, tmp_path, tools=("rsync", "ssh"), host_key=nas.host_key)
    (nas.directory / "authorized_keys").write_text("")
    answer = fetch(agent, nas)
    assert (answer.code, answer.one["error"]) == (1, "transfer_failed")
    assert "ssh key" in answer.one["message"]


def test_different_content_is_not_taken(nas: Sshd, tmp_path: Path) -> None:
    agent = client(nas, tmp_path, tools=("rsync", "ssh"), host_key=nas.host_key)
    answer = fetch(agent, nas, sha256="0" * 64)
    assert (answer.code, answer.one["error"]) == (1, "transfer_corrupt")
    assert list(target(agent).parent.iterdir()) == []


def test_host_without_any_tool_says_so(nas: Sshd, tmp_path: Path) -> None:
    agent = client(nas, tmp_path, tools=(), host_key=nas.host_key)
    answer = fetch(agent, nas)
    assert (answer.code, answer.one["error"]) == (1, "tool_missing")
