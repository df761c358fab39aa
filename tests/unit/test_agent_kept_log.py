"""Of what an attempt prints, the beginning and the end are kept and told, each byte once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from worker_agent import kept_log
from worker_agent.kept_log import LogCap, read_log

KIB = 1 << 10
HEAD = TAIL = 64 * KIB


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_log, "HEAD_BYTES", HEAD)
    monkeypatch.setattr(kept_log, "TAIL_BYTES", TAIL)
    monkeypatch.setattr(kept_log, "_STEP_BYTES", 16 * KIB)


def told(log: Path, *, over: bool, limit: int = 7919) -> bytes:
    """All of it, read on and on from where it ended."""
    text = b""
    while more := read_log(log, len(text), limit, over=over):
        text += more
    return text


def test_a_log_of_usual_length_is_told_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_log(log, 0, 100, over=False) == b""
    for size in (0, 1, HEAD - 1, HEAD, HEAD + 1, HEAD + TAIL):
        content = random.Random(size).randbytes(size)
        log.write_bytes(content)
        assert told(log, over=True) == content
        assert told(log, over=False) == content[:HEAD]


def test_the_middle_of_a_long_one_is_left_out_and_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    content = random.Random(1).randbytes(HEAD + 12_345 + TAIL)
    log.write_bytes(content)
    assert told(log, over=False) == content[:HEAD]
    whole = told(log, over=True)
    assert whole.startswith(content[:HEAD]) and whole.endswith(content[-TAIL:])
    assert whole[HEAD:-TAIL] == b"\n[cosma: 12345 bytes of this log are left out here]\n"
    for cut in (0, 5, HEAD - 3, HEAD, HEAD + 9, len(whole) - TAIL, len(whole) - 1):
        rest = b""
        while more := read_log(log, cut + len(rest), 1000, over=True):
            rest += more
        assert rest == whole[cut:], "the same wherever somebody goes on"


def test_while_it_is_written_the_middle_takes_no_space(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cap = LogCap(log)
    chance, content = random.Random(2), b""
    with log.open("ab", buffering=0) as stream:
        for _ in range(100):
            more = chance.randbytes(10 * KIB)
            stream.write(more)
            content += more
            cap.tick()
    assert log.stat().st_size == len(content)
    assert log.stat().st_blocks * 512 <= HEAD + TAIL + 16 * KIB + 3 * 4 * KIB
    kept = log.read_bytes()
    assert kept[:HEAD] == content[:HEAD] and kept[-TAIL:] == content[-TAIL:]
    assert told(log, over=True).endswith(content[-TAIL:])
