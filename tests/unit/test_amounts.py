"""Amounts in words."""

from __future__ import annotations

import time

import pytest

from dispatcher.amounts import clock_text, human_bytes, human_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (-2048, "-2.0 KiB"),
        (3 * 2**40, "3.0 TiB"), (5 * 2**50, "5120.0 TiB"),
    ],
)  # fmt: skip
def test_bytes_are_readable(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (80, "1 min 20 s"),
        (3600, "1 h"), (11_100, "3 h 5 min"), (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_a_clock_has_the_date_when_it_is_not_today() -> None:
    noon = time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1))
    assert clock_text(noon + 60, noon) == "12:01"
    assert clock_text(noon + 86_400, noon) == "2026-03-02 12:00"
