"""`cosma stitch …`: the stitches of a survey and their evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.artifact_store import ArtifactStore
from dispatcher.cli import options
from dispatcher.cli.job import retry as retry_job
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stitch_pairs import (
    Planned,
    decide,
    draw,
    held_evidence,
    known_stitch,
    numbers,
    place,
    planned_of_survey,
    ratio_of,
    reference_of,
    said_about,
    scale_lines,
)
from dispatcher.cli.stored import known_acquisition, with_store
from dispatcher.core.decisions import Verdict
from dispatcher.errors import UsageError
from dispatcher.foreign_cloud import Added, add_cloud
from dispatcher.pair_looking import ask_library, known_edges, member_files
from dispatcher.settings import DispatcherSettings, PipelineConfig
from dispatcher.store.base import Store

app = typer.Typer(help="Per-AUV and cross-AUV stitches.", no_args_is_help=True)

_EDGE = ("source", "target", "method", "inliers", "share", "residual", "accepted", "reason")

StitchId = Annotated[str, typer.Argument(metavar="STITCH")]
Source = Annotated[str, typer.Argument(metavar="MEMBER")]
Target = Annotated[str, typer.Argument(metavar="MEMBER")]


@app.command()
def ls(
    acquisition: Annotated[
        str | None, typer.Option("--acquisition", "-a", help="Only of this survey.")
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """All stitches, with their members and state."""

    async def work(store: Store) -> list[dict[str, Any]]:
        survey = None if acquisition is None else await known_acquisition(store, acquisition)
        return [
            {
                "stitch": s.id,
                "level": s.level.value,
                "auv": s.auv or "",
                "state": s.state.value,
                "version": s.version,
                "members": ", ".join(s.members),
                "pass_through": s.passthrough,
            }
            for s in await store.stitches(acquisition=survey)
        ]

    rows = with_store(db, work)
    if json:
        print_json(rows)
    else:
        print_rows(("stitch", "level", "auv", "state", "version", "members"), rows)


@app.command()
def show(
    stitch: StitchId,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="Draw its pairs into this directory, from above."),
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Its report: transforms, edges with their inliers, what was left out and would fix it."""

    async def work(store: Store) -> dict[str, Any]:
        found = await known_stitch(store, stitch)
        job = await store.job(found.job) if found.job else None
        return {
            "stitch": found.id,
            "level": found.level.value,
            "state": found.state.value,
            "members": list(found.members),
            "pass_through": found.passthrough,
            "reason": str(job.reason or "") if job else "",
            "message": job.message if job else "",
            "advice": job.advice if job else "",
            "report": found.report,
            "evidence": await held_evidence(store, found),
            "decisions": await said_about(store, found),
            "artifacts": {
                row.kind: row.local_path
                for row in await store.artifacts(job=found.job or found.members[0])
                if row.local_path
            },
        }

    view = with_store(db, work)
    edges = view["report"].get("edges") or view["evidence"].get("pairs", [])
    view["pictures"] = [] if pictures is None else draw(db, stitch, edges, pictures)
    if json:
        print_json(view)
        return
    for key in ("stitch", "level", "state", "reason", "message", "advice"):
        if view[key]:
            print(f"{key}: {view[key]}")
    print_rows(_EDGE, [_edge_row(edge) for edge in edges])
    for line in scale_lines(view["report"].get("scale", {})):
        print(line)
    for entry in view["report"].get("left_out", []):
        print(f"left out: {entry['name']}: {entry.get('would_fix', '')}")
    for name, what in view["evidence"].get("would_fix", {}).items():
        print(f"would let {name} in: {what}")
    for line in view["decisions"]:
        print(f"decided: {line}")
    for row in view["pictures"]:
        print(f"picture: {row['picture']} ({row['inliers']} of {row['matches']} matches agree)")
    for kind, path in view["artifacts"].items():
        print(f"{kind}: {path}")


def _edge_row(edge: dict[str, Any]) -> dict[str, Any]:
    """`residual`: root mean square of its inliers, over the depth."""
    off = edge.get("residual_depths")
    row = {key: edge.get(key) for key in _EDGE}
    return row | {"residual": "" if off is None else f"{off:.2%}"}


@app.command()
def plan(
    stitch: Annotated[str, typer.Argument(metavar="STITCH|SURVEY")],
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Which pairs a stitch registers, and what that costs, before any of it is computed. Of a
    survey: the stitches of its AUVs, of the segments that are done by now."""

    async def work(store: Store) -> list[Planned]:
        found = await store.stitch(stitch)
        if found is not None:
            files = await member_files(store, found.members)
            ratio, edges = await ratio_of(store, found), await known_edges(store, found)
            return [Planned(found.id, files, ratio, edges)]
        return await planned_of_survey(store, await known_acquisition(store, stitch))

    answers = []
    for one in with_store(db, work):
        found = ask_library("plan", one.members, one.ratio, edges=one.edges)
        answers.append({"stitch": one.name, **found})
    if json:
        print_json(answers)
        return
    for answer in answers:
        print_rows(("source", "target", "frames", "known", "cpu_s"), answer["pairs"])
        known = sum(row["known"] for row in answer["pairs"])
        print(
            f"{answer['stitch']}: {len(answer['pairs'])} pairs, {known} known already: "
            f"{answer['register_cpu_s']:.1f} CPU seconds; {answer['gaussians']} gaussians to "
            f"merge: {answer['merge_cpu_s']:.1f}"
        )
    if not answers:
        print("no AUV has two segments that are done")


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PLY", help="Gaussians, or points with colours, in any frame and scale."
        ),
    ],
    acquisition: Annotated[str, typer.Option("--acquisition", "-a", help="Name of the survey.")],
    auv: Annotated[str, typer.Option(help="Vehicle that it is a segment of.")],
    name: Annotated[str, typer.Option(help="Of the segment (default: the file's).")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Pipeline settings (YAML).")
    ] = None,
    artifacts: options.Artifacts = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Make a cloud from elsewhere a member of the survey's stitches: it is copied, verified, into
    the artifact store. Safe to repeat."""
    settings = DispatcherSettings.load(database=db, artifacts=artifacts)
    pipeline = PipelineConfig.load(config)

    async def work(store: Store) -> Added:
        return await add_cloud(
            store, ArtifactStore(settings.artifacts), file.absolute(),
            acquisition=acquisition, auv=auv, name=name or file.stem, config=pipeline,
        )  # fmt: skip

    row = dataclasses.asdict(with_store(db, work, create=True))
    if json:
        print_json(row)
    else:
        print_rows(("job", "auv", "segment", "kind", "count", "bytes", "new"), [row])


@app.command()
def retry(stitch: StitchId, db: options.Database = None) -> None:
    """Make a held or failed stitch again."""
    found = with_store(db, lambda store: known_stitch(store, stitch))
    if found.job is None:
        raise UsageError("nothing to make", where=stitch, why="it is its one member as it is")
    retry_job(found.job, db=db)


@app.command()
def approve(stitch: StitchId, source: Source, target: Target, db: options.Database = None) -> None:
    """Take a pair that was refused, by the transform of its images. Makes a new version."""
    decide(db, stitch, Verdict.APPROVE, source, target)


@app.command()
def reject(stitch: StitchId, source: Source, target: Target, db: options.Database = None) -> None:
    """Never use this pair, whatever its images say. Makes a new version."""
    decide(db, stitch, Verdict.REJECT, source, target)


@app.command()
def withdraw(stitch: StitchId, source: Source, target: Target, db: options.Database = None) -> None:
    """Take back what was decided about this pair. Makes a new version."""
    decide(db, stitch, Verdict.WITHDRAW, source, target)


@app.command()
def pin(
    stitch: StitchId,
    source: Source,
    target: Target,
    click: Annotated[
        list[str] | None,
        typer.Option(
            "--click",
            metavar="X,Y=X,Y",
            help="The same place in both halves of the "
            "picture that `show --pictures` draws of this pair, in pixels.",
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="X,Y,Z=X,Y,Z",
            help="The same place in the frames of both members' PLYs.",
        ),
    ] = None,
    db: options.Database = None,
) -> None:
    """Make a pair of three or more places that you found in both members. Makes a new version."""
    clicks = [numbers(text, 2) for text in click or ()]
    points = [numbers(text, 3) for text in point or ()]
    decide(db, stitch, Verdict.PIN, source, target, clicks=clicks, points=points)


@app.command()
def scale(
    stitch: StitchId,
    start: Annotated[
        str | None, typer.Option("--from", metavar="X,Y,Z", help="One end, in the scene's PLY.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="X,Y,Z", help="The other end.")] = None,
    length: Annotated[
        float | None, typer.Option(metavar="METRES", help="How far apart they really are.")
    ] = None,
    give_or_take: Annotated[
        float, typer.Option(metavar="METRES", help="One standard deviation of that.")
    ] = 0.0,
    member: Annotated[
        str | None, typer.Option(help="The places are in the PLY of this member instead.")
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take such a length back.")] = False,
    db: options.Database = None,
) -> None:
    """Say how long something in it is: a ruler's edge, a frame. Makes a new version, whose report
    tells the metres of a unit, how sure they are, and what contradicts them."""
    name = member or with_store(db, lambda store: reference_of(store, stitch))
    if withdraw:
        decide(db, stitch, Verdict.WITHDRAW, name, name)
        return
    if start is None or end is None or length is None:
        raise UsageError(
            "a length has two ends", where=stitch, fix="give --from, --to and --length"
        )
    decide(
        db, stitch, Verdict.SCALE, name, name, points=[[place(start), place(end)]],
        length_m=length, give_or_take_m=give_or_take,
    )  # fmt: skip
