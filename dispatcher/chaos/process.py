"""The dispatcher of a drill: the product's own command, started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STOP_S = 30.0
_SECOND_S = 60.0


@dataclass(slots=True)
class DispatcherProcess:
    """`inside` turns a command into one that reaches the hosts."""

    inside: Callable[[Sequence[str]], list[str]]
    directory: Path  # database, artifacts and log lie here
    inventory: Path
    kills: int = 0
    crashes: list[int] = field(default_factory=list)  # exit codes nobody asked for
    _process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        return self.directory / "cosma.db"

    @property
    def log(self) -> Path:
        return self.directory / "dispatch.log"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def cosma(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "dispatcher.cli", *words, "--db", str(self.database)]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COSMA_")}
        return {**kept, "COSMA_QC_POLL_S": "0.5", "COSMA_LEASE_SCALE": "0.04"}

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.inside(self._command()), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(), start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.kills += 1

    def kill_and_restart(self) -> None:
        self.kill()
        self.start()

    def keep_up(self) -> None:
        """Start it again when it ended by itself, which it never should."""
        if self._process is not None and self._process.poll() is not None:
            self.crashes.append(self._process.returncode)
            self.start()

    def second(self) -> int:
        """The exit code of another dispatcher on the same database."""
        process = subprocess.Popen(
            self.inside(self._command()), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment(),
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(_SECOND_S)
        except subprocess.TimeoutExpired:
            return 0  # it went to work
        finally:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """In order, as an operator does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.crashes.append(-signal.SIGKILL)
            process.kill()
            process.wait()

    def _command(self) -> list[str]:
        words = ("dispatch", "--inventory", str(self.inventory))
        return [*self.cosma(*words), "--artifacts", str(self.directory / "artifacts")]
