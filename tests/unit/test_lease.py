"""Lease arithmetic: whatever is lost, an attempt is never requeued while it may live."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core import lease
from dispatcher.core.model import Stage

SECONDS = st.floats(0.0, 1e6)


def test_every_stage_that_runs_has_a_lease() -> None:
    assert set(lease.STAGE_LEASE_S) == set(Stage) - {Stage.COMPLETED}
    assert lease.lease_s(Stage.TRAINING) > lease.lease_s(Stage.VALIDATION)


@given(sent=SECONDS, received_after=st.floats(0.0, 5.0), length=st.floats(30.0, 3600.0))
def test_the_host_ends_an_attempt_before_it_may_be_requeued(
    sent: float, received_after: float, length: float
) -> None:
    # The last renewal that was sent is the latest one that can have been received.
    killed_at = sent + received_after + length + lease.KILL_GRACE_S
    assert lease.may_requeue_at(sent, length) > killed_at


@given(last=SECONDS, length=st.floats(30.0, 3600.0))
def test_two_renewals_may_be_lost(last: float, length: float) -> None:
    assert not lease.renew_due(last, length, last)
    sends, now = 0, last
    while (now := lease.renew_at(now, length)) < last + length * 0.999:
        assert lease.renew_due(now - length / lease.RENEWALS_PER_LEASE, length, now)
        sends += 1
    assert sends == 2


def test_a_restarted_dispatcher_counts_from_what_was_written_down_in_the_same_boot() -> None:
    assert lease.last_attempted(500.0, 420.0, same_boot=True) == 420.0
    # The renewal that was under way when the last one died may arrive later than now.
    assert lease.last_attempted(500.0, 540.0, same_boot=True) == 540.0
    # Another boot, another clock: it may have been sent this moment.
    assert lease.last_attempted(500.0, 420.0, same_boot=False) == 500.0
    assert lease.last_attempted(500.0, None, same_boot=True) == 500.0


def test_an_attempt_without_a_lease_is_never_renewed_and_never_taken_for_dead() -> None:
    assert not lease.renew_due(0.0, 0.0, 1e12)
    assert lease.may_requeue_at(0.0, 0.0) == math.inf
