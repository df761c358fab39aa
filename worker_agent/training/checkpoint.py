"""Checkpoints of a training run: written atomically, restored bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 4


class CheckpointUnusable(ValueError):
    """The file cannot be resumed from; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Size:
    """What of a plan is made smaller when memory runs out; training goes on all the same."""

    cap: int
    width: int
    pixels: str  # digest of the images, masks and depths at that width


def changed(before: Size, now: Size) -> str | None:
    """In words; None: nothing. Raises CheckpointUnusable for other images of the same width."""
    if before == now:
        return None
    if before.width == now.width and before.pixels != now.pixels:
        raise CheckpointUnusable("its checkpoint was made from other images")
    words = []
    if before.cap != now.cap:
        words.append(f"at most {now.cap} gaussians instead of {before.cap}")
    if before.width != now.width:
        words.append(f"images {now.width} pixels wide instead of {before.width}")
    return " and ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State after `step` steps. Random numbers are drawn from the seed and the step alone (see
    `strategy` and `trainer`), so the step is the state of the generators too."""

    step: int
    identity: str  # of the data and the settings; another run's checkpoint is refused
    size: tuple[int, int, str]  # a Size
    parameters: dict[str, Tensor]
    adam: dict[str, Any]
    strategy: dict[str, Any]
    exposure: dict[str, Any]  # empty: not learned
    medium: dict[str, Any]  # likewise
    history: list[float]  # held-out SSIM at the checks so far
    seconds: float  # of training up to here, over all attempts


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Temp file, fsync, rename, fsync of the directory: a kill at any time leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    fields = {name: getattr(checkpoint, name) for name in checkpoint.__slots__}
    with temporary.open("wb") as stream:
        torch.save({"format": FORMAT, **fields}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_checkpoint(path: Path, identity: str) -> Checkpoint | None:
    """None when there is no file. Tensors come back on the CPU.

    Raises CheckpointUnusable when the file is damaged or belongs to other data or settings.
    """
    if not path.exists():
        return None
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        summary = " ".join(str(error).split())[:120]
        raise CheckpointUnusable(f"{path}: damaged: {summary}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CheckpointUnusable(f"{path}: not a training checkpoint of format {FORMAT}")
    if data.get("identity") != identity:
        raise CheckpointUnusable(f"{path}: made from other frames, model or settings")
    try:
        return Checkpoint(**data)
    except TypeError as error:
        raise CheckpointUnusable(f"{path}: incomplete: {error}") from None
