"""Reads inventory.yaml: validated, with file, line, key and the fix in every error."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dispatcher.errors import InventoryError
from dispatcher.inventory_model import (
    Disk,
    HostOptions,
    Hypervisor,
    Inventory,
    InventoryDiff,
    InventoryHost,
    MaxParallel,
    ThinPool,
    diff,
)

__all__ = [
    "Disk",
    "Inventory",
    "InventoryDiff",
    "InventoryHost",
    "MaxParallel",
    "ThinPool",
    "diff",
    "find_inventory",
    "inventory_path",
    "is_there",
    "load_inventory",
]

ENV_PATH = "COSMA_INVENTORY"
ENV_WORKERS = "COSMA_QC_WORKERS"
DEFAULT_PATH = Path("inventory.yaml")

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class _Source:
    """A parsed file and the line at which each of its keys stands."""

    name: str
    lines: dict[KeyPath, int]

    def error(self, path: KeyPath, why: str, fix: str) -> InventoryError:
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        return InventoryError(_dotted(path), where=f"{self.name}:{line}", why=why, fix=fix)


def inventory_path(given: Path | None) -> Path:
    """The file meant: `given`, else COSMA_INVENTORY, else ./inventory.yaml."""
    return given or Path(os.environ.get(ENV_PATH) or DEFAULT_PATH)


def is_there(given: Path | None) -> bool:
    """Whether hosts are named at all, well or not."""
    named = given is not None or bool(os.environ.get(ENV_PATH) or os.environ.get(ENV_WORKERS))
    return named or DEFAULT_PATH.exists()


def find_inventory(given: Path | None) -> Inventory:
    """The file of `inventory_path`; without one, the hosts of COSMA_QC_WORKERS.

    Raises InventoryError.
    """
    path = inventory_path(given)
    workers = os.environ.get(ENV_WORKERS)
    if workers and given is None and not path.exists():
        return from_workers(workers)
    return load_inventory(path)


def load_inventory(path: Path) -> Inventory:
    """Raises InventoryError, whose line names file, line, key and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InventoryError(
            "no inventory",
            where=str(path),
            why="there is no such file",
            fix="Add a host with `cosma worker add NAME ADDRESS`, or name a file with --inventory",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError(
            "cannot read the inventory",
            where=str(path),
            why=getattr(error, "strerror", None) or str(error),
            fix="Check the file",
        ) from None
    return parse_inventory(text, str(path), os.environ)


def parse_inventory(text: str, name: str, environment: Mapping[str, str]) -> Inventory:
    """Parse the text of an inventory file; `name` is what errors call it."""
    source = _Source(name, {})
    try:
        with contextlib.closing(_Loader(text)) as loader:
            root = loader.get_single_node()
            if root is None:
                return Inventory()
            _walk(root, (), source)
            data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InventoryError(
            "not valid YAML",
            where=f"{name}:{mark.line + 1 if mark else 1}",
            why=error.problem or "syntax error",
            fix="Check the indentation and the quotes on this line",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InventoryError(
            "not valid YAML", where=f"{name}:1", why=str(error), fix="Save the file as UTF-8 text"
        ) from None
    return _validate(_expand(data, (), source, environment), source)


class _Loader(yaml.SafeLoader):
    def close(self) -> None:
        self.dispose()


def _walk(node: yaml.Node, path: KeyPath, source: _Source) -> None:
    source.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*path, str(key.value))
            line = key.start_mark.line + 1
            if where in source.lines:
                first = source.lines[where]
                source.lines[where] = line
                raise source.error(where, f"given twice (first on line {first})", "Remove one")
            source.lines[where] = line
            _walk(value, where, source)


def _expand(value: Any, path: KeyPath, source: _Source, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, (*path, str(k)), source, environment) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*path, i), source, environment) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise source.error(
                path, f"environment variable {match[1]} is not set", f"Set {match[1]}"
            )
        return environment[match[1]]

    return _ENV.sub(one, value)


def _validate(data: Any, source: _Source) -> Inventory:
    if not isinstance(data, dict):
        raise source.error((), "expected `hosts:` at the top", "See the example inventory.yaml")
    _known(data, ("defaults", "hosts", "hypervisors"), (), source)
    defaults = data.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise source.error(("defaults",), "expected keys", "Write one `key: value` a line")
    _known_keys(HostOptions, defaults, ("defaults",), source)
    hosts: list[InventoryHost] = []
    for path, entry in _entries(InventoryHost, data, "hosts", source):
        host = _checked(InventoryHost, _merge(defaults, entry), path, source)
        _named_once(host, hosts, path, source)
        for other in hosts:
            if _place(other) == _place(host):
                why = f"{host.name!r} and {other.name!r} are the same directory of the same host"
                raise source.error((*path, "address"), why, "Remove one of them")
        hosts.append(host)
    hypervisors: list[Hypervisor] = []
    for path, entry in _entries(Hypervisor, data, "hypervisors", source):
        hypervisor = _checked(Hypervisor, entry, path, source)
        _named_once(hypervisor, [*hosts, *hypervisors], path, source)
        hypervisors.append(hypervisor)
    return Inventory(hosts=tuple(hosts), hypervisors=tuple(hypervisors))


def _entries(
    model: type[BaseModel], data: dict[str, Any], key: str, source: _Source
) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Of one list, with where each stands."""
    entries = data.get(key) or []
    if not isinstance(entries, list):
        raise source.error((key,), "expected a list", "Begin each host with `- name: ...`")
    for index, entry in enumerate(entries):
        path: KeyPath = (key, index)
        if not isinstance(entry, dict):
            raise source.error(path, "expected keys", "Write `- name: ...`, then `address: ...`")
        _known_keys(model, entry, path, source)
        yield path, entry


def _named_once(
    one: InventoryHost | Hypervisor,
    others: Iterable[InventoryHost | Hypervisor],
    path: KeyPath,
    source: _Source,
) -> None:
    if any(other.name == one.name for other in others):
        why = f"{one.name!r} names two hosts"
        raise source.error((*path, "name"), why, "Give each host its own name")


def _place(host: InventoryHost) -> tuple[object, ...]:
    return host.address, host.port or 22, host.user, host.work_dir, host.proxy_jump


def _checked(model: type[M], values: dict[str, Any], path: KeyPath, source: _Source) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    location: KeyPath = first["loc"]
    key: KeyPath = (*path, *location)
    inherited: KeyPath = ("defaults", *location)
    if key[:3] not in source.lines and inherited[:2] in source.lines:
        key = inherited
    while len(key) > 1 and key not in source.lines and key[:-1] in source.lines:
        # pydantic ends the path of a union with the name of the member it tried.
        if first["type"] == "missing":
            break
        key = key[:-1]
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        raise source.error(key, "missing", f"Add `{location[-1]}:` to this host")
    shown = json.dumps(first["input"], default=str)
    raise source.error(key, f"{why}, got {shown}", "Correct this value")


def _merge(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in entry.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both and below is not None else value
    return merged


def _known_keys(
    model: type[BaseModel], data: dict[str, Any], path: KeyPath, source: _Source
) -> None:
    _known(data, tuple(model.model_fields), path, source)
    for key, value in data.items():
        if isinstance(value, dict):
            for inner in _models_of(model.model_fields[key].annotation):
                _known_keys(inner, value, (*path, key), source)


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    options = (annotation, *getattr(annotation, "__args__", ()))
    yield from (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))


def _known(data: dict[Any, Any], allowed: tuple[str, ...], path: KeyPath, source: _Source) -> None:
    for key in data:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            fix = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(allowed)}"
            raise source.error((*path, str(key)), "unknown key", fix)


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "inventory"


def from_workers(text: str) -> Inventory:
    """Hosts from the JSON of COSMA_QC_WORKERS: a list of {host, ssh_alias, gpu, vram_mib,
    frames_dir}, the format of the system this one replaces. Only `host` is required; what NVML
    reports on the host goes before `gpu` and `vram_mib`, which are kept as labels.
    """
    source = _Source(f"${ENV_WORKERS}", {})
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise source.error((), f"not JSON: {error}", "Write a JSON list of hosts") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise source.error((), "expected a JSON list of objects", 'Write [{"host": "..."}]')
    hosts: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        path: KeyPath = (index,)
        _known(entry, ("host", "ssh_alias", "gpu", "vram_mib", "frames_dir"), path, source)
        if not isinstance(entry.get("host"), str):
            raise source.error((*path, "host"), "missing", "Add the name of the host")
        host: dict[str, Any] = {
            "name": entry["host"],
            "address": entry.get("ssh_alias") or entry["host"],
            "labels": [f"{k}={entry[k]}" for k in ("gpu", "vram_mib") if entry.get(k) is not None],
        }
        if str(entry.get("gpu", "")).startswith(("GPU-", "MIG-")):
            host["gpus"] = [entry["gpu"]]
        if entry.get("frames_dir"):
            host["work_dir"] = entry["frames_dir"]
        hosts.append(host)
    return _validate({"hosts": hosts}, source)
