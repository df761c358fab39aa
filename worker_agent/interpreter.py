"""Which Python runs the stages on this host, and what it lacks to do so."""

from __future__ import annotations

import json
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

_CHECK = (
    "import sys, json, importlib.util as u;"
    "lacks=['python>=3.11'] if sys.version_info < (3, 11) else [];"
    "print(json.dumps(lacks+[m for m in sys.argv[1:] if u.find_spec(m) is None]))"
)
_CHECK_TIMEOUT_S = 30.0


def choose(requested: str | None, work_dir: Path) -> str:
    """The requested interpreter, else the host's virtual environment, else this one."""
    if requested:
        return requested
    environment = work_dir / "venv" / "bin" / "python"
    return str(environment) if environment.exists() else sys.executable


def missing(python: str, work_dir: Path, *, cuda: bool) -> tuple[str, ...]:
    """Distributions and programs the stages need and this host lacks.

    Only "nothing is missing" is remembered (by the interpreter's modification time): a host that
    lacks something is asked again, because somebody is about to install it.
    """
    programs = tuple(name for name in PROGRAMS if shutil.which(name) is None)
    path = shutil.which(python)
    if path is None:
        return (python, *programs)
    modules = {**MODULES, **CUDA_MODULES} if cuda else MODULES
    cache = state_directory(work_dir) / "stage_python.json"
    key = {"python": path, "mtime_ns": Path(path).stat().st_mtime_ns, "modules": list(modules)}
    if _remembered(cache) == key:
        return programs
    lacks = tuple(modules.get(name, name) for name in _ask(path, tuple(modules)))
    if not lacks:
        write_json(cache, key)
    return (*lacks, *programs)


def _remembered(cache: Path) -> object:
    try:
        return json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _ask(python: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    try:
        answer = subprocess.run(
            [python, "-c", _CHECK, *modules],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_TIMEOUT_S,
            check=True,
        )
        return tuple(json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return (python,)
