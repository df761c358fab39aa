"""The step of the bootstrap that compiles gsplat's kernels, on a host whose driver, compiler and
toolkit are scripts: what it looks for, in which order, and how it says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatcher import bootstrap
from worker_agent.training.gsplat_kernels import (
    NO_COMPILER,
    NO_TOOLKIT,
    NOT_BUILT,
    NOT_RENDERING,
    WRONG_TORCH,
    compilers,
)

NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n"
# Of torch what is asked: the GPU can be used as far as the environment says, and there is none to
# draw on in the proof, which runs in a process of its own, not isolated. Compiling leaves a module,
# and writes down what it was told.
TORCH = """
import os, sys
class version: cuda = os.environ.get("TORCH_CUDA", "13.0") or None
__version__ = f"2.13.0+{version.cuda}"
class cuda:
    @staticmethod
    def is_available(): return bool(sys.flags.isolated) and "DRIVER_OLD" not in os.environ
"""
CPP_EXTENSION = """
import json, os
from pathlib import Path
def load(name, sources, *, build_directory, extra_ldflags, **more):
    if "BREAKS" in os.environ:
        raise RuntimeError("Error building extension: x.cu(3): error: no such\\nthing")
    told = {key: os.environ[key] for key in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")}
    told["sources"] = [Path(source).name for source in sources]
    told["linked"] = os.listdir(extra_ldflags[0].removeprefix("-L"))
    with open(os.environ["BUILT"], "a") as log:
        log.write(json.dumps(told) + "\\n")
    (Path(build_directory) / f"{name}.so").write_bytes(b"")
"""
PIP = """
import os, pathlib, sys
if "NO_INDEX" in os.environ:
    sys.exit("no matching distribution")
assert "nvidia-cuda-nvcc==14.0.*" in sys.argv and "nvidia-nvvm==14.0.*" in sys.argv
home = pathlib.Path(__file__).parents[1] / "nvidia" / "cu14"
(home / "bin").mkdir(parents=True)
nvcc = home / "bin" / "nvcc"
nvcc.write_text("#!/bin/sh\\necho release 14.0,\\n")
nvcc.chmod(0o755)
"""


class Host:
    """An environment with packages of a few lines, and programs that are scripts."""

    def __init__(self, root: Path) -> None:
        self.packages, self.programs = root / "packages", root / "bin"
        self.gsplat, self.home = self.packages / "gsplat", root / "toolkit"
        self._built = root / "built"
        files = {
            "torch/__init__.py": TORCH,
            "torch/utils/__init__.py": "",
            "torch/utils/cpp_extension.py": CPP_EXTENSION,
            "gsplat/__init__.py": "csrc = rasterization = None",
            "gsplat/version.py": '__version__ = "1.5.3"',
            "gsplat/cuda/ext.cpp": "",
            "gsplat/cuda/csrc/Adam.cu": "",
            "nvidia/cu13/lib/libcudart.so.13": "",
            "pip/__init__.py": "",
            "pip/__main__.py": PIP,
        }
        for name, text in files.items():
            (self.packages / name).parent.mkdir(parents=True, exist_ok=True)
            (self.packages / name).write_text(text)
        self.program(self.programs / "nvidia-smi", "#!/bin/sh\necho 8.6\necho 8.9\necho 8.6\n")
        self.program(self.programs / "c++", "#!/bin/sh\n")
        self.program(self.home / "bin" / "nvcc", NVCC.format(release="13.0"))
        (self.home / "lib64").mkdir()
        (self.home / "lib64" / "libcudart.so.13").write_text("")

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, **environment: str) -> tuple[int, str]:
        """(exit code, last line) of the text that the bootstrap sends."""
        start = f"import sys; sys.path.insert(0, {str(self.packages)!r}); exec(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-I", "-c", start, bootstrap.kernels_code()],
            env={
                "PATH": str(self.programs),
                "BUILT": str(self._built),
                "PYTHONPATH": str(self.packages),
                "CUDA_HOME": str(self.home),
                **environment,
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.strip().splitlines()[-1]

    @property
    def built(self) -> list[dict[str, Any]]:
        """What each compiling was told."""
        text = self._built.read_text() if self._built.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


THERE = (0, "gsplat's CUDA kernels are there")


def test_they_are_compiled_once_for_all_gpus_and_again_when_something_changed(host: Host) -> None:
    assert host.run() == host.run() == THERE
    (told,) = host.built
    assert told["TORCH_CUDA_ARCH_LIST"] == "8.6;8.9" and int(told["MAX_JOBS"]) >= 1
    assert told["CUDA_HOME"] == str(host.home) and told["linked"] == ["libcudart.so"]
    assert told["sources"] == ["Adam.cu", "ext.cpp"]
    assert (host.gsplat / "csrc.so").is_file()
    assert host.run(TORCH_CUDA="13.1") == THERE  # another torch
    host.program(host.programs / "nvidia-smi", "#!/bin/sh\necho 12.0\n")
    assert host.run(TORCH_CUDA="13.1") == THERE  # another card
    assert [one["TORCH_CUDA_ARCH_LIST"] for one in host.built] == ["8.6;8.9", "8.6;8.9", "12.0"]


def test_a_module_that_came_with_gsplat_is_taken(host: Host) -> None:
    (host.gsplat / "csrc.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    assert host.run() == THERE
    assert host.built == []


def test_without_a_gpu_there_is_nothing_to_do(host: Host) -> None:
    (host.programs / "nvidia-smi").unlink()
    assert host.run() == (0, "no NVIDIA GPU here: nothing to compile")
    assert host.built == []


def test_a_toolkit_is_installed_where_none_fits(host: Host) -> None:
    code, line = host.run(TORCH_CUDA="14.0", NO_INDEX="1")
    assert (code, line) == (NO_TOOLKIT, "nvcc of CUDA 14.0 could not be installed")
    assert host.run(TORCH_CUDA="14.0") == THERE
    assert host.built[0]["CUDA_HOME"] == str(host.packages / "nvidia" / "cu14")
    assert host.run(TORCH_CUDA="12.8")[0] == NO_TOOLKIT  # in its packages is no nvcc


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"TORCH_CUDA": ""}, WRONG_TORCH, "is a build without CUDA"),
        ({"BREAKS": "1"}, NOT_BUILT, "x.cu(3): error: no such thing"),
        ({"DRIVER_OLD": "1"}, NOT_RENDERING, "built for CUDA 13.0, cannot use this driver"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    host: Host, environment: dict[str, str], code: int, words: str
) -> None:
    found, line = host.run(**environment)
    assert found == code and words in line


def test_a_host_without_a_compiler_says_so(host: Host) -> None:
    (host.programs / "c++").unlink()
    assert host.run() == (NO_COMPILER, "no C++ compiler is here")


def test_each_of_them_has_a_way_out() -> None:
    codes = {NO_COMPILER, NO_TOOLKIT, NOT_BUILT, NOT_RENDERING, WRONG_TORCH}
    assert set(bootstrap._KERNEL_FIXES) == codes


@pytest.mark.parametrize(
    ("cores", "gib", "jobs"), [(16, 64.0, 16), (16, 7.9, 3), (2, 64.0, 2), (8, 0.5, 1)]
)
def test_as_many_compilers_as_fit_into_the_memory(cores: int, gib: float, jobs: int) -> None:
    assert compilers(cores, int(gib * 2**30)) == jobs
