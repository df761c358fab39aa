"""What a stitch is told: its members, what operators decided about their pairs, its settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.evidence import Said
from stitch.merge import Finish
from stitch.scale import Ruler
from stitch.score import Thresholds
from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, StageFailure

_LEVELS = ("per_auv", "cross_auv")


@dataclass(frozen=True, slots=True)
class Input:
    """One member's files; a cloud from elsewhere has no sidecar."""

    name: str
    auv: str
    ply: Path
    registration: Path | None


@dataclass(frozen=True, slots=True)
class Told:
    level: str
    name: str
    members: tuple[Input, ...]
    decisions: tuple[Mapping[str, Any], ...]
    edges: tuple[Path, ...]  # of versions before
    before: Path | None  # report of the version before

    def said(self, contents: Sequence[str]) -> Heard:
        """What operators decided about the members as they are now, whose sidecars have these
        SHA-256."""
        number = {member.name: k for k, member in enumerate(self.members)}
        heard = Heard([], [], [])
        for one in self.decisions:
            source, target = str(one["source"]), str(one["target"])
            day = time.strftime("%Y-%m-%d", time.gmtime(float(one["at"])))
            words = f"{one['by']} on {day}"
            if [contents[number[source]], contents[number[target]]] != list(one["registrations"]):
                heard.stale.append(
                    f"{source} to {target}: what {words} decided ({one['verdict']}) was about "
                    "other reconstructions of them, and does not count"
                )
                continue
            points = tuple((tuple(a), tuple(b)) for a, b in one.get("points", ()))
            if one["verdict"] == "scale":
                length, sigma = float(one["length_m"]), float(one["give_or_take_m"])
                heard.rulers.append(Ruler(number[source], points[0], length, sigma, words))
                continue
            said = Said(str(one["verdict"]), number[source], number[target], words, points)
            heard.pairs.append(said)
        return heard


@dataclass(frozen=True, slots=True)
class Heard:
    """Decisions about pairs, lengths that are known, and why the rest does not count."""

    pairs: list[Said]
    rulers: list[Ruler]
    stale: list[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """`stitch:` of the configuration; a job from before a setting existed has its default."""

    thresholds: Thresholds
    ratio: float
    finish: Finish
    orthomosaic: bool
    tiles: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        return cls(
            thresholds=Thresholds(
                min_inliers=int(config["min_inliers"]),
                min_share=float(config["min_inlier_share"]),
                min_hull_share=float(config["min_hull_share"]),
            ),
            ratio=float(config["ratio"]),
            finish=Finish(
                floaters=bool(config.get("prune_floaters", True)),
                harmonise=bool(config.get("harmonise", False)),
                aspects=bool(config.get("aspects", True)),
                label=bool(config.get("segment_ids", False)),
            ),
            orthomosaic=bool(config.get("orthomosaic", True)),
            tiles=bool(config.get("tiles", False)),
        )


def told(spec: AttemptSpec) -> Told:
    """Raises StageFailure: CONFIG_INVALID, INPUT_MISSING."""
    run_dir = Path(spec.run_dir)
    try:
        found = Told(
            level=str(spec.inputs["level"]),
            name=str(spec.inputs["name"]),
            members=tuple(
                Input(
                    name=str(member["name"]),
                    auv=str(member["auv"]),
                    ply=run_dir / str(member["ply"]),
                    registration=run_dir / str(member["registration"])
                    if member.get("registration")
                    else None,
                )
                for member in spec.inputs["members"]
            ),
            decisions=tuple(dict(one) for one in spec.inputs.get("decisions", ())),
            edges=tuple(run_dir / str(path) for path in spec.inputs.get("edges", ())),
            before=run_dir / str(before) if (before := spec.inputs.get("before")) else None,
        )
    except (KeyError, TypeError) as error:
        raise _invalid(spec, f"inputs lack {error}") from None
    if found.level not in _LEVELS:
        raise _invalid(spec, f"level is {found.level!r}, not one of {', '.join(_LEVELS)}")
    names = {member.name for member in found.members}
    if not names or len(names) != len(found.members):
        raise _invalid(spec, f"{len(found.members)} members, or two of one name")
    for member in found.members:
        for path in (member.ply, member.registration):
            if path is not None and not path.is_file():
                raise StageFailure(
                    FailureCode.INPUT_MISSING,
                    f"{path.relative_to(run_dir)} of member {member.name} is not on this host",
                    advice="Retry the stitch: its inputs are brought to the host again.",
                )
    return found


def _invalid(spec: AttemptSpec, why: str) -> StageFailure:
    return StageFailure(
        FailureCode.CONFIG_INVALID,
        f"stitch {spec.job}: {why}",
        advice="Dispatcher and agent disagree: update cosma on both.",
    )
