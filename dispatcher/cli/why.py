"""`cosma why JOB`: why it is where it is, with numbers, and what would change that."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import typer

from dispatcher.cli import options
from dispatcher.cli.render import print_json
from dispatcher.cli.stored import known_job, with_store
from dispatcher.core.model import JobState, Step
from dispatcher.risk import load_risks
from dispatcher.store.base import Store


def why(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Say why a job waits, is held, or what it is doing; per host, the first test that failed."""

    async def work(store: Store) -> dict[str, Any]:
        found = await known_job(store, job)
        waiting = (await store.waiting()).get(job)
        progress = (await store.progress()).get(job)
        view: dict[str, Any] = {
            "job": job,
            "state": found.state.value,
            "stage": found.stage.value,
            "host": found.host,
            "reason": str(found.reason or ""),
            "message": found.message,
            "advice": found.advice,
            "per_host": {},
        }
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
            if risk.job == job
        ]
        view["last_events"] = [
            {"at": event.at, "kind": event.kind, "host": event.host}
            for event in (await store.events(job=job))[-3:]
        ]
        return view

    view = with_store(db, work)
    if json:
        print_json(view)
        return
    head = f"{view['job']}: {view['state']}"
    if view["host"]:
        head += f" on {view['host']}"
    print(f"{head}, stage {view['stage']}")
    if view["reason"] or view["message"]:
        print(": ".join(filter(None, (view["reason"], view["message"]))))
    for risk in view["at_risk"]:
        print(f"{risk['line']}\n  {risk['why']}")
    for host, line in view["per_host"].items():
        print(f"  {line if line.startswith(host) else f'{host}: {line}'}")
    if view["advice"]:
        print(f"what to do: {view['advice']}")
    for event in view["last_events"]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        print(f"  {clock} {event['kind']}" + (f" ({event['host']})" if event["host"] else ""))
