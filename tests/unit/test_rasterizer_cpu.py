"""The CPU rasterizer against a float64 reference that is written down here."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from worker_agent.training.projection import project, spherical_harmonics
from worker_agent.training.rasterize_cpu import rasterization

pytestmark = pytest.mark.usefixtures("kernels")

WIDTH, HEIGHT = 37, 21  # no multiple of the tile size
ALPHA_MIN, ALPHA_MAX, STOP = 1.0 / 255.0, 0.999, 1e-4


def scene(count: int, seed: int, *, opacity: tuple[float, float] = (0.05, 0.95)) -> list[Tensor]:
    """Means, quats, scales, opacities, SH coefficients (degree 1); float64 of float32 values."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = uniform(count, 3) * torch.tensor([2.4, 1.6, 2.0]) + torch.tensor([-1.2, -0.8, 1.5])
    quats = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    scales = 0.02 + 0.2 * uniform(count, 3) ** 2
    opacities = opacity[0] + (opacity[1] - opacity[0]) * uniform(count)
    values = [means, quats, scales, opacities, uniform(count, 4, 3) - 0.2]
    return [value.float().double() for value in values]


def camera() -> tuple[Tensor, Tensor]:
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [0.1, -0.15, 0.2]).as_matrix())
    view[:3, 3] = torch.tensor([0.1, -0.05, 0.3])
    view = view.float().double()
    intrinsics = torch.tensor([[30.0, 0, 18.0], [0, 31.0, 11.0], [0, 0, 1]], dtype=torch.float64)
    return view[None], intrinsics[None]


def reference_weights(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights (H, W, N), transmittance (H, W), order (N,), means2d (N, 2) kept for gradients).

    The textbook form: Sigma = R S S R', J W Sigma W' J', every pixel against every gaussian.
    """
    view, intrinsics = camera()
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).reshape(-1, 3, 3)  # fmt: skip
    half = rotation * scales[:, None, :]
    covariance = half @ half.transpose(1, 2)
    in_camera = means @ view[0, :3, :3].T + view[0, :3, 3]
    fx, fy = intrinsics[0, 0, 0], intrinsics[0, 1, 1]
    depth = in_camera[:, 2]
    limits = []
    for axis, size, focal in ((0, WIDTH, fx), (1, HEIGHT, fy)):
        centre = intrinsics[0, axis, 2]
        margin = 0.3 * 0.5 * size / focal
        low, high = float(-centre / focal - margin), float((size - centre) / focal + margin)
        limits.append((in_camera[:, axis] / depth).clamp(low, high))
    zero = torch.zeros_like(depth)
    jacobian = torch.stack(
        [fx / depth, zero, -fx * limits[0] / depth, zero, fy / depth, -fy * limits[1] / depth], -1
    ).reshape(-1, 2, 3)
    turned = jacobian @ view[0, :3, :3]
    flat = turned @ covariance @ turned.transpose(1, 2) + 0.3 * torch.eye(2, dtype=means.dtype)
    conic = torch.linalg.inv(flat)
    means2d = (in_camera @ intrinsics[0].T)[:, :2] / depth[:, None]
    if means2d.requires_grad:
        means2d.retain_grad()
    rows, columns = torch.meshgrid(
        torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij"
    )
    offset = means2d[None, None] - torch.stack([columns, rows], -1)[:, :, None].to(means)
    sigma = 0.5 * torch.einsum("hwni,nij,hwnj->hwn", offset, conic, offset)
    alpha = (opacities * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & (depth > 0.01), alpha, torch.zeros_like(alpha))
    order = torch.argsort(depth, stable=True)
    transmittance = torch.ones(HEIGHT, WIDTH, dtype=means.dtype)
    running = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    weights = []
    for index in order:
        after = transmittance * (1 - alpha[..., index])
        running = running & ~(after.detach() <= STOP)
        weights.append(torch.where(running, alpha[..., index] * transmittance, 0.0))
        transmittance = torch.where(running, after, transmittance)
    return torch.stack(weights, -1), transmittance, order, means2d


def reference_image(parameters: list[Tensor], background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(image, alpha, means2d)."""
    means, quats, scales, opacities, coefficients = parameters
    view, _ = camera()
    weights, transmittance, order, means2d = reference_weights(means, quats, scales, opacities)
    direction = torch.nn.functional.normalize(means + view[0, :3, :3].T @ view[0, :3, 3], dim=-1)
    c0, c1 = 0.5 / math.sqrt(math.pi), math.sqrt(3.0 / (4.0 * math.pi))
    basis = torch.stack(
        [
            torch.full_like(direction[:, 0], c0),
            -c1 * direction[:, 1],
            c1 * direction[:, 2],
            -c1 * direction[:, 0],
        ],
        dim=-1,
    )
    colors = ((basis[..., None] * coefficients).sum(1) + 0.5).clamp_min(0.0)
    image = torch.einsum("hwn,nc->hwc", weights, colors[order])
    image = image + transmittance[..., None] * background
    return image, 1.0 - transmittance, means2d


def leaves(parameters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [p.detach().to(dtype).clone().requires_grad_() for p in parameters]


def rendered(parameters: list[Tensor], background: Tensor) -> tuple[Tensor, Tensor, dict]:
    view, intrinsics = camera()
    image, alpha, meta = rasterization(
        *parameters,
        viewmats=view.float(),
        Ks=intrinsics.float(),
        width=WIDTH,
        height=HEIGHT,
        sh_degree=1,
        packed=False,
        absgrad=True,
        backgrounds=background.float()[None],
    )
    return image[0], alpha[0, ..., 0], meta


BACKGROUND = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def trained_like() -> list[Tensor]:
    """Many layers of thin, opaque gaussians, as training leaves them: pixels on the threshold of
    alpha, and little light behind an opaque one, are where float32 loses digits."""
    means, quats, scales, _, colors = scene(400, 4)
    generator = torch.Generator().manual_seed(4)
    thin = torch.exp(-6.0 * torch.rand(400, 3, generator=generator))
    opacities = torch.sigmoid(8.0 * torch.rand(400, generator=generator) - 3.0)
    return [means, quats, (scales * thin).float().double(), opacities.double(), colors]


@pytest.mark.parametrize(
    ("seed", "parameters"),
    [
        (1, scene(60, 1)),
        (2, scene(60, 2, opacity=(0.02, 0.3))),
        (3, scene(60, 3, opacity=(0.97, 0.9995))),
        (4, trained_like()),
    ],
)
def test_image_and_gradients_equal_the_float64_reference(
    seed: int, parameters: list[Tensor]
) -> None:
    truth = leaves(parameters, torch.float64)
    image64, alpha64, _ = reference_image(truth, BACKGROUND)
    mine = leaves(parameters, torch.float32)
    image, alpha, _ = rendered(mine, BACKGROUND)
    assert relative(image.detach(), image64.detach()) < 1e-6
    assert relative(alpha.detach(), alpha64.detach()) < 1e-6

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(HEIGHT, WIDTH, 3, generator=generator).double()
    weight_alpha = torch.randn(HEIGHT, WIDTH, generator=generator).double()
    ((image64 * weight).sum() + (alpha64 * weight_alpha).sum()).backward()
    ((image * weight.float()).sum() + (alpha * weight_alpha.float()).sum()).backward()
    for name, value, target in zip(
        ("means", "quats", "scales", "opacities", "colors"), mine, truth, strict=True
    ):
        assert value.grad is not None and target.grad is not None
        assert relative(value.grad, target.grad) < 2e-6, name


def test_absgrad_sums_the_absolute_gradients_of_the_pixels() -> None:
    parameters = scene(6, 5)
    truth = leaves(parameters, torch.float64)
    image64, _, means2d = reference_image(truth, BACKGROUND)
    pixels = image64.sum(-1).flatten()
    (gradients,) = torch.autograd.grad(
        pixels, means2d, torch.eye(len(pixels), dtype=torch.float64), is_grads_batched=True
    )
    total, signed = gradients.abs().sum(0), gradients.sum(0)
    mine = leaves(parameters, torch.float32)
    image, _, meta = rendered(mine, BACKGROUND)
    meta["means2d"].retain_grad()
    image.sum().backward()
    assert relative(meta["means2d"].absgrad[0], total) < 1e-6
    # As gsplat's own strategies expect them.
    assert meta["means2d"].absgrad.dtype == meta["means2d"].grad.dtype == torch.float32
    assert relative(meta["means2d"].grad[0], signed) < 1e-6


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            mine = leaves(scene(200, 7), torch.float32)
            image, _, meta = rendered(mine, BACKGROUND)
            image.square().sum().backward()
            gradients = [p.grad for p in mine] + [meta["means2d"].absgrad]
            results.append([image.detach(), *gradients])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_gaussians_behind_the_camera_change_nothing_and_get_zero_gradients() -> None:
    parameters = scene(20, 9)
    alone, _, _ = rendered(leaves(parameters, torch.float32), BACKGROUND)
    more = [torch.cat([p, p[:5]]) for p in parameters]
    more[0][20:, 2] = torch.tensor([-2.0, -1.0, -0.9, -5.0, -50.0], dtype=torch.float64)
    mine = leaves(more, torch.float32)
    image, _, meta = rendered(mine, BACKGROUND)
    image.sum().backward()
    assert torch.equal(image, alone)
    assert int(meta["radii"][0, 20:].max()) == 0
    for parameter in mine:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert not parameter.grad[20:].any()


def test_no_visible_gaussian_gives_the_background() -> None:
    parameters = scene(8, 3)
    parameters[0][:, 2] -= 20.0
    image, alpha, _ = rendered(leaves(parameters, torch.float32), BACKGROUND)
    assert torch.equal(image, BACKGROUND.float().expand(HEIGHT, WIDTH, 3))
    assert not alpha.any()


def test_extents_hold_every_pixel_that_is_drawn() -> None:
    means, quats, scales, opacities, _ = scene(40, 11)
    view, intrinsics = camera()
    seen = project(means, quats, scales, opacities, view, intrinsics, WIDTH, HEIGHT)
    weights, _, order, _ = reference_weights(means, quats, scales, opacities)
    for place, index in enumerate(order.tolist()):
        drawn = np.argwhere(weights[..., place].numpy() > 0)
        if len(drawn):
            centre, radii = seen.means2d[0, index].numpy(), seen.radii[0, index].numpy()
            assert (np.abs(drawn[:, ::-1] + 0.5 - centre) <= radii).all()


def test_what_only_cuda_does_is_refused() -> None:
    mine = leaves(scene(4, 1), torch.float32)
    view, intrinsics = camera()
    with pytest.raises(ValueError, match="one camera"):
        rasterization(
            *mine,
            viewmats=view.float().repeat(2, 1, 1),
            Ks=intrinsics.float().repeat(2, 1, 1),
            width=WIDTH,
            height=HEIGHT,
            sh_degree=1,
        )


def test_spherical_harmonics_are_orthonormal_with_the_signs_of_3dgs() -> None:
    nodes, node_weights = np.polynomial.legendre.leggauss(12)
    angles = np.arange(24) * (2 * np.pi / 24)
    z, phi = np.meshgrid(nodes, angles, indexing="ij")
    radius = np.sqrt(1 - z**2)
    directions = torch.from_numpy(np.stack([radius * np.cos(phi), radius * np.sin(phi), z], -1))
    area = torch.from_numpy(np.repeat(node_weights[:, None], 24, 1) * (2 * np.pi / 24)).flatten()
    directions = directions.reshape(-1, 3)
    unit = torch.eye(16, dtype=torch.float64)[..., None].expand(16, 16, 3)
    values = torch.stack(
        [spherical_harmonics(3, 2.5 * directions, unit[k])[:, 0] for k in range(16)]
    )
    gram = (values * area) @ values.T
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-12)
    along = torch.eye(3, dtype=torch.float64)
    assert [float(spherical_harmonics(1, along[a], unit[k])[0]) for k, a in ((1, 1), (2, 2), (3, 0))
            ] == pytest.approx([-0.488603, 0.488603, -0.488603], abs=1e-6)  # fmt: skip
