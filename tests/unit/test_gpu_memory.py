"""How many gaussians are trained in the memory that a GPU has free."""

from __future__ import annotations

import pytest

from worker_agent.training.gpu_memory import fitting

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("cap", "free_mib", "promised_mib", "expected"),
    [
        (MILLION, 12_000, 0, MILLION),  # it fits by the published peaks
        (8 * MILLION, 12_500, 0, 8 * MILLION),
        (8 * MILLION, 6_500, 0, 4 * MILLION),
        (8 * MILLION, 6_500, 6_900, 8 * MILLION),  # learned: the plan stands
        (8 * MILLION, 6_500, 7_100, 4 * MILLION),  # another program has part of what was promised
        (MILLION, 500, 0, 100),
        (MILLION, 0, 4_000, 100),
        (60, 0, 0, 60),
    ],
)
def test_the_cap_follows_from_what_is_free_and_what_was_promised(
    cap: int, free_mib: float, promised_mib: float, expected: int
) -> None:
    assert fitting(cap, free_mib, promised_mib) == expected
