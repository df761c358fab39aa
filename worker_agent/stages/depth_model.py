"""A monocular depth model in an ONNX file, run on the CPU: one picture in, one map out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure

__all__ = ["DepthModel"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_MULTIPLE = 14  # pixels of a patch of the vision transformers that such models are
_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class DepthModel:
    """Models with one input (1, 3, H, W), RGB, and a first output of one map, such as
    Depth-Anything-V2 exports."""

    def __init__(
        self,
        path: Path,
        *,
        side: int,
        mean: Sequence[float],
        deviation: Sequence[float],
        threads: int,
    ) -> None:
        """`side`: of the shorter side of its input, where the model takes any; `mean` and
        `deviation` of the colours in [0, 1]. Raises StageFailure: TOOL_MISSING, CONFIG_INVALID."""
        try:
            import onnxruntime
        except ImportError as error:
            raise StageFailure(
                FailureCode.TOOL_MISSING,
                f"depth.model is set, but onnxruntime is not on this host ({error})",
                advice="Run cosma worker bootstrap for this host, or leave depth.model out.",
            ) from None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unusable(path, str(error.strerror), "Put the file on the host.") from None
        self.sha256 = hashlib.sha256(data).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            # By its path: its weights may lie in a second file beside it.
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for each kind of fault
            raise _unusable(path, _line(error), "See that it is a whole ONNX model.") from None
        self._path, self._session = path, session
        given = session.get_inputs()
        if len(given) != 1 or len(given[0].shape) != 4 or given[0].type not in _KINDS:
            what = ", ".join(f"{one.name} {one.type} {one.shape}" for one in given)
            advice = "It must have one input of floats (1, 3, H, W)."
            raise _unusable(path, f"its inputs are {what}", advice)
        self._name, self._kind = given[0].name, _KINDS[given[0].type]
        self._fixed = [n if isinstance(n, int) and n > 0 else None for n in given[0].shape[2:]]
        self._side = side
        self._mean, self._deviation = (np.asarray(v, np.float32) for v in (mean, deviation))

    def predict(self, picture: U8) -> F32:
        """(H, W) of what the model says for `picture` (H, W, 3), at its size.

        Raises StageFailure CONFIG_INVALID when the model does not run or gives no map."""
        height, width = picture.shape[:2]
        scale = self._side / min(height, width)
        high, wide = (
            fixed or max(_MULTIPLE, _MULTIPLE * round(scale * length / _MULTIPLE))
            for fixed, length in zip(self._fixed, (height, width), strict=True)
        )
        resized = Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC)
        colours = (np.asarray(resized, np.float32) / 255.0 - self._mean) / self._deviation
        fed = np.ascontiguousarray(colours.transpose(2, 0, 1)[None]).astype(self._kind)
        try:
            said: Any = np.asarray(self._session.run(None, {self._name: fed})[0], np.float32)
        except Exception as error:
            raise _unusable(self._path, _line(error), "See what input it needs.") from None
        said = said.squeeze()
        if said.ndim != 2:
            advice = "Its first output must be one map."
            raise _unusable(self._path, f"its first output is {said.shape}", advice)
        back = Image.fromarray(said).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(back, np.float32)


def _unusable(path: Path, why: str, advice: str) -> StageFailure:
    return StageFailure(
        FailureCode.CONFIG_INVALID, f"depth.model {path} cannot be used: {why}", advice=advice
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
