"""The verbs `grant` and `revoke`: a key of another host may read one thing here, for a while.

One line of authorized_keys for one transfer: it runs `give` for one file, or `pack` for one job's
directory, and nothing else, opens no terminal and no tunnel, and sshd itself refuses it once it has
expired. Lines of others are kept as they are.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_agent.bundle import code_directory
from worker_agent.durable import write_all
from worker_agent.epoch import check_epoch
from worker_agent.limit import limit
from worker_agent.protocol import FailureCode, GrantReply, GrantRequest, RevokeRequest
from worker_agent.refusal import RefusedError, failed

_MARK = "cosma-transfer"
_OURS = re.compile(rf" {_MARK}:(?P<epoch>\d+):(?P<name>[0-9a-f]+)$")
_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp256) [A-Za-z0-9+/=]+")
_NAME = re.compile(r"[0-9a-f]{8,64}")


def grant(request: GrantRequest) -> GrantReply:
    """Let the holder of a key read one file, or one job's directory, until the time is over.

    Raises RefusedError: stale_epoch, bad_request, input_missing, and OSError where authorized_keys
    cannot be written.
    """
    check_epoch(Path(request.work_dir), request.epoch)
    if not _KEY.fullmatch(request.public_key) or not _NAME.fullmatch(request.name):
        raise RefusedError("bad_request", "no public key, or no name for it")
    path = Path(request.path)
    if not path.is_absolute():
        raise RefusedError("bad_request", f"{request.path!r} is no absolute path")
    if request.verb not in ("give", "pack"):
        raise RefusedError("bad_request", f"no key runs {request.verb!r}")
    if not (path.is_file() if request.verb == "give" else path.is_dir()):
        raise failed(FailureCode.INPUT_MISSING, f"{path} is not there on this host")
    until = time.time() + request.lifetime_s
    command = shlex.join([*_agent(), request.verb, limit(str(path), until)])
    if "\n" in command:
        raise RefusedError("bad_request", "a line end in the path of the agent")
    options = ",".join(
        [
            "restrict",
            'command="' + command.replace('"', '\\"') + '"',
            # Local time: only newer sshd know another.
            time.strftime('expiry-time="%Y%m%d%H%M%S"', time.localtime(until)),
        ]
    )
    line = f"{options} {request.public_key} {_MARK}:{request.epoch}:{request.name}"
    with _rewritten(request.authorized_keys) as lines:
        lines.append(line)
    return GrantReply(lines=1)


def _agent() -> list[str]:
    """By the code that lies unpacked, without the site's own packages: half the start."""
    code = code_directory()
    run = f"import sys; sys.path.insert(0, {str(code)!r}); from worker_agent.__main__ import main"
    return [sys.executable, "-I", "-S", "-c", f"{run}; sys.exit(main())"]


def revoke(request: RevokeRequest) -> GrantReply:
    """Take one back; without a name all that earlier dispatchers have left."""
    check_epoch(Path(request.work_dir), request.epoch)
    removed = 0
    if not Path(request.authorized_keys).expanduser().is_file():
        return GrantReply(lines=0)
    with _rewritten(request.authorized_keys) as lines:
        for line in list(lines):
            found = _OURS.search(line)
            if found is not None and _meant(found, request):
                lines.remove(line)
                removed += 1
    return GrantReply(lines=removed)


def _meant(found: re.Match[str], request: RevokeRequest) -> bool:
    if request.name:
        return found["name"] == request.name
    return int(found["epoch"]) < request.epoch


@contextmanager
def _rewritten(authorized_keys: str) -> Iterator[list[str]]:
    """The lines, to be changed in place; written anew, as a whole, if they were."""
    path = Path(authorized_keys).expanduser().resolve()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two verbs at once must not undo each other
        try:
            before = os.fsdecode(path.read_bytes())
            mode = path.stat().st_mode & 0o777
        except FileNotFoundError:
            before, mode = "", 0o600
        lines = before.removesuffix("\n").split("\n") if before else []
        known = list(lines)
        yield lines
        if lines == known:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            write_all(descriptor, os.fsencode("".join(f"{line}\n" for line in lines)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        os.fsync(folder)
    finally:
        os.close(folder)
