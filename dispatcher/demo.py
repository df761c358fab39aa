"""The demo's steps: footage, hosts, jobs, evaluation against the truth, summary, report.

Everything lies under one directory. The footage and the evaluation need numpy and the stitch
library, so they run as processes of the same interpreter; so do `ingest` and `dispatch`, exactly as
an operator would call them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dispatcher.core.model import JobState
from dispatcher.core.plan import StitchLevel
from dispatcher.embedded import EmbeddedHost
from dispatcher.errors import CosmaError, UsageError
from dispatcher.report import FileRow, HostRow, Problem, ReportDetails, build_report
from dispatcher.results import RELEASE, Results, StitchResult

ACQUISITION = "demo"
_MARKER = ".cosma-demo"


@dataclass(frozen=True, slots=True)
class DemoDirectory:
    """Where the demo keeps what."""

    root: Path

    @property
    def footage(self) -> Path:
        return self.root / "footage"

    @property
    def truth(self) -> Path:
        return self.footage / "truth"

    @property
    def hosts(self) -> Path:
        return self.root / "hosts"

    @property
    def database(self) -> Path:
        return self.root / "cosma.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        return self.root / "dispatch.log"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @classmethod
    def create(cls, root: Path) -> DemoDirectory:
        """An empty one. Replaces an earlier demo, and nothing else: UsageError otherwise."""
        root = root.expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise UsageError("not a directory", where=str(root), fix="give --out another path")
        if (root / _MARKER).exists():
            shutil.rmtree(root)
        elif root.exists() and any(root.iterdir()):
            raise UsageError(
                "the directory is not empty and not an earlier demo",
                where=str(root),
                fix="give --out another path",
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / _MARKER).touch()
        except OSError as error:
            raise UsageError(
                "the directory cannot be made", where=str(root),
                why=error.strerror or str(error), fix="give --out another path",
            ) from None  # fmt: skip
        return cls(root)


def film(directory: DemoDirectory, tell: Callable[[str, float], None]) -> None:
    """Renders the survey; `tell(segment, share of its frames)`. Raises CosmaError."""
    command = [sys.executable, "-m", "worker_agent.demo", str(directory.footage)]
    command += ["--threads", str(os.cpu_count() or 1)]
    errors = directory.root / "footage.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            for line in process.stdout:
                step = json.loads(line)
                tell(step["segment"], step["frame"] / step["frames"])
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise _failed("the footage could not be rendered", errors)


def write_config(directory: DemoDirectory, hosts: int) -> None:
    """What registers and trains well on the footage, in minutes without a GPU.

    2.5 of the video's 10 frames a second overlap by 90 %. The hosts share this machine's cores.
    """
    threads = max(1, (os.cpu_count() or 1) // hosts)
    config = {
        "frames": {"fps": 2.5, "width": 480},
        "sfm": {"camera_model": "SIMPLE_RADIAL", "threads": threads},
        "train": {"cpu": {"width": 320, "steps": 700, "cap": 15_000, "threads": threads}},
    }
    directory.config.write_text(yaml.safe_dump(config, sort_keys=False))


def ingest(directory: DemoDirectory) -> None:
    """`cosma ingest`. Raises CosmaError with its last line."""
    with directory.log.open("ab") as log:
        done = subprocess.run(
            _cosma(
                "ingest", directory.footage, "--acquisition", ACQUISITION,
                "--db", directory.database, "--config", directory.config,
            ),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(),
        )  # fmt: skip
    if done.returncode:
        raise _failed("ingest failed", directory.log)


def start_dispatcher(directory: DemoDirectory, inventory: Path) -> subprocess.Popen[bytes]:
    """`cosma dispatch --once`, writing to the log; it ends when every job is settled."""
    with directory.log.open("ab") as log:
        return subprocess.Popen(
            _cosma(
                "dispatch", "--once", "--inventory", inventory,
                "--db", directory.database, "--artifacts", directory.artifacts,
            ),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the demo, which ends it in order
        )  # fmt: skip


def evaluate(directory: DemoDirectory, results: Results) -> dict[str, dict[str, Any]]:
    """Stitch id -> its error against the truth. Raises CosmaError."""
    request = directory.root / "evaluation-request.json"
    request.write_text(json.dumps(evaluation_request(results), indent=1))
    done = subprocess.run(
        [
            sys.executable, "-m", "worker_agent.demo.evaluate",
            "--truth", str(directory.truth), "--request", str(request),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CosmaError("the evaluation failed", where=str(request), why=why)
    (directory.root / "evaluation.json").write_text(done.stdout)
    return {row["id"]: row for row in json.loads(done.stdout)["stitches"]}


def evaluation_request(results: Results) -> dict[str, Any]:
    """What worker_agent.demo.evaluate reads: finished segments, finished stitches of them."""
    done = {i.job.id: i for i in results.segments if "registration" in i.files}
    stitches = {i.stitch.id: i for i in results.stitches if _has_report(i)}

    def member(name: str) -> dict[str, Any]:
        if name in done:
            return {"name": name, "segment": done[name].segment.label}
        return {"name": name, **tree(stitches[name])}

    def tree(item: StitchResult) -> dict[str, Any]:
        if item.stitch.passthrough:
            return {"segment": done[item.stitch.members[0]].segment.label}
        return {
            "stitch_report": str(item.files["stitch_report"]),
            "members": [member(name) for name in item.stitch.members],
        }

    return {
        "segments": [
            {
                "name": item.segment.label,
                "job": item.job.id,
                "registration": str(item.files["registration"]),
            }
            for item in done.values()
        ],
        "stitches": [
            {
                "id": name,
                "level": item.stitch.level.value,
                "auv": item.stitch.auv,
                **tree(item),
            }
            for name, item in stitches.items()
            if not item.stitch.passthrough
        ],
    }


def _has_report(item: StitchResult) -> bool:
    done = item.stitch.state is JobState.DONE
    return done and (item.stitch.passthrough or "stitch_report" in item.files)


def summarise(
    directory: DemoDirectory,
    results: Results,
    errors: dict[str, dict[str, Any]],
    hosts: Sequence[EmbeddedHost],
    began: float,
) -> dict[str, Any]:
    """The object that `cosma demo --json` prints. `began`: time.monotonic() at the start."""
    trimmed = [i.trimmed_bytes for i in results.segments if i.trimmed_bytes is not None]
    return {
        "segments": [
            {
                "name": item.segment.label,
                "auv": item.segment.auv,
                "state": item.job.state.value,
                **item.figures,
            }
            for item in results.segments
        ],
        "stitches": [
            {
                "level": item.stitch.level.value,
                "auv": item.stitch.auv,
                "state": item.stitch.state.value,
                "error_m": errors.get(item.stitch.id, {}).get("error_m"),
                "error_fraction": errors.get(item.stitch.id, {}).get("error_fraction"),
                "output_ply": str(item.files["ply"]) if "ply" in item.files else None,
            }
            for item in results.stitches
        ],
        "source_bytes_left": source_bytes_left(hosts),
        "trimmed_bytes": sum(trimmed) if trimmed else None,
        "seconds": round(time.monotonic() - began, 1),
        "report": str(directory.report),
    }


def source_bytes_left(hosts: Sequence[EmbeddedHost]) -> int:
    """Video found on the hosts' disks, whatever the database says of it."""
    return sum(
        path.stat().st_size
        for host in hosts
        for path in host.work_dir.rglob("*")
        if path.suffix.lower() == ".mp4" and path.is_file()
    )


def write_report(
    directory: DemoDirectory,
    summary: dict[str, Any],
    results: Results,
    hosts: Sequence[EmbeddedHost],
) -> None:
    directory.report.write_text(
        build_report(
            summary,
            ReportDetails(
                title="cosma demo: two AUVs over one seabed",
                subtitle=f"{time.strftime('%Y-%m-%d %H:%M %Z')} · synthetic survey with exact "
                f"ground truth · {len(hosts)} hosts over SSH",
                pictures={
                    item.segment.label: item.files["preview"].read_bytes()
                    for item in results.segments
                    if "preview" in item.files
                },
                hosts=[
                    HostRow(
                        name=host.name,
                        address=f"127.0.0.1:{host.port}",
                        jobs=[job.id for job in results.jobs if job.host == host.name],
                    )
                    for host in hosts
                ],
                problems=[
                    Problem(
                        job=job.id,
                        state=job.state.value,
                        reason=job.reason.value if job.reason else "",
                        message=job.message,
                        command=RELEASE.format(job=job.id),
                    )
                    for job in results.jobs
                    if job.state is not JobState.DONE
                ],
                files=output_files(results),
            ),
        ),
        encoding="utf-8",
    )


def output_files(results: Results) -> list[FileRow]:
    """The PLYs: the scene of all AUVs first, then of each AUV, then of each segment."""
    stitches = sorted(
        results.stitches, key=lambda item: item.stitch.level is not StitchLevel.CROSS_AUV
    )
    labelled = [(item.stitch.auv or "all AUVs", item.files) for item in stitches]
    labelled += [(item.segment.label, item.files) for item in results.segments]
    return [
        FileRow(label=label, path=str(files["ply"]), bytes=files["ply"].stat().st_size)
        for label, files in labelled
        if "ply" in files
    ]


def _cosma(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dispatcher.cli", *(str(argument) for argument in arguments)]


def _environment() -> dict[str, str]:
    """Without the variables that set sizes and paths: the demo sets its own."""
    ours = ("COSMA_", "OUTPUT_PATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _failed(what: str, log: Path) -> CosmaError:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return CosmaError(what, why=lines[-1], fix=f"The whole output is in {log}")
