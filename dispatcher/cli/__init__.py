"""The `cosma` command: one file per command, one place where failures become exit codes."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

import typer

from dispatcher.cli import (
    artifact,
    calibrate,
    chaos,
    demo,
    dispatch,
    fsck,
    gc,
    ingest,
    job,
    jobs,
    plan,
    stitch,
    summary,
    top,
    why,
    worker,
)
from dispatcher.errors import CosmaError, ExitCode

app = typer.Typer(
    name="cosma",
    help="Turn survey video into stitched 3D Gaussian splats on a farm of GPU hosts.",
    epilog="Something stands still? `cosma top` shows the farm, `cosma why JOB` why one job does"
    " not run and what would start it, `cosma worker ls` what hosts lack, `cosma fsck` what does"
    " not agree. Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 10 inventory, 11 another"
    " dispatcher, 12 no host.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(worker.app, name="worker")
app.command("ingest")(ingest.ingest)
app.command("dispatch")(dispatch.dispatch)
app.command("top")(top.top)
app.command("jobs")(jobs.jobs)
app.add_typer(job.app, name="job")
app.add_typer(stitch.app, name="stitch")
app.command("why")(why.why)
app.command("plan")(plan.plan)
app.command("fsck")(fsck.fsck)
app.command("gc")(gc.gc)
app.add_typer(artifact.app, name="artifact")
app.command("summary")(summary.summary)
app.command("calibrate")(calibrate.calibrate)
app.command("chaos")(chaos.chaos)


def main() -> None:
    """Entry point of the console script. Exit codes: dispatcher.errors.ExitCode."""
    try:
        app()
    except CosmaError as error:
        print(f"cosma: {error.line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain again at exit.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except Exception as error:
        report = _write_report()
        print(
            f"cosma: internal error: {type(error).__name__}: {error}. Nothing was lost; please "
            f"report it with {report}",
            file=sys.stderr,
        )
        sys.exit(ExitCode.FAILED)


def _write_report() -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="cosma-error-", suffix=".log", delete=False
    ) as stream:
        traceback.print_exc(file=stream)
        return Path(stream.name)
