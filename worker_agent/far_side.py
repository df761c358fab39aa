"""A command on another host, by this host's ssh: one request goes in, a stream comes out."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, cast

from worker_agent.messages import FailureCode, Message
from worker_agent.refusal import RefusedError, failed

_ENDS_S = 5.0
_SSH_FAILED = 255  # ssh's own exit code: any other came from the far side


@contextmanager
def asked(
    options: Sequence[str],
    destination: str,
    port: int | None,
    command: str,
    request: Message,
    pass_fds: Sequence[int] = (),
) -> Iterator[BinaryIO]:
    """What `command` answers there. `pass_fds`: what the child must hold as long as it lives.

    Raises RefusedError: bad_request, tool_missing; and transfer_failed with ssh's last words in
    place of the caller's own, where the stream ended because ssh did.
    """
    if destination.startswith("-"):
        raise RefusedError("bad_request", f"{destination!r} is no destination of ssh")
    at = () if port is None else ("-p", str(port))
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                ["ssh", *options, *at, "--", destination, command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                pass_fds=tuple(pass_fds),
            )  # fmt: skip
        except FileNotFoundError:
            raise failed(FailureCode.TOOL_MISSING, "ssh is not installed on this host") from None
        asking, stream = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
        try:
            with contextlib.suppress(BrokenPipeError):  # ssh has ended and said why
                asking.write(request.to_json().encode() + b"\n")
                asking.close()
            yield stream
        except RefusedError as error:
            broke_off = error.refusal.error == FailureCode.TRANSFER_FAILED
            if not broke_off or not _ssh_failed(process):
                raise
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else error.refusal.message
            raise failed(FailureCode.TRANSFER_FAILED, f"ssh {destination}: {why}") from None
        finally:
            process.kill()
            stream.close()
            process.wait()


def _ssh_failed(process: subprocess.Popen[bytes]) -> bool:
    """At the end of its stream it ends at once; before, it may be writing for ever."""
    try:
        return process.wait(_ENDS_S) == _SSH_FAILED
    except subprocess.TimeoutExpired:
        return False
