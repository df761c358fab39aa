"""A farm of real sshd processes on loopback, and footage that really reconstructs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedHosts
from tests.acceptance.cosma import Cosma


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<auv>/<serial>/<segment>/<clip>.MP4 of four small segments: two AUVs, crossing."""
    out = tmp_path_factory.mktemp("survey")
    subprocess.run(
        [sys.executable, "-m", "worker_agent.demo", str(out), "--preset", "small"],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[EmbeddedHosts]:
    with EmbeddedHosts(2, tmp_path / "hosts") as hosts:
        yield hosts
        hosts.power_off()


@pytest.fixture
def cosma(tmp_path: Path, farm: EmbeddedHosts) -> Cosma:
    directory = tmp_path / "operator"
    directory.mkdir()
    return Cosma(directory, farm.inventory)
