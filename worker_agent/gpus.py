"""The NVIDIA GPUs of this host: NVML where it answers, `nvidia-smi` where it cannot be asked.

Every question is put by a child process with a time limit. A GPU that does not answer costs only
its own figures: the others are asked again, each by a child of its own.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_agent import clock, driver_query, nvidia_smi, nvml, processes
from worker_agent.durable import write_json

_NO_DRIVER = (nvml.LIBRARY_NOT_FOUND, nvml.DRIVER_NOT_LOADED)
PATIENCE_S = 5.0  # without persistence mode a driver takes a second or two for each GPU


@dataclass(frozen=True, slots=True)
class Use:
    pid: int
    used_mib: int | None  # None: the driver does not tell
    decodes: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or an instance of one in MIG mode."""

    uuid: str
    name: str
    total_mib: int
    free_mib: int
    reserved_mib: int
    parent: str
    uses: tuple[Use, ...]
    has_decoder: bool
    decoder_percent: int
    encoder_sessions: int


@dataclass(frozen=True, slots=True)
class Reading:
    gpus: tuple[Gpu, ...] = ()
    error: str = ""  # what could not be read; those GPUs are not in `gpus`
    driver: bool = True  # one is installed


class _Silent(Exception):
    """NVML cannot be asked at all; `code` is its error code, 0 for a child that died or hung."""

    def __init__(self, text: str, code: int = 0, *, hung: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.hung = hung


def read(state: Path) -> Reading:
    """All GPUs now. `state` is where the agent remembers what it could not end. Never raises for
    what a driver does."""
    stuck = _Stuck(state / "driver_stuck.json")
    try:
        return _by_nvml(stuck)
    except _Silent as error:
        if not nvidia_smi.is_installed():
            # The library alone comes with many packages, also where there is no GPU.
            return Reading(driver=False) if error.code in _NO_DRIVER else Reading(error=str(error))
        if error.hung:
            return Reading(error=str(error))
    except OSError as error:
        return Reading(error=f"no process can be started to ask the driver: {error}")
    try:
        return _by_program()
    except nvidia_smi.SmiError as error:
        stuck.note({None: error.stuck})
        return Reading(error=str(error))
    except OSError as error:
        return Reading(error=f"{nvidia_smi.PROGRAM}: {error}")


def _by_nvml(stuck: _Stuck) -> Reading:
    """Raises _Silent."""
    skip = stuck.alive()
    if None in skip:
        raise _Silent(f"the driver hangs in process {skip[None]}", hung=True)
    found: dict[int, dict[str, Any]] = {
        index: {"error": f"hangs in process {pid}"} for index, pid in skip.items()
        if index is not None
    }  # fmt: skip
    (first,) = _ask([("list", *(str(index) for index in found))])
    rows = _messages(first)
    if not rows or "count" not in rows[0]:
        if first.hung:
            stuck.note({None: first.stuck})
            raise _Silent(f"the driver did not answer within {PATIENCE_S:g} s", hung=True)
        last = rows[-1] if rows else {"error": f"NVML ended with code {first.returncode}"}
        raise _Silent(str(last["error"]), int(last.get("code", 0)))
    found |= {int(row["index"]): row for row in rows[1:]}
    missing = [index for index in range(int(rows[0]["count"])) if index not in found]
    if missing:
        # The child came to its end in the first of them.
        found[missing[0]] = _lost(first)
        stuck.note({missing[0]: first.stuck})
        rest = missing[1:]
        answers = _ask([("one", str(index)) for index in rest])
        for index, answer in zip(rest, answers, strict=True):
            found[index] = next(iter(_messages(answer)), _lost(answer))
            stuck.note({index: answer.stuck})
    gpus = [gpu for index in sorted(found) for gpu in found[index].get("gpus", ())]
    errors = [f"GPU {i}: {found[i]['error']}" for i in sorted(found) if "error" in found[i]]
    if not gpus:
        raise _Silent("; ".join(errors) or "NVML lists no GPU", hung=first.hung)
    return Reading(tuple(_gpu(row) for row in gpus), "; ".join(errors))


def _ask(words: list[tuple[str, ...]]) -> list[driver_query.Answer]:
    return driver_query.ask([nvml.command(*w) for w in words], patience_s=PATIENCE_S)


def _messages(answer: driver_query.Answer) -> list[dict[str, Any]]:
    rows = []
    for line in answer.lines:
        with contextlib.suppress(ValueError):  # cut off in the middle
            rows.append(json.loads(line))
    return rows


def _lost(answer: driver_query.Answer) -> dict[str, Any]:
    if answer.hung:
        return {"error": f"did not answer within {PATIENCE_S:g} s"}
    return {"error": f"NVML ended with code {answer.returncode}"}


def _gpu(row: dict[str, Any]) -> Gpu:
    uses = tuple(Use(pid, used, decodes) for pid, used, decodes in row["uses"])
    return Gpu(**{**row, "uses": uses})


def _by_program() -> Reading:
    """Raises SmiError, OSError. nvidia-smi lists no MIG instance's memory, and no decoder."""
    rows, used = nvidia_smi.query_gpus(), nvidia_smi.query_compute()
    return Reading(
        tuple(
            Gpu(
                uuid=row.uuid,
                name=row.name,
                total_mib=row.total_mib,
                free_mib=row.free_mib,
                reserved_mib=0,
                parent="",
                uses=tuple(Use(u.pid, u.used_mib, False) for u in used if u.gpu == row.uuid),
                has_decoder=True,
                decoder_percent=0,
                encoder_sessions=0,
            )
            for row in rows
        )
    )


class _Stuck:
    """Children that could not be ended, by the index of the GPU they hang in (None: the driver).
    While one is there the same question would only hang another process, and be late."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def alive(self) -> dict[int | None, int]:
        return {row["gpu"]: row["pid"] for row in self._rows()}

    def note(self, pids: dict[int | None, int | None]) -> None:
        rows = []
        for gpu, pid in pids.items():
            stat = processes.stat_of(pid) if pid is not None else None
            if stat is not None:
                rows.append({"gpu": gpu, "pid": pid, "start_ticks": stat.start_ticks,
                             "boot_id": clock.boot_id()})  # fmt: skip
        if rows:
            with contextlib.suppress(OSError):  # a full disk: it is asked again, and hangs again
                write_json(self._path, [*self._rows(), *rows])

    def _rows(self) -> list[dict[str, Any]]:
        try:
            rows = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return []
        return [
            row
            for row in rows
            if row["boot_id"] == clock.boot_id()
            and processes.is_alive(row["pid"], row["start_ticks"])
        ]
