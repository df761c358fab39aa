"""A file that comes in blocks: whatever was cut, whatever lies there, it is whole or not there."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent import blocks as module
from worker_agent.blocks import arrived, take
from worker_agent.digests import SHA256, XXH3, available, digest_by
from worker_agent.partial import opened, part_path
from worker_agent.protocol import Arrived, ArrivedRequest, Block, TakeRequest, TransferReport
from worker_agent.refusal import RefusedError

SIZE = 64  # of a block, in these tests
DATA = random.Random(5).randbytes(10 * SIZE + 7)
COUNT = 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", SIZE)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "reef" / "a-1"


def block(index: int, data: bytes = DATA) -> bytes:
    content = data[index * SIZE : (index + 1) * SIZE]
    digest = hashlib.sha256(content).hexdigest()
    head = Block(offset=index * SIZE, bytes=len(content), digest=digest)
    return head.to_json().encode() + b"\n" + content


def last(data: bytes = DATA) -> bytes:
    parts = [data[at : at + SIZE] for at in range(0, len(data), SIZE)]
    whole = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return Block(offset=len(data), bytes=0, digest=whole).to_json().encode() + b"\n"


def request(run_dir: Path, *, shared: bool = False, size: int = len(DATA)) -> TakeRequest:
    return TakeRequest(
        run_dir=str(run_dir), path="input/a", bytes=size, algorithms=(SHA256,), shared=shared
    )


def send(
    run_dir: Path, stream: bytes, *, shared: bool = False, size: int = len(DATA)
) -> TransferReport:
    ready, _, done = take(request(run_dir, shared=shared, size=size), io.BytesIO(stream))
    assert isinstance(ready, TransferReport) and not ready.complete
    assert isinstance(done, TransferReport)
    return done


def refusal_of(run_dir: Path, stream: bytes, *, shared: bool = False) -> str:
    with pytest.raises(RefusedError) as refused:
        send(run_dir, stream, shared=shared)
    return refused.value.refusal.error


def here(run_dir: Path) -> Arrived:
    _, found, done = take(request(run_dir), io.BytesIO())
    assert isinstance(found, Arrived) and isinstance(done, TransferReport) and not done.complete
    return found


def size_here(run_dir: Path) -> int:
    return arrived(ArrivedRequest(run_dir=str(run_dir), path="input/a")).bytes


def lacking(report: Arrived, data: bytes = DATA) -> list[int]:
    parts = [data[at : at + SIZE] for at in range(0, len(data), SIZE)]
    return [
        index
        for index, part in enumerate(parts)
        if index >= len(report.digests) or report.digests[index] != hashlib.sha256(part).hexdigest()
    ]


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(COUNT)),
    cuts=st.lists(st.integers(0, 2 * len(DATA)), max_size=4),
    garbage=st.none() | st.binary(max_size=len(DATA) + SIZE),
)
def test_any_order_cut_anywhere_gives_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory,
    order: Sequence[int],
    cuts: list[int],
    garbage: bytes | None,
) -> None:
    run_dir = tmp_path_factory.mktemp("w") / "reef" / "a-1"
    target = run_dir / "input" / "a"
    if garbage is not None:
        target.parent.mkdir(parents=True)
        part_path(target).write_bytes(garbage)
    for cut in cuts:
        missing = lacking(here(run_dir))
        stream = b"".join(block(index) for index in order if index in missing)[:cut]
        assert not send(run_dir, stream).complete
        assert not target.exists()
    missing = lacking(here(run_dir))
    report = send(run_dir, b"".join(block(i) for i in order if i in missing) + last())
    assert report.complete and target.read_bytes() == DATA
    assert here(run_dir).published and not lacking(here(run_dir))
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_several_streams_share_the_file_and_none_of_them_completes_it(run_dir: Path) -> None:
    first, second = (
        take(
            request(run_dir, shared=True),
            io.BytesIO(b"".join(block(index) for index in range(start, COUNT, 2))),
        )
        for start in (0, 1)
    )
    next(first), next(second)  # both are at it
    assert refusal_of(run_dir, last()) == "busy"
    taken = [report.bytes for report in (list(first)[-1], list(second)[-1])]
    assert sum(taken) == len(DATA)
    assert refusal_of(run_dir, last(), shared=True) == "bad_request"
    assert not (run_dir / "input" / "a").exists()
    assert send(run_dir, last()).complete
    assert (run_dir / "input" / "a").read_bytes() == DATA


def test_a_block_that_is_not_what_was_sent_is_not_written(run_dir: Path) -> None:
    wrong = bytearray(block(3))
    wrong[-1] ^= 1
    assert refusal_of(run_dir, block(2) + bytes(wrong)) == "transfer_corrupt"
    assert size_here(run_dir) == 3 * SIZE
    assert 3 in lacking(here(run_dir)) and 2 not in lacking(here(run_dir))


@pytest.mark.parametrize("size", [len(DATA), len(DATA) - SIZE])
def test_what_is_not_whole_gets_no_name_and_keeps_what_it_has(run_dir: Path, size: int) -> None:
    stream = b"".join(block(index) for index in range(COUNT) if index != 4)
    assert refusal_of(run_dir, stream + last()) == "transfer_corrupt"
    assert lacking(here(run_dir)) == [4]
    assert send(run_dir, block(4) + last()).complete


@pytest.mark.parametrize(
    "head",
    [
        Block(offset=1, bytes=SIZE, digest=""),
        Block(offset=-SIZE, bytes=SIZE, digest=""),
        Block(offset=0, bytes=SIZE - 1, digest=""),
        Block(offset=0, bytes=SIZE + 1, digest=""),
        Block(offset=0, bytes=-1, digest=""),
        Block(offset=11 * SIZE, bytes=SIZE, digest=""),
    ],
)
def test_blocks_of_no_place_are_refused(run_dir: Path, head: Block) -> None:
    stream = head.to_json().encode() + b"\n" + bytes(2 * SIZE)
    assert refusal_of(run_dir, stream) == "bad_request"
    assert size_here(run_dir) == 0


def test_another_version_replaces_the_file_only_when_it_is_whole(run_dir: Path) -> None:
    send(run_dir, b"".join(block(index) for index in range(COUNT)) + last())
    other = bytes(reversed(DATA))
    assert lacking(here(run_dir), other)
    stream = b"".join(block(index, other) for index in range(COUNT))
    assert not send(run_dir, stream[:-1]).complete
    assert (run_dir / "input" / "a").read_bytes() == DATA
    assert send(run_dir, stream + last(other)).complete
    assert (run_dir / "input" / "a").read_bytes() == other


def test_asking_how_much_is_here_changes_nothing(run_dir: Path) -> None:
    assert size_here(run_dir) == 0 and not run_dir.exists()
    send(run_dir, block(0) + block(1))
    assert size_here(run_dir) == 2 * SIZE


def test_who_only_compares_leaves_nothing(run_dir: Path) -> None:
    assert here(run_dir).digests == ()
    assert list((run_dir / "input").iterdir()) == []


def test_more_than_the_disk_holds_is_refused_with_the_bytes_missing(run_dir: Path) -> None:
    with pytest.raises(RefusedError, match=r"\d+ bytes more are needed") as refused:
        send(run_dir, b"", size=1 << 60)
    assert refused.value.refusal.error == "disk_full"


def test_two_transfers_of_one_file_do_not_mix(run_dir: Path) -> None:
    with opened(run_dir / "input" / "a"):
        assert refusal_of(run_dir, block(0)) == "busy"
        assert refusal_of(run_dir, block(0), shared=True) == "busy"
    assert send(run_dir, block(0)).bytes == SIZE


@given(content=st.binary(max_size=3000))
def test_digests_are_the_ones_that_others_compute(content: bytes) -> None:
    for algorithm in available():
        expected = {
            XXH3: xxhash.xxh3_128_digest(content), SHA256: hashlib.sha256(content).digest()
        }  # fmt: skip
        assert digest_by(algorithm)(bytearray(content)) == expected[algorithm]
        padded = memoryview(bytearray(b"x" + content + b"y"))
        assert digest_by(algorithm)(padded[1:-1]) == expected[algorithm]
    with pytest.raises(RefusedError):
        digest_by("md5")
