"""NVIDIA's management library, called by its C interface: GPUs, who uses them, and how much.

Runs as a child process (`command`), never in the agent itself: a call into a driver that hangs
does not come back. stdlib only, so that a host can be asked before anything is installed there;
what only one use needs is imported there, as half of the child's time is imports.
Structures and constants: nvml.h of CUDA 12; docs/decisions/0003 says why not through a library.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_uint, c_ulonglong, c_void_p
from typing import Any

# Where the loader does not find it by its name (NixOS, a driver in a place of its own).
LIBRARY_VARIABLE = "COSMA_NVML_LIBRARY"
LIBRARY = "libnvidia-ml.so.1"

SAMPLE_S = 0.2  # of `watch`: one look costs the driver below a millisecond
_RECENT_S = 5.0  # who decoded since then is taken to decode still
_MIB = 1 << 20

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 3, 4, 6, 7
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, OTHER_VERSION = 9, 12, 13, 25
# A list that is not to be had: MIG and vGPU may not offer it, an administrator may withhold it.
_WITHHELD = (NOT_SUPPORTED, NO_PERMISSION)
_NOT_AVAILABLE = (1 << 64) - 1
_TEXT_BYTES = 96  # of a UUID and of a name; NVML_DEVICE_UUID_V2_BUFFER_SIZE

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from worker_agent import nvml; nvml.main()"
)


class Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", c_uint),
        ("total", c_ulonglong),
        ("reserved", c_ulonglong),
        ("free", c_ulonglong),
        ("used", c_ulonglong),
    )


class Process(ctypes.Structure):
    """nvmlProcessInfo_t of the functions _v2 and _v3."""

    _fields_ = (
        ("pid", c_uint),
        ("used", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


class Utilization(ctypes.Structure):
    """nvmlProcessUtilizationSample_t."""

    _fields_ = (
        ("pid", c_uint),
        ("time_us", c_ulonglong),
        ("sm", c_uint),
        ("memory", c_uint),
        ("encoder", c_uint),
        ("decoder", c_uint),
    )


class Attributes(ctypes.Structure):
    """nvmlDeviceAttributes_t, of a MIG instance."""

    _fields_ = (
        ("multiprocessors", c_uint),
        ("copy_engines", c_uint),
        ("decoders", c_uint),
        ("encoders", c_uint),
        ("jpeg", c_uint),
        ("ofa", c_uint),
        ("gpu_slices", c_uint),
        ("compute_slices", c_uint),
        ("memory_mb", c_ulonglong),
    )


class NvmlError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Nvml:
    """The library, initialised. Raises NvmlError, as every method does."""

    def __init__(self) -> None:
        path = os.environ.get(LIBRARY_VARIABLE) or LIBRARY
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise NvmlError(LIBRARY_NOT_FOUND, f"{path}: {error}") from None
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(FUNCTION_NOT_FOUND, f"the driver has no {name}") from None
        function.restype = ctypes.c_int
        code = function(*arguments)
        if code:
            raise NvmlError(code, f"{self._text(code)} ({name})")

    def _text(self, code: int) -> str:
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        text = function(code)
        return text.decode(errors="replace") if text else f"error {code}"

    def count(self) -> int:
        """GPUs, also those that do not work or that this user may not open."""
        return self._number("nvmlDeviceGetCount_v2")

    def device(self, index: int) -> c_void_p:
        return self._handle("nvmlDeviceGetHandleByIndex_v2", c_uint(index))

    def by_uuid(self, uuid: str) -> c_void_p:
        return self._handle("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()))

    def instances(self, device: c_void_p) -> list[c_void_p] | None:
        """The MIG instances of a GPU; None where MIG is off or unknown."""
        current, pending = c_uint(), c_uint()
        try:
            self.call("nvmlDeviceGetMigMode", device, byref(current), byref(pending))
        except NvmlError as error:
            if error.code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND):
                return None
            raise
        if not current.value:
            return None
        found = []
        for index in range(self._number("nvmlDeviceGetMaxMigDeviceCount", device)):
            try:
                name = "nvmlDeviceGetMigDeviceHandleByIndex"
                found.append(self._handle(name, device, c_uint(index)))
            except NvmlError as error:
                if error.code != NOT_FOUND:  # a place that no instance takes
                    raise
        return found

    def uuid(self, device: c_void_p) -> str:
        return self._string("nvmlDeviceGetUUID", device)

    def name(self, device: c_void_p) -> str:
        return self._string("nvmlDeviceGetName", device)

    def memory(self, device: c_void_p) -> tuple[int, int, int]:
        """Bytes: (total, free, reserved by the driver); total = reserved + used + free."""
        newer = MemoryV2(version=ctypes.sizeof(MemoryV2) | 2 << 24)
        try:
            self.call("nvmlDeviceGetMemoryInfo_v2", device, byref(newer))
        except NvmlError as error:
            if error.code not in (FUNCTION_NOT_FOUND, NOT_SUPPORTED, OTHER_VERSION):
                raise
            older = Memory()
            self.call("nvmlDeviceGetMemoryInfo", device, byref(older))
            return older.total, older.free, 0
        return newer.total, newer.free, newer.reserved

    def processes(self, device: c_void_p) -> dict[int, int | None]:
        """pid -> bytes, None where the driver does not tell. A process may be listed as of
        several kinds, each time with all that it uses."""
        found: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            for row in self._users(kind, device):
                used = None if row.used == _NOT_AVAILABLE else row.used
                known = found.get(row.pid)
                found[row.pid] = used if known is None else max(known, used or 0)
        return found

    def _users(self, kind: str, device: c_void_p) -> list[Process]:
        name = self._newest(f"nvmlDeviceGet{kind}RunningProcesses")
        try:
            return self._rows(Process, lambda rows, count: self.call(name, device, count, rows))
        except NvmlError as error:
            if error.code in _WITHHELD or (error.code == FUNCTION_NOT_FOUND and kind != "Compute"):
                return []
            raise

    def decoding(self, device: c_void_p) -> set[int]:
        """Processes that used the video decoder in the last seconds, where the GPU tells."""
        since = c_ulonglong(int((time.time() - _RECENT_S) * 1e6))
        name = "nvmlDeviceGetProcessUtilization"
        try:
            rows = self._rows(
                Utilization, lambda rows, count: self.call(name, device, rows, count, since)
            )
        except NvmlError:
            return set()  # a MIG instance, an old GPU, or nothing ran
        return {row.pid for row in rows if row.decoder}

    def decoder_percent(self, device: c_void_p) -> int:
        percent, period = c_uint(), c_uint()
        try:
            self.call("nvmlDeviceGetDecoderUtilization", device, byref(percent), byref(period))
        except NvmlError:
            return 0
        return percent.value

    def encoder_sessions(self, device: c_void_p) -> int:
        count, fps, latency = c_uint(), c_uint(), c_uint()
        try:
            name = "nvmlDeviceGetEncoderStats"
            self.call(name, device, byref(count), byref(fps), byref(latency))
        except NvmlError:
            return 0
        return count.value

    def has_decoder(self, instance: c_void_p) -> bool:
        """Whether a MIG instance has a share of the decoders; the small ones have none."""
        attributes = Attributes()
        try:
            self.call("nvmlDeviceGetAttributes_v2", instance, byref(attributes))
        except NvmlError:
            return False
        return bool(attributes.decoders)

    def _number(self, name: str, *arguments: Any) -> int:
        value = c_uint()
        self.call(name, *arguments, byref(value))
        return value.value

    def _handle(self, name: str, *arguments: Any) -> c_void_p:
        handle = c_void_p()
        self.call(name, *arguments, byref(handle))
        return handle

    def _string(self, name: str, device: c_void_p) -> str:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        self.call(name, device, text, c_uint(_TEXT_BYTES))
        return text.value.decode(errors="replace")

    def _newest(self, name: str) -> str:
        """Both versions fill the same structure; only the older one may be there."""
        return f"{name}_v3" if hasattr(self._library, f"{name}_v3") else f"{name}_v2"

    def _rows(self, kind: Any, fill: Callable[[Any, Any], None]) -> list[Any]:
        """What `fill(rows, count)` fills in; asked again with more room while that is too small."""
        room = 0
        while True:
            rows, count = (kind * room)(), c_uint(room)
            try:
                fill(rows if room else None, byref(count))
            except NvmlError as error:
                if error.code != INSUFFICIENT_SIZE:
                    raise
                room = count.value + 8
                continue
            return list(rows[: count.value])


def read(nvml: Nvml, index: int) -> list[dict[str, Any]]:
    """The devices of one GPU: itself, or its MIG instances. Memory in MiB."""
    device = nvml.device(index)
    instances = nvml.instances(device)
    if instances is None:
        return [_reading(nvml, device, parent="")]
    parent = nvml.uuid(device)
    if not instances:
        raise NvmlError(NOT_FOUND, f"{parent} is in MIG mode and has no instance (nvidia-smi mig)")
    return [_reading(nvml, instance, parent=parent) for instance in instances]


def _reading(nvml: Nvml, device: c_void_p, *, parent: str) -> dict[str, Any]:
    total, free, reserved = nvml.memory(device)
    used = nvml.processes(device)
    decoding = nvml.decoding(device)
    return {
        "uuid": nvml.uuid(device),
        "name": nvml.name(device),
        "total_mib": total // _MIB,
        "free_mib": free // _MIB,
        "reserved_mib": reserved // _MIB,
        "parent": parent,
        "uses": [
            [pid, None if mib is None else -(-mib // _MIB), pid in decoding]
            for pid, mib in sorted(used.items())
        ],
        "has_decoder": nvml.has_decoder(device) if parent else True,
        "decoder_percent": nvml.decoder_percent(device),
        "encoder_sessions": nvml.encoder_sessions(device),
    }


def watch(nvml: Nvml, uuid: str, cookie: str) -> None:
    """Print the peak of what an attempt's processes use of a GPU whenever it rises, in MiB,
    until it is killed."""
    from worker_agent import processes

    device = nvml.by_uuid(uuid)
    peak = 0
    while True:
        used = nvml.processes(device)
        own = [mib for pid, mib in used.items() if processes.cookie_of(pid) == cookie]
        now = sum(mib or 0 for mib in own)
        if None in own and len(own) == len(used):  # all there is on the GPU is the attempt's
            total, free, reserved = nvml.memory(device)
            now = max(now, total - free - reserved)
        if now > peak:
            peak = now
            _say(-(-peak // _MIB))
        time.sleep(SAMPLE_S)


def _say(message: Any) -> None:
    print(json.dumps(message), flush=True)


def command(*words: str) -> list[str]:
    """The child that runs `main` with these words, from wherever this code lies."""
    from worker_agent import version

    code = version.archive_path() or version.code_root()
    return [sys.executable, "-I", "-S", "-c", _BOOT, str(code), *words]


def main() -> None:
    """`list [SKIP...]`: all GPUs but these indexes, a line for each, after one with their number;
    `one INDEX`; `watch UUID COOKIE`. A failure is a line {"error": text, "code": NVML's}."""
    verb, *words = sys.argv[1:]
    try:
        nvml = Nvml()
        if verb == "watch":
            watch(nvml, *words)
        wanted = range(nvml.count()) if verb == "list" else [int(words[0])]
        if verb == "list":
            _say({"count": len(wanted)})
    except NvmlError as error:
        _say({"error": str(error), "code": error.code})
        return
    for index in wanted:
        if verb == "list" and str(index) in words:
            continue
        try:
            _say({"index": index, "gpus": read(nvml, index)})
        except NvmlError as error:
            _say({"index": index, "error": str(error)})
