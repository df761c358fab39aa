"""Which decoder the pictures of a clip come from: that of a promised GPU, or the CPU.

ffmpeg copies what NVDEC decodes back into ordinary frames (NV12, P010) before its filters, which
give the same pixels from those as from a CPU's planes, as long as no format is asked for in
between: that would lose the range of the picture. Measured on full-range H.264 and 10-bit HEVC.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from typing import Literal

from worker_agent.messages import AttemptSpec

__all__ = ["Decoder", "decoder_for", "hwaccels"]

Decoder = Literal["cuda", "cpu"]
# By ffprobe's names; with any other, ffmpeg would decode on the CPU without a word.
_NVDEC = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "vc1"}
)


def decoder_for(codec: str, gpu_kind: str, gpu: str | None, offered: Collection[str]) -> Decoder:
    """`offered`: what ffmpeg can use. Where no session of a GPU is promised, `gpu` is None."""
    on_gpu = gpu is not None and gpu_kind == "cuda" and "cuda" in offered and codec in _NVDEC
    return "cuda" if on_gpu else "cpu"


def hwaccels(spec: AttemptSpec) -> frozenset[str]:
    """What ffmpeg on this host was built with; not asked where no GPU is promised."""
    if spec.gpu is None:
        return frozenset()
    try:
        asked = subprocess.run(
            ["ffmpeg", "-hide_banner", "-hwaccels"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return frozenset()  # decoding itself says what is wrong with it
    return frozenset(line.strip() for line in asked.stdout.splitlines()[1:] if line.strip())
