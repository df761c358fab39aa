"""Paths that a host names never leave the job's directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.artifact_store import ArtifactStore

STORE = ArtifactStore(Path("/store"))


def test_output_is_the_top_of_the_jobs_directory() -> None:
    assert STORE.path("reef", "j1", "output/j1.ply") == Path("/store/reef/j1/j1.ply")
    assert STORE.path("reef", "j1", "sfm/model/a.bin") == Path("/store/reef/j1/sfm/model/a.bin")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "output/../../x", ""])
def test_a_path_that_would_leave_it_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="run directory"):
        STORE.path("reef", "j1", path)
