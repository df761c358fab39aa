"""Keeps Python's garbage collector from looking again and again through what is kept for long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW = 20_000  # objects more than there were, before a look at the new ones; Python's own: 700


def keep_unsearched() -> None:
    """What many new jobs made is not looked through again: with a hundred thousand of them that
    takes half a second, in which nothing else goes on."""
    gc.freeze()


@contextmanager
def rare_searches() -> Iterator[None]:
    """Nearly all that is made here goes without the collector, and its looks were a twentieth of
    the dispatcher's CPU. A full look keeps what it has seen for good, so that each is at what is
    new since the last: jobs change all the time, and soon none of a large survey's were kept."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(NEW, *usual[1:])
    gc.callbacks.append(_searched)
    try:
        yield
    finally:
        gc.callbacks.remove(_searched)
        gc.set_threshold(*usual)
        gc.unfreeze()


def _searched(phase: str, about: dict[str, int]) -> None:
    if phase == "stop" and about["generation"] == 2:
        gc.freeze()
