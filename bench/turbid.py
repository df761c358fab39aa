"""A real reef clip in ever more turbid water: it is reconstructed rightly, or held.

Data: COSMA_TEST_DATA, by default ../shared/data. The reef clip is filmed again through a veil:
light scattered forward (blur), scattered back (contrast that is left) and the sensor's noise; all
stages up to ColmapReconstruction follow, at the product's defaults.

texture[C]: median over the frames, grey levels (frame_quality), with the share C of the contrast.
held[C]: 1 when the job is held, 0 when a model is accepted.
centre_error[C]: of an accepted model: rms distance of its cameras from those of the clear clip
    (reference poses), after one similarity, over the length of the track.
wrong: models that were accepted although their cameras are off by more than 2 % of the track.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.reconstruct import DATA, run_stage, stages_up_to_sfm
from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig

CLIP = "gopro_reef_hero10/reef_clip.mp4"
POSES = "gopro_reef_hero10/reference_poses_6fps_960px.json"
POSES_FPS, POSES_START_S = 6.0, 0.033
# Contrast that is left -> blur in pixels of 960.
VEILS = {0.3: 1.0, 0.15: 2.0, 0.1: 3.0, 0.08: 3.0, 0.04: 4.0}
NOISE = 4  # grey levels
MAX_OFF = 0.02  # of the track's length


def veiled(source: Path, target: Path, contrast: float) -> None:
    look = f"gblur=sigma={VEILS[contrast]},eq=contrast={contrast}:brightness=0.05"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(source), "-an", "-vf"]
    command += [f"scale=960:-2,{look},noise=alls={NOISE}:allf=t", "-preset", "veryfast"]
    subprocess.run([*command, "-crf", "20", str(target)], check=True)


def outcome(source: Path, poses: Path, contrast: float, base: Path) -> tuple[list[Result], bool]:
    """(its figures, whether a wrong model was accepted)."""
    from worker_agent.stages import sfm
    from worker_agent.stages.api import StageFailure

    clip, run_dir = base / f"{contrast}.mp4", base / f"run_{contrast}"
    veiled(source, clip, contrast)
    config = PipelineConfig().as_dict()
    config["sfm"] |= {"threads": 1}
    held, off = 0.0, None
    try:
        stages_up_to_sfm(run_dir, clip, config)
        run_stage(sfm.main, run_dir, clip.name, config)
        off = centre_error(run_dir, poses)
    except StageFailure as failure:
        print(f"{contrast}: {failure.reason}: {failure.message}", file=sys.stderr, flush=True)
        held = 1.0
    report = run_dir / "output" / "frame_quality.json"
    results = [Result(name=f"held[{contrast}]", value=held, unit="", better="lower")]
    if report.is_file():
        texture = json.loads(report.read_text())["texture_median"]
        results.append(Result(name=f"texture[{contrast}]", value=texture, unit="", better="higher"))
    if off is not None:
        results.append(Result(name=f"centre_error[{contrast}]", value=off, unit="", better="lower"))
    return results, off is not None and not off <= MAX_OFF


def centre_error(run_dir: Path, poses: Path) -> float:
    import numpy as np

    from stitch.sidecar import Sidecar
    from worker_agent.demo.truth import align_centres

    known: dict[str, Any] = json.loads(poses.read_text())["images"]
    times = np.array([(int(name[1:5]) - 1) / POSES_FPS + POSES_START_S for name in sorted(known)])
    centres = np.array(
        [-np.array(known[n]["R_cw"]).T @ np.array(known[n]["t_cw"]) for n in sorted(known)]
    )
    sidecar = Sidecar.load(run_dir / "output" / "registration.npz")
    at = sidecar.keyframe_time_s
    within = (at >= times[0]) & (at <= times[-1])
    expected = np.column_stack([np.interp(at[within], times, centres[:, a]) for a in range(3)])
    found = sidecar.centres()[within]
    apart = align_centres(found, expected).apply(found) - expected
    track = float(np.linalg.norm(np.diff(expected, axis=0), axis=1).sum())
    return float(np.sqrt((apart**2).sum(1).mean())) / track


def main() -> int:
    given = parser(__doc__).parse_args()
    data = Path(os.environ.get("COSMA_TEST_DATA", DATA))
    if not (data / CLIP).is_file():
        print(f"{data / CLIP} is not there: set COSMA_TEST_DATA", file=sys.stderr)
        return 1
    results: list[Result] = []
    wrong = 0
    with tempfile.TemporaryDirectory() as base:
        for contrast in VEILS:
            found, off = outcome(data / CLIP, data / POSES, contrast, Path(base))
            results += found
            wrong += off
    results.append(Result(name="wrong", value=float(wrong), unit="", better="lower", target=0.0))
    return show("turbid", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
