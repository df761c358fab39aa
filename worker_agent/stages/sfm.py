"""ColmapReconstruction: camera poses and sparse points from the frames.

The ladder: sequential matches, global mapping, then incremental; when neither is good enough, all
pairs, and both again; then the same with stronger features. The first model that passes
`sfm_acceptance.judge` is published; otherwise the stage fails with what the best one lacked.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
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
from worker_agent.stages.depth_maps import model_of, with_depths
from worker_agent.stages.manifest import at_source_size
from worker_agent.stages.mask_program import make_masks
from worker_agent.stages.masks import PACKED, pack, prepare
from worker_agent.stages.registry import feed_forward
from worker_agent.stages.sfm_acceptance import (
    Candidate,
    Limits,
    MatchFacts,
    Refusal,
    Vector,
)
from worker_agent.stages.sfm_kept import (
    WORK,
    begin,
    digest_of,
    for_all_pairs,
    is_kept,
    remove_work,
)
from worker_agent.stages.sfm_mapping import Request
from worker_agent.stages.sfm_missing import explain_missing
from worker_agent.stages.sfm_process import StepCrashed, StepHung, counts, run_step
from worker_agent.stages.sfm_progress import SHARES, label_of

__all__ = ["main", "sequential_pairs"]

GIVEN_FOCAL = 0.02  # uncertainty of a given focal length, for jobs older than the setting
MAX_EXHAUSTIVE_FRAMES = 200  # 20k pairs: minutes; 1000 frames would be hours

Pairs = Literal["sequential", "exhaustive"]
MAPPERS = ("global", "incremental")
# (strong features, pairs)
RUNGS: tuple[tuple[bool, Pairs], ...] = (
    (False, "sequential"),
    (False, "exhaustive"),
    (True, "sequential"),
    (True, "exhaustive"),
)


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Write `sfm/`, `output/sfm.json` and `output/registration.npz`; with a depth model also
    `output/depth.zip`.

    Raises StageFailure: FRAMES_UNUSABLE, NO_PARALLAX, REGISTRATION_FAILED, REGISTRATION_WEAK,
    OUT_OF_MEMORY, DISK_FULL, STAGE_CRASHED, STAGE_SIGNALLED, STAGE_TIMEOUT, INPUT_MISSING; for a
    depth model or a program for masks TOOL_MISSING and CONFIG_INVALID.
    """
    if feed_forward(spec.config):
        return _left_out(Path(spec.run_dir), report)
    depth_model = model_of(spec)  # what is wrong with it is told before the work, not after it
    make_masks(spec, report)
    ladder = _Ladder(spec, report)
    if ladder.fallback is None:
        candidate = ladder.climb_all()
    else:
        guessed = _Ladder(spec, report, lens_guessed=True)
        guessed.crashes = ladder.crashes  # what hung with the lens is no fault of the clip either
        candidate = None if guessed.is_under_way() else ladder.climb_all()
        if candidate is None:
            report.warning(f"no model with the lens of {ladder.lens}: once more with a guess")
            ladder = guessed
            candidate = ladder.climb_all()
    if candidate is None:
        raise ladder.failure()
    made = ladder.publish(candidate)
    if depth_model is not None:
        made = with_depths(made, depth_model, spec, report)
    remove_work(Path(spec.run_dir))
    return made


def _left_out(root: Path, report: Reporter) -> Artifacts:
    """Nothing of an earlier model stays: what is made now does not lie in its frame."""
    shutil.rmtree(root / "sfm", ignore_errors=True)
    for name in ("sfm.json", "registration.npz", "depth.zip", PACKED.name):
        (root / "output" / name).unlink(missing_ok=True)
    report.progress(1.0, "left out: reconstruct.backend needs no camera poses")
    return Artifacts(files=())


def sequential_pairs(frames: int, overlap: int) -> int:
    """Pairs that sequential matching makes: `overlap` distances, 1, 2, 4, 8, ... frames apart."""
    return sum(max(0, frames - 2**i) for i in range(overlap))


class _Ladder:
    """The rungs tried so far, and what came of them."""

    def __init__(self, spec: AttemptSpec, report: Reporter, *, lens_guessed: bool = False) -> None:
        """`lens_guessed`: with the manifest's guess in the place of a profile."""
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
        self._begins = SHARES["sequential map_incremental"][1] if lens_guessed else 0.0
        self.lens: str = camera["source"]
        self.fallback: dict[str, Any] | None = None if lens_guessed else camera.get("fallback")
        if lens_guessed:
            camera = camera | camera["fallback"]
        # Given by the dispatcher after a host's memory did not do for all frames.
        rows = manifest["frames"][:: int(config.get("frame_stride", 1))]
        self._rows: list[dict[str, Any]] = rows
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
            work=str(self._run_dir / WORK),
            answer="",  # each step has its own
            names=[row["name"] for row in rows],
            camera=camera,
            max_features=int(config["max_features"]),
            max_image_size=int(config["max_image_size"]),
            overlap=int(config["overlap"]),
            seed=int(config["seed"]),
            threads=int(config["threads"]),
            memory_limit_mib=config["memory_limit_mib"],
            focal_uncertainty=float(config.get("focal_uncertainty", GIVEN_FOCAL)),
            patience=float(config.get("patience", 1.0)),
            manifest=str(manifest_path),
            model=str(sfm / "model"),
            registration=str(self._run_dir / "output" / "registration.npz"),
        )
        self._polygons = config.get("mask") or ()
        self._digest = digest_of(self._run_dir, self._request, self._polygons)
        self._candidates: list[Candidate] = []
        self._refusals: list[Refusal] = []
        self.crashes: list[StepCrashed] = []
        self._matches: MatchFacts | None = None
        self._matchless: Refusal | None = None
        self._too_few_features = False

    def is_under_way(self) -> bool:
        """Whether an attempt before this one began it."""
        return is_kept(self._run_dir, self._digest)

    def climb_all(self) -> Candidate | None:
        """The first accepted model. With a lens to fall back on only the first rung is tried: a
        wrong lens fails on all of them. Steps that an attempt before this one ended are not
        computed again."""
        begin(self._run_dir, self._digest)
        size = (self._request.camera["width"], self._request.camera["height"])
        masks = prepare(self._run_dir, self._request.names, size, self._polygons)
        if masks is not None:
            self._request = replace(self._request, masks=str(masks))
        for strong, pairs in RUNGS[:1] if self.fallback is not None else RUNGS:
            candidate = self.climb(strong, pairs)
            if candidate is not None:
                return candidate
        return None

    def climb(self, strong: bool, pairs: Pairs) -> Candidate | None:
        """The first accepted model of this rung; None when there is none, or when this rung
        cannot help after what those below it found.

        Raises StageFailure for frames that no rung could reconstruct.
        """
        first = (strong, pairs) == RUNGS[0]
        if pairs == "exhaustive" and (
            self.limits.frames > MAX_EXHAUSTIVE_FRAMES or self._too_few_features
        ):
            return None
        if not first and self._no_parallax():
            return None
        if strong and not self._request.strong:
            database = Path(self._request.database).with_name("strong.db")
            self._request = replace(self._request, strong=True, database=str(database))
            self._required("extract", self._request)
        elif first:
            self._required("extract", self._request)
        if not self._match(pairs):
            return None
        return self._map(pairs)

    def _match(self, pairs: Pairs) -> bool:
        """Whether mapping may be tried."""
        self._request = replace(self._request, pairs=pairs)
        if pairs == "exhaustive":
            database = for_all_pairs(Path(self._request.database))
            self._request = replace(self._request, database=str(database))
        self._matches = MatchFacts(**self._required("match", self._request))
        refusal = acceptance.judge_matches(self._matches)
        self._too_few_features = False
        if refusal is None:
            return True
        if refusal.reason is FailureCode.NO_PARALLAX:
            raise _failure(refusal)
        # Too few features, or neighbours that do not match: other pairs and stronger features may
        # still do it.
        self._matchless = refusal
        self._too_few_features = refusal.reason is FailureCode.FRAMES_UNUSABLE
        return False

    def _map(self, pairs: Pairs) -> Candidate | None:
        """The first accepted model of these matches."""
        for mapper in MAPPERS:
            try:
                answer = self._run(f"map_{mapper}", self._request)
            except StepCrashed as crash:
                self.crashes.append(crash)
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

    def failure(self) -> StageFailure:
        """What the best model lacked; without any model, why there is none. A mapper that hung
        might have made a better one: that is no fault of the clip, and another attempt may."""
        told = {"crashes": [crash.message for crash in self.crashes]} if self.crashes else {}
        refusal, hung = self._no_parallax(), [c for c in self.crashes if isinstance(c, StepHung)]
        if refusal is None and not hung:
            refusal = self._best_refusal() or self._matchless
        if refusal is not None:
            return _failure(replace(refusal, evidence=refusal.evidence | told))
        if self.crashes:
            return (hung or self.crashes)[-1].failure(told)
        return StageFailure(
            FailureCode.REGISTRATION_FAILED,
            f"no model could be made of {self.limits.frames} frames: they do not overlap enough",
            advice=acceptance.REFRAME,
            evidence={"frames": self.limits.frames, "registered": 0},
        )

    def _best_refusal(self) -> Refusal | None:
        best = acceptance.best_candidate(self._candidates)
        if best is None:
            return None
        refusal = self._refusals[self._candidates.index(best)]
        placed = {image.name for image in acceptance.registered(best)}
        if len(placed) >= self.limits.min_registered_share * self.limits.frames:
            return refusal
        missing = explain_missing(self._rows, placed, self._flaws())
        if missing is None or refusal.reason is FailureCode.NO_PARALLAX:
            return refusal
        advice = missing[1] + refusal.advice.removeprefix(acceptance.REFRAME)
        return replace(refusal, message=f"{refusal.message}: {missing[0]}", advice=advice)

    def _flaws(self) -> dict[str, str]:
        path = self._run_dir / "output" / "frame_quality.json"
        rows = json.loads(path.read_text())["frames"] if path.is_file() else []
        return {row["name"]: row["flaw"] for row in rows if row["flaw"]}

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
            "mapper": f"{candidate.mapper}, {candidate.pairs} pairs"
            + (", strong features" if self._request.strong else ""),
            "gravity_spread_deg": None if spread is None else round(spread, 4),
        }
        request = replace(
            self._request,
            accepted=candidate.path,
            drop=acceptance.unsupported(candidate),
            quality={key: value for key, value in facts.items() if value is not None},
        )
        # One that was left may be of another model, or of what the manifest said before.
        Path(self._answer_of("finish")).unlink(missing_ok=True)
        published = self._required("finish", request)
        refusal = acceptance.judge_published(published, self.limits)
        if refusal is not None:
            remove_work(self._run_dir)
            shutil.rmtree(request.model)
            Path(request.registration).unlink()
            raise _failure(self._no_parallax() or refusal)
        facts["points"] = published["points"]
        facts["reprojection_px"] = round(published["reprojection_px"], 4)
        told = ("refined", "focal_uncertainty", "given_lens", "positions_used")
        facts |= {key: published[key] for key in told}
        facts |= published["world"]
        lens = published["camera"]
        facts["focal_px"] = round(published["focal_px"], 3)
        facts["camera"] = {
            "model": lens["model"],
            "params": at_source_size(lens["model"], lens["params"], self._request.camera),
            "width": self._request.camera["source_width"],
            "height": self._request.camera["source_height"],
        }
        (self._run_dir / PACKED).unlink(missing_ok=True)
        masks = [pack(self._run_dir)] if request.masks else []
        target = self._run_dir / "output" / "sfm.json"
        write_json(target, facts)
        self._report.progress(1.0, f"{len(good)} of {self.limits.frames} frames registered")
        model = Path(request.model)
        return Artifacts(
            files=(
                artifact(self._run_dir, target, "sfm_report"),
                artifact(self._run_dir, Path(request.registration), "registration"),
                *(artifact(self._run_dir, path, "masks") for path in masks),
                *(artifact(self._run_dir, path, "sfm_model") for path in sorted(model.iterdir())),
            ),
            metrics=facts,
            completed={"colmap_sparse_path": str(model), "colmap_points": facts["points"]},
        )

    def _required(self, step: str, request: Request) -> dict[str, Any]:
        try:
            return self._run(step, request)
        except StepCrashed as crash:
            raise crash.failure({"step": crash.step}) from None

    def _run(self, step: str, request: Request) -> dict[str, Any]:
        label = label_of(step, request.pairs, strong=request.strong)
        low, high = SHARES[label]
        frames = self.limits.frames
        pairs = frames * (frames - 1) // 2
        if request.pairs == "sequential":
            pairs = min(pairs, sequential_pairs(frames, request.overlap))
        started = time.monotonic()

        def tick(registered: int) -> int:
            done = registered
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
            along = low + (high - low) * min(1.0, share)
            self._report.progress(self._begins + (1 - self._begins) * along, message)
            return done

        tick(0)
        return run_step(step, replace(request, answer=self._answer_of(label)), tick)

    def _answer_of(self, label: str) -> str:
        return str(Path(self._request.work) / f"{label.replace(' ', '_')}.answer.json")


def _failure(refusal: Refusal) -> StageFailure:
    return StageFailure(
        refusal.reason, refusal.message, advice=refusal.advice, evidence=refusal.evidence
    )
