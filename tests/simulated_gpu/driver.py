"""GPUs for a machine without one: a driver library compiled from nvml.c that reads a ledger file,
and processes that take memory from the same ledger and are refused when it has no more.

The product is unchanged by it: the agent loads the library through COSMA_NVML_LIBRARY and calls
NVML's C interface. stdlib only, as stages import it on their hosts.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("nvml.c")


@dataclass(frozen=True, slots=True)
class SimulatedGpus:
    """Of one host, under `directory`."""

    directory: Path

    @property
    def library(self) -> Path:
        return self.directory / "libnvidia-ml.so.1"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"

    def build(self, *lines: str) -> SimulatedGpus:
        """Compile the driver; `lines` as nvml.c explains them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        define = f'-DLEDGER="{self.ledger}"'
        command = ["gcc", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", define]
        subprocess.run([*command, "-o", str(self.library), str(_SOURCE)], check=True)
        self.write(lines)
        return self

    def write(self, lines: Iterable[str]) -> None:
        """Readers never see half of it."""
        temporary = self.ledger.with_name(f"ledger.{os.getpid()}")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.replace(self.ledger)

    def take(self, uuid: str, mib: int, who: str) -> bool:
        """This process holds `mib` of the GPU from now on, or what it held before when the device
        refuses. Every answer is written to the history."""
        with self._locked():
            lines = self.ledger.read_text().splitlines()
            rest = [line for line in lines if not self._is_of(line, uuid, os.getpid())]
            free = free_mib(rest, uuid)
            granted = mib <= free
            if granted:
                self.write([*rest, f"use {uuid} {os.getpid()} {mib} C"] if mib else rest)
            self._note(kind="take", uuid=uuid, who=who, mib=mib, free=free, granted=granted)
        return granted

    @property
    def pid(self) -> int:
        return os.getpid()

    def held(self, lines: Iterable[str], uuid: str) -> int:
        """MiB that this process holds."""
        return sum(int(line.split()[3]) for line in lines if self._is_of(line, uuid, self.pid))

    def history(self) -> list[dict[str, Any]]:
        """What was asked of the GPUs, in order; `at` is wall clock."""
        path = self.directory / "history"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _note(self, **what: Any) -> None:
        with (self.directory / "history").open("a") as stream:
            stream.write(json.dumps({"at": time.time(), "pid": os.getpid(), **what}) + "\n")

    @staticmethod
    def _is_of(line: str, uuid: str, pid: int) -> bool:
        return line.split()[:3] == ["use", uuid, str(pid)]


def free_mib(lines: Iterable[str], uuid: str) -> int:
    """As nvml.c counts it: what ended processes held is free."""
    free = 0
    for words in map(str.split, lines):
        if words[:2] == ["gpu", uuid]:
            free += int(words[2]) - int(words[3])
        elif words[:2] == ["use", uuid] and _alive(int(words[2])):
            free -= abs(int(words[3]))
    return free


def _alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"
