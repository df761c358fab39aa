"""Clouds that nobody here has reconstructed become a survey, and its scene, on a real farm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dispatcher.embedded import EmbeddedHosts
from stitch.ply import PlyFile
from tests.acceptance.cosma import Cosma, is_so, rows
from tests.real_stages import spare
from tests.stitch_world import ground_tones, random_sim3, seen_ground, write_points

COUNT = 25_000
MADE = "FROM stitches WHERE passthrough = 0 AND state = 'done'"


def test_a_running_dispatcher_stitches_clouds_that_are_added(tmp_path: Path) -> None:
    """Two clouds of coloured points, 6 m each with 3 m in common, in frames of their own."""
    rng = np.random.default_rng(33)
    tones = ground_tones(rng)
    files = []
    for name, start in (("one", 0.0), ("two", 3.0)):
        points, shades = seen_ground(rng, tones, start, COUNT)
        own = random_sim3(rng).inverse().apply(points)
        files.append(str(write_points(tmp_path / f"{name}.ply", own, shades)))
    with EmbeddedHosts(1, tmp_path / "hosts") as farm:
        spare(farm)
        (tmp_path / "operator").mkdir()
        cosma = Cosma(tmp_path / "operator", farm.inventory)
        try:
            one = cosma.json("stitch", "add", files[0], "-a", "Dive", "--auv", "rov")
            assert (one["job"], one["kind"], one["new"]) == ("dive-rov-one", "points", True)
            cosma.start("dispatch")
            cosma.wait_until("it runs", is_so("count(*) FROM stitches WHERE passthrough = 1"))
            cosma.json("stitch", "add", files[1], "-a", "Dive", "--auv", "rov")
            cosma.wait_until("both are stitched", is_so(f"count(*) {MADE}"))
            ((stitch,),) = rows(cosma, f"SELECT id {MADE}")
            shown = cosma.json("stitch", "show", stitch)
        finally:
            cosma.end_all()
            farm.power_off()
    assert shown["members"] == ["dive-rov-one", "dive-rov-two"]
    (edge,) = shown["report"]["edges"]
    assert (edge["accepted"], edge["method"]) == (True, "raster")
    # Of the 3 m in common half of each stays: 9 m of 12.
    scene = PlyFile.open(Path(shown["artifacts"]["ply"]))
    assert 0.70 < scene.count / (2 * COUNT) < 0.80
