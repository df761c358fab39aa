"""The verb `fetch`: pull one file from another host, or from this one, straight to this host.

rsync over ssh with pinned host keys; sftp where either side has no rsync. Both resume.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from worker_agent.partial import Partial, disk_full, opened
from worker_agent.paths import inside, run_directory
from worker_agent.peer import pull
from worker_agent.protocol import BLOCK_BYTES, FailureCode, FetchRequest, TransferReport
from worker_agent.refusal import RefusedError, failed, is_disk_full
from worker_agent.transfer import is_complete

_SSH_OPTIONS = (
    "-oForwardAgent=no",
    "-oClearAllForwardings=yes",
    # Before OpenSSH's own first choice, which costs a third more CPU.
    "-oCiphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=10",
    "-oServerAliveCountMax=3",
)
_SOURCE = re.compile(r"(?:(?P<host>\[[^\]/]+\]|[^:/\-\n][^:/\n]*):)?(?P<path>/.+)", re.DOTALL)


def fetch(request: FetchRequest) -> TransferReport:
    """Bring the file here, verify it, rename it into place. A file that is here and verifies is
    complete at once. SHA-256 is taken only to be compared with one that is known: nobody waits for
    one that is for the record (`digest`).

    Raises RefusedError: bad_request, input_missing, disk_full, transfer_failed, transfer_corrupt,
    tool_missing, busy (the same file is being fetched).
    """
    began = time.monotonic()
    target = inside(run_directory(request.run_dir), request.path)
    host, path = parse_source(request.source)
    if request.peer is not None and (host is not None or request.bytes is None):
        raise RefusedError("bad_request", "of a peer, a path and its size must be known")
    if is_complete(target, request.bytes, request.sha256):
        return _report(request, target, request.sha256, began)
    with opened(target) as part:
        if request.sha256 is None and host is None and request.peer is None:
            os.ftruncate(part.descriptor, 0)  # nothing could tell a stale beginning from a fresh
        if request.bytes is not None:
            part.require_space(request.bytes)
        found, hashed = None, request.sha256 is not None
        if request.peer is not None:
            size = request.bytes or 0
            found = pull(request.peer, part, size, request.bytes_s, hashed=hashed)
        elif host is None:
            _copy(Path(path), part)
        else:
            _pull(host, path, part, request)
        size = part.size()
        if request.bytes is not None and size != request.bytes:
            part.path.unlink()
            raise failed(
                FailureCode.TRANSFER_CORRUPT,
                f"{request.source} has {size} bytes, {request.bytes} were announced: "
                "the source changed, ingest it again",
            )
        if hashed:
            part.publish(found or part.digest().hexdigest(), request.sha256)
        else:
            part.settle()
    return _report(request, target, request.sha256, began)


def parse_source(source: str) -> tuple[str | None, str]:
    """("host", "/path") or (None, "/path"). Raises RefusedError for anything else."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise RefusedError(
            "bad_request", f"source {source!r} is neither host:/absolute/path nor /absolute/path"
        )
    return match["host"], match["path"]


def _report(
    request: FetchRequest, target: Path, sha256: str | None, began: float
) -> TransferReport:
    return TransferReport(
        path=request.path,
        bytes=target.stat().st_size,
        sha256=sha256,
        complete=True,
        seconds=round(time.monotonic() - began, 3),
    )


def _copy(source: Path, part: Partial) -> None:
    if not source.is_file():
        raise failed(FailureCode.INPUT_MISSING, f"{source} is not a file on this host")
    total = source.stat().st_size
    if part.size() > total:
        os.ftruncate(part.descriptor, 0)
    part.require_space(total)
    with source.open("rb") as stream:
        at = part.size()
        stream.seek(at)
        while block := stream.read(BLOCK_BYTES):
            try:
                at += os.pwrite(part.descriptor, block, at)
            except OSError as error:
                if is_disk_full(error):
                    raise disk_full(part.target, total - at) from None
                raise
            stream.seek(at)


def _pull(host: str, path: str, part: Partial, request: FetchRequest) -> None:
    capped = request.bytes_s is not None
    kib_s = max(1, round((request.bytes_s or 0.0) / 1024))
    if shutil.which("rsync") is not None:
        command = [
            "rsync",
            "--protect-args",
            "--partial",
            "--inplace",
            "--append-verify",
            *([f"--bwlimit={kib_s}"] if capped else []),
            "-e",
            shlex.join(["ssh", *_SSH_OPTIONS]),
            f"{host}:{path}",
            str(part.path),
        ]
        code, text = _run(command, part, b"")
        if code == 0:
            return
        if not _lacks_rsync(code, text):
            raise _failure(host, path, code, text)
    if shutil.which("sftp") is None:
        raise failed(
            FailureCode.TOOL_MISSING,
            "neither rsync nor sftp is installed on this host: install one",
        )
    if "\n" in path:
        raise failed(
            FailureCode.TOOL_MISSING, "sftp cannot name a file with a line end: install rsync here"
        )
    if request.sha256 is None:
        os.ftruncate(part.descriptor, 0)
    verb = "reget" if part.size() else "get"
    batch = f"{verb} {_sftp_quote(path)} {_sftp_quote(str(part.path))}\n"
    cap = ["-l", str(kib_s * 8)] if capped else []
    command = ["sftp", "-q", *cap, *_SSH_OPTIONS, "-b", "-", host]
    code, text = _run(command, part, batch.encode())
    if code != 0:
        raise _failure(host, path, code, text)


def _run(command: list[str], part: Partial, stdin: bytes) -> tuple[int, str]:
    """(exit code, what it printed). The child inherits the lock: it may outlive a killed verb."""
    process = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(part.descriptor,),
        check=False,
    )
    return process.returncode, process.stdout.decode(errors="replace")


def _lacks_rsync(code: int, text: str) -> bool:
    return code in (12, 127) and ("not found" in text or "No such file" in text)


def _sftp_quote(path: str) -> str:
    """sftp splits at blanks and expands globs, in quotes too; a backslash, outside quotes, takes
    the meaning from the one character after it."""
    return re.sub(r"([^\w/.-])", r"\\\1", path)


def _failure(host: str, path: str, code: int, text: str) -> RefusedError:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("sftp>")]
    reason = lines[0] if lines else f"exit code {code}"
    where = f"{host}:{path}"
    if "Host key verification failed" in text or "host key" in text.lower():
        return failed(
            FailureCode.TRANSFER_FAILED,
            f"{where}: the host key of {host} is not the one this host knows: "
            "put the right one into this host's known_hosts",
        )
    if "Permission denied (" in text:
        return failed(
            FailureCode.TRANSFER_FAILED,
            f"{where}: {host} does not accept this host's ssh key: authorise it there",
        )
    if "No space left" in text:
        return failed(FailureCode.DISK_FULL, f"{where}: this host's disk is full: free space")
    if "No such file" in text or "not found" in text:
        return failed(FailureCode.INPUT_MISSING, f"{where} does not exist: {reason}")
    return failed(FailureCode.TRANSFER_FAILED, f"{where}: {reason}")
