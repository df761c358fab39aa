"""Writing where the disk is full: /dev/full says ENOSPC to every write, really."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent import partial
from worker_agent.durable import (
    append_line,
    drop_torn_line,
    fill_reserve,
    overwrite_text,
    write_json,
)
from worker_agent.partial import opened, part_path
from worker_agent.refusal import is_disk_full


def allocate(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)


def test_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", object())
    assert list(tmp_path.iterdir()) == []


def test_reserve_becomes_the_file(tmp_path: Path) -> None:
    allocate(tmp_path / "reserve", 4096)
    fill_reserve(tmp_path / "reserve", b'{"a":1}')
    assert (tmp_path / "reserve").read_bytes() == b'{"a":1}'


def test_what_does_not_fit_leaves_the_reserve_whole(tmp_path: Path) -> None:
    allocate(tmp_path / "reserve", 16)
    with pytest.raises(OSError) as error:
        fill_reserve(tmp_path / "reserve", b"x" * 17)
    assert is_disk_full(error.value)
    assert (tmp_path / "reserve").stat().st_size == 16


@pytest.mark.parametrize(("before", "after"), [("12345", "6"), ("1", "23456"), ("", "7")])
def test_text_is_replaced_in_place(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "epoch"
    path.write_text(before)
    inode = path.stat().st_ino
    overwrite_text(path, after)
    assert path.read_text().strip() == after
    assert json.loads(path.read_text()) == int(after)
    assert path.stat().st_ino == inode


def test_a_device_that_is_full_refuses_the_line() -> None:
    full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
    try:
        with pytest.raises(OSError) as error:
            append_line(full, b"line\n")
    finally:
        os.close(full)
    assert error.value.errno == errno.ENOSPC


def test_reserve_is_given_back_until_none_is_left(tmp_path: Path) -> None:
    reserve = tmp_path / "reserve"
    allocate(reserve, 20_000)
    full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
    try:
        with pytest.raises(OSError):
            append_line(full, b"line\n", reserve)
    finally:
        os.close(full)
    assert reserve.stat().st_size == 0


@given(lines=st.lists(st.binary(max_size=200).map(lambda b: b.replace(b"\n", b"")), max_size=5),
       torn=st.binary(max_size=90_000).map(lambda b: b.replace(b"\n", b"")))  # fmt: skip
def test_only_what_follows_the_last_line_end_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "events.jsonl"
    whole = b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole + torn)
    assert drop_torn_line(path) == len(torn)
    assert path.read_bytes() == whole


def test_long_torn_line_is_dropped_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"{}\n" + b"x" * 200_000)
    assert drop_torn_line(path) == 200_000
    assert path.read_bytes() == b"{}\n"


def test_transfer_never_writes_into_a_file_published_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "clip.mp4"
    part_path(target).write_bytes(b"finished by another transfer")
    lock = fcntl.flock

    def publish_first(descriptor: int, operation: int) -> None:
        if not target.exists():
            part_path(target).rename(target)
        lock(descriptor, operation)

    monkeypatch.setattr(partial.fcntl, "flock", publish_first)
    with opened(target) as part:
        os.ftruncate(part.descriptor, 0)
        os.write(part.descriptor, b"mine")
    assert target.read_bytes() == b"finished by another transfer"
    assert part_path(target).read_bytes() == b"mine"
