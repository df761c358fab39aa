"""When training ends early, which gaussians go at its end, and what cameras and water do."""

from __future__ import annotations

import numpy as np
import torch

from worker_agent.training.exposure import Exposures
from worker_agent.training.floaters import MOST, floaters
from worker_agent.training.medium import Medium
from worker_agent.training.stopping import ending


def test_single_values_say_nothing() -> None:
    assert ending([], gain=0.01, target=0.5) is None
    assert ending([0.9, 0.9], gain=0.01, target=0.5) is None
    # One dip or peak in three does not end it.
    rising = [0.50, 0.52, 0.54, 0.40, 0.60, 0.66]
    assert ending(rising, gain=0.01, target=0.7) is None


def test_a_plateau_and_a_target() -> None:
    flat = [0.80, 0.81, 0.80, 0.81, 0.80, 0.81]
    assert ending(flat, gain=0.01, target=0.0) == "plateau"
    assert ending(flat, gain=0.0, target=0.0) is None
    assert ending(flat, gain=0.01, target=0.8) == "target"
    assert ending(flat[:5], gain=0.01, target=0.0) is None


def test_lonely_small_gaussians_are_floaters() -> None:
    rng = np.random.default_rng(0)
    ground = rng.uniform(0, 10, (1000, 3)) * [1, 1, 0.01]
    lonely = np.array([[5.0, 5.0, 8.0], [0.0, 9.0, -9.5], [4.0, 1.0, 9.0], [np.inf, 0, 0]])
    means = np.concatenate([ground, lonely]).astype(np.float32)
    sizes = np.full(len(means), 0.1, np.float32)
    sizes[1002] = 5.0  # stands for open water
    assert np.flatnonzero(floaters(means, sizes)).tolist() == [1000, 1001, 1003]


def test_a_sparse_scene_keeps_nearly_all() -> None:
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.normal(0, 1e-3, (600, 3)), rng.normal(0, 5, (400, 3))])
    found = floaters(means.astype(np.float32), np.full(1000, 1e-4, np.float32))
    assert found.sum() == int(MOST * 1000)
    assert not floaters(np.zeros((5, 3), np.float32), np.zeros(5, np.float32)).any()


def test_exposures_start_at_no_change_and_keep_their_mean() -> None:
    exposures = Exposures(5, [0, 2, 4], torch.device("cpu"))
    image = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exposures.apply(image, 3), image)
    for _ in range(50):
        loss = sum(
            (exposures.apply(image, v) - (0.8 + 0.1 * v) * image).abs().mean() for v in (0, 2, 4)
        )
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        exposures.step(0.0)
    dark, middle, bright = (float(exposures.apply(image, v).detach().mean()) for v in (0, 2, 4))
    assert dark < middle < bright
    # A held-out view lies between its neighbours; all together stay where they were.
    assert float(exposures.apply(image, 3).detach().mean()) > middle
    assert abs((dark + middle + bright) / 3 / float(image.mean()) - 1) < 0.01
    again = Exposures(5, [0, 2, 4], torch.device("cpu"))
    again.restore(exposures.state())
    assert torch.equal(again.apply(image, 1), exposures.apply(image, 1))


def test_water_of_known_colours_is_recovered() -> None:
    """Attenuation, backscatter and light that a seabed at 0.5 to 3 depths was seen through."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(300, 3, generator=generator)
    depths = 0.5 + 2.5 * torch.rand(300, generator=generator)
    a, b = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.4])
    light = torch.tensor([0.1, 0.4, 0.5])
    seen = colors * torch.exp(-depths[:, None] * a) + light * (1 - torch.exp(-depths[:, None] * b))
    footage = (255 * seen.clamp(0, 1)).to(torch.uint8).reshape(1, 15, 20, 3)
    medium = Medium(footage, torch.device("cpu"))
    for _ in range(1000):
        (medium.apply(colors, depths) - seen).abs().mean().backward()
        medium.step(0.0)
    found = medium.described(2.0)  # two median depths to a unit of the model
    assert torch.allclose(torch.tensor(found["attenuation"]), 2 * a, atol=0.06)
    far = torch.tensor([1.0, 3.0])
    veil = medium.apply(torch.zeros(2, 3), far).detach()
    assert torch.allclose(veil, light * (1 - torch.exp(-far[:, None] * b)), atol=0.02)
    again = Medium(footage, torch.device("cpu"))
    again.restore(medium.state())
    assert again.described(2.0) == found
