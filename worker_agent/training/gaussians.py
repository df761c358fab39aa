"""The trainable gaussians: how they start from SfM points and how they are exported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from stitch.gaussians import SH_C0, Gaussians
from worker_agent.training.dataset import Normalisation

F32 = npt.NDArray[np.float32]

Parameters = dict[str, torch.nn.Parameter]
"""means (N, 3), scales (N, 3) log, quats (N, 4) wxyz, opacities (N,) logit, sh0 (N, 1, 3),
shN (N, K, 3)."""

_NEIGHBOURS = 3
_INITIAL_OPACITY = 0.5
_SCALE_RANGE = (1e-4, 0.5)


def initial_gaussians(
    points: F32, colors: F32, *, count: int, sh_degree: int, generator: torch.Generator
) -> Parameters:
    """One gaussian per SfM point, thinned or filled in until there are `count`.

    points (P, 3), colors (P, 3) in [0, 1], P > 3. Filling in puts gaussians at random between a
    point and one of its neighbours, where a surface most likely lies. Scales are the root mean
    square distance to the three nearest neighbours (3DGS).
    """
    if count < len(points):
        kept = torch.randperm(len(points), generator=generator)[:count].numpy()
        points, colors = points[kept], colors[kept]
    elif count > len(points):
        points, colors = _filled_in(points, colors, count, generator)
    distances = cKDTree(points).query(points, _NEIGHBOURS + 1)[0][:, 1:]
    spread = np.clip(np.sqrt((distances**2).mean(axis=1)), *_SCALE_RANGE).astype(np.float32)
    total = len(points)
    values = {
        "means": torch.tensor(points, dtype=torch.float32),  # a copy: training moves them
        "scales": torch.from_numpy(np.log(spread))[:, None].repeat(1, 3),
        "quats": torch.randn(total, 4, generator=generator),
        "opacities": torch.logit(torch.full((total,), _INITIAL_OPACITY)),
        "sh0": torch.from_numpy((colors.astype(np.float32) - 0.5) / np.float32(SH_C0))[:, None],
        "shN": torch.zeros(total, (sh_degree + 1) ** 2 - 1, 3),
    }
    return {name: torch.nn.Parameter(value.contiguous()) for name, value in values.items()}


def _filled_in(points: F32, colors: F32, count: int, generator: torch.Generator) -> tuple[F32, F32]:
    missing = count - len(points)
    first = torch.randint(len(points), (missing,), generator=generator).numpy()
    which = torch.randint(_NEIGHBOURS, (missing,), generator=generator).numpy()
    share = torch.rand(missing, 1, generator=generator).numpy()
    neighbours = cKDTree(points).query(points, _NEIGHBOURS + 1)[1][:, 1:]
    second = neighbours[first, which]
    return (
        np.concatenate([points, points[first] * (1 - share) + points[second] * share]),
        np.concatenate([colors, colors[first] * (1 - share) + colors[second] * share]),
    )


def to_world(parameters: Mapping[str, Tensor], normalisation: Normalisation) -> Gaussians:
    """The gaussians in the SfM model's own frame: the dataset's normalisation is undone."""
    arrays = {name: value.detach().cpu().numpy() for name, value in parameters.items()}
    return Gaussians(
        means=normalisation.undo(arrays["means"].astype(np.float64)).astype(np.float32),
        scales=arrays["scales"] - np.float32(np.log(normalisation.scale)),
        quats=arrays["quats"] / np.linalg.norm(arrays["quats"], axis=1, keepdims=True),
        opacities=arrays["opacities"],
        sh0=arrays["sh0"][:, 0],
        shN=arrays["shN"],
    )


def from_world(gaussians: Gaussians, normalisation: Normalisation) -> Parameters:
    """What `to_world` gives, back in normalised coordinates."""
    values = {
        "means": normalisation.apply(gaussians.means.astype(np.float64)),
        "scales": gaussians.scales + np.log(normalisation.scale),
        "quats": gaussians.quats,
        "opacities": gaussians.opacities,
        "sh0": gaussians.sh0[:, None],
        "shN": gaussians.shN,
    }
    return {
        name: torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(value, np.float32)))
        for name, value in values.items()
    }
