from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent.fetch import fetch, parse_source
from worker_agent.partial import opened, part_path
from worker_agent.protocol import FetchRequest, ReceiveRequest, SendRequest, TransferReport
from worker_agent.refusal import RefusedError
from worker_agent.transfer import receive, send

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "reef" / "a-1"
    path.mkdir(parents=True)
    return path


def push(run_dir: Path, data: bytes, offset: int, *, sha256: str = SHA) -> TransferReport:
    request = ReceiveRequest(
        run_dir=str(run_dir), path="input/a.MP4", bytes=len(DATA), sha256=sha256, offset=offset
    )
    return receive(request, io.BytesIO(data))


def refusal_of(run_dir: Path, data: bytes, offset: int, *, sha256: str = SHA) -> str:
    with pytest.raises(RefusedError) as refused:
        push(run_dir, data, offset, sha256=sha256)
    return refused.value.refusal.error


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, len(DATA) - 1), max_size=4, unique=True))
def test_any_cuts_give_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    run_dir = tmp_path_factory.mktemp("w") / "reef" / "a-1"
    at = 0
    for cut in sorted(cuts):
        report = push(run_dir, DATA[at:cut], at)
        assert (report.complete, report.bytes, report.sha256) == (False, cut, None)
        asked = push(run_dir, b"", -1)
        assert (asked.complete, asked.bytes) == (False, cut)
        at = cut
    report = push(run_dir, DATA[at:], at)
    assert (report.complete, report.bytes, report.sha256) == (True, len(DATA), SHA)
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA
    assert not part_path(run_dir / "input" / "a.MP4").exists()


def test_asking_creates_nothing(run_dir: Path) -> None:
    assert push(run_dir, b"", -1).bytes == 0
    assert list(run_dir.iterdir()) == []


def test_complete_file_is_complete_at_once(run_dir: Path) -> None:
    push(run_dir, DATA, 0)
    assert push(run_dir, b"", -1).complete
    assert push(run_dir, b"never read", 0).complete


def test_bytes_after_the_end_are_left_alone(run_dir: Path) -> None:
    assert push(run_dir, DATA + b"tail", 0).complete
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA


def test_smaller_offset_overwrites_what_was_there(run_dir: Path) -> None:
    push(run_dir, b"garbage" * 10, 0)
    assert push(run_dir, DATA, 0).complete


def test_wrong_hash_removes_the_part_file(run_dir: Path) -> None:
    assert refusal_of(run_dir, DATA[:-1] + b"X", 0) == "transfer_corrupt"
    assert list((run_dir / "input").iterdir()) == []


def test_offset_beyond_what_is_here_is_refused(run_dir: Path) -> None:
    push(run_dir, DATA[:10], 0)
    assert refusal_of(run_dir, DATA[11:], 11) == "bad_request"


def test_more_than_the_disk_holds_is_refused_with_the_bytes_missing(run_dir: Path) -> None:
    request = ReceiveRequest(
        run_dir=str(run_dir), path="input/a", bytes=1 << 60, sha256=SHA, offset=0
    )
    with pytest.raises(RefusedError, match=r"\d+ bytes more are needed") as refused:
        receive(request, io.BytesIO())
    assert refused.value.refusal.error == "disk_full"


def test_two_transfers_of_one_file_do_not_mix(run_dir: Path) -> None:
    with opened(run_dir / "input" / "a.MP4"):
        assert refusal_of(run_dir, DATA, 0) == "busy"
    assert push(run_dir, DATA, 0).complete


@pytest.mark.parametrize("offset", [0, 1, len(DATA)])
def test_send_gives_the_report_and_the_rest(run_dir: Path, offset: int) -> None:
    push(run_dir, DATA, 0)
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
    push(run_dir, DATA, 0)
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
    assert (report.bytes, report.sha256, report.complete) == (len(DATA), SHA, True)
    assert (run_dir / "input" / "a.MP4").read_bytes() == DATA


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
