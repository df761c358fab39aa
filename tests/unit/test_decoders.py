"""Who decodes: a GPU's decoder where a session is free and ffmpeg can use it, else the CPU."""

from __future__ import annotations

import pytest

from dispatcher.core.model import Reservation, Stage
from dispatcher.core.need import Needs
from dispatcher.core.place import Policy, place
from dispatcher.core.views import GpuView
from tests.unit.farms import NOW, SUSPECT, at, gpu, host, job
from worker_agent.stages.decoders import decoder_for


@pytest.mark.parametrize(
    ("codec", "kind", "promised", "offered", "chosen"),
    [
        ("hevc", "cuda", "GPU-1", {"vaapi", "cuda"}, "cuda"),
        ("hevc", "cuda", None, {"cuda"}, "cpu"),  # no session was free
        ("hevc", "cpu", "CPU-1", {"cuda"}, "cpu"),
        ("hevc", "cuda", "GPU-1", {"vaapi"}, "cpu"),  # ffmpeg was built without it
        ("prores", "cuda", "GPU-1", {"cuda"}, "cpu"),
    ],
)
def test_the_gpu_decodes_what_it_can_where_it_is_promised(
    codec: str, kind: str, promised: str | None, offered: set[str], chosen: str
) -> None:
    assert decoder_for(codec, kind, promised, offered) == chosen


def promised(*devices: GpuView) -> Reservation:
    (one,) = place(
        [at("j", Stage.FRAME_EXTRACTION)], [host("gpu-a", *devices)], Policy(), NOW
    ).stages
    return one


def test_frames_take_a_free_session_of_the_least_used_decoder_and_no_memory() -> None:
    one = promised(
        gpu("GPU-1", max_decode_sessions=4, decode_sessions=3, free_mib=0, foreign_mib=11_000),
        gpu("GPU-2", max_decode_sessions=4, decode_sessions=1, free_mib=0, foreign_mib=11_000),
    )
    assert (one.gpu, one.decode_sessions, one.mib) == ("GPU-2", 1, 0)


@pytest.mark.parametrize(
    "device",
    [
        gpu("CPU-1", kind="cpu"),
        gpu(max_decode_sessions=0),
        gpu(max_decode_sessions=2, decode_sessions=2),
        gpu(max_decode_sessions=2, quarantine=SUSPECT),
        gpu(max_decode_sessions=2, probe_age_s=1e4),
    ],
    ids=["a CPU", "no decoder", "all in use", "quarantined", "not seen for long"],
)
def test_nothing_waits_for_a_decoder(device: GpuView) -> None:
    one = promised(device)
    assert (one.gpu, one.decode_sessions) == (None, 0)


def test_no_other_stage_asks_for_a_session() -> None:
    needs = Needs()
    asks = {stage: needs.of(job("j", stage=stage), None).decode_sessions for stage in Stage}
    assert {stage for stage, sessions in asks.items() if sessions} == {Stage.FRAME_EXTRACTION}
