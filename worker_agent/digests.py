"""Digests of blocks that cross a link: XXH3 by the system's own library, else SHA-256.

SSH has authenticated every byte; a digest is for what disks, memory and offsets do to them. XXH3
costs a thirtieth of SHA-256 (docs/decisions/0004). Stdlib only: libxxhash comes with rsync and apt.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

Digest = Callable[[bytearray | memoryview], bytes]
XXH3, SHA256 = "xxh3_128", "sha256"
_LIBRARY = "libxxhash.so.0"
_FROM = 800  # the version from which XXH3 keeps its values


class _Hash128(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


def available() -> tuple[str, ...]:
    """What this host can compute, the fastest first."""
    return (SHA256,) if _xxh3() is None else (XXH3, SHA256)


def digest_by(algorithm: str) -> Digest:
    """Raises RefusedError (bad_request) for one that this host lacks."""
    found = _xxh3() if algorithm == XXH3 else _sha256 if algorithm == SHA256 else None
    if found is None:
        from worker_agent.refusal import RefusedError

        raise RefusedError("bad_request", f"this host has no digest {algorithm!r}")
    return found


def _sha256(block: bytearray | memoryview) -> bytes:
    import hashlib

    return hashlib.sha256(block).digest()


@cache
def _xxh3() -> Digest | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
        version, function = library.XXH_versionNumber, library.XXH3_128bits
    except (OSError, AttributeError):
        return None
    if version() < _FROM:
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    function.restype = _Hash128

    def digest(block: bytearray | memoryview) -> bytes:
        """The canonical form: the high half first. `block` must be writable memory."""
        length = len(block)
        pinned = (ctypes.c_char * length).from_buffer(block)
        found = function(ctypes.addressof(pinned), length)
        half: int = found.high
        return half.to_bytes(8, "big") + int(found.low).to_bytes(8, "big")

    return digest
