"""When a step of SfM counts as hung, and when it is only slow."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from worker_agent.stages.sfm_liveness import IDLE_S, Bounds, Pulse, beat, bounds, hung

TIGHT = Bounds(1.0, 10.0)  # so that few steps reach them
LIMITS = bounds(frames=40, threads=2, patience=1.0)


def after(seconds: int, *, cpu_share: float, done_each_s: float = 0.0) -> str | None:
    """Why a step that works like this hangs, by then or before."""
    pulse = Pulse()
    for second in range(1, seconds + 1):
        ticks = int(100 * cpu_share * second) / 100
        done = int(done_each_s * second)
        pulse = beat(pulse, cpu_s=ticks, done=done, watched_s=1.0)
        if why := hung(pulse, LIMITS):
            return why
    return None


def test_a_step_without_cpu_time_hangs() -> None:
    assert after(int(IDLE_S) - 1, cpu_share=0.0) is None
    assert after(int(IDLE_S), cpu_share=0.0) == "it took next to no CPU time for 600 s"


def test_a_thread_that_looks_whether_the_others_have_ended_is_no_life() -> None:
    assert after(700, cpu_share=0.0004) is not None


def test_a_step_with_next_to_no_share_of_the_host_lives() -> None:
    assert after(24 * 3600, cpu_share=0.002) is None


def test_a_step_that_waits_but_gets_on_lives() -> None:
    assert after(24 * 3600, cpu_share=0.0, done_each_s=0.002) is None


def test_a_step_that_turns_in_circles_hangs() -> None:
    assert after(4799 // 2, cpu_share=2.0) is None
    assert after(4800 // 2, cpu_share=2.0) == "it got no further for 4800 CPU-seconds"
    assert after(24 * 3600, cpu_share=2.0, done_each_s=0.001) is None


def test_a_larger_clip_more_threads_and_patience_give_it_longer() -> None:
    assert bounds(4000, 2, 1.0).cpu_s == 100 * LIMITS.cpu_s
    assert bounds(40, 4, 1.0).cpu_s == 2 * LIMITS.cpu_s
    assert bounds(40, 2, 3.0) == type(LIMITS)(3 * LIMITS.idle_s, 3 * LIMITS.cpu_s)
    assert bounds(1, 2, 1.0).cpu_s == LIMITS.cpu_s / 2


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 3), st.floats(0, 1)), min_size=1))
def test_nothing_is_hung_before_its_bound(steps: list[tuple[float, int, float]]) -> None:
    pulse = Pulse()
    cpu = itertools.accumulate(step[0] for step in steps)
    done = itertools.accumulate(step[1] for step in steps)
    watched = spent = 0.0
    for spent, count, (_, _, waited_s) in zip(cpu, done, steps, strict=True):
        watched += waited_s
        pulse = beat(pulse, cpu_s=spent, done=count, watched_s=waited_s)
    if hung(pulse, TIGHT) is not None:
        assert watched >= TIGHT.idle_s or spent >= TIGHT.cpu_s
