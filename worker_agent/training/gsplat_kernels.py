"""Compiles gsplat's CUDA kernels into the environment that runs this; a part of the bootstrap.

gsplat comes as Python and CUDA sources. Left alone it compiles at its first use, in the middle of a
training: ten compilers at once, in a directory that a second process deletes, and only where the
CUDA toolkit is installed. Here that is done once, before, with as many compilers as fit into the
host's memory and a toolkit from the package index where there is none. What is made is the module
`gsplat.csrc`, which gsplat looks for first: no stage needs a compiler then.

Sent as text and run by the environment's own Python (`python -I -c TEXT`), so it imports nothing of
this package. Ends with 0 (kernels are there, or no NVIDIA GPU is) or with one of the codes below.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_COMPILER, NO_TOOLKIT, NOT_BUILT, NOT_RENDERING, WRONG_TORCH = 93, 94, 95, 96, 97

# Of the toolkit, what nvcc needs beside the headers and libraries that torch itself brings. Before
# CUDA 13 these packages have no nvcc in them.
TOOLKIT = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
TOOLKIT_SINCE = 13
MEMORY_PER_COMPILER = 2 << 30  # bytes; gsplat 1.5.3: nvcc 1.0 GB, its largest C++ file 2.0 GB
MODULE = "csrc"
_MADE = "csrc.made.json"  # beside the module: for what it was compiled
_PROOF = """
import torch
from gsplat import csrc, rasterization
if torch.cuda.is_available():
    one = torch.ones(1, device="cuda")
    image, _, _ = rasterization(
        means=torch.tensor([[0.0, 0.0, 2.0]], device="cuda"),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device="cuda"),
        scales=0.2 * one.expand(1, 3), opacities=0.9 * one, colors=one.expand(1, 3),
        viewmats=torch.eye(4, device="cuda")[None],
        Ks=torch.tensor([[[16.0, 0, 8], [0, 16.0, 8], [0, 0, 1]]], device="cuda"),
        width=16, height=16, packed=False,
    )
    assert float(image.max()) > 0.5, "nothing is drawn where a gaussian is"
"""


class Stopped(Exception):
    """With an exit code and one line."""


def main() -> int:
    if not gpus():
        print("no NVIDIA GPU here: nothing to compile", flush=True)
        return 0
    try:
        build()
    except Stopped as stopped:
        code, line = stopped.args
        print(line, flush=True)
        return int(code)
    print("gsplat's CUDA kernels are there", flush=True)
    return 0


def gpus() -> tuple[str, ...]:
    """Compute capabilities ("8.6") of the NVIDIA GPUs, each once, as the driver tells them."""
    told = said_by("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return tuple(sorted({line.strip() for line in told.splitlines() if re.match(r"\d", line)}))


def said_by(*argv: str) -> str:
    """Nothing where the program is missing or fails."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def build() -> None:
    """Raises Stopped."""
    import torch

    if torch.version.cuda is None:
        raise Stopped(WRONG_TORCH, f"torch {torch.__version__} is a build without CUDA")
    spec = importlib.util.find_spec("gsplat")
    if spec is None or not spec.submodule_search_locations:
        raise Stopped(NOT_BUILT, "gsplat is not installed here")
    package = Path(spec.submodule_search_locations[0])
    wanted = {
        "torch": str(torch.__version__),
        "gsplat": (package / "version.py").read_text(),
        "architectures": list(gpus()),
    }
    with only_one(package / ".csrc.lock"):
        if not made(package, wanted):
            toolkit = nvcc_home(torch.version.cuda) or installed_toolkit(torch.version.cuda)
            compiled(package, toolkit, wanted["architectures"])
            (package / _MADE).write_text(json.dumps(wanted))
    proof = subprocess.run(
        [sys.executable, "-c", _PROOF],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if proof.returncode:
        last = (proof.stdout.strip().splitlines() or ["no message"])[-1]
        raise Stopped(NOT_RENDERING, f"gsplat does not draw: {last[:300]}")
    if not torch.cuda.is_available():
        raise Stopped(
            NOT_RENDERING, f"torch, built for CUDA {torch.version.cuda}, cannot use this driver"
        )


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """A second bootstrap waits for the first."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def made(package: Path, wanted: dict[str, Any]) -> bool:
    """Whether the module is there for this torch, this gsplat and all GPUs of this host. One that
    came with gsplat (a wheel of the operator's) says nothing of itself and is taken."""
    if not list(package.glob(f"{MODULE}*.so")):
        return False
    try:
        known = json.loads((package / _MADE).read_text())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return bool(
        known.get("torch") == wanted["torch"]
        and known.get("gsplat") == wanted["gsplat"]
        and set(wanted["architectures"]) <= set(known.get("architectures", ()))
    )


def nvcc_home(cuda: str) -> Path | None:
    """CUDA_HOME of a toolkit of torch's major version; None: there is none."""
    on_path = shutil.which("nvcc")
    homes = [
        *(Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ),
        *([Path(on_path).resolve().parent.parent] if on_path else []),
        Path("/usr/local/cuda"),
        *sorted(Path("/usr/local").glob("cuda-*"), reverse=True),
        *toolkit_in_packages(cuda),
    ]
    for home in homes:
        release = re.search(r"release (\d+)\.", said_by(str(home / "bin" / "nvcc"), "--version"))
        if release and release[1] == cuda.split(".")[0]:
            return home
    return None


def toolkit_in_packages(cuda: str) -> list[Path]:
    """Where the packages of TOOLKIT, and torch's own of CUDA, put their files."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(root) / f"cu{cuda.split('.')[0]}" for root in roots]


def installed_toolkit(cuda: str) -> Path:
    """From the package index. Raises Stopped."""
    major, minor = cuda.split(".")[:2]
    if int(major) < TOOLKIT_SINCE:
        raise Stopped(NO_TOOLKIT, f"no nvcc of CUDA {cuda} is here, nor in a package")
    print(f"no nvcc of CUDA {major} is here: it is installed into the environment", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    done = subprocess.run(
        [*pip, *(f"{name}=={major}.{minor}.*" for name in TOOLKIT)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=False,
    )
    importlib.invalidate_caches()
    home = nvcc_home(cuda) if done.returncode == 0 else None
    if home is None:
        raise Stopped(NO_TOOLKIT, f"nvcc of CUDA {major}.{minor} could not be installed")
    return home


def compiled(package: Path, toolkit: Path, architectures: Sequence[str]) -> None:
    """The module, beside gsplat's Python. Raises Stopped."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise Stopped(NO_COMPILER, "no C++ compiler is here")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise Stopped(NO_COMPILER, f"Python.h is not in {headers}")
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(architectures))
    os.environ["MAX_JOBS"] = str(compilers(os.cpu_count() or 1, available_memory()))
    # ninja, where pip has put it.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    from torch.utils import cpp_extension

    code = package / "cuda"
    sources = sorted([*(code / "csrc").glob("*.cu"), *(code / "csrc").glob("*.cpp")])
    print(
        f"compiling {len(sources) + 1} files of gsplat with {toolkit}/bin/nvcc for "
        f"{os.environ['TORCH_CUDA_ARCH_LIST']}, {os.environ['MAX_JOBS']} at a time; "
        "this takes a quarter of an hour on one core",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="gsplat-") as scratch:
        libraries = Path(scratch) / "lib"
        libraries.mkdir()
        linkable(toolkit, libraries)
        try:
            cpp_extension.load(
                MODULE,
                [str(path) for path in [*sources, code / "ext.cpp"]],
                # As gsplat has them compiled at its first use, without a page of warnings of glm's.
                extra_cflags=["-O3", "-Wno-attributes"],
                extra_cuda_cflags=["-O3", "-use_fast_math", "-diag-suppress", "20012,186"],
                extra_ldflags=[f"-L{libraries}"],
                extra_include_paths=[
                    str(code / "include"),
                    str(code / "csrc" / "third_party" / "glm"),
                ],
                build_directory=scratch,
                is_python_module=False,
                verbose=True,
            )
        except Exception as error:  # of many kinds
            text = " ".join(str(error).split())
            at = max(0, text.find("error:") - 100)
            raise Stopped(NOT_BUILT, f"gsplat was not compiled: {text[at:][:300]}") from None
        finished = package / f".{MODULE}.so.tmp"
        shutil.copyfile(Path(scratch) / f"{MODULE}.so", finished)
        finished.replace(package / f"{MODULE}.so")


def linkable(toolkit: Path, libraries: Path) -> None:
    """The packages of CUDA have libcudart.so.13 and not the name without a version that a linker
    asks for."""
    for folder in ("lib64", "lib"):
        for path in sorted((toolkit / folder).glob("libcudart.so*")):
            link = libraries / "libcudart.so"
            if not link.exists():
                link.symlink_to(path)


def compilers(cores: int, memory: int) -> int:
    return max(1, min(cores, memory // MEMORY_PER_COMPILER))


def available_memory() -> int:
    """Bytes."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main())
