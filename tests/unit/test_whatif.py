"""What-if: few words, exact changes, clear refusals; and remedies that really start the job."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core.forecast import play
from dispatcher.core.model import Job, JobState, Reason, Stage
from dispatcher.core.policy import Policy
from dispatcher.core.remedy import remedies, starts_now
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import HostView, Quarantine
from dispatcher.core.whatif import (
    AddHost,
    Change,
    Cordon,
    Free,
    FreeDisk,
    Priority,
    RemoveHost,
    Resume,
    WhatIfError,
    apply,
    parse,
)
from tests.unit.test_forecast import GIB, at_work, gpu, host, job, snapshot


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("add host with 24 GiB", AddHost(mib=24 * 1024)),
        ("add host with 2x24GiB like gpu-a", AddHost(mib=24 * 1024, gpus=2, like="gpu-a")),
        ("add  host with 4 x 11.5 gib", AddHost(mib=11776, gpus=4)),
        ("remove host gpu-a", RemoveHost(host="gpu-a")),
        ("cordon gpu-b", Cordon(host="gpu-b")),
        ("Drain gpu-b", Cordon(host="gpu-b", draining=True)),
        ("resume gpu-b", Resume(host="gpu-b")),
        ("priority reef-a-1 5", Priority(job="reef-a-1", priority=5)),
        ("priority reef-a-1 -2", Priority(job="reef-a-1", priority=-2)),
        ("free 8 GiB on GPU-1", Free(mib=8192, gpu="GPU-1")),
        ("free 300 MiB on gpu-a", Free(mib=300, gpu="gpu-a")),
        ("free 1.5 GiB of disk on gpu-a", FreeDisk(mib=1536, host="gpu-a")),
    ],
)
def test_the_grammar(text: str, change: Change) -> None:
    assert parse(text) == change


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "add host with [Kx]N GiB [like HOST] | remove host HOST"),
        ("explode gpu-a", "expected: add host"),
        ("add host with much", "expected: add host with [Kx]N GiB [like HOST]"),
        ("free 8 on GPU-1", "expected: free N MiB|GiB on GPU"),
        ("priority reef-a-1 high", "expected: priority JOB N"),
        ("cordon", "expected: cordon HOST"),
        ("cordon a b", "expected: cordon HOST"),
        ("add host with 0 GiB", "more than nothing"),
        ("add host with 65x24 GiB", "1 to 64"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_the_form_that_was_meant(
    text: str, said: str
) -> None:
    with pytest.raises(WhatIfError) as refused:
        parse(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


FARM = snapshot(
    [job("one"), job("two"), job("over", state=JobState.DONE)],
    host("gpu-a", dataclasses.replace(gpu("GPU-aa"), free_mib=21_000, foreign_mib=3000)),
    host("gpu-b", gpu("GPU-ab"), gpu("GPU-b"), cordoned=True, link_bytes_s=5.0),
)


def named(farm: Snapshot, name: str) -> HostView:
    (found,) = (one for one in farm.hosts if one.name == name)
    return found


def after(text: str, farm: Snapshot = FARM) -> Snapshot:
    return apply(farm, parse(text))


def test_changes_change_only_what_they_name() -> None:
    assert [h.name for h in after("remove host gpu-a").hosts] == ["gpu-b"]
    assert named(after("cordon gpu-a"), "gpu-a").cordoned
    assert not named(after("cordon gpu-a"), "gpu-a").draining
    assert named(after("drain gpu-a"), "gpu-a").draining
    assert not named(after("resume gpu-b"), "gpu-b").cordoned
    assert [j.priority for j in after("priority two 7").jobs] == [0, 7, 0]
    for text in ("cordon gpu-a", "drain gpu-a", "free 1 MiB on GPU-aa"):
        assert named(after(text), "gpu-b") == named(FARM, "gpu-b")
        assert after(text).jobs == FARM.jobs


def test_a_cordon_ends_a_drain_and_the_inventory_outlasts_a_resume() -> None:
    drained = after("drain gpu-a")
    assert not named(after("cordon gpu-a", drained), "gpu-a").draining
    kept_out = snapshot([], host("h", cordoned=True, cordoned_in_inventory=True))
    with pytest.raises(WhatIfError, match="h stays cordoned: its entry in the inventory"):
        after("resume h", kept_out)


def test_what_lifts_a_suspicion_makes_no_silent_gpu_answer() -> None:
    silent = Quarantine(line="silent: NVML does not answer", silent=True)
    suspect = Quarantine(line="quarantined: 3 failures")
    devices = (
        dataclasses.replace(gpu("GPU-1"), quarantine=silent),
        dataclasses.replace(gpu("GPU-2"), quarantine=suspect),
    )
    farm = snapshot([], host("h", *devices))
    assert [g.quarantine for g in named(after("resume h", farm), "h").gpus] == [silent, None]


def test_freed_memory_is_taken_from_others_only() -> None:
    for name in ("GPU-aa", "GPU-aa"[:6], "gpu-a"):
        (device,) = named(after(f"free 1000 MiB on {name}"), "gpu-a").gpus
        assert (device.free_mib, device.foreign_mib) == (22_000, 2000)
    with pytest.raises(WhatIfError, match="others use 3000 MiB there, 4096 MiB cannot"):
        after("free 4 GiB on GPU-aa")


def test_a_new_host_is_like_the_nearest_in_size_but_empty() -> None:
    new = named(after("add host with 2x20 GiB like gpu-b"), "new-host")
    assert [g.total_mib for g in new.gpus] == [20_480, 20_480]
    assert {g.name for g in new.gpus} == {"RTX"}
    assert new.link_bytes_s == 5.0
    assert not new.cordoned
    assert new.max_parallel["train"] == 2
    pool = (Reason.POOL_FULL, "its thin pool is full")
    used = snapshot([], host("h", storage=pool, disk_free_bytes=GIB, disk_total_bytes=200 * GIB))
    empty = named(after("add host with 24 GiB", used), "new-host")
    assert (empty.storage, empty.disk_free_bytes) == (None, 200 * GIB)
    twice = after("add host with 24 GiB", after("add host with 24 GiB"))
    assert [h.name for h in twice.hosts] == ["gpu-a", "gpu-b", "new-host", "new-host-2"]
    alone = apply(dataclasses.replace(FARM, hosts=()), parse("add host with 24 GiB"))
    assert set(play(alone).ended) >= {"one", "two"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cordon gpu-c", "there is no host gpu-c; known are gpu-"),
        ("priority on 5", "there is no job on; known are one"),
        ("priority over 5", "has ended already"),
        ("free 1 MiB on GPU-", "not one GPU but GPU-aa, GPU-ab, GPU-b"),
        ("free 1 MiB on XYZ", "there is no GPU XYZ; known are GPU-aa"),
        ("free 9 GiB of disk on gpu-c", "there is no host gpu-c"),
        ("add host with 24 GiB like gpu-z", "there is no host gpu-z"),
    ],
)
def test_what_the_farm_does_not_have_is_refused_with_what_it_has(text: str, said: str) -> None:
    with pytest.raises(WhatIfError) as refused:
        after(text)
    assert said in str(refused.value)


# --- remedies ---


def lines(farm: Snapshot, name: str) -> list[str]:
    (waiting,) = (one for one in farm.jobs if one.id == name)
    found = remedies(farm, waiting)
    for remedy in found:
        if remedy.what_if:
            assert starts_now(after(remedy.what_if, farm), name)
    return [remedy.what_if or remedy.line for remedy in found]


def waits(name: str, **values: object) -> Job:
    return job(name, host="h", state=JobState.RUNNING, stage=Stage.TRAINING, attempt=4, **values)


def test_memory_of_others_is_asked_back_and_no_more_than_it_takes() -> None:
    device = dataclasses.replace(
        gpu("GPU-h", 8000), free_mib=3000, foreign_mib=5000, holders=(("python3 (pid 7)", 5000),)
    )
    farm = snapshot([waits("one")], host("h", device))
    (what_if,) = (text for text in lines(farm, "one") if text.startswith("free"))
    change = parse(what_if)
    assert isinstance(change, Free)
    assert 3000 <= change.mib <= 3064
    (remedy,) = (r for r in remedies(farm, farm.jobs[0]) if r.what_if == what_if)
    assert "python3 (pid 7): 5000 MiB" in remedy.line


def test_a_higher_priority_is_offered_where_others_go_first() -> None:
    first = waits("one", created_at=0.0, priority=3)
    farm = snapshot([first, waits("two")], host("h", max_parallel={"train": 1}))
    assert not starts_now(farm, "two")
    assert lines(farm, "two")[0] == "priority two 4"


def test_a_cordoned_host_is_let_in_again_and_a_suspect_one_too() -> None:
    shut = host("h", cordoned=True)
    assert lines(snapshot([job("one")], shut), "one")[0] == "resume h"
    suspect = host("h", quarantine=Quarantine(line="quarantined: 3 failures"))
    assert lines(snapshot([job("one")], suspect), "one")[0] == "resume h"


def test_a_host_that_the_inventory_keeps_out_is_let_in_there() -> None:
    farm = snapshot([job("one")], host("h", cordoned=True, cordoned_in_inventory=True))
    first, *_ = remedies(farm, farm.jobs[0])
    assert first.line.endswith("remove `cordoned: true` from its entry in the inventory")
    assert (first.what_if, first.command) == ("", "")


def test_one_more_stage_at_a_time_and_what_a_host_lacks_are_offered() -> None:
    running, underway = at_work("busy", 1.0, None)
    large = gpu("GPU-h", 80_000)
    one_at_a_time = host("h", large, max_parallel={"train": 1})
    farm = snapshot([running, waits("two")], one_at_a_time, underway={"busy": underway})
    assert "2 train stages at once (`max_parallel: {train: 2}`" in lines(farm, "two")[0]
    bare = snapshot([job("one")], host("h", ready=False, not_ready_message="lacks torch"))
    (remedy, *_) = remedies(bare, bare.jobs[0])
    assert remedy.command == "cosma worker bootstrap h"


def test_a_job_too_big_for_the_farm_needs_a_bigger_host() -> None:
    farm = snapshot([job("one", need_mib=40_000)], host("h"))
    smaller, added = lines(farm, "one")
    assert smaller.startswith("a smaller plan (`cap` under")
    assert added == "add host with 48 GiB"


def test_nothing_is_offered_where_nothing_helps_or_nothing_is_needed() -> None:
    farm = snapshot([job("free"), job("late", not_before=9999.0)], host("h"))
    assert lines(farm, "free") == []
    assert lines(farm, "late") == []
    running, underway = at_work("busy", 1.0, None)
    assert lines(snapshot([running], host("h"), underway={"busy": underway}), "busy") == []


def test_a_full_disk_is_nothing_that_a_priority_mends() -> None:
    full = host("h", disk_free_bytes=GIB, disk_total_bytes=200 * GIB)
    farm = snapshot([job("one", input_bytes=40 * GIB)], full)
    found = lines(farm, "one")
    assert not any(text.startswith("priority") for text in found)
    change = parse(found[0])
    assert isinstance(change, FreeDisk)
    missing = Policy().disk_need(farm.jobs[0]) - GIB
    assert missing <= change.mib << 20 <= missing + (64 << 20)
    assert not starts_now(after(f"free {change.mib - 64} MiB of disk on h", farm), "one")
