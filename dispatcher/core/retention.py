"""What of the artifact store nobody refers to any more, and since when. Pure.

Only what is referred to by nothing is ever found: not by a job (in whatever state), not by a
stitch or what it was made of, not by a run on record, not by an attempt or a collection under way,
not by a name in the directory. What is left was superseded (a job was run again and made other
bytes), or is a remainder of something that was broken off. It goes once it has been so for the
retention's length. So does what attempts of an ended job printed, as far as the database has it: of
one that is done only when its log lies with its results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# What is younger may be on its way to its row in the database, whatever the retention is.
SETTLING_S = 3600.0
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Sort(StrEnum):
    OBJECT = "object"  # content, by its hash
    NAME = "name"  # a readable name
    REMAINDER = "remainder"  # of something broken off: *.part and the like
    REMOTE = "remote_object"  # content in the object store
    LOG = "log"  # what a job's attempts printed, in the database


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One file of the artifact directory, one object of the object store, or one job's log."""

    sort: Sort
    where: str  # path or URL
    bytes: int
    age_s: float  # since it was written, since it last gained or lost a name, or the job ended
    sha256: str = ""  # of an object
    named: bool = False  # an object that some name still leads to, whosever it is
    job: str = ""  # whose directory it lies in; "" for an object, and what was to become one


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    hashes: frozenset[str]
    paths: frozenset[str]
    settled_jobs: frozenset[str]  # in the directories of all others something may be under way
    unkept_logs: frozenset[str]  # jobs that are done, without a log among their results


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    stored: Stored
    why: str


def hashes_in(texts: Iterable[str]) -> frozenset[str]:
    """All SHA-256 that are named in what was written down: of runs, stitches, inputs."""
    return frozenset(found for text in texts for found in _SHA256.findall(text))


def garbage(found: Iterable[Stored], known: References, keep_s: float) -> list[Garbage]:
    """What may go now, names before what they name."""
    old = [one for one in found if one.age_s >= max(keep_s, SETTLING_S)]
    gone = [Garbage(stored=one, why=why) for one in old if (why := _why(one, known)) is not None]
    return sorted(gone, key=lambda g: (g.stored.sort in (Sort.OBJECT, Sort.REMOTE), g.stored.where))


def _why(one: Stored, known: References) -> str | None:
    """Why nobody needs it; None: somebody may."""
    days = f"for {one.age_s / 86_400:.1f} days"
    if one.sort in (Sort.OBJECT, Sort.REMOTE):
        kept = one.named or one.sha256 in known.hashes
        return None if kept else f"no job, stitch or run has had it {days}"
    if one.where in known.paths or (one.job and one.job not in known.settled_jobs):
        return None
    if one.sort is Sort.LOG:
        return None if one.job in known.unkept_logs else f"{one.job} has been over {days}"
    if one.sort is Sort.REMAINDER:
        return f"left by something that was broken off, untouched {days}"
    return f"{one.job} has no such result any more, {days}"
