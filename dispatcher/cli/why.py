"""`cosma why JOB`: why it is where it is, with numbers, and what would change that."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated, Any

import typer

from dispatcher.amounts import clock_text, human_seconds
from dispatcher.cli import options
from dispatcher.cli.eta import eta_json, eta_text
from dispatcher.cli.render import print_json
from dispatcher.cli.stored import known_job, with_store
from dispatcher.core.memory import shares
from dispatcher.core.model import SETTLED, Job, JobState, Step
from dispatcher.core.outlook import Outlook, look_ahead
from dispatcher.core.remedy import remedies
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.work_size import smaller_words
from dispatcher.errors import InventoryError
from dispatcher.risk import load_risks
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.stored_farm import StoredFarm, load_farm


def why(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Say why a job waits, is held, or what it is doing; per host and GPU the first test that
    failed and whose memory it is, when the job will be done, and what would start it now."""
    database = DispatcherSettings.load(database=db).database

    async def work(store: Store) -> tuple[dict[str, Any], StoredFarm | None]:
        found = await known_job(store, job)
        view = await _known(store, found)
        if found.state in SETTLED:
            return view, None
        try:
            return view, await load_farm(store, database, inventory)
        except InventoryError as error:
            view["notes"] = [f"only what the dispatcher last said: {error.line}"]
            return view, None

    view, farm = with_store(db, work)
    outlook = None
    if farm is not None:
        outlook = look_ahead(farm.snapshot)
        _look(view, farm, outlook)
    if json:
        print_json(view)
    else:
        _show(view, outlook)


async def _known(store: Store, found: Job) -> dict[str, Any]:
    """What is written down of the job."""
    progress = (await store.progress()).get(found.id)
    view: dict[str, Any] = {
        "job": found.id,
        "state": found.state.value,
        "stage": found.stage.value,
        "host": found.host,
        "priority": found.priority,
        "reason": str(found.reason or ""),
        "message": found.message,
        "advice": found.advice,
        "smaller_plan": smaller_words(found),
        "per_host": {},
        "gpus": [],
        "eta": None,
        "next_stage_at": None,
        "remedies": [],
        "notes": [],
    }
    waiting = (await store.waiting()).get(found.id)
    if found.step is Step.PLACE and waiting is not None:
        view["reason"] = str(waiting.reason)
        view["message"] = waiting.message
        view["per_host"] = dict(waiting.per_host)
    elif found.step is Step.RUN and progress is not None:
        age = time.time() - progress.updated_at
        view["message"] = (
            f"{found.stage} on {found.host} is at {progress.fraction:.0%} "
            f"({progress.message}), heard of {age:.0f} s ago"
        )
    elif found.step is Step.PLACE and found.state is JobState.QUEUED and not found.reason:
        view["message"] = "no dispatcher has looked at it yet: `cosma dispatch`"
    view["at_risk"] = [
        {**dataclasses.asdict(risk), "line": risk.line(time.time())}
        for risk in await load_risks(store)
        if risk.job == found.id
    ]
    view["last_events"] = [
        {"at": event.at, "kind": event.kind, "host": event.host}
        for event in (await store.events(job=found.id))[-3:]
    ]
    return view


def _look(view: dict[str, Any], farm: StoredFarm, outlook: Outlook) -> None:
    """What the next decision says of the job, when it will be done, what would start it."""
    snapshot = farm.snapshot
    name = view["job"]
    (job,) = (one for one in snapshot.jobs if one.id == name)
    waiting = next((one for one in outlook.waiting if one.job == name), None)
    if waiting is not None:
        view["reason"] = waiting.reason.value
        view["message"] = waiting.message
        view["per_host"] = dict(waiting.per_host)
        view["gpus"] = _gpus(snapshot, job, outlook)
        view["remedies"] = [dataclasses.asdict(one) for one in remedies(snapshot, job)]
    elif job.step is Step.PLACE and name in outlook.at_once:
        first = next(one for one in outlook.decisions if one.job == name)
        does = "goes to" if first.stage is None else f"starts {first.stage} on"
        view["message"] = f"the next decision places it: {does} {first.host}"
    view["next_stage_at"] = outlook.begins.get(name)
    view["eta"] = eta_json(outlook.jobs.get(name))
    view["interval"] = {"draws": outlook.draws, "share": outlook.share}
    view["as_of"] = outlook.now
    view["notes"] = list(farm.notes)


def _gpus(snapshot: Snapshot, job: Job, outlook: Outlook) -> list[dict[str, Any]]:
    """Devices that the job could use, and whose their memory is; on its own host where it has
    one."""
    return [
        {
            "host": host.name,
            "gpu": gpu.uuid,
            "name": gpu.name,
            "total_mib": gpu.total_mib,
            "free_mib": gpu.free_mib,
            "headroom_mib": host.headroom_mib,
            "needs_mib": snapshot.policy.needs.of(job, gpu).vram_mib,
            "shares": [
                {
                    **dataclasses.asdict(share),
                    "until": outlook.stage_ends.get(share.job) if share.job else None,
                }
                for share in shares(gpu, snapshot.jobs)
            ],
        }
        for host in snapshot.hosts
        if job.host in (None, host.name)
        for gpu in host.gpus
    ]


def _show(view: dict[str, Any], outlook: Outlook | None) -> None:
    for note in view["notes"]:
        print(f"note: {note}", file=sys.stderr)
    head = f"{view['job']}: {view['state']}"
    if view["host"]:
        head += f" on {view['host']}"
    print(f"{head}, stage {view['stage']}")
    if view["reason"] or view["message"]:
        print(": ".join(filter(None, (view["reason"], view["message"]))))
    if view["smaller_plan"]:
        print(f"by a smaller plan than was asked for: it {view['smaller_plan']}")
    for risk in view["at_risk"]:
        print(f"{risk['line']}\n  {risk['why']}")
    for host, line in view["per_host"].items():
        print(f"  {line if line.startswith(host) else f'{host}: {line}'}")
    if outlook is not None:
        for gpu in view["gpus"]:
            _show_gpu(gpu, outlook.now)
        begins = view["next_stage_at"]
        if begins is not None and begins > outlook.now:
            wait = human_seconds(begins - outlook.now)
            print(f"its next stage starts at {clock_text(begins, outlook.now)}, in {wait}")
        print(f"done: {eta_text(outlook.jobs.get(view['job']), outlook)}")
    for number, remedy in enumerate(view["remedies"]):
        does = f": {remedy['command']}" if remedy["command"] else ""
        print(f"{'or: ' if number else 'to start it now: '}{remedy['line']}{does}")
    if view["advice"]:
        print(f"what to do: {view['advice']}")
    for event in view["last_events"]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        print(f"  {clock} {event['kind']}" + (f" ({event['host']})" if event["host"] else ""))


def _show_gpu(gpu: dict[str, Any], now: float) -> None:
    parts = [
        f"{share['mib']} MiB {share['whose']}"
        + (f" until {clock_text(share['until'], now)}" if share["until"] else "")
        for share in gpu["shares"]
    ]
    whose = f", of which {'; '.join(parts)}" if parts else ", all of it free"
    print(f"  {gpu['gpu']} on {gpu['host']}: {gpu['total_mib']} MiB{whose}")
