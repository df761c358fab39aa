"""The store that the suites of it are about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.clock import ManualClock
from dispatcher.store.base import Store
from dispatcher.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cosma.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await SqliteStore.open(path, ManualClock())
    yield opened
    await opened.close()
