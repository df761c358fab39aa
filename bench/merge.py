"""Gaussians in files: merged in bounded memory, PLY read and written beside other libraries.

`python -m bench.merge [--json] [--full]`

Members of one million gaussians of degree 3 (248 MB) lie in a row, each overlapping the next by
2 of 7 m; two of them are merged, with --full ten. Names:

merge_m_gaussians_per_cpu_s  millions of gaussians read, divided, turned, written, by CPU time
merge_peak_rss_mib           of the process that does it, with all it imported
merge_density                gaussians at the seams over those of a single capture
sh_rotation_error            largest error of a colour after 100 random turns, degrees 0 to 3
ply_read_over_fastest        CPU time from a file to contiguous arrays of its six fields, ours over
                             that of the faster of gsply and plyfile (the extra `bench`)
ply_write_over_fastest       the same from such arrays to a file; neither is told without a rival
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from bench.results import Result, parser, show
from stitch.gaussians import Gaussians
from stitch.merge import merge_gaussians
from stitch.ply import read_ply, write_ply
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3, sh_basis, transform_gaussians
from stitch.territory import Member

COUNT = 1_000_000
LENGTH_M, STEP_M = 7.0, 5.0
DEPTH_M = 2.0
OWN_FRAME = Sim3(
    0.7, Rotation.from_euler("xyz", [20, 30, 40], degrees=True).as_matrix(), np.ones(3)
)
FIELDS = ("means", "scales", "quats", "opacities", "sh0", "shN")


def strip(rng: np.random.Generator, count: int) -> Gaussians:
    """A strip of seabed, 7 x 3 m, in a frame of its own."""

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    ground = rng.uniform([0, -1.5, 0], [LENGTH_M, 1.5, 0.05], (count, 3)).astype(np.float32)
    made = Gaussians(
        ground, normal(count, 3), normal(count, 4), normal(count), normal(count, 3),
        normal(count, 15, 3),
    )  # fmt: skip
    return transform_gaussians(made, OWN_FRAME.inverse())


def member(number: int) -> Member:
    """The strip at its place in the row, with what its cameras saw."""
    pose = Sim3(1.0, np.eye(3), np.array([STEP_M * number, 0.0, 0.0])) @ OWN_FRAME
    rng = np.random.default_rng(number)
    points = rng.uniform([0, -1.5, 0], [LENGTH_M, 1.5, 0.05], (5000, 3))
    centres = np.stack([np.arange(0, LENGTH_M, 0.3)] * 3, axis=1) * [1, 0, 0] + [0, 0, DEPTH_M]
    back = OWN_FRAME.inverse()
    frames = len(centres)
    camera = Rotation.from_euler("x", 180, degrees=True) * Rotation.from_matrix(OWN_FRAME.rotation)
    sidecar = Sidecar(
        points=back.apply(points),
        descriptors=np.zeros((5000, 128)),
        track_length=np.full(5000, 3),
        error_px=np.ones(5000),
        rgb=np.zeros((5000, 3)),
        keyframe_names=tuple(f"f{i}" for i in range(frames)),
        keyframe_hashes=np.zeros(frames),
        keyframe_time_s=np.zeros(frames),
        rotations=np.tile(np.roll(camera.as_quat(), 1), (frames, 1)),
        translations=-camera.apply(back.apply(centres)),
        gravity=np.zeros((frames, 3)),
        gps=np.full((frames, 3), np.nan),
        quality={"median_depth": DEPTH_M / OWN_FRAME.scale},
    )
    return Member(f"S{number}", pose, sidecar)


def merge(folder: Path, members: int) -> None:
    """What the measured process does; prints CPU seconds, peak RSS in MiB and the density."""
    made = [member(number) for number in range(members)]
    began = time.process_time()
    merged = merge_gaussians(made, [folder / "strip.ply"] * members, folder / "scene.ply")
    cpu = time.process_time() - began
    # Not ru_maxrss, which begins at that of the process it was started from.
    status = Path("/proc/self/status").read_text()
    rss = int(status.split("VmHWM:")[1].split()[0]) / 1024
    density = statistics.mean(seam.density for seam in merged.seams)
    print(cpu, rss, density)


def merging(folder: Path, members: int) -> list[Result]:
    command = [sys.executable, "-m", "bench.merge", "--merge", str(folder), str(members)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cpu, rss, density = (float(word) for word in done.stdout.split())
    rate = members * COUNT / 1e6 / cpu
    return [
        Result(
            name="merge_m_gaussians_per_cpu_s", value=rate, unit="M/s", better="higher", target=0.5
        ),
        Result(name="merge_peak_rss_mib", value=rss, unit="MiB", better="lower", target=300),
        Result(name="merge_density", value=density, unit="x", better="lower", target=1.1),
        Result(name="merge_density_low", value=density, unit="x", better="higher", target=0.9),
    ]


def sh_error() -> float:
    """Colours of turned gaussians along turned directions, against those before."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for turn in range(100):
        degree = turn % 4
        made = strip(rng, 50)
        made = Gaussians(
            *(getattr(made, name) for name in FIELDS[:5]), made.shN[:, : (degree + 1) ** 2 - 1]
        )
        sim3 = Sim3(1.3, Rotation.random(random_state=turn).as_matrix(), np.zeros(3))
        directions = rng.normal(size=(60, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        colours = []
        for gaussians, seen in (
            (made, directions),
            (transform_gaussians(made, sim3), directions @ sim3.rotation.T),
        ):
            every = np.concatenate([gaussians.sh0[:, None], gaussians.shN], axis=1)
            colours.append(np.einsum("mk,nkc->nmc", sh_basis(seen, degree), every.astype(float)))
        # np.maximum, as max() would pass over what is not a number.
        worst = float(np.maximum(worst, np.abs(colours[0] - colours[1]).max()))
    return worst


def cpu_s(works: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that what else the machine does meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def arrays(source: Any) -> list[Any]:
    """The six arrays ready to compute with, so that a lazy reader has to do its work, too."""
    return [np.ascontiguousarray(getattr(source, name)) for name in FIELDS]


def ply_rivals(folder: Path, gaussians: Gaussians) -> list[Result]:
    source, target = folder / "strip.ply", folder / "copy.ply"
    readers: dict[str, Callable[[], object]] = {}
    writers: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("gsply"):
        import gsply

        data = gsply.GSData(**{name: getattr(gaussians, name) for name in FIELDS})
        readers["gsply"] = lambda: arrays(gsply.plyread(str(source)))
        writers["gsply"] = lambda: gsply.plywrite(str(target), data)
    if importlib.util.find_spec("plyfile"):
        import plyfile

        def read_all() -> object:
            table = plyfile.PlyData.read(str(source))["vertex"].data
            return [np.stack([table[name] for name in names], axis=1) for names in columns]

        def write_all() -> None:
            table = np.zeros(len(gaussians), [(n, "<f4") for names in columns for n in names])
            for field, names in zip(FIELDS, columns, strict=True):
                values = getattr(gaussians, field)
                values = values.transpose(0, 2, 1) if field == "shN" else values
                for index, name in enumerate(names):
                    table[name] = values.reshape(len(values), -1)[:, index]
            element = plyfile.PlyElement.describe(table, "vertex")
            plyfile.PlyData([element]).write(str(target))

        columns = [
            ["x", "y", "z"],
            *([f"{name}_{i}" for i in range(n)] for name, n in (("scale", 3), ("rot", 4))),
            ["opacity"],
            *([f"{name}_{i}" for i in range(n)] for name, n in (("f_dc", 3), ("f_rest", 45))),
        ]
        readers["plyfile"], writers["plyfile"] = read_all, write_all
    results = []
    own: dict[str, Callable[[], object]] = {
        "read": lambda: arrays(read_ply(source)),
        "write": lambda: write_ply(target, gaussians),
    }
    for what, rivals in (("read", readers), ("write", writers)):
        if not rivals:
            continue
        taken = cpu_s({"cosma": own[what], **rivals})
        for name, seconds in taken.items():
            results.append(
                Result(name=f"ply_{what}_cpu_s.{name}", value=seconds, unit="s", better="lower")
            )
        fastest = min(seconds for name, seconds in taken.items() if name != "cosma")
        results.append(
            Result(
                name=f"ply_{what}_over_fastest",
                value=taken["cosma"] / fastest,
                unit="x",
                better="lower",
                target=1.0,
            )
        )
    return results


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--full", action="store_true", help="ten members")
    options.add_argument("--merge", nargs=2, metavar=("DIR", "N"), help="the measured process")
    given = options.parse_args()
    if given.merge:
        merge(Path(given.merge[0]), int(given.merge[1]))
        return 0
    error = sh_error()
    results = [Result(name="sh_rotation_error", value=error, unit="", better="lower", target=1e-5)]
    with tempfile.TemporaryDirectory(prefix="cosma-bench-") as name:
        folder = Path(name)
        gaussians = Gaussians(*arrays(strip(np.random.default_rng(0), COUNT)))
        write_ply(folder / "strip.ply", gaussians)
        results += ply_rivals(folder, gaussians)
        del gaussians
        results += merging(folder, 10 if given.full else 2)
    return show("merge", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
