"""Until when each kind of file is kept on a host, as the configuration and the inventory say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from dispatcher.core.reclaiming import Kind, Policy, Rule, Until

_WORDS = tuple(Until)


def _rule(value: object) -> object:
    """Raises ValueError that says what there is to choose from."""
    if value is None or (isinstance(value, str) and value in _WORDS):
        return value
    if isinstance(value, bool):  # as the configurations of earlier versions have it
        return str(Until.VERIFIED if value else Until.EVER)
    if isinstance(value, Mapping) and set(value) == {"days"}:
        days = value["days"]
        if isinstance(days, int | float) and not isinstance(days, bool) and 0 <= days < 1e6:
            return {"days": days}
        raise ValueError("expected a number of days from 0 on, as in {days: 7}")
    raise ValueError(f"expected {', '.join(_WORDS)} or {{days: 7}}")


Kept = Annotated[str | dict[str, float] | None, BeforeValidator(_rule)]


class ReclaimRules(BaseModel):
    """By kind; None: what stands elsewhere goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_videos: Kept = None
    frames: Kept = None
    features: Kept = None
    training: Kept = None
    results: Kept = None


DEFAULTS = ReclaimRules(
    source_videos=Until.VERIFIED.value,
    frames=Until.VERIFIED.value,
    features=Until.VERIFIED.value,
    training=Until.VERIFIED.value,
    results=Until.STITCHED.value,
)


def policy_of(of_job: Mapping[str, Any], of_host: ReclaimRules) -> Policy:
    """The host's rules go before the job's; what neither names is as in DEFAULTS."""
    asked = ReclaimRules(**{kind: of_job[kind] for kind in Kind if kind in of_job})
    return {
        kind: _of(getattr(of_host, kind) or getattr(asked, kind) or getattr(DEFAULTS, kind))
        for kind in Kind
    }


def _of(kept: str | Mapping[str, float]) -> Rule:
    return Until(kept) if isinstance(kept, str) else float(kept["days"])
