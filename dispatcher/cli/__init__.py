"""The `cosma` command: one file per command, one place where failures become exit codes."""

from __future__ import annotations

import sys
import tempfile
import traceback
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dispatcher.errors import CosmaError, ExitCode

# In the order of the help. Each is a module of this package, with a function of that name or an
# `app` of several.
COMMANDS = (
    "demo",
    "worker",
    "ingest",
    "dispatch",
    "top",
    "jobs",
    "job",
    "stitch",
    "why",
    "plan",
    "fsck",
    "gc",
    "artifact",
    "summary",
    "calibrate",
    "chaos",
)


class Commands(TyperGroup):
    """Imports a command when it is asked for: SSH alone would take half of the time of each."""

    def list_commands(self, _ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        # All of them for a name that is none, so that the nearest can be proposed.
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _load(name)
        return self.commands.get(cmd_name)


def _load(name: str) -> Any:
    module = import_module(f"dispatcher.cli.{name}")
    group = getattr(module, "app", None)
    if not isinstance(group, typer.Typer):
        group = typer.Typer(add_completion=False)
        group.command(name)(getattr(module, name))
    made = typer.main.get_command(group)
    made.name = name
    return made


app = typer.Typer(
    name="cosma",
    cls=Commands,
    help="Turn survey video into stitched 3D Gaussian splats on a farm of GPU hosts.",
    epilog="Something stands still? `cosma top` shows the farm, `cosma why JOB` why one job does"
    " not run and what would start it, `cosma worker ls` what hosts lack, `cosma fsck` what does"
    " not agree. Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 10 inventory, 11 another"
    " dispatcher, 12 no host.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cosma {version('cosma')}")
        raise typer.Exit


@app.callback()
def _cosma(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """So that it is a group, which has no command of its own here."""


def main() -> None:
    """Entry point of the console script. Exit codes: dispatcher.errors.ExitCode."""
    try:
        sys.exit(app(prog_name="cosma", standalone_mode=False))
    except CosmaError as error:
        print(f"cosma: {error.line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain again at exit.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except typer.Abort:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if _is_usage(error):
            sys.exit(ExitCode.USAGE)
        report = _write_report()
        print(
            f"cosma: internal error: {type(error).__name__}: {error}. Nothing was lost; please "
            f"report it with {report}",
            file=sys.stderr,
        )
        sys.exit(ExitCode.FAILED)


def _is_usage(error: Any) -> bool:
    """Whether the words of the command mean nothing; says so in one line. Help that was asked for
    by giving no words at all is printed whole."""
    if not hasattr(error, "format_message"):  # which all errors of typer's parser have
        return False
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "cosma"
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        said = " ".join(error.format_message().split())
        print(f"cosma: {said.rstrip('.')}. Usage: `{path} --help`", file=sys.stderr)
    return True


def _write_report() -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="cosma-error-", suffix=".log", delete=False
    ) as stream:
        traceback.print_exc(file=stream)
        return Path(stream.name)
