"""Projection of gaussians onto images, and spherical harmonics, in plain differentiable torch.

EWA splatting (Zwicker et al. 2001) as 3D Gaussian Splatting uses it (Kerbl et al. 2023): the
perspective map is replaced by its Jacobian at the gaussian's centre. Everything is written in
components rather than as batches of 3 x 3 products, which is several times cheaper on a CPU.
Works in any floating dtype. Cameras follow COLMAP: x right, y down, z forward, the centre of the
first pixel at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA_MIN = 1.0 / 255.0
"""A gaussian is not drawn where its alpha is below this; the convention of the public renderers."""

SIGMAS_MAX = 3.33
"""Half-width of a fully opaque gaussian in standard deviations: exp(-3.33² / 2) is ALPHA_MIN."""

_CLAMP_MARGIN = 0.3
"""The Jacobian is frozen beyond the image plus this share of its half-width (3DGS)."""


@dataclass(frozen=True, slots=True)
class Projection:
    """N gaussians seen by C cameras."""

    means2d: Tensor  # (C, N, 2) pixels
    depths: Tensor  # (C, N) along the optical axis
    conics: Tensor  # (C, N, 3) inverse 2D covariance: xx, xy, yy
    radii: Tensor  # (C, N, 2) int32 half extents in pixels, 0 where a gaussian cannot be seen


def rotation_rows(quats: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """The nine entries, each (N,), of the rotations of `quats` (N, 4) wxyz, not normalised."""
    unit = torch.nn.functional.normalize(quats, dim=-1)
    w, x, y, z = unit.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    xy, xz, yz = x * y, x * z, y * z
    wx, wy, wz = w * x, w * y, w * z
    return (
        (1 - 2 * (yy + zz), 2 * (xy - wz), 2 * (xz + wy)),
        (2 * (xy + wz), 1 - 2 * (xx + zz), 2 * (yz - wx)),
        (2 * (xz - wy), 2 * (yz + wx), 1 - 2 * (xx + yy)),
    )


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    *,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
) -> Projection:
    """Project means (N, 3), quats (N, 4), scales (N, 3), opacities (N,) into C cameras.

    `viewmats` (C, 4, 4) takes world to camera, `intrinsics` is (C, 3, 3); `scales` and
    `opacities` are activated values. `eps2d` (pixels squared) keeps every gaussian at least about
    a pixel wide. The extents are exact for the opacity: outside them alpha is below ALPHA_MIN.
    """
    r = viewmats[:, :3, :3, None]
    t = viewmats[:, :3, 3, None]
    x, y, z = means.unbind(-1)
    cx, cy, cz = (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2] * z + t[:, i] for i in range(3))
    in_front = (cz > near_plane) & (cz < far_plane)
    # Unseen gaussians get a harmless depth, so that no infinity meets a zero gradient.
    inverse_z = 1.0 / torch.where(in_front, cz, torch.ones_like(cz))

    fx, fy = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    px, py = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None]
    slope_x, slope_y = cx * inverse_z, cy * inverse_z
    means2d = torch.stack((fx * slope_x + px, fy * slope_y + py), dim=-1)

    margin_x, margin_y = _CLAMP_MARGIN * 0.5 * width / fx, _CLAMP_MARGIN * 0.5 * height / fy
    slope_x = torch.clamp(slope_x, -px / fx - margin_x, (width - px) / fx + margin_x)
    slope_y = torch.clamp(slope_y, -py / fy - margin_y, (height - py) / fy + margin_y)
    scale_x, scale_y = fx * inverse_z, fy * inverse_z
    # Two rows of J R_view (2 x 3), then of J R_view R S, whose product with itself is the 2D
    # covariance: it stays positive where forming the 3D covariance first would round.
    row_u = [scale_x * (r[:, 0, k] - slope_x * r[:, 2, k]) for k in range(3)]
    row_v = [scale_y * (r[:, 1, k] - slope_y * r[:, 2, k]) for k in range(3)]
    rotation = rotation_rows(quats)
    half_u, half_v = [], []
    for axis, scale in enumerate(scales.unbind(-1)):
        a, b, c = (rotation[k][axis] * scale for k in range(3))
        half_u.append(row_u[0] * a + row_u[1] * b + row_u[2] * c)
        half_v.append(row_v[0] * a + row_v[1] * b + row_v[2] * c)
    cov_xx = half_u[0] * half_u[0] + half_u[1] * half_u[1] + half_u[2] * half_u[2] + eps2d
    cov_yy = half_v[0] * half_v[0] + half_v[1] * half_v[1] + half_v[2] * half_v[2] + eps2d
    cov_xy = half_u[0] * half_v[0] + half_u[1] * half_v[1] + half_u[2] * half_v[2]
    inverse_det = 1.0 / (cov_xx * cov_yy - cov_xy * cov_xy).clamp_min(1e-10)
    conics = torch.stack((cov_yy * inverse_det, -cov_xy * inverse_det, cov_xx * inverse_det), -1)

    with torch.no_grad():
        reach = (2.0 * torch.log((opacities / ALPHA_MIN).clamp_min(1e-12))).clamp_min(0.0).sqrt()
        reach = reach.clamp_max(SIGMAS_MAX)
        rx, ry = torch.ceil(reach * cov_xx.sqrt()), torch.ceil(reach * cov_yy.sqrt())
        u, v = means2d.unbind(-1)
        seen = in_front & (opacities >= ALPHA_MIN)
        seen &= (u + rx > 0) & (u - rx < width) & (v + ry > 0) & (v - ry < height)
        seen &= (rx > radius_clip) | (ry > radius_clip)
        radii = torch.stack((rx, ry), -1).where(seen[..., None], torch.zeros_like(rx[..., None]))
    return Projection(means2d, cz, conics, radii.to(torch.int32))


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Colours (..., 3): the real SH basis up to `degree` (0 to 3) times `coefficients`.

    `coefficients` is (..., K, 3); `directions` (..., 3) need not be unit vectors. Basis, order and
    signs are those of the 3DGS PLY format (Sloan, "Efficient Spherical Harmonic Evaluation", JCGT
    2013).
    """
    value = 0.28209479177387814 * coefficients[..., 0, :]
    if degree == 0:
        return value
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    basis = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.9461746957575601 * z * z - 0.31539156525252005,
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * z * z - 1),
            0.3731763325901154 * z * (5 * z * z - 3),
            -0.4570457994644658 * x * (5 * z * z - 1),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    for index, weight in enumerate(basis, start=1):
        value = value + weight[..., None] * coefficients[..., index, :]
    return value
