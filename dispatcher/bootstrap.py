"""Makes the virtual environment on a host that the stages run in, from the pinned constraints, and
where the host has NVIDIA GPUs the CUDA kernels that train on them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
# Of worker_agent.training.gsplat_kernels.
_KERNEL_FIXES = {
    93: "Install a C++ compiler and Python's headers there, on Debian: apt install g++ python3-dev",
    94: "Install the CUDA toolkit of torch's CUDA version there, or let the host reach an index",
    95: "Read what the compiler said above; `gsplat` and `torch` of constraints.txt must fit",
    96: "Update the NVIDIA driver there, or install a torch for its CUDA version; run it again",
    97: "Let the host's pip find a CUDA build of torch (pip config), remove its venv, run it again",
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
    make = [host.python, "-I", "-c", _MAKE, host.work_dir, *wanted]
    code, last, error = await _run(transport, make, pinned, say)
    if code != 0:
        raise HostError(
            Reason.HOST_NOT_READY,
            "the stage environment was not made",
            where=host.name,
            why=error or last,
            fix=_FIXES.get(code, f"Check that {host.python} runs on the host"),
        )
    python = last.removeprefix("stage python: ")
    code, last, error = await _run(transport, [python, "-I", "-c", kernels_code()], "", say)
    if code != 0:
        raise HostError(
            Reason.HOST_NOT_READY,
            "the stage environment is made, but training cannot use the GPUs",
            where=host.name,
            why=last if code in _KERNEL_FIXES else error or last,
            fix=_KERNEL_FIXES.get(code, "Read what was said above; run it again"),
        )
    return PurePosixPath(python)


def kernels_code() -> str:
    """The text of worker_agent.training.gsplat_kernels, which the host runs before it has ours.

    Found, not imported, like all that goes to the hosts. Raises FileNotFoundError.
    """
    spec = importlib.util.find_spec("worker_agent")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("package worker_agent is not installed beside the dispatcher")
    root = Path(spec.submodule_search_locations[0])
    return (root / "training" / "gsplat_kernels.py").read_text()


async def _run(
    transport: Transport, argv: Sequence[str], told: str, say: Callable[[str], None]
) -> tuple[int, str, str]:
    """(exit code, last line, last line of stderr), `told` on stdin; lines are said as they come."""
    stream = await transport.stream(argv, bulk=True)
    last = ""
    try:
        await stream.write(told.encode())
        await stream.write_eof()
        while line := await stream.read_line():
            last = line.decode(errors="replace").rstrip() or last
            say(line.decode(errors="replace").rstrip())
        done = await stream.finish()
    finally:
        await stream.close()
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return done.returncode, last, said[-1] if said else ""
