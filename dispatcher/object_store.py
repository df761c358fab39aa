"""Results in an S3-compatible object store, beside the artifact directory (extra `s3`).

`<prefix>/objects/<2>/<sha256>` is the content; `<prefix>/<acquisition>/<job>/index.json` says which
names it has. Credentials and endpoint are those of the AWS tools (AWS_PROFILE, AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dispatcher.core.model import Reason
from dispatcher.errors import SettingsError, TransferError
from dispatcher.store.rows import ArtifactRow

T = TypeVar("T")

BLOCK = 8 << 20
_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 3, "mode": "standard"},
    },
    "use_listings_cache": False,
}
_KEY = re.compile(r"objects/[0-9a-f]{2}/([0-9a-f]{64})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    sha256: str
    bytes: int
    modified_at: float  # Unix seconds, by the server's clock


class ObjectStore:
    """All methods block, and raise TransferError for what the server does."""

    def __init__(self, url: str) -> None:
        """`url`: s3://bucket or s3://bucket/prefix. Raises SettingsError."""
        try:
            import fsspec
            import s3fs  # noqa: F401 - what fsspec would ask for
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise SettingsError(
                "this cosma has no S3",
                where="COSMA_ARTIFACTS_URL",
                why=str(error),
                fix="Install it with the extra: pip install 'cosma[s3]'",
            ) from None
        self.url = url.rstrip("/")
        self._failures: tuple[type[Exception], ...] = (OSError, BotoCoreError, ClientError)
        # One of its own: the environment may name another endpoint than the last time.
        self._fs: Any = fsspec.filesystem("s3", skip_instance_cache=True, **_OPTIONS)
        self._root = self.url.removeprefix("s3://")

    def url_of(self, sha256: str) -> str:
        return f"{self.url}/{_key(sha256)}"

    def put(self, local: Path, sha256: str, size: int) -> str:
        """Returns the URL once the very bytes were read back. What is there already stays."""
        path = f"{self._root}/{_key(sha256)}"

        def once() -> bool:
            if self._has(path, sha256, size):
                return True
            self._fs.put_file(str(local), path)
            return self._has(path, sha256, size)

        if not self._guard(once):
            raise TransferError(
                Reason.TRANSFER_CORRUPT,
                f"{local} did not arrive whole",
                where=self.url_of(sha256),
                why="what was read back is not what was sent",
                fix="Check the object store",
            )
        return self.url_of(sha256)

    def _has(self, path: str, sha256: str, size: int) -> bool:
        if not self._fs.exists(path) or self._fs.info(path)["size"] != size:
            return False
        return bool(self._digest(path, lambda _: None) == sha256)

    def _digest(self, path: str, keep: Callable[[bytes], object]) -> str:
        known = hashlib.sha256()
        with self._fs.open(path, "rb", block_size=BLOCK, cache_type="readahead") as stream:
            while block := stream.read(BLOCK):
                known.update(block)
                keep(block)
        return known.hexdigest()

    def get(self, sha256: str, part: Path) -> None:
        """Write the object to `part`, verified; it is then to be put in its place."""

        def once() -> bool:
            with part.open("wb") as sink:
                return self._digest(f"{self._root}/{_key(sha256)}", sink.write) == sha256

        if not self._guard(once):
            part.unlink(missing_ok=True)
            raise TransferError(
                Reason.TRANSFER_CORRUPT,
                "the object is not what was stored",
                where=self.url_of(sha256),
                fix="Remove it there; what has it still stores it again",
            )

    def write_index(self, acquisition: str, job: str, rows: Iterable[ArtifactRow]) -> None:
        """What the job's files are called, and which object each is."""
        names = [
            {"path": row.path, "kind": row.kind, "bytes": row.bytes, "sha256": row.sha256,
             "object": _key(row.sha256)}
            for row in rows
        ]  # fmt: skip
        text = json.dumps({"acquisition": acquisition, "job": job, "files": names}, indent=1)
        path = f"{self._root}/{acquisition}/{job}/index.json"
        self._guard(lambda: self._fs.pipe_file(path, text.encode()))

    def objects(self) -> Iterator[RemoteObject]:
        found = self._guard(lambda: self._fs.find(f"{self._root}/objects", detail=True))
        for path, facts in found.items():
            match = _KEY.search(path)
            modified = facts.get("LastModified")
            if match is not None and isinstance(modified, datetime):
                yield RemoteObject(
                    sha256=match[1], bytes=int(facts["size"]), modified_at=modified.timestamp()
                )

    def other_indexes(self, known: Collection[tuple[str, str]]) -> list[str]:
        """What other databases keep here: the indexes of jobs that are not among `known`
        (acquisition, job)."""
        found = self._guard(lambda: self._fs.glob(f"{self._root}/*/*/index.json"))
        others = [path for path in found if tuple(path.split("/")[-3:-1]) not in known]
        return [self._guard(partial(self._fs.cat_file, path)).decode() for path in others]

    def remove(self, sha256: str) -> None:
        self._guard(lambda: self._fs.rm_file(f"{self._root}/{_key(sha256)}"))

    def _guard(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except self._failures as error:
            raise TransferError(
                Reason.TRANSFER_FAILED,
                "the object store failed",
                where=self.url,
                why=f"{type(error).__name__}: {error}",
                fix="Check bucket, endpoint and credentials (AWS_PROFILE, AWS_ENDPOINT_URL)",
            ) from None


def _key(sha256: str) -> str:
    return f"objects/{sha256[:2]}/{sha256}"
