"""Messages about files that cross in blocks: all that `take` needs.

Apart from worker_agent.protocol because every stream of blocks begins with importing it. Stdlib
only.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker_agent.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport(Message):
    path: str
    bytes: int  # verified bytes that lie there now (of the .part file while incomplete)
    sha256: str | None  # of the whole file, once complete
    complete: bool
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivedRequest(Message):
    """`arrived`: how much is here of a file that another transfer brings."""

    run_dir: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRequest(Message):
    """First line on the stdin of `take`. It replies with a TransferReport as soon as blocks may
    come, and with an Arrived if it is to `compare`; then Blocks follow."""

    run_dir: str
    path: str
    bytes: int
    algorithms: tuple[str, ...]  # that whoever sends can compute; "sha256" is always one
    compare: bool = True
    shared: bool = False  # with other streams of the same file; none of them completes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Message):
    """Bytes that are here prove nothing: the digests are to be compared with the file's own."""

    published: bool  # a file of that size has the name; else all is said of its .part file
    algorithm: str  # the fastest that both sides have, for the blocks, too
    digests: tuple[str, ...]  # hex, of the blocks from the first on, as far as they are whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Message):
    """One line before the raw bytes of a block. With `bytes` 0 it is the last: `digest` is then
    that of all blocks' digests in their order, and the file is complete if it agrees."""

    offset: int
    bytes: int
    digest: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveRequest(Message):
    """First line on the stdin of `give`, which replies with Blocks: those of the file that are not
    the same at whoever asks, and the last one."""

    path: str = ""  # absolute; where a key limits what may be read, that decides
    bytes: int
    algorithm: str
    digests: tuple[str, ...]  # hex, of what is there already
    bytes_s: float = 0.0  # not to be exceeded; 0: as fast as it goes
