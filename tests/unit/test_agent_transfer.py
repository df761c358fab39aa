from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from worker_agent.fetch import fetch, parse_source
from worker_agent.partial import opened, part_path
from worker_agent.protocol import (
    DigestRequest,
    FetchRequest,
    ReceiveRequest,
    SendRequest,
    TransferReport,
)
from worker_agent.refusal import RefusedError
from worker_agent.transfer import digest, receive, send

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "reef" / "a-1"
    path.mkdir(parents=True)
    return path


def push(run_dir: Path, data: bytes, *, sha256: str = SHA) -> TransferReport:
    request = ReceiveRequest(
        run_dir=str(run_dir), path="input/a.MP4", bytes=len(DATA), sha256=sha256
    )
    return receive(request, io.BytesIO(data))


def refusal_of(run_dir: Path, data: bytes, *, sha256: str = SHA) -> str:
    with pytest.raises(RefusedError) as refused:
        push(run_dir, data, sha256=sha256)
    return refused.value.refusal.error


def test_complete_file_is_complete_at_once(run_dir: Path) -> None:
    assert push(run_dir, DATA).complete
    assert push(run_dir, b"never read").complete
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA


@pytest.mark.parametrize("beginning", [b"", b"garbage" * 10, bytes(2 * len(DATA))])
def test_a_beginning_of_whatever_is_not_built_upon(run_dir: Path, beginning: bytes) -> None:
    (run_dir / "input").mkdir()
    part_path(run_dir / "input" / "a.MP4").write_bytes(beginning)
    assert push(run_dir, DATA + b"tail").complete
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA
    assert not part_path(run_dir / "input" / "a.MP4").exists()


def test_wrong_hash_leaves_nothing(run_dir: Path) -> None:
    assert refusal_of(run_dir, DATA[:-1] + b"X") == "transfer_corrupt"
    assert list((run_dir / "input").iterdir()) == []


def test_a_stream_that_ends_early_leaves_nothing(run_dir: Path) -> None:
    assert refusal_of(run_dir, DATA[:-1]) == "transfer_failed"
    assert list(run_dir.iterdir()) == []


def test_two_transfers_of_one_file_do_not_mix(run_dir: Path) -> None:
    with opened(run_dir / "input" / "a.MP4"):
        assert refusal_of(run_dir, DATA) == "busy"
    assert push(run_dir, DATA).complete


@pytest.mark.parametrize("offset", [0, 1, len(DATA)])
def test_send_gives_the_report_and_the_rest(run_dir: Path, offset: int) -> None:
    push(run_dir, DATA)
    out = io.BytesIO()
    send(SendRequest(run_dir=str(run_dir), path="input/a.MP4", offset=offset), out)
    line, _, body = out.getvalue().partition(b"\n")
    report = TransferReport.from_json(line)
    assert (report.bytes, report.sha256, report.complete) == (len(DATA), SHA, True)
    assert body == DATA[offset:]


@pytest.mark.parametrize(
    ("path", "offset"), [("absent", 0), ("input", 0), ("input/a.MP4", 1 << 40)]
)
def test_send_refuses_before_it_writes(run_dir: Path, path: str, offset: int) -> None:
    push(run_dir, DATA)
    out = io.BytesIO()
    with pytest.raises(RefusedError):
        send(SendRequest(run_dir=str(run_dir), path=path, offset=offset), out)
    assert out.getvalue() == b""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nas:/survey/GX01.MP4", ("nas", "/survey/GX01.MP4")),
        ("pilot@nas:/a b:c.MP4", ("pilot@nas", "/a b:c.MP4")),
        ("[fd00::1]:/v", ("[fd00::1]", "/v")),
        ("/local/with:colon", (None, "/local/with:colon")),
    ],
)
def test_sources(source: str, expected: tuple[str | None, str]) -> None:
    assert parse_source(source) == expected


@pytest.mark.parametrize(
    "source", ["", "nas:relative", "relative", "-oProxyCommand=x:/a", "a\n:/b"]
)
def test_other_sources_are_refused(source: str) -> None:
    with pytest.raises(RefusedError):
        parse_source(source)


def local_request(run_dir: Path, source: Path, **changes: object) -> FetchRequest:
    values: dict[str, object] = {
        "source": str(source),
        "run_dir": str(run_dir),
        "path": "input/a.MP4",
    }
    return FetchRequest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("announced", [True, False])
def test_fetch_from_this_host_goes_on_where_it_stopped(
    run_dir: Path, tmp_path: Path, announced: bool
) -> None:
    source = tmp_path / "source.MP4"
    source.write_bytes(DATA)
    # Without an announced hash nothing vouches for the part file: it is not used.
    beginning = DATA[:100] if announced else b"stale" * 20
    (run_dir / "input").mkdir()
    part_path(run_dir / "input" / "a.MP4").write_bytes(beginning)
    extra = {"bytes": len(DATA), "sha256": SHA} if announced else {}
    report = fetch(local_request(run_dir, source, **extra))
    known = SHA if announced else None
    assert (report.bytes, report.sha256, report.complete) == (len(DATA), known, True)
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA
    asked = DigestRequest(run_dir=str(run_dir), path="input/a.MP4")
    assert digest(asked).sha256 == SHA


def test_fetch_of_a_changed_source_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.MP4"
    source.write_bytes(DATA[:-1] + b"X")
    for expected in ({"sha256": SHA}, {"bytes": len(DATA) + 1}):
        with pytest.raises(RefusedError) as refused:
            fetch(local_request(run_dir, source, **expected))
        assert refused.value.refusal.error == "transfer_corrupt"
        assert list((run_dir / "input").iterdir()) == []


def test_fetch_of_an_absent_file(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        fetch(local_request(run_dir, tmp_path / "absent"))
    assert refused.value.refusal.error == "input_missing"
