"""`cosma worker` against real hosts: pinning, listing, cordon, bootstrap, and its exit codes."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher import bootstrap
from dispatcher.cli import worker
from dispatcher.embedded import free_port
from dispatcher.errors import CosmaError, ExitCode, HostError
from dispatcher.inventory import load_inventory
from dispatcher.transport.hostkey import Standing, show
from dispatcher.transport.ssh import SshTransport, pinned_fingerprint
from tests.sshd import Farm, Sshd, farm, make_key

__all__ = ["farm"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    (path / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("COSMA_INVENTORY", raising=False)
    monkeypatch.delenv("COSMA_QC_DB", raising=False)
    monkeypatch.chdir(tmp_path)
    return path


def cosma_worker(*arguments: str) -> Outcome:
    """Run it in this process; what `main` would print of a CosmaError counts as its error."""
    result = CliRunner().invoke(worker.app, list(arguments))
    if isinstance(result.exception, CosmaError):
        return Outcome(result.exception.exit_code, result.stdout, result.exception.line)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return Outcome(result.exit_code, result.stdout, result.stderr)


def add(server: Sshd, *more: str) -> Outcome:
    where = ["--port", str(server.port), "--user", getpass.getuser()]
    login = ["--identity", str(server.client_key), "--work-dir", str(server.work_dir)]
    return cosma_worker("add", server.name, "127.0.0.1", *where, *login, *more)


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_a_host_is_added_listed_cordoned_and_resumed(farm: Farm, tmp_path: Path) -> None:
    server = farm.start()
    path = tmp_path / "inventory.yaml"
    path.write_text("# my farm\ndefaults:\n  python: " + sys.executable + "\nhosts: # none yet\n")
    fingerprint = pinned_fingerprint(server.host_key)

    unasked = add(server)
    assert unasked.code == ExitCode.USAGE
    assert f"--accept-key {fingerprint}" in unasked.err
    wrong = add(server, "--accept-key", "SHA256:" + "A" * 43)
    assert wrong.code == ExitCode.NO_HOST and fingerprint in wrong.err
    assert "alpha" not in path.read_text()

    added = add(server, "--accept-key", fingerprint)
    assert added.code == 0, added
    assert fingerprint in added.err
    assert "# my farm" in path.read_text() and "# none yet" in path.read_text()
    (host,) = load_inventory(path).hosts
    assert (host.name, host.host_key, host.port) == ("alpha", server.host_key, server.port)
    assert rows(added.out)[0]["name"] == "alpha"
    assert add(server, "--yes").code == ExitCode.USAGE  # it is there already

    for word, state in (("cordon", "cordoned"), ("drain", "draining")):
        assert cosma_worker(word, "alpha").code == 0
        listed = cosma_worker("ls")
        assert (listed.code, rows(listed.out)[0]["state"]) == (0, state)
    empty = cosma_worker("drain", "alpha", "--wait")
    assert empty.code == 0 and empty.err.endswith("alpha: empty\n")
    assert cosma_worker("resume", "alpha").code == 0
    probed = cosma_worker("probe", "alpha", "--json")
    assert probed.code == 0
    (document,) = json.loads(probed.out)
    assert document["state"] in ("reachable", "not_ready")
    assert document["facts"]["gpus"] and document["facts"]["disk_free_bytes"] > 0
    assert 0 < document["ram_free_mib"] <= document["ram_total_mib"] and document["cores"] > 0
    device = document["devices"][0]
    assert 0 < device["free_mib"] <= device["total_mib"]
    assert device["own_mib"] == sum(row["mib"] for row in device["own"])
    shown = rows(cosma_worker("probe", "alpha").out)[0]
    assert (shown["name"], shown["gpu"]) == ("alpha", device["uuid"])
    assert int(shown["total_mib"]) == device["total_mib"]
    path.write_text(path.read_text() + "    cordoned: true\n")
    listed = cosma_worker("ls")
    assert rows(listed.out)[0]["state"] == "cordoned"
    by_hand = cosma_worker("resume", "alpha")
    assert by_hand.code == ExitCode.USAGE and "inventory.yaml" in by_hand.err
    unknown = cosma_worker("cordon", "beta")
    assert unknown.code == ExitCode.INVENTORY and "Known hosts: alpha" in unknown.err


def test_hosts_that_cannot_be_used_end_in_one_line_each(farm: Farm, tmp_path: Path) -> None:
    good, gone, stranger = (farm.start(name) for name in ("good", "gone", "stranger"))
    for server in (good, gone, stranger):
        assert add(server, "--yes").code == 0
    path = tmp_path / "inventory.yaml"
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().strip()
    path.write_text(path.read_text().replace(stranger.host_key, other))
    gone.stop()
    some = cosma_worker("ls")
    assert some.code == ExitCode.PARTIAL
    states = {row["name"]: row["reason"] for row in rows(some.out)}
    assert states["gone"] == "host_unreachable" and states["stranger"] == "host_key_mismatch"
    assert len(some.err.splitlines()) == 2 and "Traceback" not in some.err
    one = cosma_worker("probe", "gone")
    assert one.code == ExitCode.NO_HOST
    assert len(one.err.splitlines()) == 1 and str(gone.port) in one.err
    dead = cosma_worker("add", "x", "127.0.0.1", "--port", str(free_port()), "--yes")
    assert dead.code == ExitCode.NO_HOST and "refused" in dead.err


def test_a_mistyped_inventory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text("hosts:\n  - name: a\n    adress: b\n")
    outcome = cosma_worker("ls")
    assert outcome.code == ExitCode.INVENTORY == 10
    assert outcome.err == (
        "inventory.yaml:3: hosts[0].adress: unknown key. Did you mean `address`?"
    )
    (tmp_path / "inventory.yaml").unlink()
    missing = cosma_worker("ls")
    assert missing.code == ExitCode.INVENTORY and "cosma worker add" in missing.err


def test_the_ssh_configuration_and_known_hosts_are_honoured(farm: Farm, home: Path) -> None:
    server = farm.start()
    (home / ".ssh" / "config").write_text(
        f"Host reef\n  HostName 127.0.0.1\n  Port {server.port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {server.client_key}\n"
    )
    shown = show("reef", "reef", None)
    assert (shown.line, shown.standing) == (server.host_key, Standing.UNKNOWN)
    known = home / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    # A key that known_hosts already trusts needs no question.
    added = cosma_worker("add", "reef", "reef", "--work-dir", str(server.work_dir))
    assert added.code == 0, added
    other = make_key(home / "other").with_suffix(".pub").read_text().strip()
    known.write_text(f"[127.0.0.1]:{server.port} {other}\n")
    conflict = cosma_worker("add", "reef2", "reef", "--yes")
    assert conflict.code == ExitCode.NO_HOST and "known_hosts" in conflict.err


def wheel(directory: Path, name: str) -> None:
    """A minimal wheel of a package without code, for an index that is a folder."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")


async def test_bootstrap_makes_the_environment_and_goes_on_where_it_failed(
    farm: Farm, tmp_path: Path, home: Path
) -> None:
    server = farm.start()
    packages = tmp_path / "packages"
    packages.mkdir()
    wheel(packages, "first")
    # The host's own pip configuration: an index of these two packages and nothing else.
    (home / ".config" / "pip").mkdir(parents=True)
    config = home / ".config" / "pip" / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {packages}\n")
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\nPIP_CONFIG_FILE='{config}' exec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    wanted, pinned = ("first", "second>=1"), "first==1.0\nsecond==1.0\n"
    host = server.inventory_host(python=str(python))
    said: list[str] = []
    transport = SshTransport(server.target())
    with pytest.raises(HostError) as caught:
        await bootstrap.bootstrap(host, transport, said.append, wanted=wanted, pinned=pinned)
    assert "package index" in caught.value.line and "\n" not in caught.value.line
    assert any("second" in line for line in said)
    made = server.work_dir / "venv" / "bin" / "python"
    before = made.lstat().st_mtime_ns
    wheel(packages, "second")
    assert str(
        await bootstrap.bootstrap(host, transport, said.append, wanted=wanted, pinned=pinned)
    ) == str(made)
    assert made.lstat().st_mtime_ns == before  # completed, not made again
    await transport.close()
    assert (server.work_dir / ".cosma" / "constraints.txt").read_text() == pinned
    check = await asyncio.create_subprocess_exec(str(made), "-c", "import first, second")
    assert await check.wait() == 0


def test_the_environment_is_pinned() -> None:
    wanted = bootstrap.requirements()
    pins = {line.split("==")[0].lower() for line in bootstrap.constraints().splitlines()}
    names = {requirement.split(">")[0].lower() for requirement in wanted}
    assert {"torch", "pycolmap", "numpy"} <= names
    assert names <= pins
