"""The stages: which module runs each, and what its result depends on. Stdlib only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_agent.messages import AttemptSpec
from worker_agent.version import AGENT_VERSION

_FFMPEG = "ffmpeg"  # a program, the other tools are distributions


@dataclass(frozen=True, slots=True)
class StageEntry:
    """`config` are the sections of the pipeline config, and `tools` the programs and
    distributions, that decide what the stage makes."""

    module: str
    config: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


# In the order they run; each builds on the one before it.
RECONSTRUCT: Mapping[str, StageEntry] = {
    "Validation": StageEntry("validate", ("frames",), (_FFMPEG,)),
    "FrameExtraction": StageEntry("frames", ("frames",), (_FFMPEG,)),
    "MetadataExtraction": StageEntry("metadata", (), (_FFMPEG,)),
    "ManifestGeneration": StageEntry("manifest", ("frames", "sfm"), ()),
    "ColmapReconstruction": StageEntry("sfm", ("sfm", "depth"), ("pycolmap", "onnxruntime")),
    "Training": StageEntry(
        "train", ("train", "reconstruct"), ("torch", "gsplat", "numba", "pycolmap")
    ),
    "PlyExport": StageEntry("export_ply", ("mesh",)),
    "SplatExport": StageEntry("export_splat", ("verdict",)),
}
STITCH: Mapping[str, StageEntry] = {
    "Stitch": StageEntry("stitch_scene", ("stitch",), ("numpy", "scipy", "pycolmap", "gtsam")),
}
STAGES: Mapping[str, StageEntry] = {**RECONSTRUCT, **STITCH}
ORDER = tuple(RECONSTRUCT)


def tool_versions(entry: StageEntry) -> dict[str, str]:
    """{tool: version}, "absent" for what is not installed; with cosma's own version."""
    return {"cosma": AGENT_VERSION, **{tool: _version(tool) for tool in entry.tools}}


def _version(tool: str) -> str:
    # Here, because a stage that depends on no tool need not wait for these imports.
    import subprocess
    from importlib import metadata

    if tool == _FFMPEG:
        try:
            answer = subprocess.run(
                [_FFMPEG, "-version"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return "absent"
        return answer.stdout.partition("\n")[0]
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return "absent"


def feed_forward(config: Mapping[str, Any]) -> bool:
    """Whether what makes the result reads pictures only: then there are no poses to find."""
    return bool(config.get("reconstruct", {}).get("backend") == "lingbot-map")


def declared_inputs(spec: AttemptSpec, run_dir: Path) -> dict[str, Any]:
    """What the stage is made from, as far as it is declared.

    Source videos count by their declaration only: they are removed once their frames are
    verified, and that must not undo the stages that read them. The members of a stitch count by
    content, because a member that was made anew keeps its name.
    """
    value: dict[str, Any] = {"declared": spec.inputs}
    if spec.stage in STITCH:
        files = {
            str(member[key])
            for member in spec.inputs.get("members", [])
            for key in ("ply", "registration")
            if isinstance(member, dict) and isinstance(member.get(key), str)
        }
        value["files"] = {name: _digest(run_dir / name) for name in sorted(files)}
    if spec.stage == "ColmapReconstruction":
        value["left_out"] = feed_forward(spec.config)
    if spec.stage == "Training":
        value["gpu_kind"] = spec.gpu_kind  # the two kinds train by different plans
    return value


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "absent"
