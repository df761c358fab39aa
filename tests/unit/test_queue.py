"""The queue's next job is found without a look at the others; here all are looked at."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.model import Job
from dispatcher.core.policy import share_key
from dispatcher.core.queue import Label, Queue
from dispatcher.core.yard import Asked, Fit
from tests.unit.farms import job

SURVEYS = tuple("abcd")
KINDS = (0b01, 0b10, 0b11)


class Looked:
    """What is in the queue and who holds hosts, as told."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.waiting: dict[str, Job] = {}
        self.held: Counter[tuple[str, int]] = Counter()  # by survey and kind of host

    def put(self, number: int, survey: str, kinds: int) -> None:
        one = job(f"j{number}", acquisition=survey, created_at=float(number % 7))
        asked = Asked(work=kinds, fit=Fit(kinds, None), device_ms={}, length=0, disk_bytes=0)
        self.queue.put(one, asked, None, ())
        self.waiting[one.id] = one

    def drop(self, name: str) -> None:
        self.queue.drop(name)
        del self.waiting[name]

    def hold(self, survey: str, bit: int, change: int) -> None:
        self.held[survey, bit] += change
        self.queue.hold(share_key(job("any", acquisition=survey)), bit, change)

    def first(self, label: Label) -> tuple[int, float, str]:
        kinds = label.fit.kinds
        return min(
            (sum(self.held[one.acquisition, bit] for bit in (0, 1) if kinds >> bit & 1),
             one.created_at, one.id)
            for one in self.waiting.values()
            if self.queue.label_of(one.id) == label
        )  # fmt: skip

    def check(self) -> None:
        self.queue.settle()
        for label in list(self.queue.shelves):
            assert self.queue.first(label) == self.first(label)


@given(st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_first_of_a_shelf_is_the_least_by_share_and_age(chance: random.Random) -> None:
    looked = Looked()
    for number in range(120):
        match chance.randrange(4):
            case 0 | 1:
                looked.put(number, chance.choice(SURVEYS), chance.choice(KINDS))
            case 2 if looked.waiting:
                looked.drop(chance.choice(sorted(looked.waiting)))
            case _:
                survey, bit = chance.choice(SURVEYS), chance.randrange(2)
                change = chance.choice((1, -1)) if looked.held[survey, bit] else 1
                looked.hold(survey, bit, change)
        if chance.random() < 0.3:
            looked.check()
    looked.check()


def test_a_share_taken_back_after_its_line_came_leaves_the_line_where_it_belongs() -> None:
    looked = Looked()
    looked.hold("a", 0, +1)
    looked.put(1, "a", 0b01)
    looked.put(2, "b", 0b01)
    looked.hold("a", 0, -1)
    looked.check()
