"""Which frames a model lacks, and why: what an operator can cut off or take apart. Pure.

A clip of two places, or one whose track broke, gives a model of one part. The parts are not joined
here, though positions may be known of both: GPS puts each in its place to a metre and to degrees,
and a scene is trained to a hundredth of that. As segments of their own they are stitched, which
takes the positions too and then finds what both have seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from worker_agent.stages.ffprobe import printable

__all__ = ["explain_missing"]

MOST_STRETCHES = 2  # frames that are missing here and there have no place to cut at
LEAST_STRETCH = 3  # frames
MOST_SCATTERED = 0.2  # of the missing frames, outside those stretches


def explain_missing(
    rows: Sequence[Mapping[str, Any]], placed: Collection[str], flaws: Mapping[str, str]
) -> tuple[str, str] | None:
    """(what the missing frames are, what to do); None where they have nothing in common.

    `rows`: the manifest's frames, in order; `placed`: names of those in the model; `flaws`: what
    frame_quality finds wrong with a frame.
    """
    missing = [row for row in rows if row["name"] not in placed]
    if not missing or not placed:
        return None
    found = [flaws[row["name"]] for row in missing if row["name"] in flaws]
    if 2 * len(found) > len(missing):
        worst = max(sorted(set(found)), key=found.count)
        return (
            f"{found.count(worst)} of the {len(missing)} others are {worst}",
            f"Leave the {worst} part of the clip out.",
        )
    stretches = [run for run in _runs(rows, placed) if len(run) >= LEAST_STRETCH]
    scattered = len(missing) - sum(map(len, stretches))
    if not 1 <= len(stretches) <= MOST_STRETCHES or scattered > MOST_SCATTERED * len(missing):
        return None
    told = " and ".join(_span(run) for run in stretches)
    return (
        f"the others are of {told}",
        "The clip shows another place there, or the track broke: ingest what lies before and after "
        "as segments of their own, which are stitched.",
    )


def _runs(
    rows: Sequence[Mapping[str, Any]], placed: Collection[str]
) -> Iterator[list[Mapping[str, Any]]]:
    """Missing frames that follow each other in one clip."""
    run: list[Mapping[str, Any]] = []
    for row in rows:
        if run and (row["name"] in placed or row["clip"] != run[-1]["clip"]):
            yield run
            run = []
        if row["name"] not in placed:
            run.append(row)
    if run:
        yield run


def _span(run: Sequence[Mapping[str, Any]]) -> str:
    return f"{run[0]['time_s']:.1f} to {run[-1]['time_s']:.1f} s of {printable(run[0]['clip'])}"
