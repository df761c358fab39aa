"""The gate of a thin pool: figures, watermark, hysteresis, age, and the hosts that it shuts."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.model import Job, JobKind, Reason
from dispatcher.core.place import Policy, place
from dispatcher.core.pool import (
    REOPEN,
    STALE_S,
    Figures,
    Pool,
    PoolState,
    figures_of,
    pools,
    refusal,
    shuts,
)
from tests.unit.farms import host

POOL = Pool(hypervisor="hv1", vg="vg0", name="thin", high_watermark=0.85, hosts=("a", "b"))
shares = st.floats(min_value=0.0, max_value=1.0, allow_nan=False)


def report(**values: str) -> bytes:
    volume = {"lv_size": "1073741824", "data_percent": "81.25", "metadata_percent": "12.50"}
    return json.dumps({"report": [{"lv": [{**volume, **values}]}]}).encode()


def known(data: float, metadata: float = 0.1, *, shut: bool = False, at: float = 0.0) -> PoolState:
    figures = Figures(data=data, metadata=metadata, bytes=1 << 40)
    return PoolState(key=POOL.key, figures=figures, read_at=at, shut=shut)


def test_figures_are_read_from_the_report() -> None:
    assert figures_of(report()) == Figures(data=0.8125, metadata=0.125, bytes=1 << 30)
    assert figures_of(report(data_percent="81,25")).data == 0.8125


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "not the report"),
        (b'{"report": [{"lv": []}]}', "not the report"),
        (b'{"report": []}', "not the report"),
        (report(data_percent="130"), "not the report"),
        (report(lv_size="10g"), "not the report"),
        (report(data_percent=""), "not active"),
    ],
)
def test_anything_else_is_refused_in_words(said: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        figures_of(said)


@given(data=shares, metadata=shares, mark=st.floats(0.01, 1.0), before=st.booleans())
def test_it_shuts_at_the_mark_and_opens_a_little_below(
    data: float, metadata: float, mark: float, before: bool
) -> None:
    fullest = max(data, metadata)
    shut = shuts(Figures(data=data, metadata=metadata, bytes=1), mark, before=before)
    if fullest >= mark:
        assert shut
    elif fullest <= mark - REOPEN:
        assert not shut
    else:
        assert shut is before


def test_hosts_of_one_pool_share_it_and_its_lowest_mark() -> None:
    found = pools(
        [("a", "hv1", "vg0", "thin", 0.9), ("b", "hv1", "vg0", "thin", 0.85),
         ("c", "hv1", "vg1", "thin", 0.9)]
    )  # fmt: skip
    assert found["hv1:vg0/thin"] == POOL
    assert found["hv1:vg1/thin"].hosts == ("c",)


@pytest.mark.parametrize(
    ("state", "now", "reason", "words"),
    [
        (None, 0.0, Reason.PROBE_STALE, "for the first time"),
        (PoolState(key=POOL.key, message="hv1: no route"), 0.0, Reason.POOL_UNKNOWN, "no route"),
        (known(0.91, 0.12, shut=True), 0.0, Reason.POOL_FULL,
         "91.0% full of data and 12.0% of metadata (high watermark 85.0%, opens again below 84.0%"),
        (known(0.3), STALE_S + 1, Reason.POOL_UNKNOWN, "last read 2 min ago (limit 120 s), 30.0%"),
    ],
)  # fmt: skip
def test_a_pool_keeps_work_out_with_its_figures(
    state: PoolState | None, now: float, reason: Reason, words: str
) -> None:
    refused = refusal(POOL, state, now)
    assert refused is not None
    assert refused[0] is reason
    assert words in refused[1]
    assert "hv1:vg0/thin" in refused[1]


def test_an_aged_reading_still_counts() -> None:
    assert refusal(POOL, known(0.3), STALE_S) is None
    unread = dataclasses.replace(known(0.3), message="hv1: no route")
    assert refusal(POOL, unread, STALE_S) is None


def test_nothing_goes_to_a_host_in_a_full_pool_and_why_has_the_numbers() -> None:
    job = Job(
        id="j", kind=JobKind.RECONSTRUCT, acquisition="dive", name="s", auv="a", created_at=0.0
    )
    shut = dataclasses.replace(host("a"), storage=refusal(POOL, known(0.91, shut=True), 0.0))
    decided = place([job], [shut], Policy(), now=1.0)
    assert (decided.assignments, decided.stages) == ((), ())
    (waiting,) = decided.waiting
    assert waiting.reason is Reason.POOL_FULL
    assert "91.0% full of data" in waiting.message
    other = place([job], [shut, host("b")], Policy(), now=1.0)
    assert other.assignments == (("j", "b"),)
    resident = dataclasses.replace(job, host="a", assigned_at=0.5)
    assert place([resident], [shut], Policy(), now=1.0).stages == ()
    assert place([resident], [host("a")], Policy(), now=1.0).stages
