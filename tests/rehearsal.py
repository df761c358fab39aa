"""A farm whose stages are played short: real sshd, agent and supervisor, no reconstruction.

`worker_agent.rehearse` stands in for every stage and writes down that it lived, so that a test
can tell from the stages' own words what ran, how often, and what is still alive.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dispatcher.embedded import EmbeddedHosts
from tests.acceptance.cosma import Cosma

# `-m worker_agent.stages FILE` becomes the rehearsal; anything else is what python makes of it.
_INTERPRETER = """\
#!/bin/sh
export COSMA_RUN_LOG={log} COSMA_REHEARSAL_PACE={pace}
if [ "$2" = worker_agent.stages ]; then shift 2; exec {python} -m worker_agent.rehearse "$@"; fi
exec {python} "$@"
"""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    cosma: Cosma
    hosts: EmbeddedHosts
    log: Path
    pace: float  # times what a stage takes in a drill

    def ingest(
        self,
        jobs: int,
        acquisition: str = "reef",
        clip_bytes: int = 40_000,
        options: Sequence[str] = (),
    ) -> list[str]:
        """Segments of one AUV, so that their stitch is one more job. `options` of the command."""
        root = self.cosma.directory / f"footage-{acquisition}"
        film = self.log.with_name("film.mp4")
        source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=1")
        subprocess.run(["ffmpeg", "-v", "error", "-y", *source, str(film)], check=True)
        for number in range(jobs):
            clip = root / "auv-a" / "C1" / f"s{number:02d}" / "GX010001.MP4"
            clip.parent.mkdir(parents=True)
            # No two alike: a `free` box is skipped by readers (ISO/IEC 14496-12, 8.1.2).
            free = (clip_bytes + 8).to_bytes(4) + b"free" + os.urandom(clip_bytes)
            clip.write_bytes(film.read_bytes() + free)
        done = self.cosma.run("ingest", str(root), "--acquisition", acquisition, *options)
        assert done.returncode == 0, (done.stdout, done.stderr)
        with sqlite3.connect(self.cosma.database) as reader:
            return [name for (name,) in reader.execute("SELECT id FROM jobs ORDER BY id")]

    def lines(self) -> list[dict[str, Any]]:
        """What the stages wrote down; a line that a kill cut short is left out."""
        if not self.log.exists():
            return []
        found = []
        for line in self.log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def runs(self) -> Counter[tuple[str, str]]:
        """(job, stage) -> how many processes of it ever began."""
        return Counter(
            (line["job"], line["stage"]) for line in self.lines() if line["kind"] == "start"
        )

    def hold(self, on: bool, *stages: str) -> None:
        """While held, these stages (none named: all) go on working on every host."""
        for host in self.hosts.hosts:
            file = host.work_dir / "hold-stages"
            if on:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(" ".join(stages))
            else:
                file.unlink(missing_ok=True)


@contextmanager
def rehearsal(
    base: Path, hosts: int, *, pace: float = 0.25, **defaults: Any
) -> Iterator[Rehearsal]:
    """A stage takes `pace` times what it does in a drill, 0.5 s on average, or as long as it is
    held. `defaults` go under `defaults:` of the inventory."""
    log = base / "runs.jsonl"
    python = base / "stage-python"
    python.write_text(_INTERPRETER.format(log=log, pace=pace, python=sys.executable))
    python.chmod(0o755)
    directory = base / "operator"
    directory.mkdir()
    with EmbeddedHosts(hosts, base / "hosts") as farm:
        inventory = yaml.safe_load(farm.inventory.read_text())
        # The hosts' disk is this machine's: trimming all of it takes seconds, after every job.
        own = {"stage_python": str(python), "disk": {"fstrim": "off"}}
        inventory["defaults"] |= {**own, **defaults}
        farm.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
        cosma = Cosma(directory, farm.inventory)
        try:
            yield Rehearsal(cosma, farm, log, pace)
        finally:
            cosma.end_all()
            farm.power_off()
