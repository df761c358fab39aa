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
from dispatcher.core.explain import device_tests
from dispatcher.core.memory import shares
from dispatcher.core.model import SETTLED, Job, Reason, Step, Waiting
from dispatcher.core.outlook import Outlook, look_ahead
from dispatcher.core.remedy import remedies
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.work_size import smaller_words
from dispatcher.errors import InventoryError
from dispatcher.progress import doing
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
        "waits": False,  # by the next decision, for what `remedies` would give it
        "remedies": [],
        "notes": [],
    }
    waiting = (await store.waiting()).get(found.id)
    if found.step is Step.PLACE and waiting is not None:
        view["reason"] = str(waiting.reason)
        view["message"] = waiting.message
        view["per_host"] = dict(waiting.per_host)
    elif found.step is Step.PLACE and not found.reason:
        view["message"] = "no dispatcher has looked at it yet: `cosma dispatch`"
    elif found.state not in SETTLED:
        view["message"] = doing(found, progress, time.time())
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
        view["waits"] = True
        view["gpus"] = _gpus(snapshot, waiting, outlook)
        view["remedies"] = [dataclasses.asdict(one) for one in remedies(snapshot, job)]
    elif job.step is Step.PLACE and name in outlook.at_once:
        first = next(one for one in outlook.decisions if one.job == name)
        does = "goes to" if first.stage is None else f"starts {first.stage} on"
        view.update(reason="", per_host={})
        view["message"] = f"the next decision places it: {does} {first.host}"
    view["next_stage_at"] = outlook.begins.get(name)
    view["eta"] = eta_json(outlook.jobs.get(name))
    view["interval"] = {"draws": outlook.draws, "share": outlook.share}
    view["as_of"] = outlook.now
    view["notes"] = list(farm.notes)


def _gpus(snapshot: Snapshot, waiting: Waiting, outlook: Outlook) -> list[dict[str, Any]]:
    """Devices of the hosts in question: the first test that failed, and whose their memory is.
    `free_mib` is what the device shows, `may_be_promised_mib` what is left of it for our stages."""
    return [
        {
            "host": test.host,
            "gpu": test.gpu.uuid,
            "name": test.gpu.name,
            "total_mib": test.gpu.total_mib,
            "free_mib": test.gpu.free_mib,
            "headroom_mib": test.headroom_mib,
            "may_be_promised_mib": test.free_mib,
            "needs_mib": test.needs_mib,
            "reason": test.reason.value if test.reason else None,
            "why": test.why,
            "shares": [
                {
                    **dataclasses.asdict(share),
                    "until": outlook.stage_ends.get(share.job) if share.job else None,
                }
                for share in shares(test.gpu, snapshot.jobs)
            ],
        }
        for test in device_tests(snapshot, waiting)
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
            _show_gpu(gpu, outlook.now, view["per_host"][gpu["host"]])
        begins = view["next_stage_at"]
        if begins is not None and begins > outlook.now:
            wait = human_seconds(begins - outlook.now)
            print(f"its next stage starts at {clock_text(begins, outlook.now)}, in {wait}")
        print(f"done: {eta_text(outlook.jobs.get(view['job']), outlook)}")
    if view["waits"] and not view["remedies"] and view["reason"] != Reason.BACKOFF:
        print("no single change that cosma knows would start it now")
    for number, remedy in enumerate(view["remedies"]):
        does = f": {remedy['command']}" if remedy["command"] else ""
        print(f"{'or: ' if number else 'to start it now: '}{remedy['line']}{does}")
    if view["advice"]:
        print(f"what to do: {view['advice']}")
    for event in view["last_events"]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        print(f"  {clock} {event['kind']}" + (f" ({event['host']})" if event["host"] else ""))


def _show_gpu(gpu: dict[str, Any], now: float, said: str) -> None:
    """`said`: of its host."""
    parts = [
        f"{share['mib']} MiB {share['whose']}"
        + (f" until {clock_text(share['until'], now)}" if share["until"] else "")
        for share in gpu["shares"]
    ]
    whose = f", of which {'; '.join(parts)}" if parts else ", all of it free"
    print(f"  {gpu['gpu']} on {gpu['host']}: {gpu['total_mib']} MiB{whose}")
    if gpu["why"] not in said:
        print(f"    {gpu['why']}")
