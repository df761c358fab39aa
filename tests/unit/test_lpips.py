"""How LPIPS is measured, by weights made here; how a file that holds none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worker_agent.training.lpips import MIN_PIXELS, Lpips, WeightsUnusable

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG_WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
VGG_WIDTHS |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)


def weights(
    shapes: dict[int, tuple[int, int, int]], looked_at: tuple[int, ...]
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for index, (out, into, side) in shapes.items():
        scale = (into * side * side) ** -0.5
        found[f"features.{index}.weight"] = scale * torch.randn(
            out, into, side, side, generator=generator
        )
        found[f"features.{index}.bias"] = torch.zeros(out)
    for place, index in enumerate(looked_at):
        out = shapes[index][0]
        found[f"lin{place}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    return found


def alex() -> dict[str, Tensor]:
    return weights(ALEX, (0, 3, 6, 8, 10))


def saved(values: object, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(values, path)
    return path


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    one = torch.rand(3, height, width, generator=generator)
    return one, torch.rand(3, height, width, generator=generator)


def test_alexnet_as_it_is_published(tmp_path: Path) -> None:
    """Layer by layer, written down a second time."""
    given = alex()
    mine = Lpips(saved(given, tmp_path), torch.device("cpu"))
    one, two = images(70, 50)
    features = []
    for image in (one, two):
        shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
        x = ((image * 2 - 1 - shift) / torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1))[None]
        seen = []
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                x = functional.max_pool2d(x, kernel_size=3, stride=2)
            weight, bias = given[f"features.{index}.weight"], given[f"features.{index}.bias"]
            x = functional.conv2d(x, weight, bias, stride=stride, padding=padding).relu()
            seen.append(functional.normalize(x[0], dim=0))
        features.append(seen)
    expected = 0.0
    for place, (a, b) in enumerate(zip(*features, strict=True)):
        weighing = given[f"lin{place}.model.1.weight"][0, :, 0, 0]
        expected += float(torch.einsum("chw,c->hw", (a - b) ** 2, weighing).mean())
    assert mine.distance(one, two) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_equal_images_are_at_0_and_others_further_the_more_they_differ(
    network: str, tmp_path: Path
) -> None:
    into = [3, *VGG_WIDTHS.values()]
    shapes = {k: (out, into[n], 3) for n, (k, out) in enumerate(VGG_WIDTHS.items())}
    given = alex() if network == "alex" else weights(shapes, (2, 7, 14, 21, 28))
    mine = Lpips(saved(given, tmp_path), torch.device("cpu"))
    one, two = images(MIN_PIXELS, MIN_PIXELS)
    assert mine.distance(one, one) == 0.0
    near, far = (mine.distance(one, one.lerp(two, share)) for share in (0.2, 1.0))
    assert 0.0 < near < far


def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\x03\x04 not really")
    without = alex()
    del without["lin2.model.1.weight"]
    wrong = alex() | {"features.3.weight": torch.zeros(192, 3, 5, 5)}
    for path, said in (
        (tmp_path / "nowhere.pt", "is not there"),
        (damaged, "not a file of weights"),
        (saved([1, 2], tmp_path), "not a dictionary"),
    ):
        refused(path, said)
    refused(saved({"a": torch.zeros(1)}, tmp_path), "has no features.0.weight")
    refused(saved(without, tmp_path), "has no lin2.model.1.weight")
    refused(saved(wrong, tmp_path), "weights.pt: ")


def refused(path: Path, said: str) -> None:
    with pytest.raises(WeightsUnusable, match=said) as caught:
        Lpips(path, torch.device("cpu"))
    assert "\n" not in str(caught.value)
