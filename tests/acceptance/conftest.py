"""A farm of real sshd processes on loopback, and footage that really reconstructs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedHosts
from tests.acceptance.cosma import Cosma
from tests.real_stages import spare


@pytest.fixture(scope="session")
def footage(filmed: Path) -> Path:
    """<auv>/<serial>/<segment>/<clip>.MP4 of four small segments: two AUVs, crossing."""
    return filmed / "survey"


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[EmbeddedHosts]:
    with EmbeddedHosts(2, tmp_path / "hosts") as hosts:
        spare(hosts)
        yield hosts
        hosts.power_off()


@pytest.fixture
def cosma(tmp_path: Path, farm: EmbeddedHosts) -> Iterator[Cosma]:
    directory = tmp_path / "operator"
    directory.mkdir()
    made = Cosma(directory, farm.inventory)
    yield made
    made.end_all()
