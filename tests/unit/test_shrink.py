"""A smaller plan of the training after running out of memory: pure, monotone, bounded below."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.work_size import shrunk
from dispatcher.settings import PipelineConfig, TrainConfig

PLAN = st.fixed_dictionaries({"cap": st.integers(100, 10**6), "width": st.integers(32, 4000)})


def test_the_first_step_takes_gaussians_the_second_pixels() -> None:
    config = PipelineConfig().model_dump(mode="json")
    asked = copy.deepcopy(config)
    cuda = [shrunk(config, steps)["train"]["cuda"] for steps in range(3)]
    assert cuda[0] == asked["train"]["cuda"]
    assert (cuda[1]["cap"], cuda[1]["width"]) == (600_000, 960)
    assert (cuda[2]["cap"], cuda[2]["width"]) == (600_000, 720)
    assert config == asked, "what was asked for stays"
    untouched = {k: v for k, v in shrunk(config, 2).items() if k != "train"}
    assert untouched == {k: v for k, v in asked.items() if k != "train"}


def test_a_stride_is_told_to_the_stages_that_hold_all_frames_and_to_no_other() -> None:
    config = PipelineConfig().model_dump(mode="json")
    assert shrunk(config, 0, 1) == config
    told = shrunk(config, 1, 2)
    assert told["sfm"]["frame_stride"] == told["train"]["frame_stride"] == 2
    assert told["frames"] == config["frames"], "extraction stays as it was: its frames are there"
    assert told["train"]["cuda"]["cap"] == 600_000


@given(cpu=PLAN, cuda=PLAN, steps=st.integers(0, 5))
def test_every_step_stays_a_valid_config_and_never_grows(
    cpu: dict[str, Any], cuda: dict[str, Any], steps: int
) -> None:
    config = {"train": {"cpu": cpu, "cuda": cuda}}
    before, after = shrunk(config, steps)["train"], shrunk(config, steps + 1)["train"]
    TrainConfig.model_validate(after)
    for kind in ("cpu", "cuda"):
        assert all(after[kind][key] <= before[kind][key] for key in ("cap", "width"))
