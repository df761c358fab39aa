from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.paths import inside, run_directory, work_directory
from worker_agent.refusal import RefusedError


@pytest.mark.parametrize("path", ["input/GX010123.MP4", "output/.checkpoint.json", "a b/ü.mp4"])
def test_path_below_the_run_directory_is_taken(tmp_path: Path, path: str) -> None:
    assert inside(tmp_path, path) == tmp_path / path


@pytest.mark.parametrize("path", ["", ".", "..", "/etc/passwd", "input/../../x", "a\0b"])
def test_path_that_leaves_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RefusedError):
        inside(tmp_path, path)


@given(parts=st.lists(st.sampled_from(["a", "..", ".", "", "b"]), min_size=1, max_size=6))
def test_what_is_taken_lies_inside(parts: list[str]) -> None:
    root = Path("/nonexistent-root/run")
    try:
        path = inside(root, "/".join(parts))
    except RefusedError:
        assert parts[0] == "" or ".." in parts or not set(parts) - {".", ""}
    else:
        assert path.is_relative_to(root)
        assert path != root


@pytest.mark.parametrize("path", ["link", "link/secret", "folder/link"])
def test_symbolic_links_are_not_followed(tmp_path: Path, path: str) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    (run_dir / "folder").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("x")
    (run_dir / "link").symlink_to(outside)
    (run_dir / "folder" / "link").symlink_to(outside / "secret")
    with pytest.raises(RefusedError, match="symbolic link"):
        inside(run_dir, path)


@pytest.mark.parametrize("path", ["relative/a/b", "/w/a/../b", "/", "/a/b", "/w//a/j"])
def test_run_directory_must_be_absolute_normal_and_deep(path: str) -> None:
    with pytest.raises(RefusedError):
        run_directory(path)


def test_work_directory_is_two_above() -> None:
    assert work_directory(run_directory("/srv/cosma/reef/a-1")) == Path("/srv/cosma")
