"""Keeps Python's garbage collector from looking again and again through what is kept for long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def keep_unsearched() -> None:
    """What many new jobs made is not looked through again: with a hundred thousand of them that
    takes half a second, in which nothing else goes on."""
    gc.freeze()


@contextmanager
def searched_once() -> Iterator[None]:
    """What a full look has seen it leaves alone from then on: jobs change all the time, and soon
    none of a large survey's were those that `keep_unsearched` spared. Cycles that were in use at
    one full look and are not later (a connection that was open then) go when this ends."""
    gc.freeze()
    gc.callbacks.append(_searched)
    try:
        yield
    finally:
        gc.callbacks.remove(_searched)
        gc.unfreeze()


def _searched(phase: str, about: dict[str, int]) -> None:
    if phase == "stop" and about["generation"] == 2:
        gc.freeze()
