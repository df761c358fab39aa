"""`cosma worker`: the hosts of the farm - add, list, probe, bootstrap; cordon and drain."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dispatcher import agent_bundle, bootstrap, event_loop, inventory_edit
from dispatcher.cli import cordon, options, render, worker_view
from dispatcher.cli.stored import with_store
from dispatcher.core.breaker import Breaker
from dispatcher.core.model import Reason
from dispatcher.core.pool import PoolState
from dispatcher.core.views import HostView
from dispatcher.errors import ExitCode, InventoryError, TransportError, UsageError
from dispatcher.executors.ssh import SshExecutor, ssh_target
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState
from dispatcher.inventory import find_inventory, inventory_path, load_inventory
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.transport.hostkey import ShownKey, Standing, show
from dispatcher.transport.ssh import SshTransport

app = typer.Typer(help="The hosts of the farm.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the host in the inventory.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=1, help="Seconds to wait for each host's answer.")
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call the host.")],
    address: Annotated[str, typer.Argument(help="Address, or an alias of ~/.ssh/config.")],
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=1, max=65535, help="SSH port.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User on the host.")] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="Private key to log in with.")
    ] = None,
    work_dir: Annotated[
        str | None, typer.Option("--work-dir", help="Directory on the host (default: ~/cosma).")
    ] = None,
    accept_key: Annotated[
        str | None, typer.Option("--accept-key", help="The fingerprint it must show: SHA256:...")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Pin the key it shows, unasked.")
    ] = False,
    inventory: options.Inventory = None,
) -> None:
    """Show a host's key, pin it, append the host to the inventory and probe it."""
    path = inventory_path(inventory)
    text = ""
    if path.exists():
        if load_inventory(path).host(name) is not None:
            raise UsageError(f"host {name} exists", where=str(path), fix="Choose another name")
        text = path.read_text(encoding="utf-8")
    key = show(name, address, port)
    _say(f"{name}: {key.where} shows {key.line.split()[0]} {key.fingerprint} ({key.standing})")
    _accept(name, key, accept_key, yes)
    values: dict[str, object] = {"name": name, "address": address}
    given = {
        "port": port,
        "user": user,
        "identity_file": str(identity) if identity else None,
        "work_dir": work_dir,
    }
    values.update({k: v for k, v in given.items() if v is not None})
    values["host_key"] = key.line
    inventory_edit.rewrite(path, inventory_edit.append_host(text, values))
    _say(f"{name}: added to {path}")
    _report(_one(load_inventory(path), name), None, False, 30.0)


def _accept(name: str, key: ShownKey, accept_key: str | None, yes: bool) -> None:
    """Returns when the key may be pinned; raises otherwise."""
    if accept_key is not None and accept_key.rstrip("=") != key.fingerprint:
        raise TransportError(
            Reason.HOST_KEY_MISMATCH,
            "host key does not match",
            where=name,
            why=f"{key.where} shows {key.fingerprint}, --accept-key says {accept_key}",
            fix="Ask whoever runs the host for its fingerprint",
        )
    if key.standing is Standing.CONFLICT and accept_key is None:
        raise TransportError(
            Reason.HOST_KEY_MISMATCH,
            "host key does not match",
            where=name,
            why=f"{key.where} shows {key.fingerprint}, ~/.ssh/known_hosts has another key",
            fix="If the host was reinstalled, give its new key with --accept-key SHA256:...",
        )
    if accept_key is not None or yes or key.standing is Standing.KNOWN:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "the host key must be accepted",
            where=name,
            why=f"{key.where} shows {key.fingerprint} and there is no terminal to ask on",
            fix=f"Add --accept-key {key.fingerprint}, or --yes to trust what it shows",
        )
    if not typer.confirm("Pin this key?", err=True):
        raise UsageError("not added", where=name, why="the key was not accepted")


@app.command("ls")
def list_hosts(
    inventory: options.Inventory = None,
    db: options.Database = None,
    as_json: options.Json = False,
    timeout: Timeout = 20.0,
) -> None:
    """List all hosts with state, GPUs, free VRAM, RAM, cores and disk, and what they lack."""
    _report(find_inventory(inventory), db, as_json, timeout)


@app.command()
def probe(
    host: Annotated[str | None, typer.Argument(help="One host; all without it.")] = None,
    inventory: options.Inventory = None,
    db: options.Database = None,
    as_json: options.Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Show every device of one host, or of all: its memory, and whose it is. --json gives all that
    the hosts say."""
    found = find_inventory(inventory)
    _report(_one(found, host) if host else found, db, as_json, timeout, devices=True)


def _report(
    inventory: Inventory, db: Path | None, as_json: bool, timeout_s: float, *, devices: bool = False
) -> None:
    found = event_loop.run(_probe(inventory, timeout_s, _held_against(db)))
    states = [state for state, _ in found]
    if as_json:
        render.print_json([worker_view.document(state, view) for state, view in found])
    elif devices:
        rows = [row for state, view in found for row in worker_view.device_rows(state, view)]
        render.print_rows(worker_view.DEVICE_COLUMNS, rows)
    else:
        rows = [worker_view.host_row(state, view) for state, view in found]
        render.print_rows(worker_view.HOST_COLUMNS, rows)
    lost = [state for state in states if not state.reachable]
    for state in lost:
        _say(f"cosma: {state.message}")
    if lost:
        raise typer.Exit(ExitCode.NO_HOST if len(lost) == len(states) else ExitCode.PARTIAL)


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    cordons: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    breakers: Mapping[str, Breaker] = dataclasses.field(default_factory=dict)
    pools: Mapping[str, PoolState] = dataclasses.field(default_factory=dict)


def _held_against(db: Path | None) -> _Held:
    """What the database has against hosts; nothing where there is no database yet."""
    if not DispatcherSettings.load(database=db).database.exists():
        return _Held()

    async def work(store: Store) -> _Held:
        began = time.time() - time.monotonic()  # the fleet's clock is the monotonic one
        pools = {
            key: dataclasses.replace(pool, read_at=pool.read_at and pool.read_at - began)
            for key, pool in (await store.thin_pools()).items()
        }
        return _Held(await store.cordons(), await store.breakers(), pools)

    return with_store(db, work)


async def _probe(
    inventory: Inventory,
    timeout_s: float,
    held: _Held,
) -> Sequence[tuple[HostState, HostView]]:
    bundle = agent_bundle.build()
    fleet = Fleet.of(inventory, lambda host: SshExecutor.connect_to(host, bundle))
    fleet.cordons, fleet.breakers, fleet.pools = held.cordons, held.breakers, held.pools
    try:
        states = await fleet.probe_all(timeout_s)
        return list(zip(states, fleet.host_views(), strict=True))
    finally:
        await fleet.close()


@app.command("bootstrap")
def bootstrap_host(host: Name, inventory: options.Inventory = None) -> None:
    """Make the virtual environment on a host that the stages run in; can be run again."""
    entry = _one(find_inventory(inventory), host).hosts[0]
    python = event_loop.run(_bootstrap(entry))
    print(python)


async def _bootstrap(host: InventoryHost) -> str:
    transport = SshTransport(ssh_target(host))
    try:
        python = await bootstrap.bootstrap(
            host,
            transport,
            _say,
            wanted=bootstrap.requirements(),
            pinned=bootstrap.constraints(),
        )
    finally:
        await transport.close()
    return str(python)


app.command()(cordon.cordon)
app.command()(cordon.drain)
app.command()(cordon.resume)


def _one(inventory: Inventory, name: str) -> Inventory:
    """The inventory of only this host. Raises InventoryError when there is none of that name."""
    host = inventory.host(name)
    if host is None:
        known = ", ".join(h.name for h in inventory.hosts) or "none"
        raise InventoryError(
            f"no host {name}", why="the inventory does not name it", fix=f"Known hosts: {known}"
        )
    return Inventory(hosts=(host,))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
