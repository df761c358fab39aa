"""SfM that was broken off: the next attempt goes on from there, to the same result bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.sfm_world import SFM, film, gravel, reconstruct, spec_for
from worker_agent.protocol import FailureCode
from worker_agent.stages import sfm, sfm_process
from worker_agent.stages.api import Reporter, StageFailure
from worker_agent.stages.sfm_mapping import Request
from worker_agent.stages.sfm_process import StepHung, run_step

FEW = {"max_features": 500, "overlap": 4}


class BrokenOff(Exception):
    """Stands for the end of the stage's process."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("run")
    film(base / "input" / "GX010001.MP4", gravel(9, 0.12)[0])
    return base


def digests(run_dir: Path) -> dict[str, str]:
    made = [*(run_dir / "sfm" / "model").iterdir(), run_dir / "output" / "sfm.json"]
    made.append(run_dir / "output" / "registration.npz")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as link:
        return list(link.iterdump())


class Watched:
    """Hears of each step that is computed, and breaks off in one, or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed: list[str] = []
        self.within = self.after = ""
        self._follow = sfm_process._follow
        monkeypatch.setattr(sfm_process, "_follow", self)

    def __call__(self, child: Any, *rest: Any) -> Any:
        step = child.args[3]
        self.computed.append(step)
        if step == self.within:
            raise BrokenOff
        seen = self._follow(child, *rest)
        if step == self.after:
            raise BrokenOff
        return seen


def go_on(run_dir: Path, **settings: Any) -> Any:
    spec = spec_for(run_dir, {"sfm": SFM | FEW | settings}, [])
    with (run_dir / "events.jsonl").open("ab") as events:
        return sfm.main(spec, Reporter(events.fileno(), 1))


def test_what_was_ended_is_not_computed_again(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconstruct(run_dir, **FEW)
    whole, database = digests(run_dir), dump(run_dir / "sfm" / "database.db")
    shutil.rmtree(run_dir / "sfm")
    watched = Watched(monkeypatch)
    for within, after, computed in (
        ("extract", "", ["extract"]),
        ("", "match", ["extract", "match"]),
        ("", "map_global", ["map_global"]),
        ("finish", "", ["finish"]),
        ("", "finish", ["finish"]),  # what is published is always made of what is known now
    ):
        watched.computed, watched.within, watched.after = [], within, after
        with pytest.raises(BrokenOff):
            go_on(run_dir)
        assert watched.computed == computed
    watched.computed, watched.after = [], ""
    go_on(run_dir, min_registered_share=0.9)  # decides about models, makes none
    assert watched.computed == ["finish"]
    assert digests(run_dir) == whole
    assert dump(run_dir / "sfm" / "database.db") == database
    assert not (run_dir / "sfm" / "work").exists()
    watched.computed, watched.within = [], "extract"
    with pytest.raises(BrokenOff):
        go_on(run_dir, max_features=300)
    assert not (run_dir / "sfm" / "model").exists()  # what was made otherwise is nobody's


def test_half_the_features_are_completed_as_if_never_broken_off(
    run_dir: Path, tmp_path: Path
) -> None:
    """COLMAP alone gives what is left a camera of its own."""
    facts = json.loads((run_dir / "output" / "manifest.json").read_text())
    names = [row["name"] for row in facts["frames"]]
    found = []
    for name, parts in (("whole", [names]), ("parts", [names[:4], names])):
        for part in parts:
            work = tmp_path / f"{name} {len(part)}"
            ordered = Request(
                database=str(tmp_path / f"{name}.db"), images=str(run_dir / "frames"), names=part,
                work=str(work), answer=str(work / "answer.json"), camera=facts["camera"],
                max_features=200, max_image_size=480, overlap=3, seed=0, threads=1,
                memory_limit_mib=None, focal_uncertainty=0.02,
            )  # fmt: skip
            run_step("extract", ordered, lambda _: 0)
        found.append(dump(tmp_path / f"{name}.db"))
    assert any(names[-1] in line for line in found[0])
    assert found[0] == found[1]


def test_more_matches_leave_what_an_earlier_rung_works_on(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of neighbours that is done again must not find all pairs."""
    for name in ("frames", "output"):
        (tmp_path / name).symlink_to(run_dir / name)
    told = {"images": 9, "keypoints_median": 500, "verified_pairs": 40, "planar_share": 0.5}
    found: list[tuple[str, list[str]]] = []

    def played(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
        with closing(sqlite3.connect(ordered.database)) as link:
            if step == "extract":
                link.execute("create table if not exists made (by unique)")
            elif step == "match":
                link.execute("insert or ignore into made values (?)", (ordered.pairs,))
                link.commit()
            else:
                made = [row[0] for row in link.execute("select * from made")]
                found.append((f"{ordered.pairs} {step}", made))
                if len(found) in (3, 6):
                    raise BrokenOff
        return told | {"motion_share": 0.2} if step == "match" else {"candidate": None}

    monkeypatch.setattr(sfm, "run_step", played)
    for _ in range(2):
        with pytest.raises(BrokenOff):
            go_on(tmp_path)
    assert found[0] == found[3] == ("sequential map_global", ["sequential"])
    assert found[2] == ("exhaustive map_global", ["sequential", "exhaustive"])


@pytest.mark.parametrize("made", ["a good model", "a weak model", "no model"])
def test_a_mapper_that_hangs_costs_its_rung_and_is_no_fault_of_the_clip(
    made: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("frames", "output"):
        (tmp_path / name).symlink_to(run_dir / name)

    def played(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
        if step == "match":
            return {"images": 9, "keypoints_median": 500, "verified_pairs": 40,
                    "motion_share": 0.2, "planar_share": 0.5}  # fmt: skip
        if step == "map_global" or (step == "map_incremental" and made == "no model"):
            raise StepHung(step, f"{step} of 9 frames was ended, it took no CPU time")
        if step == "map_incremental":
            return {"candidate": model(ordered.names[: 9 if made == "a good model" else 5])}
        return {}

    monkeypatch.setattr(sfm, "run_step", played)
    monkeypatch.setattr(sfm._Ladder, "publish", lambda _, candidate: candidate)
    if made == "a good model":
        assert go_on(tmp_path).mapper == "incremental"
    else:
        with pytest.raises(StageFailure) as caught:
            go_on(tmp_path)
        assert caught.value.reason is FailureCode.STAGE_TIMEOUT
        assert "sfm.patience" in caught.value.advice
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    warnings = [event["message"] for event in events if event["kind"] == "warning"]
    assert "map_global of 9 frames was ended, it took no CPU time" in warnings[0]


def model(names: list[str]) -> dict[str, Any]:
    images = [
        {"name": name, "points": 200, "centre": [0.1 * i, 0.0, 0.0], "depth": 2.0,
         "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
        for i, name in enumerate(names)
    ]  # fmt: skip
    return {
        "mapper": "incremental", "pairs": "sequential", "path": "", "images": images,
        "points": 2000, "reprojection_px": 0.5, "focal_px": 300.0, "triangulation_deg": 8.0,
        "relief": 0.1, "links": [300] * (len(names) - 1),
    }  # fmt: skip
