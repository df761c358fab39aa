"""What the garbage collector has looked through once it leaves alone, until the dispatcher ends."""

from __future__ import annotations

import gc

from dispatcher.garbage import searched_once


def test_a_full_look_keeps_what_it_has_seen_and_the_end_puts_all_back() -> None:
    usual = list(gc.callbacks)
    with searched_once():
        before = gc.get_freeze_count()
        kept: list[list[int]] = [[] for _ in range(1000)]
        gc.collect()
        assert gc.get_freeze_count() >= before + len(kept)
    assert gc.callbacks == usual
    assert gc.get_freeze_count() == 0
