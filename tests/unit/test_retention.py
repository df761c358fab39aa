"""Nothing that anybody refers to is garbage; what nobody does is, once it is old enough."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.retention import (
    SETTLING_S,
    References,
    Sort,
    Stored,
    garbage,
    hashes_in,
)

DAY = 86_400.0
HASHES = [f"{number:064x}" for number in range(12)]
JOBS = [f"job-{number}" for number in range(5)]

hashes = st.sampled_from(HASHES)
ages = st.sampled_from([0.0, SETTLING_S - 1, SETTLING_S, DAY, 40 * DAY])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Stored], References, set[str]]:
    """Files of every sort, jobs with artifacts, stitches of what jobs made; and all hashes that can
    be reached from a job, a stitch or a run."""
    jobs = draw(st.lists(st.sampled_from(JOBS), unique=True))
    settled = frozenset(draw(st.lists(st.sampled_from(jobs), unique=True)) if jobs else [])
    artifacts = {job: draw(st.lists(hashes, max_size=3)) for job in jobs}
    made_of = draw(st.lists(hashes, max_size=3))  # as the inputs of stitches say it
    runs = draw(st.lists(hashes, max_size=2))
    reached = {*(sha for row in artifacts.values() for sha in row), *made_of, *runs}
    named = {f"/store/dive/{job}/{n}" for job in jobs for n in range(len(artifacts[job]))}
    found = [
        Stored(sort=Sort.OBJECT, where=f"/store/.objects/{sha}", bytes=1, age_s=draw(ages),
               sha256=sha, named=draw(st.booleans()))
        for sha in draw(st.lists(hashes, unique=True))
    ]  # fmt: skip
    found += [
        Stored(sort=Sort.REMOTE, where=f"s3://b/{sha}", bytes=1, age_s=draw(ages), sha256=sha)
        for sha in draw(st.lists(hashes, unique=True))
    ]
    found += [
        Stored(sort=draw(st.sampled_from([Sort.NAME, Sort.REMAINDER])),
               where=f"/store/dive/{job}/{n}", bytes=1, age_s=draw(ages), job=job)
        for job in draw(st.lists(st.sampled_from(JOBS), unique=True))
        for n in range(draw(st.integers(0, 4)))
    ]  # fmt: skip
    written = [json.dumps({"inputs": made_of}), json.dumps({"provenance": runs})]
    rows = frozenset(sha for row in artifacts.values() for sha in row)
    known = References(
        hashes=rows | hashes_in(written), paths=frozenset(named), settled_jobs=settled,
        unkept_logs=frozenset(),
    )  # fmt: skip
    return found, known, reached


@given(graph=graphs(), keep_s=st.sampled_from([0.0, DAY, 30 * DAY]))
def test_nothing_referenced_goes_and_nothing_young(
    graph: tuple[list[Stored], References, set[str]], keep_s: float
) -> None:
    found, known, reached = graph
    gone = {item.stored.where for item in garbage(found, known, keep_s)}
    for one in found:
        referenced = one.sha256 in reached or one.where in known.paths or one.named
        at_work = one.job != "" and one.job not in known.settled_jobs
        young = one.age_s < max(keep_s, SETTLING_S)
        assert (one.where in gone) is not (referenced or at_work or young), one


@given(graph=graphs())
def test_names_go_before_what_they_name(
    graph: tuple[list[Stored], References, set[str]],
) -> None:
    found, known, _ = graph
    sorts = [item.stored.sort in (Sort.OBJECT, Sort.REMOTE) for item in garbage(found, known, 0.0)]
    assert sorts == sorted(sorts)


def test_hashes_are_found_wherever_they_are_written() -> None:
    text = json.dumps({"members": [{"ply": {"sha256": HASHES[1]}}], "bytes": 10**64})
    assert hashes_in([text, f"objects/00/{HASHES[2]}", "ab" * 40]) == {HASHES[1], HASHES[2]}


def test_it_says_why() -> None:
    known = References(
        hashes=frozenset(), paths=frozenset(), settled_jobs=frozenset({"j", "l"}),
        unkept_logs=frozenset({"l"}),
    )  # fmt: skip
    found = [
        *(Stored(sort=Sort.LOG, where=job, bytes=1, age_s=40 * DAY, job=job) for job in "jkl"),
        Stored(sort=Sort.OBJECT, where="/o", bytes=1, age_s=40 * DAY, sha256=HASHES[0]),
        Stored(sort=Sort.NAME, where="/n", bytes=1, age_s=40 * DAY, job="j"),
        Stored(sort=Sort.REMAINDER, where="/r", bytes=1, age_s=40 * DAY, job="j"),
    ]
    whys = {item.stored.where: item.why for item in garbage(found, known, 30 * DAY)}
    assert whys == {
        "j": "j has been over for 40.0 days",  # k goes on, and of l there is no other log
        "/o": "no job, stitch or run has had it for 40.0 days",
        "/n": "j has no such result any more, for 40.0 days",
        "/r": "left by something that was broken off, untouched for 40.0 days",
    }
