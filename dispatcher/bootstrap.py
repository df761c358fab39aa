"""Makes the virtual environment on a host that the stages run in, from the pinned constraints."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from dispatcher.core.model import Reason
from dispatcher.errors import HostError
from dispatcher.inventory_model import InventoryHost
from dispatcher.transport.base import Transport

_DISTRIBUTION = "cosma"
EXTRAS = ("agent", "stitch", "depth")
_PACKAGE = Path(__file__).resolve().parent

# Runs on the host's python3: makes the environment if it is not there whole, then installs. pip
# skips what is installed and keeps its cache, so that a second run goes on where the first ended.
_MAKE = """
import os, subprocess, sys
work_dir = os.path.abspath(os.path.expanduser(sys.argv[1]))
requirements = sys.argv[2:]
if sys.version_info < (3, 11):
    print("python too old: " + sys.version.split()[0], flush=True)
    sys.exit(90)
venv = os.path.join(work_dir, "venv")
python = os.path.join(venv, "bin", "python")
constraints = os.path.join(work_dir, ".cosma", "constraints.txt")
os.makedirs(os.path.dirname(constraints), exist_ok=True)
with open(constraints, "wb") as stream:
    stream.write(sys.stdin.buffer.read())
def call(*argv):
    return subprocess.call(argv, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
if not os.path.exists(python) or call(python, "-m", "pip", "--version"):
    print("making " + venv, flush=True)
    if call(sys.executable, "-m", "venv", "--clear", venv):
        sys.exit(91)
pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
if call(*pip, "-c", constraints, *requirements):
    sys.exit(92)
print("stage python: " + python, flush=True)
"""

_FIXES = {
    90: "Set `python:` of this host to a Python 3.11 or newer",
    91: "Install the venv module there, on Debian: apt install python3-venv",
    92: "Check that the host reaches a package index (pip config), and its disk; then run it again",
}


def constraints() -> str:
    """Text of the pinned versions, from the installed wheel or the source tree.

    Raises FileNotFoundError.
    """
    inside = _PACKAGE / "constraints.txt"
    return (inside if inside.exists() else _PACKAGE.parent / "constraints.txt").read_text()


def requirements() -> tuple[str, ...]:
    """What pip must install for the stages: the requirements of the extras in EXTRAS, from the
    installed distribution or the source tree.

    Raises FileNotFoundError.
    """
    found: dict[str, None] = {}
    for extra, requirement in _extras():
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra in EXTRAS and name and name[0] != _DISTRIBUTION:
            found[requirement] = None
    return tuple(found)


def _extras() -> list[tuple[str, str]]:
    """(extra, requirement) of every optional dependency."""
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text())["project"]
        groups = project["optional-dependencies"]
        return [(extra, line) for extra, members in groups.items() for line in members]
    pairs = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        if match := re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker):
            pairs.append((match[1], requirement.strip()))
    return pairs


async def bootstrap(
    host: InventoryHost,
    transport: Transport,
    say: Callable[[str], None],
    *,
    wanted: Sequence[str],
    pinned: str,
) -> PurePosixPath:
    """Make or complete `<work_dir>/venv` on `host`; `say` gets every line of output as it comes.

    `wanted` is what pip installs (see `requirements`), `pinned` its constraints (`constraints`).

    Returns the path of its Python. Can be run again at any time. Raises TransportError when the
    link is lost, HostError (HOST_NOT_READY) with what to do when it cannot be made.
    """
    argv = [host.python, "-I", "-c", _MAKE, host.work_dir, *wanted]
    stream = await transport.stream(argv, bulk=True)
    last = ""
    try:
        await stream.write(pinned.encode())
        await stream.write_eof()
        while line := await stream.read_line():
            last = line.decode(errors="replace").rstrip() or last
            say(line.decode(errors="replace").rstrip())
        done = await stream.finish()
    finally:
        await stream.close()
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(
            Reason.HOST_NOT_READY,
            "the stage environment was not made",
            where=host.name,
            why=said[-1] if said else last,
            fix=_FIXES.get(done.returncode, f"Check that {host.python} runs on the host"),
        )
    return PurePosixPath(last.removeprefix("stage python: "))
