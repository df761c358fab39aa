"""The views of a dataset at the two sizes that training uses, and in the order it takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from worker_agent.training.dataset import Dataset


class Views:
    """Images and masks stay in the computer's memory; what is asked for comes on `device`.

    `factor` is 1 for full size, 2 for half.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self._dataset = dataset
        self._device = device
        self._images = {1: dataset.images, 2: _halved(dataset.images)}
        self._shown = None if dataset.masks is None else _both_sizes(dataset.masks)
        self._viewmats = dataset.viewmats.to(device)
        self._intrinsics = dataset.intrinsics.to(device)
        self._scaled: dict[tuple[int, int], Tensor] = {}  # the same by size

    def camera(self, view: int, factor: int) -> tuple[Tensor, Tensor, int, int]:
        """(world to camera (4, 4), intrinsics (3, 3), width, height)."""
        height, width = (int(size) for size in self._images[factor].shape[1:3])
        return self._viewmats[view], self.intrinsics(view, width, height), width, height

    def intrinsics(self, view: int, width: int, height: int) -> Tensor:
        """(3, 3) of the view at another size."""
        if (width, height) not in self._scaled:  # once: a GPU is waited for at each such copy
            full_width, full_height = self._dataset.size
            scale = self._intrinsics.new_tensor([width / full_width, height / full_height, 1.0])
            self._scaled[width, height] = self._intrinsics * scale[:, None]
        return self._scaled[width, height][view]

    def truth(self, view: int, factor: int = 1) -> Tensor:
        """(H, W, 3) in [0, 1]."""
        image = self._images[factor][view].to(self._device, non_blocking=True)
        return image.to(torch.float32).div_(255.0)

    def unmasked(self, image: Tensor, target: Tensor, view: int, factor: int = 1) -> Tensor:
        """`image` with the truth where a mask says that the view does not show the scene: no
        loss, no gradient, no error there."""
        if self._shown is None:
            return image
        shown = self._shown[factor][view].to(image.device)
        return torch.where(shown[..., None], image, target)

    def at(self, step: int, seed: int) -> int:
        """The view to train on. Every epoch is a permutation drawn from the seed and the epoch
        alone."""
        epoch, place = divmod(step, len(self._dataset.train))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._dataset.train), generator=generator)
        return self._dataset.train[int(order[place])]


def _halved(images: Tensor) -> Tensor:
    """(V, H, W, 3) uint8 at half the size, each pixel the mean of the area it covers."""
    height, width = max(1, images.shape[1] // 2), max(1, images.shape[2] // 2)
    halves = [
        torch.nn.functional.interpolate(
            image.permute(2, 0, 1)[None].to(torch.float32), size=(height, width), mode="area"
        )[0].permute(1, 2, 0)
        for image in images
    ]
    return torch.stack(halves).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _both_sizes(masks: Tensor) -> dict[int, Tensor]:
    """(V, H, W) bool, and at half the size, where all that a pixel covers must be shown."""
    height, width = max(1, masks.shape[1] // 2), max(1, masks.shape[2] // 2)
    halves = torch.nn.functional.interpolate(
        masks[:, None].to(torch.float32), size=(height, width), mode="area"
    )
    return {1: masks, 2: halves[:, 0] > 0.999}
