from __future__ import annotations

from dispatcher.core.model import JobState, Reservation, Stage, Step
from dispatcher.disk_writes import Written
from tests.unit.farms import GIB, at, host, job


def test_what_came_since_the_probe_is_off_the_free_disk() -> None:
    written = Written()
    view = host("gpu-a", disk_free_bytes=10 * GIB)
    coming = job("j", host="gpu-a", state=JobState.CLAIMED, step=Step.TRANSFER, input_bytes=3 * GIB)
    there = job("j", host="gpu-a", state=JobState.CLAIMED, input_bytes=3 * GIB)
    assert written.note(None, coming, 1.0) is None
    assert written.note(coming, there, 2.0) == "gpu-a"
    ran = at("k", Stage.TRAINING, step=Step.RUN, attempt=1, reservation=Reservation(
        job="k", attempt=1, host="gpu-a", slot="train", disk_bytes=GIB,
    ))  # fmt: skip
    assert written.note(ran, at("k", Stage.PLY_EXPORT, attempt=1), 4.0) == "gpu-a"
    assert written.taken_off(view, 1.5).disk_free_bytes == 6 * GIB
    assert written.taken_off(host("gpu-b"), 1.5) == host("gpu-b")
    assert written.unseen() == {"gpu-a"}
    # Each as long as no probe that began later has answered.
    assert written.taken_off(view, 3.0).disk_free_bytes == 9 * GIB
    written.freed("gpu-a", 5.0)
    assert written.taken_off(view, 4.5).disk_free_bytes == 10 * GIB
    assert written.unseen() == {"gpu-a"}, "what was removed is not seen yet"
    assert written.taken_off(view, 5.5) == view
    assert written.unseen() == set()
