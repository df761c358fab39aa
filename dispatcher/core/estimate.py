"""How much work a segment will be, before any of its frames exists. Pure.

Where nobody could look into a clip (a remote source, no ffprobe here) its bytes tell its length, at
the rate of a camera of this kind; Validation and FrameExtraction correct what was assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ASSUMED_BITS_S = 60e6  # GoPro at 4K and 30 pictures a second, standard bit rate
ASSUMED_SIZE = (3840, 2160)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSize:
    """Of one clip; None where it was not looked into."""

    bytes: int
    seconds: float | None = None
    width: int | None = None
    height: int | None = None


def frames_of(clips: Iterable[ClipSize], fps: float) -> int:
    """At least one a clip, as extraction takes them."""
    seconds = (
        clip.seconds if clip.seconds is not None else clip.bytes * 8 / ASSUMED_BITS_S
        for clip in clips
    )
    return sum(max(1, int(length * fps)) for length in seconds)


def pixels_of(clips: Iterable[ClipSize], width: int | None, height: int | None) -> int:
    """Of one frame: the source's shape inside the box asked for, never larger than the source."""
    for clip in clips:
        source = (clip.width, clip.height) if clip.width and clip.height else ASSUMED_SIZE
        across, down = float(source[0] or 0), float(source[1] or 0)
        scale = min(1.0, (width or across) / across, (height or down) / down)
        return max(1, round(across * scale) * round(down * scale))
    return 0
