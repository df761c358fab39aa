"""The `cosma` command as an operator runs it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Real stages, short: what takes a demo minutes takes these seconds.
SHORT = {
    "frames": {"fps": 2.5, "width": 320},
    "sfm": {"camera_model": "SIMPLE_RADIAL", "threads": 1},
    "train": {
        "checkpoint_every_s": 1.0,
        "cpu": {"width": 160, "steps": 400, "cap": 6000, "threads": 1},
    },
}
EVENT_WAIT_S = 600.0  # it takes seconds; a machine with much else to do, minutes


@dataclass(frozen=True, slots=True)
class Cosma:
    """One project directory with a database; commands run in it."""

    directory: Path
    inventory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)  # of the commands' environment

    @property
    def database(self) -> Path:
        return self.directory / "cosma.db"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "dispatcher.cli", *words]

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COSMA_")}
        return {**kept, "COSMA_INVENTORY": str(self.inventory), **self.variables}

    def run(self, *words: str, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), cwd=self.directory, env=self.environment, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*words), cwd=self.directory, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end_all(self) -> None:
        """Whatever a test that failed has left running."""
        for process in self.started:
            process.kill()
            process.wait()

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ingest(
        self, source: Path | str, acquisition: str, **config: Any
    ) -> subprocess.CompletedProcess[str]:
        file = self.directory / f"{acquisition}.yaml"
        file.write_text(yaml.safe_dump({**SHORT, **config}))
        return self.run("ingest", str(source), "--acquisition", acquisition, "--config", str(file))

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {row["job"]: row for row in self.json("jobs")}

    def events(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("job", "logs", job)
        return found

    def wait_until(self, what: str, seen: Callable[[sqlite3.Connection], bool]) -> None:
        """Look at the database, as any reader may, until `seen`; the poll is bounded."""
        deadline = time.monotonic() + EVENT_WAIT_S
        while time.monotonic() < deadline:
            if self.database.exists():
                with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as reader:
                    try:
                        if seen(reader):
                            return
                    except sqlite3.OperationalError:
                        pass  # the tables are just being made
            time.sleep(0.1)
        raise AssertionError(f"not within {EVENT_WAIT_S:.0f} s: {what}")


def rows(cosma: Cosma, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """What the database answers, as any reader may ask."""
    with sqlite3.connect(f"file:{cosma.database}?mode=ro", uri=True) as reader:
        return reader.execute(query, values).fetchall()


def is_so(query: str, *values: Any) -> Callable[[sqlite3.Connection], bool]:
    """For `wait_until`: `query` is what comes after SELECT, and one value."""
    return lambda reader: bool(reader.execute(f"SELECT {query}", values).fetchone()[0])


def running_stage(stage: str) -> Callable[[sqlite3.Connection], bool]:
    """An attempt of `stage` whose process has reported progress."""

    def seen(reader: sqlite3.Connection) -> bool:
        row = reader.execute(
            "SELECT count(*) FROM events JOIN attempts USING (job, attempt)"
            " WHERE attempts.stage = ? AND events.kind = 'progress'",
            (stage,),
        ).fetchone()
        return bool(row[0])

    return seen


def kill(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send the signal, wait for the end, return what it wrote on stderr."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=EVENT_WAIT_S)
    return errors
