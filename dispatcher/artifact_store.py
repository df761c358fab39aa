"""Where collected results lie: a directory, `<root>/<acquisition>/<job>/<file>`.

Those are names; what they name lies once for each content, under `<root>/.objects` by its SHA-256.
A name is a hard link to its object, so that it can be copied, moved and served like any file; where
the file system cannot link, it is a symbolic link. An object comes into being whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from dispatcher.executors.transfer import file_sha256

# Small or final results come back; frames, features and training state stay on the host.
COLLECTED_KINDS = frozenset(
    {
        "validation",
        "metadata",
        "manifest",
        "sfm_report",
        "registration",
        "depth_maps",
        "training_report",
        "preview",
        "ply",
        "mesh",
        "splat",
        "stitch_report",
        "stitch_masks",
        "stitch_edges",
        "stitch_graph",
        "ply_part",
        "orthomosaic",
        "height_map",
        "world_file",
        "tiles",
    }
)
CHECKPOINT = "output/.checkpoint.json"
LOG = "output/job.log"  # of all attempts, as the hosts sent it: it never lay on one
# With what the collection itself adds.
KEPT_KINDS = COLLECTED_KINDS | {"checkpoint", "log"}
OBJECTS = ".objects"

# No hard links there at all, or no more to this file.
_CANNOT_LINK = (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    root: Path

    def directory(self, acquisition: str, job: str) -> Path:
        return self.root / acquisition / job

    def path(self, acquisition: str, job: str, relative: str) -> Path:
        """Local path of a file that lies at `relative` in the run directory.

        Raises ValueError for a path that would leave the job's directory.
        """
        parts = [part for part in relative.split("/") if part not in ("", ".")]
        if not parts or relative.startswith("/") or ".." in parts:
            raise ValueError(f"not a path inside a run directory: {relative!r}")
        kept = parts[1:] if parts[0] == "output" and len(parts) > 1 else parts
        return Path(self.root, acquisition, job, *kept)

    def object_path(self, sha256: str) -> Path:
        return self.root.joinpath(OBJECTS, sha256[:2], sha256)

    def offer(self, local: Path, sha256: str, size: int) -> bool:
        """Name the object `local` if there is one of this size, so that nothing has to be sent.
        It is still to be verified. Raises OSError."""
        target = self.object_path(sha256)
        try:
            if target.stat().st_size != size:
                return False
        except FileNotFoundError:
            return False
        if not _same(local, target):
            local.parent.mkdir(parents=True, exist_ok=True)
            _name(target, local)
        return True

    def holds(self, sha256: str) -> bool:
        """Whether the object is there and is what it should be: it is read. Raises OSError."""
        target = self.object_path(sha256)
        return target.is_file() and file_sha256(target) == sha256

    def keep(self, local: Path, sha256: str) -> None:
        """Make of `local`, a whole and durable file of this content, a name of its object. Nothing
        changes for one that is. Raises OSError."""
        target = self.object_path(sha256)
        local.chmod(0o444)  # a change of one name would change all
        try:
            _link_new(local, target)  # nearly always
            return
        except OSError as error:
            if error.errno != errno.EEXIST and error.errno not in _CANNOT_LINK:
                raise
        if _same(local, target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.holds(sha256):
            _name(target, local)
            return
        try:
            _link(local, target)  # also in place of an object that was damaged
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            local.replace(target)
            sync(target.parent)
            _name(target, local)

    def take(self, file: Path, local: Path, sha256: str) -> bool:
        """A copy of `file`, from anywhere, under the name `local`; False, and nothing is there,
        when it is not of this content (any more). Raises OSError."""
        if self.holds(sha256):
            return self.offer(local, sha256, file.stat().st_size)
        local.parent.mkdir(parents=True, exist_ok=True)
        fresh = _fresh(local)
        try:
            shutil.copyfile(file, fresh)
            if file_sha256(fresh) != sha256:
                return False
            put_in_place(fresh, local)
        finally:
            fresh.unlink(missing_ok=True)
        self.keep(local, sha256)
        return True


def write_whole(local: Path, content: bytes) -> None:
    """Durably, and not again where it is the same. Raises OSError."""
    if local.is_file() and file_sha256(local) == hashlib.sha256(content).hexdigest():
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    fresh = _fresh(local)
    fresh.write_bytes(content)
    put_in_place(fresh, local)


def put_in_place(fresh: Path, local: Path) -> None:
    """Durably. Raises OSError."""
    sync(fresh)
    fresh.replace(local)
    sync(local.parent)


def store_of(local: Path, acquisition: str, job: str) -> ArtifactStore:
    """The store that `local` is a name in. Raises ValueError."""
    for parent in local.parents:
        if (parent.parent.name, parent.name) == (acquisition, job):
            return ArtifactStore(parent.parent.parent)
    raise ValueError(f"{local} is not a file of {acquisition}/{job}")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _name(target: Path, name: Path) -> None:
    """In place of what was called so before."""
    try:
        _link(target, name)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        fresh = _fresh(name)
        fresh.symlink_to(os.path.relpath(target, name.parent))
        fresh.replace(name)
        sync(name.parent)


def _link_new(source: Path, name: Path) -> None:
    """Raises FileExistsError and other OSErrors."""
    try:
        os.link(source, name)
    except FileNotFoundError:  # its directory, most likely
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, name)


def _link(source: Path, name: Path) -> None:
    """Whichever of the two the disk has after a power cut, it is whole."""
    fresh = _fresh(name)
    os.link(source, fresh)
    fresh.replace(name)


def _fresh(path: Path) -> Path:
    """A name beside `path` that nobody has, not even a thread that outlives its cancelled task;
    one that is left by a crash goes with the retention."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")


def sync(path: Path) -> None:
    """A file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
