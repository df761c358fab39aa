"""Fixtures that every suite shares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

from tests.once import once

# On a busy machine any example can take long; that says nothing about the code.
settings.register_profile("any machine", parent=settings.default, deadline=None)
settings.load_profile("any machine")

# Else every process of `cosma` that a test starts would compile all of its modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], uvloop.Loop]]:
    """Tests of the dispatcher run on the loop that it runs on."""
    return {"libuv": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real videos, images and splats; the suite is complete without them, larger with them."""
    path = Path(os.environ.get("COSMA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real test data not found at {path} (set COSMA_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's small survey in `survey`, and in `said.jsonl` what its command said."""

    def film(out: Path) -> None:
        out.mkdir()
        command = [sys.executable, "-m", "worker_agent.demo", str(out / "survey")]
        with (out / "said.jsonl").open("w") as said:
            subprocess.run([*command, "--preset", "small"], check=True, stdout=said)

    return once(tmp_path_factory, "filmed", film)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For tests that call kernels of the training themselves. The process that compiles one would
    from then on round otherwise than all that load it, also in the tests that come after."""
    from worker_agent.training.kernel_cache import ensure_cached

    def compile_them(marker: Path) -> None:
        ensure_cached()
        marker.touch()

    once(tmp_path_factory, "kernels", compile_them)
