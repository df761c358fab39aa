"""`pack` and `unpack`: what a job made on one host, brought whole to another."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agent_client import AgentClient, script
from tests.conftest import REPOSITORY
from tests.sshd import Farm, Sshd, farm, make_key
from worker_agent.checkpoint import PATH as CHECKPOINT
from worker_agent.checkpoint import Checkpoint
from worker_agent.exclusive import alone
from worker_agent.far_side import _DIAL
from worker_agent.limit import limit
from worker_agent.partial import part_path
from worker_agent.protocol import (
    Artifact,
    PackItem,
    PackRequest,
    Peer,
    UnpackReport,
    UnpackRequest,
)
from worker_agent.stages.api import Artifacts, artifact, write_json

__all__ = ["farm"]

FRAMES = 12
MODEL = random.Random(7).randbytes(3_000_000)
EXTRAS = (
    PackItem(path=str(CHECKPOINT), kind="checkpoint"),
    PackItem(path="train/checkpoint.pt", kind="training_state"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The old host and the new one; they share nothing but this test."""

    old: AgentClient
    new: AgentClient
    files: tuple[Artifact, ...]

    @property
    def source(self) -> Path:
        return Path(self.old.spec(None).run_dir)

    @property
    def target(self) -> Path:
        return Path(self.new.spec(None).run_dir)

    def request(self, source: Peer | None = None, epoch: int = 1) -> UnpackRequest:
        return UnpackRequest(
            epoch=epoch, job="a-1", run_dir=str(self.target), files=self.files, extras=EXTRAS,
            source_run_dir=str(self.source), source=source,
        )  # fmt: skip

    def packed(self, items: Iterable[PackItem]) -> bytes:
        request = PackRequest(run_dir=str(self.source), items=tuple(items))
        with self.old.spawn("pack") as process:
            out, err = process.communicate(request.to_json().encode() + b"\n", timeout=60)
        assert process.returncode == 0, (out[-300:], err)
        return out

    def relay(self, cut: int | None = None) -> tuple[PackRequest, int, dict[str, Any]]:
        """As the dispatcher does: (what was missing, exit code, the last reply). `cut`: the
        stream breaks off after so many bytes."""
        with self.new.spawn("unpack") as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(self.request().to_json().encode() + b"\n")
            process.stdin.flush()
            wanted = PackRequest.from_json(process.stdout.readline())
            out, err = process.communicate(self.packed(wanted.items)[:cut], timeout=60)
        assert out, err
        return wanted, process.returncode, json.loads(out.splitlines()[-1])

    def same(self) -> bool:
        return all(
            (self.source / item.path).read_bytes() == (self.target / item.path).read_bytes()
            for item in self.files
        ) and sorted((self.source / "frames").iterdir()) == sorted(
            self.source / "frames" / path.name for path in (self.target / "frames").iterdir()
        )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    old, new = AgentClient(tmp_path / "old" / "work"), AgentClient(tmp_path / "new" / "work")
    root = Path(old.spec(None).run_dir)
    for folder in ("frames", "sfm/model", "output", "train"):
        (root / folder).mkdir(parents=True)
    rows = []
    for number in range(FRAMES):
        frame = root / "frames" / f"f{number:06d}.jpg"
        frame.write_bytes(random.Random(number).randbytes(50_000 + number))
        made = artifact(root, frame, "frame")
        rows.append({"name": frame.name, "bytes": made.bytes, "sha256": made.sha256})
    write_json(root / "frames" / "frames.json", {"frames": rows, "verified": True})
    (root / "sfm" / "model" / "points3D.bin").write_bytes(MODEL)
    (root / "output" / "validation.json").write_text('{"clips": []}')
    (root / "train" / "checkpoint.pt").write_bytes(b"state" * 1000)
    files = (
        artifact(root, root / "output" / "validation.json", "validation"),
        artifact(root, root / "frames" / "frames.json", "frames"),
        artifact(root, root / "sfm" / "model" / "points3D.bin", "sfm_model"),
    )
    stage = Artifacts(files=files, completed={"colmap_sparse_path": str(root / "sfm" / "model")})
    Checkpoint(root, "a-1").record(old.spec(None, attempt=5), "digest", stage, 1_800_000_000.0)
    return Pair(old, new, files)


def test_everything_arrives_and_is_not_asked_for_again(pair: Pair) -> None:
    wanted, code, report = pair.relay()
    assert [item.path for item in wanted.items[:3]] == [item.path for item in pair.files]
    assert (code, report["missing"]) == (0, [])
    assert report["files"] == 3 + FRAMES + 1
    assert pair.same()
    assert (pair.target / "train" / "checkpoint.pt").read_bytes() == b"state" * 1000
    again, code, report = pair.relay()
    assert again.items == EXTRAS and report["missing"] == []


def test_the_checkpoint_speaks_of_the_new_host(pair: Pair) -> None:
    pair.relay()
    data = json.loads((pair.target / CHECKPOINT).read_text())
    assert data["temp_folder"] == str(pair.target)
    assert data["completed_stages"]["colmap_sparse_path"] == f"{pair.target}/sfm/model"
    assert data["stage_hashes"] == {"Validation": "digest"}
    kept = Checkpoint.load(pair.target, "a-1")
    assert kept.resume("Validation", "digest", 1_800_000_001.0) is not None
    assert kept.resume("Validation", "other", 1_800_000_001.0) is None


def test_a_later_checkpoint_of_the_new_host_stays(pair: Pair) -> None:
    made = Artifacts(files=())
    here = Checkpoint(pair.target, "a-1")
    here.record(pair.new.spec(None, attempt=9), "newer", made, 1_800_000_000.0)
    pair.relay()
    assert Checkpoint.load(pair.target, "a-1").stage_hashes == {"Validation": "newer"}


@pytest.mark.parametrize("cut", [40, 200_000, 2_500_000])
def test_a_stream_that_broke_off_goes_on_where_it_was(pair: Pair, cut: int) -> None:
    _, code, refusal = pair.relay(cut)
    assert (code, refusal["error"]) == (1, "transfer_failed")
    wanted, code, report = pair.relay()
    assert (code, report["missing"]) == (0, [])
    assert pair.same()
    if cut == 200_000:
        assert any(item.kind == "frame" and item.skip == 3 for item in wanted.items)
    if cut == 2_500_000:
        assert wanted.items[0].skip > 1_000_000, "the large file goes on in its middle"
        assert report["bytes"] < 1_500_000


def test_a_kept_beginning_of_another_file_is_dropped(pair: Pair) -> None:
    large = pair.target / pair.files[2].path
    large.parent.mkdir(parents=True)
    part_path(large).write_bytes(b"x" * 2_000_000)
    _, code, refusal = pair.relay()
    assert (code, refusal["error"]) == (1, "transfer_corrupt")
    assert pair.relay()[2]["missing"] == [] and pair.same()


def test_a_damaged_frame_is_brought_again(pair: Pair) -> None:
    pair.relay()
    (pair.target / "frames" / "f000007.jpg").write_bytes(b"rot")
    wanted, _, report = pair.relay()
    assert wanted.items[0] == PackItem(path="frames/frames.json", kind="frame", skip=7)
    assert report["missing"] == [] and pair.same()


@pytest.mark.parametrize(
    ("damaged", "missing"),
    [
        ("frames/f000003.jpg", ["frames/frames.json"]),
        ("frames/frames.json", ["frames/frames.json"]),
        ("output/validation.json", ["output/validation.json"]),
    ],
)
def test_what_the_old_host_lost_or_spoilt_is_named_and_not_taken(
    pair: Pair, damaged: str, missing: list[str]
) -> None:
    (pair.source / damaged).write_bytes(b"rot")
    assert pair.relay()[2]["missing"] == missing
    (pair.source / damaged).unlink()
    _, code, report = pair.relay()
    assert (code, report["missing"]) == (0, missing)
    assert not (pair.target / damaged).exists()


def test_nothing_to_come_is_no_failure(pair: Pair) -> None:
    answer = pair.new.call("unpack", pair.request())
    assert answer.code == 0
    assert UnpackReport.from_dict(answer.lines[-1]).missing == tuple(i.path for i in pair.files)


def test_two_at_once_and_an_old_dispatcher_are_refused(pair: Pair) -> None:
    with alone(pair.target):
        answer = pair.new.call("unpack", pair.request(epoch=5))
    assert (answer.code, answer.one["error"]) == (3, "busy")
    assert pair.new.call("unpack", pair.request(epoch=4)).one["error"] == "stale_epoch"


def test_a_path_that_leads_out_is_refused(pair: Pair) -> None:
    wicked = Artifact(kind="ply", path="../../x", bytes=1, sha256="0" * 64)
    request = UnpackRequest(
        epoch=1, job="a-1", run_dir=str(pair.target), files=(wicked,), source_run_dir="/x/y/z"
    )
    assert pair.new.call("unpack", request).one["error"] == "bad_request"
    ask = PackRequest(run_dir=str(pair.source), items=(PackItem(path="../../x", kind="ply"),))
    assert pair.old.call("pack", ask).one["error"] == "bad_request"


# --- from host to host, by a key that was made for it ---


def peer_on(server: Sshd, path: Path, command: str | None = None, **changes: Any) -> Peer:
    """As `grant` lets the holder of the server's key in: for one run directory."""
    agent = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "worker_agent", "pack"]
    runs = command or shlex.join([*agent, limit(str(path), time.time() + 600.0)])
    public = server.client_key.with_suffix(".pub").read_text()
    (server.directory / "authorized_keys").write_text(f'restrict,command="{runs}" {public}')
    values: dict[str, Any] = {
        "destination": f"{getpass.getuser()}@127.0.0.1",
        "port": server.port,
        "host_key": server.host_key,
        "private_key": server.client_key.read_text(),
    }
    return Peer(**{**values, **changes})


def told(pair: Pair, peer: Peer) -> str:
    """How `unpack` fails."""
    answer = pair.new.call("unpack", pair.request(peer))
    assert (answer.code, answer.lines[-1]["error"]) == (1, "transfer_failed"), answer.lines
    assert not (pair.target / "frames").exists()
    return str(answer.lines[-1]["message"])


def test_the_new_host_pulls_with_a_key(farm: Farm, pair: Pair) -> None:
    answer = pair.new.call("unpack", pair.request(peer_on(farm.start("old"), pair.source)))
    assert answer.code == 0, answer.lines
    report = UnpackReport.from_dict(answer.lines[-1])
    assert report.missing == () and report.files == 3 + FRAMES + 1
    assert pair.same()


def test_it_goes_no_faster_than_allowed_and_tells_how_far_it_is(farm: Farm, pair: Pair) -> None:
    peer = peer_on(farm.start("old"), pair.source)
    slow = dataclasses.replace(pair.request(peer), bytes_s=3_600_000 / 1.5)
    answer = pair.new.call("unpack", slow)
    assert answer.code == 0 and pair.same(), answer.lines
    wanted, *told, last = answer.lines
    assert "items" in wanted and told and last["missing"] == []
    assert 0 < told[0]["bytes"] < last["bytes"]
    assert last["seconds"] >= 1.4


def test_why_a_key_brought_nothing_is_told(farm: Farm, pair: Pair, tmp_path: Path) -> None:
    server = farm.start("old")
    elsewhere = peer_on(server, pair.source.with_name("other"))
    assert f"the key is not for {pair.source}" in told(pair, elsewhere)
    unknown = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    said = told(pair, peer_on(server, pair.source, host_key=" ".join(unknown[:2])))
    assert "Host key verification failed" in said
    assert "not a stream of files" in told(pair, peer_on(server, pair.source, "yes")), "for ever"
    assert told(pair, peer_on(server, pair.source, "false"))
    peer = peer_on(server, pair.source)
    (server.directory / "authorized_keys").write_text("")
    assert "Permission denied" in told(pair, peer)
    server.stop()
    assert "Connection refused" in told(pair, peer)
    dashed = peer_on(server, pair.source, destination="-oProxyCommand=x")
    assert pair.new.call("unpack", pair.request(dashed)).lines[-1]["error"] == "bad_request"


def ssh_in_its_place(pair: Pair, programs: Path, text: str) -> AgentClient:
    programs.mkdir()
    script(programs / "ssh", text)
    path = f"{programs}:{os.environ['PATH']}"
    return AgentClient(pair.new.work_dir, environment={**pair.new.environment, "PATH": path})


def test_a_way_that_only_ssh_itself_knows_is_taken(farm: Farm, pair: Pair, tmp_path: Path) -> None:
    server = farm.start("old")
    dial = tmp_path / "dial"
    dial.write_text(_DIAL)
    config = tmp_path / "config"
    config.write_text(
        f"Host old.invalid\n ProxyUseFdpass yes\n"
        f" ProxyCommand {sys.executable} {dial} 127.0.0.1 {server.port}\n"
    )
    ssh = f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n'
    peer = peer_on(server, pair.source, destination=f"{getpass.getuser()}@old.invalid")
    answer = ssh_in_its_place(pair, tmp_path / "bin", ssh).call("unpack", pair.request(peer))
    assert answer.code == 0 and pair.same(), answer.lines


def test_ssh_gets_neither_agent_nor_forwardings(pair: Pair, tmp_path: Path) -> None:
    ssh = f'#!/bin/sh\nprintf "%s\\0" "$@" > {tmp_path}/said\nexit 255\n'
    peer = Peer(destination="h", port=22, host_key="ssh-ed25519 AAAA", private_key="secret")
    ssh_in_its_place(pair, tmp_path / "bin", ssh).call("unpack", pair.request(peer))
    said = (tmp_path / "said").read_text().split("\0")[:-1]
    assert said[-3:] == ["--", "h", "pack"] and "secret" not in " ".join(said)
    done = subprocess.run(["/usr/bin/ssh", "-F", "/dev/null", "-G", *said],
                          capture_output=True, text=True, check=True)  # fmt: skip
    for line in (
        "forwardagent no", "clearallforwardings yes", "batchmode yes", "identitiesonly yes",
        "stricthostkeychecking true", "permitlocalcommand no",
    ):  # fmt: skip
        assert line in done.stdout, line
