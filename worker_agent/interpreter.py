"""Which Python runs the stages on this host, and what it lacks to do so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from worker_agent.durable import write_json
from worker_agent.epoch import state_directory

# Module to import -> distribution to install, which is what an operator is told.
MODULES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "numba": "numba",
    "PIL": "pillow",
    "torch": "torch",
    "pycolmap": "pycolmap",
    "ffmpeg": "ffmpeg-python",
}
CUDA_MODULES = {"gsplat": "gsplat"}
PROGRAMS = ("ffmpeg", "ffprobe")

# What every stage begins with is imported, too: it is compiled then, and the first stage of each
# host need not wait for that.
_CHECK = """
import importlib.util, json, sys
lacks = [] if sys.version_info >= (3, 11) else ["python>=3.11"]
lacks += [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if not lacks:
    import worker_agent.stages.__main__
print(json.dumps(lacks))
"""
_CHECK_TIMEOUT_S = 30.0


def choose(requested: str | None, work_dir: Path) -> str:
    """The requested interpreter, else the host's virtual environment, else this one."""
    if requested:
        return requested
    environment = work_dir / "venv" / "bin" / "python"
    return str(environment) if environment.exists() else sys.executable


def missing(python: str, work_dir: Path, code: Path, *, cuda: bool) -> tuple[str, ...]:
    """Distributions and programs the stages need and this host lacks; `code` is their PYTHONPATH.

    Only "nothing is missing" is remembered (by the interpreter's modification time and the code): a
    host that lacks something is asked again, because somebody is about to install it.
    """
    programs = tuple(name for name in PROGRAMS if shutil.which(name) is None)
    path = shutil.which(python)
    if path is None:
        return (python, *programs)
    modules = {**MODULES, **CUDA_MODULES} if cuda else MODULES
    cache = state_directory(work_dir) / "stage_python.json"
    key = {
        "python": path,
        "mtime_ns": Path(path).stat().st_mtime_ns,
        "modules": list(modules),
        "code": str(code),
    }
    if _remembered(cache) == key:
        return programs
    lacks = tuple(modules.get(name, name) for name in _ask(path, tuple(modules), code))
    if not lacks:
        write_json(cache, key)
    return (*lacks, *programs)


def _remembered(cache: Path) -> object:
    try:
        return json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _ask(python: str, modules: tuple[str, ...], code: Path) -> tuple[str, ...]:
    try:
        answer = subprocess.run(
            [python, "-c", _CHECK, *modules],
            env={**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_TIMEOUT_S,
            check=True,
        )
        return tuple(json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return (python,)
