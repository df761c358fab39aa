"""What the shell shows the board before a decision, and when it puts its reasons into words."""

from __future__ import annotations

import dataclasses

from dispatcher.clock import ManualClock
from dispatcher.core.board import Board
from dispatcher.core.model import Job, JobKind, JobState, Step
from dispatcher.core.policy import Policy
from dispatcher.core.views import HostView
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.scheduler import AGES_S, TURN_S, Deciding, in_turns


class SeenBoard(Board):
    """Says which hosts it is shown."""

    def __init__(self) -> None:
        super().__init__(Policy())
        self.shown: list[str] = []

    def put_host(self, host: HostView) -> None:
        self.shown.append(host.name)
        super().put_host(host)


def deciding_of(*names: str) -> tuple[Deciding, SeenBoard, Fleet, ManualClock]:
    clock = ManualClock()
    hosts = tuple(InventoryHost(name=name, address=name) for name in names)
    fleet = Fleet(Inventory(hosts=hosts), dict.fromkeys(names), clock=clock)  # type: ignore[arg-type]
    board = SeenBoard()
    return Deciding(fleet, clock, board), board, fleet, clock


def queued(name: str) -> Job:
    return Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="a", name=name, auv="x", created_at=0.0
    )


def test_a_host_is_shown_again_when_something_is_new_and_now_and_then() -> None:
    deciding, board, fleet, clock = deciding_of("h", "i")
    deciding.decide(deciding.board.policy)
    assert board.shown == ["h", "i"]
    deciding.decide(deciding.board.policy)
    assert board.shown == ["h", "i"], "nothing is new"
    fleet.attempt_ended("i", "j", 1)
    deciding.decide(deciding.board.policy)
    assert board.shown == ["h", "i", "i"]
    fleet.cordons = {"h": False}
    deciding.decide(deciding.board.policy)
    assert board.shown[3:] == ["h", "i"]
    clock.advance(AGES_S)
    deciding.decide(deciding.board.policy)
    assert board.shown[5:] == ["h", "i"], "their figures grow old"


def test_reasons_are_put_into_words_a_few_times_a_second() -> None:
    deciding, _, _, clock = deciding_of("h")
    deciding.job(None, queued("j"))
    deciding.decide(deciding.board.policy)
    first = deciding.words()
    assert set(first) == {"j"}
    deciding.job(None, queued("k"))
    deciding.decide(deciding.board.policy)
    assert deciding.words() == {}
    clock.advance(TURN_S)
    deciding.decide(deciding.board.policy)
    assert set(deciding.words()) == {"k"}, "j waits for what it waited for"


def test_a_job_that_waits_no_more_is_told_at_once() -> None:
    deciding, _, _, _ = deciding_of("h")
    job = queued("j")
    deciding.job(None, job)
    deciding.decide(deciding.board.policy)
    assert set(deciding.words()) == {"j"}
    coming = dataclasses.replace(job, state=JobState.CLAIMED, step=Step.TRANSFER, host="h")
    deciding.job(job, coming)
    assert deciding.words() == {"j": None}
    assert deciding.words() == {}
    assert deciding.waiting == {}


def test_every_host_is_brought_its_first_job_before_any_is_brought_a_second() -> None:
    given = [("a", "h"), ("b", "h"), ("c", "i"), ("d", "h"), ("e", "i")]
    assert in_turns(given) == [("a", "h"), ("c", "i"), ("b", "h"), ("e", "i"), ("d", "h")]
