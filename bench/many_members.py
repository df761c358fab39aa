"""Many members of a stitch at once, for bench/stitch.py: wrong edges in loops, and the choice of
pairs."""

from __future__ import annotations

import time

import numpy as np
from scipy.spatial.transform import Rotation

from bench.results import Result, told
from bench.seabed import random_frame
from stitch.candidates import candidates
from stitch.posegraph import solve
from stitch.register import Edge
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3


def loops(
    seed: int, count: int, reach: int, share: float
) -> tuple[list[Sim3], list[Edge], set[int]]:
    """Fragments of 8 m on a ring, each tied to the next `reach`; a share of the edges is wrong, by
    half an e-fold in scale, any rotation and 8 m; its inliers may be as many as a right one's."""
    rng = np.random.default_rng(seed)
    size = 8.0
    poses = []
    for k in range(count):
        turn = 2 * np.pi * k / count
        place = 30.0 * np.array([np.cos(turn), np.sin(turn), 0.0]) + rng.normal(size=3) * 0.5
        own = random_frame(rng)
        poses.append(Sim3(own.scale, own.rotation, place))
    pairs = [(i, (i + step) % count) for step in range(1, reach + 1) for i in range(count)]
    bad = set(map(int, rng.choice(len(pairs), round(share * len(pairs)), replace=False)))
    edges = []
    for k, (i, j) in enumerate(pairs):
        truth = poses[i].inverse() @ poses[j]
        if k in bad:
            noise = Sim3(
                float(np.exp(rng.normal() * 0.5)),
                Rotation.random(random_state=seed * 1000 + k).as_matrix(),
                rng.normal(size=3) * size / poses[j].scale,
            )
        else:
            noise = Sim3(
                float(np.exp(rng.normal() * 0.005)),
                Rotation.from_rotvec(rng.normal(size=3) * np.radians(0.3)).as_matrix(),
                rng.normal(size=3) * 0.005 * size / poses[j].scale,
            )
        inliers = int(rng.uniform(10, 120) if k in bad else rng.uniform(30, 400))
        edges.append(Edge(j, i, 2 * inliers, inliers, 0.5, 0.004, truth @ noise))
    return poses, edges, bad


def graphs(count: int) -> list[Result]:
    results = []
    for share, reach in ((0.1, 2), (0.3, 3)):
        wrong = found = right = lost = 0
        taken = []
        for seed in range(count):
            poses, edges, bad = loops(seed, 20, reach, share)
            began = time.process_time()
            solution = solve([(np.zeros(3), 8.0 / pose.scale) for pose in poses], edges)
            taken.append(time.process_time() - began)
            rejected = set(solution.rejected)
            wrong, found = wrong + len(bad), found + len(bad & rejected)
            right, lost = right + len(edges) - len(bad), lost + len(rejected - bad)
        tag = f"{share:.0%}".replace("%", "pct")
        results += [
            told(f"graph_wrong_found.{tag}", found / wrong, f"of {wrong}", 1.0, "higher"),
            told(f"graph_false_rejects.{tag}", lost / right, f"of {right}", 0.01),
            told(f"graph_cpu_s_max.{tag}", max(taken), "s", 1.0),
        ]
    return results


def crowd(tracks: int = 25, along: int = 40) -> list[Result]:
    """Segments of a metre, each sharing 0.2 m with the next and 0.3 m with those beside it; of what
    two of them saw, half of the keypoints are found in each."""
    rng = np.random.default_rng(5)
    size = np.array([0.8 * along + 0.2, 0.7 * tracks + 0.3])
    places = rng.random((int(600 * size.prod()), 2)) * size
    looks = rng.gamma(0.6, 1.0, (len(places), 128)).astype(np.float32)
    sidecars = []
    for k in range(tracks * along):
        low = np.array([0.8 * (k % along), 0.7 * (k // along)])
        seen = np.flatnonzero(((places >= low) & (places < low + 1.0)).all(axis=1))
        seen = seen[rng.random(len(seen)) < 0.5]
        look = looks[seen] * rng.uniform(0.7, 1.3, (len(seen), 128))
        sidecars.append(_bare(places[seen] - low, np.sqrt(look / look.sum(axis=1)[:, None]), rng))
    began = time.process_time()
    pairs = set(candidates(sidecars))
    taken = time.process_time() - began
    beside = {(k, k + along) for k in range((tracks - 1) * along)}
    count = len(sidecars)
    return [
        told("candidates_cpu_s", taken, f"s, {count}", 60.0),
        told("candidates_pairs", len(pairs), f"of {count * (count - 1) // 2}", 20.0 * count),
        told("candidates_found", len(beside & pairs) / len(beside), "", 0.98, "higher"),
    ]


def _bare(places: F64, looks: F64, rng: np.random.Generator) -> Sidecar:
    """Points with descriptors, from one frame in the middle."""
    count = len(places)
    return Sidecar(
        points=np.column_stack([places, np.zeros(count)]).astype(np.float32),
        descriptors=np.clip(np.round(looks * 512.0), 0, 255).astype(np.uint8),
        track_length=rng.integers(2, 12, count, np.uint16),
        error_px=np.ones(count, np.float32),
        rgb=np.zeros((count, 3), np.uint8),
        keyframe_names=("f000001.jpg",),
        keyframe_hashes=np.zeros(1, np.uint64),
        keyframe_time_s=np.zeros(1),
        rotations=np.array([[1.0, 0.0, 0.0, 0.0]]),
        translations=np.zeros((1, 3)),
        gravity=np.full((1, 3), np.nan),
        gps=np.full((1, 3), np.nan),
        quality={"median_depth": 1.0},
    )
