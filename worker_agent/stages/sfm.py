"""ColmapReconstruction: camera poses and sparse points from the frames.

The ladder: sequential matches, global mapping, then incremental; when neither is good enough, all
pairs, and both again. The first model that passes `sfm_acceptance.judge` is published; otherwise
the stage fails with what the best one lacked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from worker_agent.messages import FailureCode
from worker_agent.stages import sfm_acceptance as acceptance
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.sfm_acceptance import (
    Candidate,
    Limits,
    MatchFacts,
    Refusal,
    Vector,
)
from worker_agent.stages.sfm_mapping import Request
from worker_agent.stages.sfm_process import StepCrashed, counts, run_step

__all__ = ["main", "sequential_pairs"]

MAX_EXHAUSTIVE_FRAMES = 200  # 20k pairs: minutes; 1000 frames would be hours

Pairs = Literal["sequential", "exhaustive"]
MAPPERS = ("global", "incremental")

# Where each step begins and ends within the stage, for progress.
_SHARES = {
    "extract": (0.0, 0.3),
    "sequential match": (0.3, 0.55),
    "sequential map_global": (0.55, 0.7),
    "sequential map_incremental": (0.7, 0.8),
    "exhaustive match": (0.8, 0.85),
    "exhaustive map_global": (0.85, 0.9),
    "exhaustive map_incremental": (0.9, 0.95),
    "finish": (0.95, 1.0),
}


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Write `sfm/`, `output/sfm.json` and `output/registration.npz`.

    Raises StageFailure: FRAMES_UNUSABLE, NO_PARALLAX, REGISTRATION_FAILED, REGISTRATION_WEAK,
    OUT_OF_MEMORY, DISK_FULL, STAGE_CRASHED, INPUT_MISSING.
    """
    ladder = _Ladder(spec, report)
    ladder.extract()
    ladder.match("sequential")
    candidate = ladder.map("sequential")
    if candidate is None and ladder.more_pairs_may_help():
        ladder.match("exhaustive")
        candidate = ladder.map("exhaustive")
    if candidate is None:
        raise ladder.failure()
    return ladder.publish(candidate)


def sequential_pairs(frames: int, overlap: int) -> int:
    """Pairs that sequential matching makes: `overlap` distances, 1, 2, 4, 8, ... frames apart."""
    return sum(max(0, frames - 2**i) for i in range(overlap))


class _Ladder:
    """The rungs tried so far, and what came of them."""

    def __init__(self, spec: AttemptSpec, report: Reporter) -> None:
        self._report = report
        self._run_dir = Path(spec.run_dir)
        manifest_path = self._run_dir / "output" / "manifest.json"
        if not manifest_path.is_file():
            raise StageFailure(
                FailureCode.INPUT_MISSING,
                "output/manifest.json is missing on this host",
                advice="Run the job again from ManifestGeneration.",
            )
        manifest = json.loads(manifest_path.read_text())
        camera, config = manifest["camera"], spec.config["sfm"]
        # Given by the dispatcher after a host's memory did not do for all frames.
        rows = manifest["frames"][:: int(config.get("frame_stride", 1))]
        sfm = self._run_dir / "sfm"
        self._gravity: dict[str, Vector] = {
            row["name"]: tuple(row["gravity"]) for row in rows if row["gravity"]
        }
        self.limits = Limits(
            frames=len(rows),
            longer_side_px=max(camera["width"], camera["height"]),
            min_registered_share=float(config["min_registered_share"]),
            max_reprojection_px=float(config["max_reprojection_px"]),
        )
        self._request = Request(
            database=str(sfm / "database.db"),
            images=str(self._run_dir / "frames"),
            work=str(sfm / "work"),
            answer=str(sfm / "work" / "answer.json"),
            names=[row["name"] for row in rows],
            camera=camera,
            max_features=int(config["max_features"]),
            max_image_size=int(config["max_image_size"]),
            overlap=int(config["overlap"]),
            seed=int(config["seed"]),
            threads=int(config["threads"]),
            memory_limit_mib=config["memory_limit_mib"],
            manifest=str(manifest_path),
            model=str(sfm / "model"),
            registration=str(self._run_dir / "output" / "registration.npz"),
        )
        self._candidates: list[Candidate] = []
        self._refusals: list[Refusal] = []
        self._crashes: list[StepCrashed] = []
        self._matches: MatchFacts | None = None
        self._reuse_or_clear_database()

    def extract(self) -> None:
        self._required("extract", self._request)

    def match(self, pairs: Pairs) -> None:
        self._request = replace(self._request, pairs=pairs)
        facts = MatchFacts(**self._required("match", self._request))
        self._matches = facts
        refusal = acceptance.judge_matches(facts)
        if refusal is None:
            return
        # Neighbours that do not match say nothing yet about other pairs.
        if pairs == "exhaustive" or refusal.reason is not FailureCode.REGISTRATION_FAILED:
            raise _failure(refusal)

    def map(self, pairs: Pairs) -> Candidate | None:
        """The first accepted model of these matches."""
        for mapper in MAPPERS:
            try:
                answer = self._run(f"map_{mapper}", self._request)
            except StepCrashed as crash:
                self._crashes.append(crash)
                self._report.warning(f"{pairs} matches: {crash.message}")
                continue
            if answer["candidate"] is None:
                continue
            candidate = Candidate.from_dict(answer["candidate"])
            refusal = acceptance.judge(candidate, self.limits, self._gravity)
            if refusal is None:
                return candidate
            self._candidates.append(candidate)
            self._refusals.append(refusal)
            self._report.warning(f"{mapper} mapping of {pairs} matches: {refusal.message}")
        return None

    def more_pairs_may_help(self) -> bool:
        return self.limits.frames <= MAX_EXHAUSTIVE_FRAMES and self._no_parallax() is None

    def failure(self) -> StageFailure:
        """What the best model lacked; without any model, why there is none."""
        refusal = self._no_parallax() or self._best_refusal()
        if refusal is not None:
            return _failure(refusal)
        if self._crashes:
            return StageFailure(
                FailureCode.STAGE_CRASHED,
                f"COLMAP ended abnormally: {self._crashes[-1].message}",
                advice="See the attempt's log; try other sfm settings, or report the clip.",
                evidence={"crashes": [crash.message for crash in self._crashes]},
            )
        return StageFailure(
            FailureCode.REGISTRATION_FAILED,
            f"no model could be made of {self.limits.frames} frames: they do not overlap enough",
            advice=acceptance.REFRAME,
            evidence={"frames": self.limits.frames, "registered": 0},
        )

    def _best_refusal(self) -> Refusal | None:
        best = acceptance.best_candidate(self._candidates)
        return self._refusals[self._candidates.index(best)] if best is not None else None

    def _no_parallax(self) -> Refusal | None:
        if self._matches is None:
            return None
        return acceptance.explain_no_model(self._matches, self._best_refusal())

    def publish(self, candidate: Candidate) -> Artifacts:
        good = acceptance.registered(candidate)
        spread = acceptance.gravity_spread_deg(good, self._gravity)
        facts: dict[str, Any] = {
            "registered": len(good),
            "frames": self.limits.frames,
            "registered_share": round(len(good) / self.limits.frames, 4),
            "points": candidate.points,
            "reprojection_px": round(candidate.reprojection_px, 4),
            "focal_px": round(candidate.focal_px, 3),
            "mapper": f"{candidate.mapper}, {candidate.pairs} pairs",
            "gravity_spread_deg": None if spread is None else round(spread, 4),
        }
        request = replace(
            self._request,
            accepted=candidate.path,
            drop=acceptance.insane_images(candidate.images),
            quality={key: value for key, value in facts.items() if value is not None},
        )
        published = self._required("finish", request)
        facts["points"] = published["points"]
        facts["reprojection_px"] = round(published["reprojection_px"], 4)
        shutil.rmtree(request.work)
        target = self._run_dir / "output" / "sfm.json"
        write_json(target, facts)
        self._report.progress(1.0, f"{len(good)} of {self.limits.frames} frames registered")
        model = Path(request.model)
        return Artifacts(
            files=(
                artifact(self._run_dir, target, "sfm_report"),
                artifact(self._run_dir, Path(request.registration), "registration"),
                *(artifact(self._run_dir, path, "sfm_model") for path in sorted(model.iterdir())),
            ),
            metrics=facts,
            completed={"colmap_sparse_path": str(model), "colmap_points": facts["points"]},
        )

    def _required(self, step: str, request: Request) -> dict[str, Any]:
        try:
            return self._run(step, request)
        except StepCrashed as crash:
            raise StageFailure(
                FailureCode.STAGE_CRASHED,
                f"COLMAP ended abnormally: {crash.message}",
                advice="See the attempt's log; try other sfm settings, or report the clip.",
                evidence={"step": crash.step},
            ) from None

    def _run(self, step: str, request: Request) -> dict[str, Any]:
        label = step if step in _SHARES else f"{request.pairs} {step}"
        low, high = _SHARES[label]
        frames = self.limits.frames
        pairs = frames * (frames - 1) // 2
        if request.pairs == "sequential":
            pairs = min(pairs, sequential_pairs(frames, request.overlap))
        started = time.monotonic()

        def tick(registered: int) -> None:
            seconds = time.monotonic() - started
            message, share = f"{label}: {seconds:.0f} s", 0.0
            if step == "extract":
                done, _ = counts(Path(request.database))
                message, share = f"features of {done} of {frames} frames", done / frames
            elif step == "match":
                _, done = counts(Path(request.database))
                message, share = f"{done} of {pairs} pairs matched", done / max(1, pairs)
            elif registered:
                message = f"{label}: {registered} of {frames} frames placed"
                share = registered / frames
            self._report.progress(low + (high - low) * min(1.0, share), message)

        tick(0)
        return run_step(step, request, tick)

    def _reuse_or_clear_database(self) -> None:
        """Features and matches of a killed attempt are kept when they were made the same way."""
        sfm = self._run_dir / "sfm"
        listing = self._run_dir / "frames" / "frames.json"
        wanted = asdict(self._request) | {"threads": 0, "memory_limit_mib": 0}
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
        digest.update(listing.read_bytes() if listing.is_file() else b"")
        key = sfm / "database.key"
        if not key.is_file() or key.read_text() != digest.hexdigest():
            if sfm.exists():
                shutil.rmtree(sfm)
            sfm.mkdir()
            key.write_text(digest.hexdigest())


def _failure(refusal: Refusal) -> StageFailure:
    return StageFailure(
        refusal.reason, refusal.message, advice=refusal.advice, evidence=refusal.evidence
    )
