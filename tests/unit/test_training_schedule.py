"""The plan of a run: pure functions of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.training.schedule import Schedule
from worker_agent.training.settings import SettingsInvalid, TrainSettings

schedules = st.builds(
    Schedule,
    steps=st.integers(1, 50_000),
    cap=st.integers(16, 2_000_000),
    sh_degree=st.integers(0, 3),
    initial=st.integers(16, 100_000),
)


@given(schedules)
def test_budget_grows_to_the_cap_and_never_beyond(schedule: Schedule) -> None:
    steps = [s for s in range(schedule.steps + 1) if schedule.refines_at(s)][:200]
    budgets = [schedule.budget(step) for step in steps]
    assert budgets == sorted(budgets)
    assert all(budget <= schedule.cap for budget in budgets)
    assert schedule.budget(schedule.steps) == schedule.cap


@given(schedules)
def test_refinement_leaves_time_to_converge(schedule: Schedule) -> None:
    last = max((s for s in range(schedule.steps + 1) if schedule.refines_at(s)), default=0)
    assert last <= 0.75 * schedule.steps


@given(schedules, st.floats(0.0, 1.0))
def test_rates_are_positive_and_those_of_the_means_fall(schedule: Schedule, at: float) -> None:
    step = round(at * schedule.steps)
    rates = schedule.learning_rates(step)
    assert all(rate > 0.0 for rate in rates.values())
    assert rates["means"] <= schedule.learning_rates(0)["means"]
    assert set(rates) == {"means", "scales", "quats", "opacities", "sh0", "shN"}


@given(schedules)
def test_resolution_and_bands_reach_their_full_value(schedule: Schedule) -> None:
    assert schedule.downscale(schedule.steps) == 1
    assert schedule.active_sh_degree(0) == 0
    assert schedule.active_sh_degree(schedule.steps) == schedule.sh_degree


CONFIG = {
    "seed": 3,
    "test_every": 8,
    "checkpoint_every_s": 20.0,
    "ssim_weight": 0.2,
    "cpu": {"width": 320, "steps": 1000, "cap": 30000, "sh_degree": 1, "threads": 2},
    "cuda": {"width": 960, "steps": 7000, "cap": 1000000, "sh_degree": 3},
}


def test_settings_come_from_the_section_of_the_device() -> None:
    cpu, cuda = (TrainSettings.from_config(CONFIG, name) for name in ("cpu", "cuda"))
    assert (cpu.width, cpu.steps, cpu.threads, cpu.seed) == (320, 1000, 2, 3)
    assert (cuda.width, cuda.cap, cuda.sh_degree, cuda.ssim_weight) == (960, 1000000, 3, 0.2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ssim_weight": 1.5}, "train.ssim_weight is 1.5"),
        ({"cpu": {**CONFIG["cpu"], "steps": 0}}, "train.steps is 0"),  # type: ignore[dict-item]
        ({"cpu": {**CONFIG["cpu"], "cap": "many"}}, "train.cap is 'many'"),  # type: ignore[dict-item]
        ({"cpu": None}, "train.cpu is missing"),
        ({"cpu": {}}, "train.width is missing"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsInvalid, match=named):
        TrainSettings.from_config({**CONFIG, **change}, "cpu")
