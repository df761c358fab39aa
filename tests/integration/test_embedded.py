"""Embedded hosts: real sshd processes that the ssh command reaches, and that refuse others."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import embedded
from dispatcher.embedded import EmbeddedHost, EmbeddedHosts
from dispatcher.errors import CosmaError
from dispatcher.inventory import load_inventory


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedHosts]:
    with EmbeddedHosts(2, tmp_path_factory.mktemp("embedded")) as running:
        yield running


def ssh(
    host: EmbeddedHost, folder: Path, command: str, *, identity: Path | None = None, key: str = ""
) -> subprocess.CompletedProcess[str]:
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{host.port} {key or host.host_key}\n")
    return subprocess.run(
        [
            "ssh", "-F", "none", "-p", str(host.port), "-i", str(identity or host.identity_file),
            "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=none",
            "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlgorithms=ssh-ed25519",
            f"{host.user}@127.0.0.1", command,
        ],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def test_every_host_runs_commands_under_its_own_key(hosts: EmbeddedHosts, tmp_path: Path) -> None:
    assert len({host.port for host in hosts.hosts}) == 2
    assert len({host.host_key for host in hosts.hosts}) == 2
    for host in hosts.hosts:
        done = ssh(host, tmp_path, f"cd '{host.work_dir}' && pwd && id -un")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(host.work_dir), host.user]


def test_a_stranger_s_key_is_refused(hosts: EmbeddedHosts, tmp_path: Path) -> None:
    first, second = hosts.hosts
    refused = ssh(first, tmp_path, "true", identity=second.identity_file)
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_a_pinned_key_of_another_host_is_noticed(hosts: EmbeddedHosts, tmp_path: Path) -> None:
    first, second = hosts.hosts
    refused = ssh(first, tmp_path, "true", key=second.host_key)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_files_travel_over_sftp(hosts: EmbeddedHosts, tmp_path: Path) -> None:
    host = hosts.hosts[0]
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{host.port} {host.host_key}\n")
    source = tmp_path / "a file"
    source.write_bytes(bytes(range(256)) * 100)
    done = subprocess.run(
        [
            "scp", "-q", "-F", "none", "-P", str(host.port), "-i", str(host.identity_file),
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}",
            str(source), f"{host.user}@127.0.0.1:{host.work_dir}/copied",
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (host.work_dir / "copied").read_bytes() == source.read_bytes()


def test_the_inventory_describes_the_hosts(hosts: EmbeddedHosts) -> None:
    inventory = load_inventory(hosts.inventory)
    assert [host.name for host in inventory.hosts] == ["host-1", "host-2"]
    for listed, running in zip(inventory.hosts, hosts.hosts, strict=True):
        assert listed.address == "127.0.0.1"
        assert listed.port == running.port
        assert listed.host_key == running.host_key
        assert listed.identity_file == running.identity_file
        assert listed.work_dir == str(running.work_dir)
        assert listed.stage_python
        assert listed.max_parallel.train == 1


def test_a_key_is_private(hosts: EmbeddedHosts) -> None:
    for host in hosts.hosts:
        assert host.identity_file.stat().st_mode & 0o077 == 0


def test_stopped_hosts_do_not_answer_and_start_again_with_the_same_keys(tmp_path: Path) -> None:
    with EmbeddedHosts(2, tmp_path / "hosts") as hosts:
        first, second = hosts.hosts
        hosts.stop_host(first.name)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", first.port), timeout=5)
        assert ssh(second, tmp_path, "true").returncode == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", second.port), timeout=5)
    with EmbeddedHosts(1, tmp_path / "hosts") as again:
        assert again.hosts[0].host_key == first.host_key


def test_power_off_ends_what_runs_on_the_hosts_and_nothing_else(tmp_path: Path) -> None:
    elsewhere = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        with EmbeddedHosts(1, tmp_path / "hosts") as hosts:
            host = hosts.hosts[0]
            quiet = "</dev/null >/dev/null 2>&1"
            started = ssh(host, tmp_path, f"cd '{host.work_dir}'; setsid sleep 60 {quiet} &")
            assert started.returncode == 0, started.stderr
            assert _working_in(host.work_dir)
            hosts.power_off()
            assert not _working_in(host.work_dir)
        assert elsewhere.poll() is None
    finally:
        elsewhere.kill()
        elsewhere.wait()


def _working_in(folder: Path) -> list[str]:
    found = subprocess.run(
        ["find", "/proc", "-maxdepth", "2", "-name", "cwd", "-lname", f"{folder}*"],
        capture_output=True,
        text=True,
    )
    return found.stdout.split()


def test_a_missing_sshd_is_one_line_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_SBIN", ())
    with pytest.raises(CosmaError) as raised, EmbeddedHosts(1, tmp_path / "hosts"):
        pass
    assert "sshd is not installed" in raised.value.line
    assert "make setup" in raised.value.line
    assert "\n" not in raised.value.line


def test_a_host_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "hosts" / "host-2"
    folder.mkdir(parents=True)
    (folder / "host_key").write_text("not a key\n")
    (folder / "host_key").chmod(0o600)
    (folder / "host_key.pub").write_text("ssh-ed25519 AAAA\n")
    hosts = EmbeddedHosts(2, tmp_path / "hosts")
    with pytest.raises(CosmaError, match="sshd does not start") as raised:
        hosts.start()
    assert str(folder / "sshd.log") in raised.value.line
    started = (tmp_path / "hosts" / "host-1" / "sshd.log").read_text()
    port = int(started.split("port ")[1].split(".")[0])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
