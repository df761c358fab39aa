"""Fixtures that every suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# On a busy machine any example can take long; that says nothing about the code.
settings.register_profile("any machine", parent=settings.default, deadline=None)
settings.load_profile("any machine")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real videos, images and splats; the suite is complete without them, larger with them."""
    path = Path(os.environ.get("COSMA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real test data not found at {path} (set COSMA_TEST_DATA)")
    return path
