from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.model import JobState
from dispatcher.core.reclaiming import (
    DAY_S,
    MADE,
    Facts,
    Kind,
    Policy,
    Rule,
    Until,
    due,
    next_due,
    share_of_trim,
)
from dispatcher.errors import InventoryError, SettingsError
from dispatcher.inventory import find_inventory
from dispatcher.reclaim_policy import ReclaimRules, policy_of
from dispatcher.settings import PipelineConfig
from tests.unit.farms import job

DONE = job("j", host="h", state=JobState.DONE)
RULES: st.SearchStrategy[Rule] = st.sampled_from(Until) | st.floats(0.0, 1000.0)
POLICIES = st.fixed_dictionaries({kind: RULES for kind in Kind})


def facts(*, stitched: bool = False) -> Facts:
    return Facts(done_at=1000.0, stitched=stitched)


@given(policy=POLICIES, stitched=st.booleans(), now=st.floats(1000.0, 1e9))
def test_each_kind_goes_by_its_own_rule(policy: Policy, stitched: bool, now: float) -> None:
    gone = due(DONE, policy, facts(stitched=stitched), now)
    for kind in MADE:
        rule = policy[kind]
        expected = {
            Until.VERIFIED: True,
            Until.STITCHED: stitched,
            Until.EVER: False,
        }.get(rule) if isinstance(rule, Until) else 1000.0 + rule * DAY_S <= now  # fmt: skip
        assert (kind in gone) == expected
    later = next_due(DONE, policy, facts(stitched=stitched), now)
    if later is not None:
        assert later > now
        assert len(due(DONE, policy, facts(stitched=stitched), later)) > len(gone)


def test_only_what_is_there_of_a_job_that_is_done() -> None:
    policy = dict.fromkeys(Kind, Until.VERIFIED)
    assert due(DONE, policy, facts(), 1e9) == tuple(MADE)
    left = job("j", host="h", state=JobState.DONE, inputs_on_host=True, reclaimed=("frames",))
    assert due(left, policy, facts(), 1e9) == (
        Kind.SOURCE_VIDEOS, Kind.FEATURES, Kind.TRAINING, Kind.RESULTS,
    )  # fmt: skip
    for state in set(JobState) - {JobState.DONE}:
        assert due(job("j", host="h", state=state), policy, facts(), 1e9) == ()


def test_the_hosts_rules_go_before_the_jobs() -> None:
    of_job = PipelineConfig.model_validate(
        {"reclaim": {"frames": {"days": 2}, "training": "keep"}}
    ).as_dict()["reclaim"]
    policy = policy_of(of_job, ReclaimRules(training="until_stitched"))
    assert policy[Kind.FRAMES] == 2.0
    assert policy[Kind.TRAINING] is Until.STITCHED
    assert policy[Kind.SOURCE_VIDEOS] is Until.VERIFIED
    assert policy[Kind.RESULTS] is Until.STITCHED
    # As versions before had it.
    assert policy_of({"source_videos": True, "fstrim": "auto"}, ReclaimRules()) == policy_of(
        {}, ReclaimRules()
    )
    assert policy_of({"source_videos": False}, ReclaimRules())[Kind.SOURCE_VIDEOS] is Until.EVER


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("sometimes", "expected when_verified, until_stitched, keep or {days: 7}, got 'sometimes'"),
        ("7", "expected when_verified, until_stitched, keep or {days: 7}, got 7"),
        ("{days: -1}", "expected a number of days from 0 on, as in {days: 7}"),
        ("{hours: 1}", "expected when_verified, until_stitched, keep or {days: 7}"),
    ],
)
def test_a_rule_that_is_none_is_told(tmp_path: Path, value: str, why: str) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"reclaim: {{frames: {value}}}\n")
    with pytest.raises(SettingsError) as refused:
        PipelineConfig.load(plan, {})
    assert "reclaim.frames" in refused.value.line and why in refused.value.line
    hosts = tmp_path / "inventory.yaml"
    hosts.write_text(
        f"defaults:\n  reclaim:\n    frames: {value}\nhosts: [{{name: h, address: h}}]\n"
    )
    with pytest.raises(InventoryError) as wrong:
        find_inventory(hosts)
    assert "inventory.yaml:3: defaults.reclaim.frames" in wrong.value.line
    assert why.partition(", got")[0] in wrong.value.line


def test_a_trim_gives_back_what_was_freed_at_most() -> None:
    assert share_of_trim(30, 90, None) is None
    assert share_of_trim(30, 90, 1_000_000) == 30, "the kernel counts all free space"
    assert share_of_trim(30, 90, 60) == 20
    assert share_of_trim(0, 0, 0) == 0
