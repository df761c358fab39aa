"""The plan of a drill follows from its seed and leaves no kind of fault out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.chaos.schedule import LASTING, Kind, plan

HOSTS = ["host-1", "host-2", "host-3"]


@given(seed=st.integers(0, 10_000), jobs=st.integers(1, 60))
def test_a_seed_always_means_the_same_plan(seed: int, jobs: int) -> None:
    assert plan(seed, HOSTS, jobs, jobs * 8) == plan(seed, HOSTS, jobs, jobs * 8)


@given(seed=st.integers(0, 10_000), jobs=st.integers(6, 60))
def test_every_kind_happens_while_there_is_work(seed: int, jobs: int) -> None:
    faults = plan(seed, HOSTS, jobs, jobs * 8)
    assert {fault.kind for fault in faults} == set(Kind)
    assert len(faults) == len(Kind) + jobs // 4
    assert all(0 <= fault.after < jobs * 8 and fault.host in HOSTS for fault in faults)
    assert [fault.after for fault in faults] == sorted(fault.after for fault in faults)


@given(seed=st.integers(0, 10_000))
def test_only_what_can_be_taken_back_lasts(seed: int) -> None:
    for fault in plan(seed, HOSTS, 20, 160):
        shortest, longest = LASTING.get(fault.kind, (0.0, 0.0))
        assert shortest <= fault.lasts_s <= longest
        assert (fault.size != 0.0) == (fault.kind is Kind.CLOCK_JUMP)


@given(seed=st.integers(0, 10_000), jobs=st.integers(1, 5))
def test_a_small_drill_waits_for_no_lease(seed: int, jobs: int) -> None:
    kinds = {fault.kind for fault in plan(seed, HOSTS, jobs, jobs * 8)}
    assert kinds == set(Kind) - {Kind.LEASE_OUTLASTED}


def test_two_seeds_mean_two_plans() -> None:
    assert plan(1, HOSTS, 10, 80) != plan(2, HOSTS, 10, 80)
