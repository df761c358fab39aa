"""When a step of SfM counts as hung. Pure.

A slow step computes, and on however loaded a host it gets its turn; a deadlock or a stopped
process takes next to no CPU time. What turns in circles takes it without getting on; COLMAP's
global mapping says nothing before its end, so that bound has to hold a whole step. It is in CPU
time, which neither load nor a slow disk lengthens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Bounds", "Pulse", "beat", "bounds", "hung"]

IDLE_S = 600.0
# pycolmap's first thread looks ten times a second whether the others have ended: a few ten-
# thousandths of a core. The lowest priority on two cores at load 20 is left more than this.
IDLE_SHARE = 0.001
FRAME_CPU_S = 60.0  # a hundred times what the longest step took on real clips
LEAST_FRAMES = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    idle_s: float  # of our own watching, so that a host that slept does not count
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Pulse:
    """What was seen of a step so far."""

    cpu_s: float = 0.0
    done: int = 0  # images, pairs: what the step counts
    idle_s: float = 0.0  # since it was last seen to work
    idle_cpu_s: float = 0.0  # its CPU time then
    done_cpu_s: float = 0.0  # its CPU time when `done` last rose


def bounds(frames: int, threads: int, patience: float) -> Bounds:
    """`patience` scales both (sfm.patience). Threads that wait for others may spin."""
    cpu_s = FRAME_CPU_S * max(frames, LEAST_FRAMES) * threads
    return Bounds(patience * IDLE_S, patience * cpu_s)


def beat(last: Pulse, *, cpu_s: float, done: int, watched_s: float) -> Pulse:
    """The next one, `watched_s` later."""
    if done > last.done:
        return Pulse(cpu_s, done, 0.0, cpu_s, cpu_s)
    idle_s = last.idle_s + watched_s
    if cpu_s - last.idle_cpu_s > IDLE_SHARE * idle_s:
        return replace(last, cpu_s=cpu_s, idle_s=0.0, idle_cpu_s=cpu_s)
    return replace(last, cpu_s=cpu_s, idle_s=idle_s)


def hung(pulse: Pulse, limits: Bounds) -> str | None:
    """Why it counts as such; None for a step that lives."""
    if pulse.idle_s >= limits.idle_s:
        return f"it took next to no CPU time for {pulse.idle_s:.0f} s"
    spent_s = pulse.cpu_s - pulse.done_cpu_s
    if spent_s >= limits.cpu_s:
        return f"it got no further for {spent_s:.0f} CPU-seconds"
    return None
